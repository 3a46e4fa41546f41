"""What it takes to load and to run files of weights of few bits, beside those of int8.

    python -m tests.scale few_bits_times onnx [--form palette16] [--loads 5] [--runs 60]

A ResNeSt-50 at 224 x 224 of random weights, calibrated on noise. Every load is a process of its
own, one file after the other in turn. Memory is what the process has at most while it loads the
file, less what it had before. Runs take turns as well, on one thread of one process; seconds of the
processor count, and the int8 file opened a second time says how far they can be trusted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from pipeline.formats.formats import FORMATS
from pipeline.measure.timing import size_bytes
from pipeline.recipe.input_shape import square
from pipeline.recipe.weight_forms import WEIGHT_FORMS, WeightForm
from tests.scale.few_bits import graph, program
from tests.scale.report import Found

SHAPE = square(224)
SLOWER = 1.05
"""Bar: run time of a file of few bits, as a multiple of the int8 file's."""
LOAD = "--load"


def memory(key: str) -> float:
    """Of this process, a line of its status: MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"{key}: no such line")


def load(name: str, path: Path) -> None:
    """Open a file and print what that takes; in a process of its own."""
    module = FORMATS[name].module()
    __import__({"onnx": "onnxruntime", "tflite": "ai_edge_litert.interpreter"}.get(name, "sys"))
    Path("/proc/self/clear_refs").write_text("5")  # the most memory counts from here
    before, clock, processor = memory("VmRSS"), time.perf_counter(), time.process_time()
    opened = module.open_file(path, threads=1)
    taken = (time.perf_counter() - clock, time.process_time() - processor)
    peak, after = memory("VmHWM") - before, memory("VmRSS") - before
    del opened
    print(json.dumps([1e3 * taken[0], 1e3 * taken[1], peak, after]))


def loads(name: str, files: Sequence[Path], count: int) -> list[list[float]]:
    """Medians for each file: milliseconds of clock and processor, MB at most and afterwards."""
    found: list[list[list[float]]] = [[] for _ in files]
    for _ in range(count):
        for path, into in zip(files, found, strict=True):
            command = [sys.executable, "-m", "tests.scale", "few_bits_times", name, LOAD, str(path)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            into.append(json.loads(said.strip().splitlines()[-1]))
    return [[median(column) for column in zip(*rows, strict=True)] for rows in found]


def runs(name: str, files: Sequence[Path], count: int) -> list[list[float]]:
    """Milliseconds of the processor for each run of each file.

    Raises:
        SystemExit: the files answer otherwise.
    """
    module = FORMATS[name].module()
    opened = [module.open_file(path, threads=1) for path in files]
    image = np.random.default_rng(0).standard_normal(SHAPE.batch(1)).astype(np.float32)
    taken: list[list[float]] = [[] for _ in files]
    for one in opened:
        one.set_input(image)
    for number in range(count + 1):
        order = range(len(files)) if number % 2 else reversed(range(len(files)))
        for place in order:
            started = time.process_time()
            opened[place].invoke()
            taken[place].append(1e3 * (time.process_time() - started))
    if not all(np.array_equal(one.output(), opened[0].output()) for one in opened):
        raise SystemExit("the files answer otherwise")
    return [times[1:] for times in taken]


def measured(name: str, form: WeightForm, given: argparse.Namespace) -> list[Found]:
    """Write both files of a form and measure them."""
    known = FORMATS[name]
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch, f"{kind}{known.suffix}") for kind in ("int8", "few")]
        made = program(graph(SHAPE), form, SHAPE)
        known.module().write(made, files[0])
        known.module().write(made, files[1], options={"few_bits"})
        found = [
            Found(what=f"{kind}, file", value=size_bytes(path) / 1e6, unit="MB")
            for kind, path in zip(("int8", form), files, strict=True)
        ]
        taken = loads(name, files, given.loads)
        words = (
            ("load", "ms"),
            ("load, of the processor", "ms"),
            ("at most while loading", "MB"),
            ("when loaded", "MB"),
        )
        for number, (what, unit) in enumerate(words):
            for kind, row in zip(("int8", form), taken, strict=True):
                found.append(Found(what=f"{kind}, {what}", value=row[number], unit=unit))
        times = runs(name, [*files, files[0]], given.runs)
    found.append(Found(what="int8, a run, of the processor", value=median(times[0]), unit="ms"))
    for what, other, limit in ((form, times[1], SLOWER), ("int8 again", times[2], None)):
        ratio = median(few / int8 for few, int8 in zip(other, times[0], strict=True))
        found.append(Found(what=f"{what}, runs of int8's", value=ratio, unit="x", limit=limit))
    return found


def main(arguments: list[str]) -> int:
    """Print every measurement; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale few_bits_times")
    parser.add_argument(
        "format", choices=[n for n, f in FORMATS.items() if "few_bits" in f.options]
    )
    parser.add_argument("--form", choices=WEIGHT_FORMS[1:], default="palette16")
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument(LOAD, type=Path)
    given = parser.parse_args(arguments)
    if given.load is not None:
        load(given.format, given.load)
        return 0
    found = measured(given.format, given.form, given)
    print("".join(f"  {one.line()}\n" for one in found), end="")
    return int(any(one.limit is not None and one.value > one.limit for one in found))
