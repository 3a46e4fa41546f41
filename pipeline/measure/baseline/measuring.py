"""The float network measured on the machine at hand: accuracy, latency, throughput."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.base.machine import code_info, host_info
from pipeline.base.torchrun import device
from pipeline.measure.baseline.calls import (
    BATCHES,
    Tracked,
    call,
    first_images,
    timed,
    torch_threads,
)
from pipeline.measure.baseline.clocks import clocks_of
from pipeline.measure.baseline.files import model_sha256, tested_images
from pipeline.measure.baseline.forms import (
    FORMS,
    Formed,
    fastest_kernels,
    precisions,
    round_products,
    settings_kept,
)
from pipeline.measure.baseline.record import (
    EXACT,
    Clocks,
    ClocksFound,
    FloatBaseline,
    Precision,
    Timing,
)
from pipeline.measure.baseline.speed import largest_batch
from pipeline.networks.count import count
from pipeline.networks.families import family_of, model_info
from pipeline.recipe.recipe import Recipe, recipe_info
from pipeline.tasks.accuracy import AnyAccuracy
from pipeline.tasks.evaluation import network_logits
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.task import TaskModule
from pipeline.tasks.tasks import task_of

_LARGEST = {"cuda": 256, "cpu": 32}
"""The batch that throughput is taken at; a CPU gains nothing from more."""


def measured(
    recipe: Recipe,
    model: nn.Module,
    dataset: Dataset,
    size_bytes: int,
    tracked: Tracked,
    folder: Path | None = None,
) -> FloatBaseline:
    """Measure a float network on the GPU, or on the CPU where there is none.

    Args:
        recipe: gives rounds, warm-up runs and threads.
        model: in evaluation mode.
        dataset: of the recipe.
        size_bytes: of the file of its weights.
        tracked: a progress bar.
        folder: of the recipe's run, from which it names files.

    Raises:
        InputError: logits are not finite.
    """
    place, host, measured_at = device(), host_info(), datetime.now(UTC)
    shape = recipe.model.input_shape
    counts = count(model, shape)
    chosen, left_out = precisions(place)
    with settings_kept():
        formed = {p: Formed(model, FORMS[p], place).eval() for p in chosen}
        accuracy, answers = _accuracies(task_of(recipe), formed, dataset, tracked)
        before = clocks_of(place)
        timings, untimed = _timings(recipe, formed, dataset, place, tracked)
        after = clocks_of(place)
    gpu = place.type == "cuda"
    return FloatBaseline(
        model_sha256=model_sha256(model, family_of(recipe.model).shape(model), shape),
        model=model_info(recipe, len(dataset.classes), counts.params, counts.macs),
        data=tested_images(dataset),
        recipe=recipe_info(recipe, folder),
        code=code_info(),
        host=host,
        tools=_tools(gpu),
        device=host.gpu if gpu and host.gpu else host.cpu,
        device_kind="gpu" if gpu else "cpu",
        clocks=_found(before, after),
        measured_at=f"{measured_at:%Y-%m-%dT%H:%M:%SZ}",
        size_bytes=size_bytes,
        accuracy=accuracy,
        named=answers,
        timings=timings,
        not_measured=left_out | untimed,
    )


def _found(before: Clocks | str, after: Clocks | str) -> ClocksFound:
    if isinstance(before, str):
        return ClocksFound(before=None, after=None, missing=before)
    if isinstance(after, str):
        return ClocksFound(before=before, after=None, missing=after)
    return ClocksFound(before=before, after=after)


def _tools(gpu: bool) -> dict[str, str]:
    versions: dict[str, Any] = {"torch": torch.__version__}
    if gpu:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        versions |= {"cuda": torch.version.cuda, "cudnn": cudnn}
    return {name: str(version) for name, version in versions.items() if version is not None}


def _accuracies(
    task: TaskModule, formed: Mapping[Precision, Formed], dataset: Dataset, tracked: Tracked
) -> tuple[dict[Precision, dict[str, AnyAccuracy]], dict[str, tuple[Any, ...]]]:
    """Accuracy in every precision, and the results of the exact one."""
    found: dict[Precision, dict[str, AnyAccuracy]] = {}
    answers: dict[str, tuple[Any, ...]] = {}
    with tracked("test images", len(formed)) as advance:
        for precision, model in formed.items():
            round_products(model.form.tf32)
            logits = network_logits(model, dataset, f"baseline in {precision}")
            found[precision] = task.accuracies(logits, dataset)
            if precision == EXACT:
                answers = task.named(logits, dataset)
            advance(len(found), precision)
    return found, answers


def _timings(
    recipe: Recipe,
    formed: Mapping[Precision, Formed],
    dataset: Dataset,
    place: torch.device,
    tracked: Tracked,
) -> tuple[tuple[Timing, ...], dict[str, str]]:
    """Every batch in every precision, with and without CUDA graphs; and what could not be timed."""
    most = _LARGEST[place.type]
    images = first_images(dataset, most)

    def attempt(batch: int) -> None:
        for model in formed.values():
            round_products(model.form.tf32)
            call(model, images[:batch].to(place))()
        if place.type == "cuda":
            torch.cuda.synchronize()

    timings: list[Timing] = []
    with torch_threads(recipe.target.threads):
        with fastest_kernels():  # some of which take more memory
            fits = largest_batch(attempt, most)
        for batch in sorted({*(one for one in BATCHES if one <= fits), fits}):
            timings += timed(recipe, formed, images[:batch].to(place), tracked)
    larger = sorted({one for one in (*BATCHES, most) if one > fits})
    return tuple(timings), {f"batch {batch}": "out of memory" for batch in larger}
