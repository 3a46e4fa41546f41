"""The form of each layer's weights: said, or chosen within a limit, and what was known of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.compress.quantization import bits, qat
from pipeline.compress.quantization.chosen import Expected
from pipeline.compress.quantization.few_bits import few_bit_layers, take_forms, weighted_layers
from pipeline.compress.quantization.sensitivity import divergence
from pipeline.formats.formats import FORMATS
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.weight_forms import WeightForm
from pipeline.stages import prune, train, weights
from pipeline.stages import qat as qat_stage
from pipeline.stages.context import Context, calibration_batches, quantized_graph, small_model
from pipeline.stages.weight_sizes import weights_in
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
        forms, divergence = weights.forms_of(about, self.inputs(), graph)
        for layer in weighted_layers(graph):
            assert torch.equal(layer.weight, before[layer.name]), "what is tried leaves no trace"
        found = weights_in(forms, FORMATS[about.recipe.target.format], divergence)
        assert [one.layer for one in found.layers] == LAYERS
        assert [one.weights for one in found.layers] == WEIGHTS
        return {one.layer: one.form for one in found.layers}, found.expected

    def costs(self) -> dict[str, Mapping[WeightForm, Mapping[str, float]]]:
        """What `sensitivity` found: of each layer, of each form, loss and entropy."""
        found = json.loads((self.folder / "sensitivity" / weights.COSTS).read_text())
        return {one["layer"]: one["forms"] for one in found}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    found = Place(folder=tmp_path_factory.mktemp("weights"))
    inputs = found.inputs()
    about = found.about(SEVERAL, "qat.weights.size_mb=1")
    for stage in (train.STAGE, prune.STAGE, weights.STAGE):
        inputs[stage.name].mkdir()
        stage.make(about, inputs, inputs[stage.name])
    return found


@pytest.fixture(autouse=True)
def four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that spend 4 bits on int4 and on 16 values, and on linear layers' 64 values 6."""
    changed = replace(
        FORMATS["onnx"],
        few_bits={"int4": 4, "palette16": 4},
        few_bits_pointwise={"palette64": 6},
        few_bits_layer={},
    )
    monkeypatch.setitem(FORMATS, "onnx", changed)


BYTES = FORMATS["onnx"].bytes["int8"]
AROUND = sum(13 * channels for channels in (16, 16, 16, 16, 16, 5)) + 6 * BYTES.layer
"""Bytes of a file beside its weights."""


def test_costs_are_those_of_every_layer_and_form(place: Place) -> None:
    costs = place.costs()
    assert list(costs) == LAYERS
    for forms in costs.values():
        assert list(forms) == ["int8", "int4", "palette16", "palette64"]
        losses = {form: cost["loss"] for form, cost in forms.items()}
        assert 0 <= losses["int8"] < losses["palette64"] < losses["palette16"]
        assert losses["palette64"] < losses["int4"]
        assert forms["int4"]["entropy"] <= 4 >= forms["palette16"]["entropy"]
        assert forms["palette64"]["entropy"] < min(6, forms["int8"]["entropy"])
        assert forms["int8"]["entropy"] <= 8


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_forms_have_the_least_loss_within_a_size(share: float, place: Place) -> None:
    """Beside all choices of int8 and int4 that there are."""
    most, least = sum(WEIGHTS) + AROUND, sum(WEIGHTS) / 2 + AROUND
    limit = (least + share * (most - least) + 1) / 1e6
    forms, expected = place.forms(
        "qat.weights.forms=[int8, int4]", f"qat.weights.size_mb={limit:.9f}"
    )
    losses = {name: {f: c["loss"] for f, c in of.items()} for name, of in place.costs().items()}
    halves = dict(zip(LAYERS, WEIGHTS, strict=True))

    def size(fewer: set[str]) -> float:
        return (most - sum(halves[name] / 2 for name in fewer)) / 1e6

    def loss(fewer: set[str]) -> float:
        return sum(losses[name]["int4" if name in fewer else "int8"] for name in LAYERS)

    chosen = {name for name, form in forms.items() if form == "int4"}
    assert expected.size_mb == pytest.approx(size(chosen))
    assert expected.size_mb <= limit
    assert expected.loss == pytest.approx(loss(chosen))
    every = [{n for i, n in enumerate(LAYERS) if number >> i & 1} for number in range(64)]
    best = min(loss(some) for some in every if size(some) <= limit)
    assert loss(chosen) == pytest.approx(best, rel=1e-3)


def test_a_download_counts_the_entropy_of_weights(place: Place) -> None:
    limit = 0.0075
    forms, expected = place.forms(SEVERAL, f"qat.weights.download_mb={limit}")
    assert len(set(forms.values())) > 1
    assert expected.download_mb is not None
    assert expected.download_mb <= limit < expected.size_mb
    costs = place.costs()
    counted = sum(
        number * costs[name][form]["entropy"] / 8e6
        for (name, form), number in zip(forms.items(), WEIGHTS, strict=True)
    )
    assert 0 < counted < expected.download_mb < 1.5 * counted


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (
            "size_mb=0.01",
            r"qat\.weights\.size_mb: got 0\.01; with .* predicted to have 0\.013; ask for that",
        ),
        ("download_mb=0.001", r"qat\.weights\.download_mb: got 0\.001; .* predicted to have 0\.00"),
    ],
)
def test_a_limit_that_no_choice_keeps_is_refused(limit: str, message: str, place: Place) -> None:
    with pytest.raises(InputError, match=message):
        place.forms(SEVERAL, f"qat.weights.{limit}")


def test_a_pattern_decides_and_the_last_one_counts(place: Place) -> None:
    forms, expected = place.forms(
        "qat.weights.forms=[int4]",
        "qat.weights.layers={blocks.*: palette16, blocks.1.conv1: int8}",
    )
    assert forms == {
        **dict.fromkeys(LAYERS, "palette16"),
        **{"stem.0": "int4", "fc": "int4", "blocks.1.conv1": "int8"},
    }
    assert (expected.loss, expected.divergence, expected.download_mb) == (None, None, None)
    whole = sum(WEIGHTS) / 2 + WEIGHTS[3] / 2 + AROUND
    assert expected.size_mb == pytest.approx(whole / 1e6)


def test_a_said_form_stays_where_others_are_chosen(place: Place) -> None:
    said = "qat.weights.layers={stem.0: int8, fc: palette16}"
    forms, _ = place.forms(SEVERAL, "qat.weights.size_mb=0.0135", said)
    assert (forms["stem.0"], forms["fc"]) == ("int8", "palette16")
    assert {"int4", "palette16"} & {forms[name] for name in LAYERS[1:-1]}


def test_a_pattern_that_names_no_layer_is_refused(place: Place) -> None:
    message = r"qat\.weights\.layers: got 'blocks\.7\.\*', which names no layer whose weights"
    with pytest.raises(InputError, match=message):
        place.forms("qat.weights.layers={blocks.7.*: int4}")


def test_accuracy_decides_how_small_it_gets(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where any loss is allowed the file is the smallest; where none is, that is tried."""
    smallest, expected = place.forms(SEVERAL, "qat.weights.accuracy_drop_pt=100")
    assert "int8" not in smallest.values()
    assert expected.size_mb == pytest.approx((sum(WEIGHTS) / 2 + AROUND) / 1e6)
    monkeypatch.setattr(weights, "_holds_accuracy", lambda context, graph: lambda chosen: False)
    largest, _ = place.forms(SEVERAL, "qat.weights.accuracy_drop_pt=0")
    assert set(largest.values()) == {"int8"}


def test_the_accuracy_that_is_tried_is_that_of_rounded_weights(place: Place) -> None:
    about = place.about(SEVERAL, "qat.weights.accuracy_drop_pt=5")
    graph = quantized_graph(about, small_model(about, place.inputs()))
    qat.without_rounding(graph)
    images = torch.cat(list(calibration_batches(about)))
    with torch.no_grad():
        named = graph(images).argmax(1)
    labels = about.dataset.calibration.labels
    whole = float((named == labels).float().mean())
    all_int8: bits.Forms = dict.fromkeys(LAYERS, "int8")
    holds = weights._holds_accuracy(about, graph)
    assert holds(all_int8)
    for layer in weighted_layers(graph):
        if layer.name == "fc":  # another network now, of which no answer is right
            layer.weight.copy_(-layer.weight)
    with torch.no_grad():
        turned = float((graph(images).argmax(1) == labels).float().mean())
    assert holds(all_int8) is ((whole - turned) * 100 <= 5)


def test_of_images_without_labels_the_answers_may_not_become_others(place: Place) -> None:
    about = place.about(SEVERAL, "qat.weights.accuracy_drop_pt=5")
    images = about.dataset.calibration
    unlabelled = replace(images, labels=torch.zeros_like(images.labels))
    folder = ImageFolderData.model_construct(calibration=Path("photos"))
    about = replace(
        about,
        dataset=replace(about.dataset, calibration=unlabelled),
        recipe=about.recipe.model_copy(update={"data": folder}),
    )
    graph = quantized_graph(about, small_model(about, place.inputs()))
    qat.without_rounding(graph)
    all_int8: bits.Forms = dict.fromkeys(LAYERS, "int8")
    holds = weights._holds_accuracy(about, graph)
    assert holds(all_int8)
    for layer in weighted_layers(graph):
        if layer.name == "fc":
            layer.weight.copy_(-layer.weight)
    assert not holds(all_int8)


def test_what_rounding_moves_is_measured_as_it_is(place: Place) -> None:
    _, expected = place.forms(SEVERAL, "qat.weights.size_mb=0.0135")
    forms, _ = place.forms(SEVERAL, "qat.weights.size_mb=0.0135")
    about = place.about(SEVERAL, "qat.weights.size_mb=0.0135")
    graph = quantized_graph(about, small_model(about, place.inputs()))
    qat.without_rounding(graph)
    images = torch.cat(list(calibration_batches(about)))
    with torch.no_grad():
        before = graph(images)
        take_forms(graph, forms)
        for layer in weighted_layers(graph):
            layer.module.enable_fake_quant(True)
            layer.weight.copy_(layer.module(layer.weight))
            layer.module.enable_fake_quant(False)
        after = graph(images)
    wanted = divergence(before, after, "softmax")
    assert expected.divergence == pytest.approx(wanted, rel=1e-3)
    assert expected.loss is not None
    # Drawn answers of 16 images: the size of it is right.
    assert wanted / 4 < expected.loss < wanted * 4


def test_the_stage_keeps_forms_that_the_next_one_reads(place: Place, tmp_path: Path) -> None:
    about = place.about(SEVERAL, "qat.weights.size_mb=0.0135")
    facts = qat_stage.STAGE.make(about, place.inputs(), tmp_path)
    assert facts is not None
    kept = weights.kept_forms(tmp_path)
    assert [one.costs.layer for one in kept] == LAYERS
    assert sum(facts.forms.values()) == 6
    assert facts.divergence is not None
    fewer = weights.read_forms(tmp_path)
    assert fewer == {one.costs.layer: one.form for one in kept if one.form != "int8"}
    assert any("layers' weights: " in line for line in facts.details())
    graph = quantized_graph(about, small_model(about, place.inputs()))
    take_forms(graph, fewer)
    assert {layer.name: module.form for layer, module in few_bit_layers(graph)} == fewer
    assert weights.kept_forms(place.folder) == ()


def test_plain_int8_has_no_forms(place: Place, tmp_path: Path) -> None:
    facts = qat_stage.STAGE.make(place.about(), place.inputs(), tmp_path)
    assert facts is not None
    assert (facts.forms, facts.divergence) == ({}, None)
    assert not (tmp_path / weights.FORMS).exists()
    assert not weights.STAGE.needed(place.about().recipe)
    assert not weights.STAGE.needed(place.about("qat.weights.forms=[int4]").recipe)
    assert weights.STAGE.needed(place.about(SEVERAL, "qat.weights.size_mb=1").recipe)


def test_another_limit_finds_the_costs_again(place: Place) -> None:
    """They are of the forms, not of the limit: the stage's key does not have it."""
    reads = weights.STAGE.reads
    assert not [key for key in reads if key.endswith(("size_mb", "download_mb", "_pt", ".weights"))]


def test_formats_share_one_training_unless_bytes_decide(place: Place) -> None:
    """The same forms are trained once for all formats."""

    def reads(*overrides: str) -> tuple[str, ...]:
        also = qat_stage.STAGE.also_reads
        assert also is not None
        return also(place.about(*overrides).recipe)

    assert reads("qat.weights.forms=[int4]") == ()
    assert reads(SEVERAL, "qat.weights.size_mb=1") == ("target.format",)
