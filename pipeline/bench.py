"""Timing a finished run again, beside the float network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch

from pipeline import measure
from pipeline.errors import InputError
from pipeline.formats.export import SUFFIXES
from pipeline.models.load import build
from pipeline.recipe import Recipe
from pipeline.records import Latency

THREADS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and spread of a ratio taken round by round."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One thread count: both sides, and float / file paired by round."""

    float_cpu: Latency
    target: Latency
    ratio: Spread


def time_run(recipe: Recipe, run_dir: Path, rounds: int) -> list[Timing]:
    """Time the run's file and the float network in turn, for each of `THREADS`.

    Raises:
        InputError: the file is missing, or its format cannot run on this host.
    """
    file = run_dir / f"model{SUFFIXES[recipe.target.format]}"
    if not file.exists():
        raise InputError(f"{file}: missing; run the recipe again")
    module = import_module(f"pipeline.formats.{recipe.target.format}")
    if (reason := module.cannot_time()) is not None:
        raise InputError(f"{file}: cannot be timed here: {reason}")
    classes = len((run_dir / "labels.txt").read_text(encoding="utf-8").splitlines())
    model = build(recipe.model, classes).eval()
    side = recipe.model.input_size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    fed = image
    if recipe.target.takes_pixels:
        fed = (image * 64 + 128).round().clamp(0, 255)
    timings = []
    for threads in THREADS:
        runnable = module.open_file(file, threads)
        runnable.set_input(fed.numpy())
        both = {"float": measure.float_run(model, image), "file": runnable.invoke}
        taken = measure.interleaved(both, warmup=5, rounds=rounds, threads=threads)
        timings.append(_timing(taken["float"], taken["file"]))
    (run_dir / "bench.json").write_text(
        json.dumps(
            [
                {
                    "float_cpu": t.float_cpu.model_dump(),
                    "target": t.target.model_dump(),
                    "ratio": asdict(t.ratio),
                }
                for t in timings
            ],
            indent=1,
        ),
        encoding="utf-8",
    )
    return timings


def _timing(float_cpu: Latency, target: Latency) -> Timing:
    pairs = sorted(
        slow / fast for slow, fast in zip(float_cpu.samples_ms, target.samples_ms, strict=True)
    )
    last = len(pairs) - 1
    return Timing(
        float_cpu=float_cpu,
        target=target,
        ratio=Spread(
            median=pairs[round(last * 0.5)],
            p10=pairs[round(last * 0.1)],
            p90=pairs[round(last * 0.9)],
        ),
    )
