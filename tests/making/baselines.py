"""A float baseline of a small network, measured once a process."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

from pipeline.measure.baseline import measuring
from pipeline.measure.baseline.record import FloatBaseline
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.recipe import Recipe, load_recipes
from pipeline.tasks.images.dataset import Dataset
from tests.making import networks
from tests.making.recipes import DEVICE_RECIPES, NARROW_MODEL

GPU = "NVIDIA H100 80GB HBM3"
DAY = "2026-11-20T10:11:12Z"


def silent(title: str, total: int) -> Any:
    return nullcontext(lambda done, text: None)


@cache
def recipe() -> Recipe:
    (found,) = load_recipes(
        [DEVICE_RECIPES["onnx"]], [*NARROW_MODEL, "measure.rounds=3", "measure.warmup=0"]
    )
    return found


@cache
def network() -> ResNeSt:
    return networks.small()


@cache
def dataset() -> Dataset:
    return networks.dataset()


@cache
def here() -> FloatBaseline:
    """What this machine's CPU makes of a small network."""
    return measuring.measured(recipe(), network(), dataset(), 1000, silent)


def of_gpu(device: str = GPU, **changes: Any) -> FloatBaseline:
    """The same, as if a GPU had said so."""
    host = here().host.model_copy(update={"gpu": device, "cpu": "Another CPU"})
    parts = {"device": device, "device_kind": "gpu", "host": host, "measured_at": DAY}
    return FloatBaseline(**dict(here()) | parts | changes)
