"""The stage that judges and times the float network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.base import torchrun
from pipeline.base.record import Count, Positive
from pipeline.base.torchrun import device
from pipeline.measure.baseline.forms import FORMS, round_products, settings_kept
from pipeline.measure.baseline.record import EXACT
from pipeline.measure.latency import Latency
from pipeline.networks.checkpoints import WEIGHTS
from pipeline.networks.count import count
from pipeline.stages.context import Context, Inputs, first_figure, float_model
from pipeline.stages.stage import CORE, IMAGES, Stage, StageFacts
from pipeline.tasks.accuracy import AnyAccuracy
from pipeline.tasks.evaluation import network_logits
from pipeline.tasks.predictions import NAMED


class BaselineFacts(StageFacts):
    """The float network on this machine's best device.

    Attributes:
        device_kind: of that device.
        accuracy: by test set.
        latency_ms: of one image.
        size_bytes: of the float weights.
    """

    device_kind: Literal["cpu", "gpu"]
    accuracy: dict[str, AnyAccuracy]
    latency_ms: Latency
    size_bytes: Positive
    params: Count
    macs: Count


def baseline(context: Context, inputs: Inputs, out: Path) -> BaselineFacts | None:
    """Accuracy, size and latency of the float network on this machine's best device."""
    from pipeline.measure import timing
    from pipeline.measure.baseline.calls import timed_exact

    recipe, place = context.recipe, device()
    model = float_model(context, inputs).to(place)
    with settings_kept():
        round_products(FORMS[EXACT].tf32)
        logits = network_logits(model, context.dataset, "baseline")
    context.task.keep(logits, context.dataset, out / NAMED)
    accuracy = context.task.accuracies(logits, context.dataset)
    counts = count(model, recipe.model.input_shape)
    if not torchrun.is_first():
        return None  # nothing else runs beside a stage that times
    timed = timed_exact(recipe, model, context.dataset, place, context.tracked)
    return BaselineFacts(
        device_kind="gpu" if place.type == "cuda" else "cpu",
        accuracy=accuracy,
        latency_ms=timed.latency_ms,
        size_bytes=timing.size_bytes(inputs["train"] / WEIGHTS),
        params=counts.params,
        macs=counts.macs,
        figure=first_figure(accuracy),
    )


STAGE = Stage(
    name="baseline",
    make=baseline,
    facts=BaselineFacts,
    after=("train",),
    reads=("task", "measure", "target.threads"),
    code=(
        *(*CORE, "measure/timing.py", "measure/latency.py", "measure/baseline"),
        "stages/baseline.py",
    ),
    packages=IMAGES,
    sees_tests=True,
    on_device=True,
    on_host=True,
    shared=True,
)
