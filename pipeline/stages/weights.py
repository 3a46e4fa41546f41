"""The form of each layer's weights: the stage that finds what they cost, and what chooses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import TypeAdapter
from torch import Tensor, fx

from pipeline.base.errors import InputError
from pipeline.base.record import Positive
from pipeline.compress.quantization import bits
from pipeline.formats.formats import FORMATS
from pipeline.networks.lowering.places import FloatPlaces
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.weight_forms import WeightForm, block_of
from pipeline.stages.context import (
    Context,
    Inputs,
    calibration_batches,
    fed,
    quantized_graph,
    small_model,
)
from pipeline.stages.exported import CALIBRATION
from pipeline.stages.stage import (
    CORE,
    CUTTING,
    FORMING,
    IMAGES,
    PRUNING,
    QUANTIZER,
    QUANTIZING,
    Stage,
    StageFacts,
)
from pipeline.stages.weight_sizes import FormCost, LayerCosts, LayerForm, megabytes
from pipeline.tasks.evaluation import predictions
from pipeline.tasks.tasks import TASKS

if TYPE_CHECKING:
    from pipeline.compress.quantization.few_bits import WeightedLayer

COSTS, FORMS = "costs.json", "forms.json"
"""Names of files: what each form of each layer costs, in the folder of `sensitivity`; and which
form each layer has, in that of `qat`."""


class SensitivityFacts(StageFacts):
    """Of how many layers the forms were compared, and on how many images."""

    layers: Positive
    images: Positive

    def details(self) -> list[str]:
        """Both."""
        return [f"{self.layers} layers, {self.images} images"]


_COSTS = TypeAdapter(tuple[LayerCosts, ...])
_FORMS = TypeAdapter(tuple[LayerForm, ...])


def sensitivity(context: Context, inputs: Inputs, out: Path) -> SensitivityFacts:
    """What each form of each layer costs, from one pass over the calibration images."""
    from pipeline.compress.quantization import qat
    from pipeline.compress.quantization.equalization import equalize
    from pipeline.compress.quantization.few_bits import weighted_layers
    from pipeline.compress.quantization.sensitivity import MOST_IMAGES, costs

    config = context.recipe.qat
    torch.manual_seed(context.recipe.seed)
    graph = quantized_graph(context, small_model(context, inputs))

    def images() -> Iterable[Tensor]:
        return calibration_batches(context)

    qat.without_rounding(graph)
    if config.equalize:
        equalize(graph, images)
    layers = weighted_layers(graph)
    found = _moves(layers, _open_forms(context.recipe, layers))
    link = TASKS[context.recipe.task.kind].link
    moves = {
        name: {form: move for form, (move, _) in forms.items()} for name, forms in found.items()
    }
    losses = costs(graph, layers, moves, images, link, context.recipe.seed)
    table = tuple(
        _described(
            layer,
            {
                form: FormCost(loss=losses[layer.name][form], entropy=entropy)
                for form, (_, entropy) in found[layer.name].items()
            },
        )
        for layer in layers
    )
    (out / COSTS).write_bytes(_COSTS.dump_json(table, indent=1))
    seen = min(len(context.dataset.calibration), MOST_IMAGES)
    return SensitivityFacts(layers=len(layers), images=seen)


def _open_forms(
    recipe: Recipe, layers: Sequence[WeightedLayer]
) -> dict[str, tuple[WeightForm, ...]]:
    """The forms that a recipe names, of layers that can have them."""
    config = recipe.qat.weights
    named = tuple(dict.fromkeys((*config.forms, *config.layers.values())))
    return {layer.name: named if layer.takes_fewer else ("int8",) for layer in layers}


def _described(layer: WeightedLayer, forms: dict[WeightForm, FormCost]) -> LayerCosts:
    from pipeline.compress.quantization.few_bits import is_pointwise

    return LayerCosts(
        layer=layer.name,
        weights=layer.weight.numel(),
        channels=len(layer.weight),
        blocks=layer.weight.shape[1] // block_of(layer.weight.shape[1]),
        pointwise=all(map(is_pointwise, layer.convolutions)),
        forms=forms,
    )


_Moves = dict[str, dict[WeightForm, tuple[Tensor, float]]]


def _moves(layers: Sequence[WeightedLayer], forms: Mapping[str, Sequence[WeightForm]]) -> _Moves:
    """What rounding to each form adds to the weights, and the entropy of what they become."""
    from pipeline.compress.quantization.few_bits import rounding_of

    found: _Moves = {}
    for layer in layers:
        weight = layer.weight.float()
        found[layer.name] = {}
        for form in forms[layer.name]:
            module = layer.module if form == "int8" else rounding_of(weight, form, layer.module)
            module.enable_fake_quant(True)
            with torch.no_grad():
                rounded = module(weight)
                steps = rounded / module.scale.reshape(-1, *[1] * (weight.dim() - 1))
            module.enable_fake_quant(False)
            found[layer.name][form] = (rounded - weight, entropy_of(steps.round().to(torch.int8)))
    return found


def entropy_of(codes: Tensor) -> float:
    """Bits a number that the best code for single numbers takes (Shannon 1948), of int8."""
    counts = torch.bincount(codes.flatten().to(torch.int64) + 128, minlength=256).double()
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(shares * shares.log2()).sum()))


def forms_of(
    context: Context, inputs: Inputs, graph: fx.GraphModule
) -> tuple[tuple[LayerForm, ...], float | None]:
    """The form of each layer's weights, as the recipe says or as its limit allows.

    Returns:
        The forms, and by how much the answers to the calibration images move with all weights
        rounded to them; None where there was no choice.

    Raises:
        InputError: a pattern names no layer, or no choice of forms is small enough.
    """
    from pipeline.compress.quantization.few_bits import weighted_layers

    layers = weighted_layers(graph)
    config = context.recipe.qat.weights
    said = _said(context.recipe, [layer.name for layer in layers if layer.takes_fewer])
    if config.chosen_by_size:
        found = _COSTS.validate_json((inputs["sensitivity"] / COSTS).read_bytes())
        table = {one.layer: one for one in found}
        chosen = _chosen(context, graph, table, said)
        moved = _divergence(context, graph, chosen)
    else:
        table = {layer.name: _described(layer, {}) for layer in layers}
        only = {layer.name: config.forms[0] if layer.takes_fewer else "int8" for layer in layers}
        chosen = {**only, **said}
        moved = None
    forms = [LayerForm(costs=table[layer.name], form=chosen[layer.name]) for layer in layers]
    return tuple(forms), moved


def _said(recipe: Recipe, layers: Sequence[str]) -> dict[str, WeightForm]:
    """The forms that patterns say; the last pattern that fits counts."""
    said: dict[str, WeightForm] = {}
    for pattern, form in recipe.qat.weights.layers.items():
        fitting = [name for name in layers if FloatPlaces((pattern,)).hold_path(name)]
        if not fitting:
            raise InputError(
                f"qat.weights.layers: got {pattern!r}, which names no layer whose weights can "
                "have fewer bits; `pocketnest inspect` lists the layers"
            )
        said |= dict.fromkeys(fitting, form)
    return said


def _chosen(
    context: Context,
    graph: fx.GraphModule,
    table: Mapping[str, LayerCosts],
    said: Mapping[str, WeightForm],
) -> bits.Forms:
    """The forms of the least loss within the recipe's limit."""
    recipe = context.recipe
    config, target = recipe.qat.weights, FORMATS[recipe.target.format]
    downloads = config.download_mb is not None
    open_to: dict[str, dict[WeightForm, FormCost]] = {
        name: _open(one, config.forms, said.get(name)) for name, one in table.items()
    }
    losses = {name: {f: c.loss for f, c in forms.items()} for name, forms in open_to.items()}
    sizes: dict[str, dict[WeightForm, float]] = {
        name: {form: megabytes(table[name], form, target, downloads) for form in forms}
        for name, forms in open_to.items()
    }
    limit = config.download_mb if downloads else config.size_mb
    if limit is None:
        return bits.within_loss(losses, sizes, _holds_accuracy(context, graph))
    if (least := bits.least(sizes)) > limit:
        key = "download_mb" if downloads else "size_mb"
        raise InputError(
            f"qat.weights.{key}: got {limit:g}; with the fewest bits of every layer the file is "
            f"predicted to have {math.ceil(1e3 * least) / 1e3:.3f}; ask for that or more, add a "
            "form of fewer bits to qat.weights.forms, or prune more"
        )
    return bits.within_size(losses, sizes, limit)


def _open(
    layer: LayerCosts, forms: Sequence[WeightForm], said: WeightForm | None
) -> dict[WeightForm, FormCost]:
    """The forms that a layer may get: the one that is said of it, or those of the recipe."""
    allowed = (said,) if said is not None else forms
    # What can have int8 alone has that, whether or not it is asked for.
    return {f: c for f, c in layer.forms.items() if f in allowed} or dict(layer.forms)


def _holds_accuracy(context: Context, graph: fx.GraphModule) -> Callable[[bits.Forms], bool]:
    """Whether forms cost no more accuracy on the calibration images than the recipe allows."""
    from pipeline.compress.quantization.few_bits import weighted_layers

    dataset, allowed = fed(context).dataset, context.recipe.qat.weights.accuracy_drop_pt
    assert allowed is not None
    calibration = replace(dataset, tests={CALIBRATION: dataset.calibration})
    layers = weighted_layers(graph)
    moves = _moves(layers, _open_forms(context.recipe, layers))
    before = {CALIBRATION: _answers(context, graph)}
    # Images of a folder of their own have no labels: there answers may not become others.
    labelled = getattr(context.recipe.data, "calibration", None) is None

    def figure(answers: dict[str, Tensor]) -> float:
        if not labelled:
            return context.task.compare(answers, before, None).share
        return context.task.accuracies(answers, calibration)[CALIBRATION].figure

    whole = figure(before)

    def holds(chosen: bits.Forms) -> bool:
        with _rounded(layers, moves, chosen):
            return (whole - figure({CALIBRATION: _answers(context, graph)})) * 100 <= allowed

    return holds


def _divergence(context: Context, graph: fx.GraphModule, chosen: bits.Forms) -> float:
    """By how much the answers to the calibration images move with all weights rounded."""
    from pipeline.compress.quantization.few_bits import weighted_layers
    from pipeline.compress.quantization.sensitivity import divergence

    layers = weighted_layers(graph)
    whole = _answers(context, graph)
    with _rounded(layers, _moves(layers, {n: (form,) for n, form in chosen.items()}), chosen):
        return divergence(whole, _answers(context, graph), TASKS[context.recipe.task.kind].link)


def _answers(context: Context, graph: fx.GraphModule) -> Tensor:
    dataset = fed(context).dataset
    return predictions(graph, dataset.calibration, dataset)


@contextmanager
def _rounded(
    layers: Sequence[WeightedLayer], moves: _Moves, chosen: Mapping[str, WeightForm]
) -> Iterator[None]:
    """Have the layers of a graph rounded weights meanwhile."""
    before = [layer.weight.clone() for layer in layers]
    for layer in layers:
        layer.weight.add_(moves[layer.name][chosen[layer.name]][0])
    yield
    for layer, weight in zip(layers, before, strict=True):
        layer.weight.copy_(weight)


def kept_forms(folder: Path) -> tuple[LayerForm, ...]:
    """What `write_forms` kept in a folder; none where all weights are int8."""
    file = folder / FORMS
    return _FORMS.validate_json(file.read_bytes()) if file.exists() else ()


def read_forms(folder: Path) -> dict[str, WeightForm]:
    """The forms that are not int8, by layer, as `write_forms` left them."""
    return {one.costs.layer: one.form for one in kept_forms(folder) if one.form != "int8"}


def write_forms(folder: Path, forms: Sequence[LayerForm]) -> None:
    """Keep the forms of a network's layers."""
    (folder / FORMS).write_bytes(_FORMS.dump_json(tuple(forms), indent=1))


def _chooses(recipe: Recipe) -> bool:
    return recipe.target.precision == "int8" and recipe.qat.weights.chosen_by_size


STAGE = Stage(
    name="sensitivity",
    make=sensitivity,
    facts=SensitivityFacts,
    after=("train", "prune", "sparsify"),
    reads=(
        *("qat.weights.forms", "qat.weights.layers", "qat.equalize", "qat.float"),
        *("target.input", "task", "seed", "threads"),
    ),
    code=(*CORE, *PRUNING, *QUANTIZER, *FORMING),
    needed=_chooses,
    packages=(*IMAGES, *CUTTING, *QUANTIZING),
    on_host=True,
)
