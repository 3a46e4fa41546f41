"""The stage that judges and times the float network."""

from __future__ import annotations

from pathlib import Path

from pipeline.base import torchrun
from pipeline.base.store import Facts
from pipeline.base.torchrun import device
from pipeline.measure import timing
from pipeline.networks.checkpoints import WEIGHTS
from pipeline.networks.count import count
from pipeline.stages.context import Context, Inputs, first_top1, float_model
from pipeline.tasks.classification import NAMED, accuracies, write_named
from pipeline.tasks.evaluation import network_logits


def baseline(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Accuracy, size and latency of the float network on this machine's best device."""
    recipe, place = context.recipe, device()
    model = float_model(context, inputs).to(place)
    logits = network_logits(model, context.dataset, "baseline")
    write_named(logits, context.dataset, out / NAMED)
    accuracy = accuracies(logits, context.dataset)
    counts = count(model, recipe.model.input_size)
    if not torchrun.is_first():
        return {}  # nothing else runs beside a stage that times
    image = timing.first_image(context.dataset).to(place)
    timed = timing.interleaved(
        {"float": timing.float_run(model, image)},
        warmup=recipe.measure.warmup,
        rounds=recipe.measure.rounds,
        threads=recipe.target.threads,
    )
    return {
        "device_kind": "gpu" if place.type == "cuda" else "cpu",
        "accuracy": {name: a.model_dump() for name, a in accuracy.items()},
        "latency_ms": timed["float"].model_dump(),
        "size_bytes": timing.size_bytes(inputs["train"] / WEIGHTS),
        "params": counts.params,
        "macs": counts.macs,
        "top1": first_top1(accuracy),
    }
