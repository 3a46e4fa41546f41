"""Make one peer's file, in a process of its own.

    python -m pipeline.commands.bench.peers.child NAME INPUTS FOLDER

NAME is one of `plans.PLANS`; INPUTS holds the network and the calibration images, and gets a
report; FOLDER holds the peers' files and gets this one.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.commands.bench.peers.plans import (
    CALIBRATION,
    NAIVE,
    NAIVE_TIMM,
    NETWORK,
    PLANS,
    report_of,
)

_KIB = 1024


def _images(inputs: Path) -> Any:
    return np.load(inputs / CALIBRATION)


def _one(inputs: Path) -> tuple[int, ...]:
    return (1, *_images(inputs).shape[1:])


def _naive(inputs: Path, source: Path, path: Path) -> None:
    from pipeline.commands.bench.peers import naive

    naive.write_onnx(naive.load_network(source), _one(inputs), path)


def _coremltools(inputs: Path, source: Path, path: Path) -> None:
    from pipeline.commands.bench.peers import naive

    naive.write_coreml(naive.load_network(source), _one(inputs), path)


def _quantize_static(inputs: Path, source: Path, path: Path) -> None:
    from pipeline.commands.bench.peers import onnx_int8

    onnx_int8.quantize_static(source, _images(inputs), path)


def _neural_compressor(inputs: Path, source: Path, path: Path) -> None:
    from pipeline.commands.bench.peers import onnx_int8

    onnx_int8.neural_compressor(source, _images(inputs), path)


def _onnx2tf_float(inputs: Path, source: Path, path: Path) -> None:
    from pipeline.commands.bench.peers import onnx2tf_files

    onnx2tf_files.write_float(source, path)


def _onnx2tf_int8(inputs: Path, source: Path, path: Path) -> None:
    from pipeline.commands.bench.peers import onnx2tf_files

    onnx2tf_files.write_int8(source, _images(inputs), path)


_WRITERS: dict[str, Callable[[Path, Path, Path], None]] = {
    NAIVE: _naive,
    "onnx int8, onnxruntime quantize_static": _quantize_static,
    "onnx int8, neural-compressor": _neural_compressor,
    NAIVE_TIMM: _naive,
    "onnx int8, quantize_static of timm's": _quantize_static,
    "tflite int8, onnx2tf -oiqt of timm's": _onnx2tf_int8,
    "tflite float, onnx2tf": _onnx2tf_float,
    "tflite int8, onnx2tf -oiqt": _onnx2tf_int8,
    "coreml float16, coremltools": _coremltools,
}
"""Each takes the folder of inputs, the file it is made from, and the path to write."""


def main(name: str, inputs: Path, folder: Path) -> int:
    """Make the file of the peer `name`; 0 if that worked. The report is written either way."""
    plans = {plan.name: plan for plan in PLANS}
    plan, error = plans[name], None
    # Not in its place before it is whole.
    unfinished = Path(plan.file).absolute()
    try:
        network = inputs / NETWORK.format(code=plan.code)
        source = network if plan.source is None else folder / plans[plan.source].file
        _WRITERS[name](inputs, source, unfinished)
        unfinished.rename(folder / plan.file)
    except (Exception, SystemExit) as raised:  # onnx2tf exits where others raise
        traceback.print_exc()
        error = _last_line(raised)
    report = {"peak_bytes": _peak_bytes(), "error": error}
    report_of(plan, inputs).write_text(json.dumps(report), encoding="utf-8")
    return 0 if error is None else 1


def _last_line(error: BaseException) -> str:
    """The last line that the first cause of `error` has to say."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return lines[-1].strip()


def _peak_bytes() -> int | None:
    """The most memory that this process, or one that it started, has held.

    On Linux getrusage begins with what the parent process held when it started this one, however
    much that was; the kernel's other figure does not.
    """
    import resource

    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="ignore")
    except OSError:
        unit = 1 if sys.platform == "darwin" else _KIB
        return max(started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return max(started, int(found[0])) * _KIB if found else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
