"""The stage that judges and times the float network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.base import torchrun
from pipeline.base.record import Count, Positive
from pipeline.base.torchrun import device
from pipeline.measure import timing
from pipeline.measure.latency import Latency
from pipeline.networks.checkpoints import WEIGHTS
from pipeline.networks.count import count
from pipeline.stages.context import Context, Inputs, first_top1, float_model
from pipeline.stages.stage import CORE, Stage, StageFacts
from pipeline.tasks.accuracy import Accuracy
from pipeline.tasks.classification import NAMED, accuracies, write_named
from pipeline.tasks.evaluation import network_logits


class BaselineFacts(StageFacts):
    """The float network on this machine's best device.

    Attributes:
        device_kind: of that device.
        accuracy: by test set.
        latency_ms: of one image.
        size_bytes: of the float weights.
    """

    device_kind: Literal["cpu", "gpu"]
    accuracy: dict[str, Accuracy]
    latency_ms: Latency
    size_bytes: Positive
    params: Count
    macs: Count


def baseline(context: Context, inputs: Inputs, out: Path) -> BaselineFacts | None:
    """Accuracy, size and latency of the float network on this machine's best device."""
    recipe, place = context.recipe, device()
    model = float_model(context, inputs).to(place)
    logits = network_logits(model, context.dataset, "baseline")
    write_named(logits, context.dataset, out / NAMED)
    accuracy = accuracies(logits, context.dataset)
    counts = count(model, recipe.model.input_size)
    if not torchrun.is_first():
        return None  # nothing else runs beside a stage that times
    image = timing.first_image(context.dataset).to(place)
    timed = timing.interleaved(
        {"float": timing.float_run(model, image)},
        warmup=recipe.measure.warmup,
        rounds=recipe.measure.rounds,
        threads=recipe.target.threads,
    )
    return BaselineFacts(
        device_kind="gpu" if place.type == "cuda" else "cpu",
        accuracy=accuracy,
        latency_ms=timed["float"],
        size_bytes=timing.size_bytes(inputs["train"] / WEIGHTS),
        params=counts.params,
        macs=counts.macs,
        top1=first_top1(accuracy),
    )


STAGE = Stage(
    name="baseline",
    make=baseline,
    facts=BaselineFacts,
    after=("train",),
    reads=("measure", "target.threads"),
    code=(*CORE, "measure/timing.py", "measure/latency.py", "stages/baseline.py"),
    on_host=True,
    shared=True,
)
