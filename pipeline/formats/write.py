"""Write one file from a saved program, in a process of its own.

TensorFlow and coremltools take gigabytes and seconds to load and print a lot; a child process
gives the memory back and keeps the noise in the log.

    python -m pipeline.formats.write program.pt2 tflite model.tflite [pixels] [sparse] [amx] \
        [--description description.json]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from pipeline.base.children import Children, end_with_parent
from pipeline.base.disk import is_full, refusal
from pipeline.base.errors import InputError
from pipeline.formats import describe
from pipeline.formats.description import read_description

_PACKAGE_PARENT = Path(__file__).parents[2]
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
_DISK_REFUSED = 74
"""Exit code of the child, as sysexits.h has it for input and output."""

SUFFIXES = {"onnx": ".onnx", "tflite": ".tflite", "coreml": ".mlpackage"}
"""File name ending of every format."""


def _onnx(program: Path, path: Path, *, pixels: bool = False, amx: bool = False) -> None:
    from pipeline.compress.quantization.program import load
    from pipeline.formats.onnx import file as onnx_file

    onnx_file.write(load(program), path, pixels=pixels, amx=amx)


def _tflite(program: Path, path: Path, *, pixels: bool = False) -> None:
    from pipeline.compress.quantization.program import load
    from pipeline.formats.tflite import file as tflite_file

    tflite_file.write(load(program), path, pixels=pixels)


def _coreml(program: Path, path: Path, *, pixels: bool = False, sparse: bool = False) -> None:
    from pipeline.compress.quantization.program import load
    from pipeline.formats.coreml import file as coreml_file

    coreml_file.write(load(program), path, pixels=pixels, sparse=sparse)


_WRITERS: dict[str, Callable[..., None]] = {
    "onnx": _onnx,
    "tflite": _tflite,
    "coreml": _coreml,
}


def child_environment() -> dict[str, str]:
    """The environment of a child process that finds this package and keeps the libraries quiet."""
    search_path = [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    return os.environ | _QUIET | {"PYTHONPATH": os.pathsep.join(filter(None, search_path))}


def export(
    program: Path,
    format_name: str,
    path: Path,
    *,
    pixels: bool = False,
    sparse: bool = False,
    amx: bool = False,
    description: Path | None = None,
    children: Children | None = None,
) -> None:
    """Write the program saved at `program` to `path` in a child process.

    Args:
        program: from the fold stage.
        format_name: onnx, tflite or coreml.
        path: of the file to write.
        pixels: the program takes pixel values 0..255, so the file is to take 8-bit RGB images.
        amx: store weights so that ONNX Runtime multiplies them with AMX. For ONNX files alone.
        sparse: store int8 weights with many zeros sparsely. Only Core ML can; the other formats
            write every weight.
        description: what the file is to say of itself, as `Description.write` keeps it.
        children: those that the child is to be ended with.

    Raises:
        InputError: the disk or the memory was not enough.
        RuntimeError: the child failed; its output is where this process's own output goes.
    """
    # -P: a folder named pipeline where the user stands must not take this package's place.
    module = ["-P", "-m", "pipeline.formats.write"]
    command = [sys.executable, *module, str(program), format_name, str(path)]
    flags = {"pixels": pixels, "sparse": sparse and format_name == "coreml"}
    flags["amx"] = amx and format_name == "onnx"
    command += [flag for flag, given in flags.items() if given]
    command += [] if description is None else ["--description", str(description)]
    status = (children or Children()).run(command, child_environment())
    if status == -signal.SIGKILL:
        raise InputError(
            f"writing the {format_name} file was ended by SIGKILL, as happens where memory runs "
            "out; free some and run the same command again, finished stages are kept"
        )
    if status == _DISK_REFUSED:
        raise InputError(
            f"writing the {format_name} file failed, the disk refused it; the end of the log has "
            "the cause"
        )
    if status != 0:
        raise RuntimeError(
            f"writing the {format_name} file failed (exit {status}); the log has the cause"
        )


def _write(arguments: argparse.Namespace) -> None:
    flags = dict.fromkeys(arguments.flags, True)
    _WRITERS[arguments.format](arguments.program, arguments.path, **flags)
    if arguments.description is not None:
        about = read_description(arguments.description)
        describe.WRITERS[arguments.format](arguments.path, about)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=Path)
    parser.add_argument("format", choices=list(_WRITERS))
    parser.add_argument("path", type=Path)
    parser.add_argument("flags", nargs="*")
    parser.add_argument("--description", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    end_with_parent()
    given = _arguments()
    try:
        _write(given)
    except Exception as error:
        missing = isinstance(error, FileNotFoundError)  # no fault of the disk's
        if missing or (refusal(error) is None and not is_full(error, given.path.parent)):
            raise
        traceback.print_exc()
        sys.exit(_DISK_REFUSED)
