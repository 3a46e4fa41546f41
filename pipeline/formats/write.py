"""Write one file from a saved program.

TensorFlow and coremltools take gigabytes and seconds to load and print a lot: they write in a child
process, which gives the memory back and keeps the noise in the log.

    python -m pipeline.formats.write program.pt2 tflite model.tflite [pixels] [sparse] [x86_amx] \
        [opset17] [few_bits] [clipped_products] [float16_products] [classifier] [float16] \
        [--link softmax] [--description description.json] [--delegates delegates.json]
    python -m pipeline.formats.write --early tflite   # the same words, as JSON, from its input
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pipeline.base.children import Children, Early, end_with_parent, told_work
from pipeline.base.disk import is_full, refusal
from pipeline.base.errors import InputError
from pipeline.base.profile import span, start_in_child
from pipeline.formats.description import label, read_description
from pipeline.formats.format import Option
from pipeline.formats.formats import FORMATS
from pipeline.recipe.task import Link

_PACKAGE_PARENT = Path(__file__).parents[2]
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
# -P: a folder named pipeline where the user stands must not take this package's place.
_CHILD = (sys.executable, "-P", "-m", "pipeline.formats.write")
_EARLY = "--early"
_PIXELS = "pixels"
_DISK_REFUSED = 74
"""Exit code of the child, as sysexits.h has it for input and output."""


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
    options: Collection[Option] = (),
    link: Link | None = None,
    description: Path | None = None,
    delegates: Path | None = None,
    children: Children | None = None,
) -> None:
    """Write the program saved at `program` to `path`, in a child process where the format asks.

    Args:
        program: from the fold stage.
        format_name: of `FORMATS`.
        path: of the file to write.
        pixels: the program takes pixel values 0..255, so the file is to take 8-bit RGB images.
        options: how the file is to differ; those that the format does not have change nothing. A
            classifier needs `link` and `description`.
        link: what is to make probabilities of the logits in the file; None leaves logits.
        description: what the file is to say of itself, as `Description.write` keeps it.
        delegates: where to write what is known of accelerators and the file, as JSON; None
            does not look.
        children: those that the child is to be ended with.

    Raises:
        InputError: the disk or the memory of a child was not enough.
        OSError: the disk was not enough, without a child.
        RuntimeError: the child failed; its output is where this process's own output goes.
    """
    asked = _Asked(
        program=program,
        format=format_name,
        path=path,
        flags=[_PIXELS] * pixels + sorted(FORMATS[format_name].options & set(options)),
        link=link,
        description=description,
        delegates=delegates,
    )
    if FORMATS[format_name].in_process:
        _write(asked)
        return
    _in_child(asked, children or Children())


def early_writers(formats: Collection[str], stage: str) -> dict[str, Early]:
    """Children that load what writes files of some formats, and wait to be told which (`Early`)."""
    environment = child_environment()
    return {
        name: Early(command=[*_CHILD, _EARLY, name], environment=environment, stage=stage)
        for name in formats
        if not FORMATS[name].in_process
    }


def _in_child(asked: _Asked, children: Children) -> None:
    command = [*_CHILD, *asked.words()]
    status = children.run(command, child_environment(), (asked.format, asked.words()))
    if status == -signal.SIGKILL:
        raise InputError(
            f"writing the {asked.format} file was ended by SIGKILL, as happens where memory runs "
            "out; free some and run the same command again, finished stages are kept"
        )
    if status == _DISK_REFUSED:
        raise InputError(
            f"writing the {asked.format} file failed, the disk refused it; the end of the log has "
            "the cause"
        )
    if status != 0:
        raise RuntimeError(
            f"writing the {asked.format} file failed (exit {status}); the log has the cause"
        )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is to be written, as the command line of the child has it; see `export`."""

    program: Path
    format: str
    path: Path
    flags: Sequence[str]
    link: Link | None
    description: Path | None
    delegates: Path | None

    def words(self) -> list[str]:
        """The arguments that `_arguments` reads."""
        words = [str(self.program), self.format, str(self.path), *self.flags]
        named = {"link": self.link, "description": self.description, "delegates": self.delegates}
        return words + [f"--{key}={value}" for key, value in named.items() if value is not None]


@span("convert", "the file")
def _write(arguments: _Asked) -> None:
    from pipeline.compress.quantization.program import load

    module, flags = FORMATS[arguments.format].module(), arguments.flags
    program, pixels = load(arguments.program), _PIXELS in flags
    options = {option for option in FORMATS[arguments.format].options if option in flags}
    module.write(program, arguments.path, pixels=pixels, options=options)
    about = None if arguments.description is None else read_description(arguments.description)
    if arguments.link is not None:
        head = FORMATS[arguments.format].head
        assert head is not None, "the recipe was checked"
        named = about is not None and "classifier" in flags
        labels = [label(name) for name in about.classes] if about is not None and named else None
        head().add(arguments.path, arguments.link, labels)
    if about is not None:
        module.describe(arguments.path, about)
    if arguments.delegates is not None:
        look = FORMATS[arguments.format].delegates
        found = () if look is None else look().checked(arguments.path)
        text = json.dumps([one.model_dump(mode="json") for one in found], indent=1)
        arguments.delegates.write_text(text, encoding="utf-8")


def _arguments(words: Sequence[str]) -> _Asked:
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=Path)
    parser.add_argument("format", choices=list(FORMATS))
    parser.add_argument("path", type=Path)
    parser.add_argument("flags", nargs="*")
    parser.add_argument("--link", choices=get_args(Link))
    parser.add_argument("--description", type=Path)
    parser.add_argument("--delegates", type=Path)
    return _Asked(**vars(parser.parse_args(words)))


def _words() -> Sequence[str]:
    """The arguments of this process; in one that was started early, those that it is told."""
    if sys.argv[1:2] != [_EARLY]:
        return sys.argv[1:]
    from pipeline.compress.quantization import program  # noqa: F401  loads what reads programs

    FORMATS[sys.argv[2]].module().load_writer()
    return told_work()


if __name__ == "__main__":
    start_in_child()
    asked_words = _words()
    end_with_parent()
    given = _arguments(asked_words)
    try:
        _write(given)
    except Exception as error:
        missing = isinstance(error, FileNotFoundError)  # no fault of the disk's
        if missing or (refusal(error) is None and not is_full(error, given.path.parent)):
            raise
        traceback.print_exc()
        sys.exit(_DISK_REFUSED)
