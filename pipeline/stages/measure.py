"""The stage that judges and times the file."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.base.errors import reading
from pipeline.base.store import Facts
from pipeline.measure import timing
from pipeline.stages.context import LOGITS, Context, Inputs, first_top1, float_model
from pipeline.stages.exported import file_of, format_of, run_of
from pipeline.stages.times import unpruned_file
from pipeline.tasks.classification import NAMED, accuracies, write_named


def measure(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Accuracy, size and latency of the exported file."""
    file = file_of(context, inputs)
    with reading(inputs["verify"] / LOGITS):
        logits = torch.load(inputs["verify"] / LOGITS, weights_only=True)
    accuracy = accuracies(logits, context.dataset)
    write_named(logits, context.dataset, out / NAMED)
    why_not = format_of(context).cannot_time()
    return {
        "sha256": timing.sha256_of(file),
        "size_bytes": timing.size_bytes(file),
        "download_bytes": timing.download_bytes(file),
        "accuracy": {name: a.model_dump() for name, a in accuracy.items()},
        "cannot_time": why_not,
        "latency": _times(context, inputs) if why_not is None else {},
        "beside_unpruned": _beside_unpruned(context, inputs) if "times" in inputs else {},
        "top1": first_top1(accuracy),
    }


def _times(context: Context, inputs: Inputs) -> Facts:
    """Latencies of the float network and the file, timed in turn, by number of threads."""
    recipe = context.recipe
    image = timing.first_image(context.dataset)
    float_run = timing.float_run(float_model(context, inputs), image)
    timed = {}
    for threads in sorted({1, recipe.target.threads}):
        both = {"float": float_run, "target": run_of(context, file_of(context, inputs), threads)}
        taken = timing.interleaved(
            both, warmup=recipe.measure.warmup, rounds=recipe.measure.rounds, threads=threads
        )
        timed[str(threads)] = {name: latency.model_dump() for name, latency in taken.items()}
    return timed


def _beside_unpruned(context: Context, inputs: Inputs) -> Facts:
    """Latencies of the file and that of the unpruned network, timed in turn.

    Without the float network between them: its weights would push both files' out of the caches,
    and the file that runs after it would pay for that.
    """
    threads = context.recipe.target.threads
    files = {"target": file_of(context, inputs), "unpruned": unpruned_file(context, inputs)}
    runs = {name: run_of(context, file, threads) for name, file in files.items()}
    taken = timing.compared(runs, rounds=context.recipe.measure.rounds, threads=threads)
    return {name: latency.model_dump() for name, latency in taken.items()}
