"""The form of each layer's weights: said, or chosen within a limit, and what was known of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.compress.quantization import bits, qat
from pipeline.compress.quantization.chosen import Expected
from pipeline.compress.quantization.few_bits import few_bit_layers, take_forms, weighted_layers
from pipeline.compress.quantization.sensitivity import divergence
from pipeline.formats.formats import FORMATS
from pipeline.recipe.weight_forms import WeightForm
from pipeline.stages import prune, qat as qat_stage, train, weights
from pipeline.stages.context import Context, calibration_batches, quantized_graph, small_model
from tests.making.recipes import PLAIN_MODEL, device_recipe
from tests.making.runs import context

pytestmark = pytest.mark.slow

LAYERS = ["stem.0", *(f"blocks.{n}.conv{k}" for n in (0, 1) for k in (1, 2)), "fc"]
WEIGHTS = [16 * 3 * 9, *[16 * 16 * 9] * 4, 16 * 5]
SHORT = (PLAIN_MODEL, "threads=1", "train.epochs=0", "prune=null", "qat.train.epochs=0")
SEVERAL = "qat.weights.forms=[int8, int4, palette16, palette64]"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A store of one network, to whose stages recipes of other forms go on."""

    folder: Path

    def inputs(self) -> dict[str, Path]:
        return {name: self.folder / name for name in ("train", "prune", "sensitivity")}

    def about(self, *overrides: str) -> Context:
        return context(device_recipe(*SHORT, *overrides))

    def forms(self, *overrides: str) -> tuple[dict[str, WeightForm], Expected]:
        """The forms of the layers, in their order, and what is known of them."""
        about = self.about(*overrides)
        graph = quantized_graph(about, small_model(about, self.inputs()))
        qat.without_rounding(graph)
        before = {layer.name: layer.weight.clone() for layer in weighted_layers(graph)}
        forms, expected = weights.forms_of(about, self.inputs(), graph)
        for layer in weighted_layers(graph):
            assert torch.equal(layer.weight, before[layer.name]), "what is tried leaves no trace"
        assert [one.layer for one in forms] == LAYERS
        assert [one.weights for one in forms] == WEIGHTS
        return {one.layer: one.form for one in forms}, expected

    def table(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "sensitivity" / weights.COSTS).read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    found = Place(folder=tmp_path_factory.mktemp("weights"))
    inputs = found.inputs()
    about = found.about(SEVERAL, "qat.weights.size_mb=1")
    for stage in (train.STAGE, prune.STAGE, weights.STAGE):
        inputs[stage.name].mkdir()
        stage.make(about, inputs, inputs[stage.name])
    return found
