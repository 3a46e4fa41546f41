"""What the forms of a layer's weights cost, and what a file is predicted to spend on them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.base.record import Positive, Record, Text
from pipeline.compress.quantization.chosen import (
    ChosenForm,
    Expected,
    NotNegative,
    Weights,
    weights_of,
)
from pipeline.formats.format import Format
from pipeline.recipe.weight_forms import WeightForm

_FULL_BYTES, _FEW_BYTES = 1.01, 1.13
"""What deflate makes of weights, as a multiple of their entropy: of those that fill their bytes,
and of few different ones in a byte each."""
_CHANNEL, _LAYER = 0.6, 0.2
"""What it leaves of the numbers of a channel, and of a layer's description. All four were read off
files of a ResNeSt-50, in int8 and in int4 (docs/measurements.md)."""


class FormCost(Record):
    """What one form of a layer's weights costs.

    Attributes:
        loss: divergence of the network's answers, nats an image; see `sensitivity.costs`.
        entropy: bits of a weight that the best code for single weights takes.
    """

    loss: NotNegative
    entropy: NotNegative


class LayerCosts(Record):
    """What the forms of one layer cost.

    Attributes:
        layer: path of the module.
        weights: how many.
        channels: output channels.
        blocks: of input channels, of each of them.
        pointwise: whether its image is of one pixel, so that it multiplies a vector by a matrix.
        forms: that it can have.
    """

    layer: Text
    weights: Positive
    channels: Positive
    blocks: Positive
    pointwise: bool
    forms: dict[WeightForm, FormCost]


class LayerForm(Record):
    """The form that a layer was given; the same for every format.

    Attributes:
        costs: of the forms that were tried; of none where there was no choice.
        form: of its weights.
    """

    costs: LayerCosts
    form: WeightForm


def weights_in(
    forms: Sequence[LayerForm], target: Format, divergence: NotNegative | None
) -> Weights:
    """The bits of a network's weights as a report has them, for files of one format.

    Args:
        forms: of all layers.
        target: their format.
        divergence: of the network with all weights rounded; None where forms were not chosen.
    """
    chosen = divergence is not None
    layers = [_chosen_form(one, target) for one in forms]
    sizes, downloads = (
        [megabytes(one.costs, one.form, target, download) for one in forms] if wanted else []
        for download, wanted in ((False, True), (True, chosen))
    )
    expected = Expected(
        size_mb=sum(sizes),
        download_mb=sum(downloads) if chosen else None,
        loss=sum(one.loss or 0.0 for one in layers) if chosen else None,
        divergence=divergence,
    )
    return weights_of(layers, expected)


def _chosen_form(layer: LayerForm, target: Format) -> ChosenForm:
    costs, form = layer.costs, layer.form
    return ChosenForm(
        layer=costs.layer,
        form=form,
        weights=costs.weights,
        megabytes=weight_bytes(costs, form, target) / 1e6,
        loss=costs.forms[form].loss if form in costs.forms else None,
    )


def megabytes(layer: LayerCosts, form: WeightForm, target: Format, download: bool) -> float:
    """What a file spends on a layer, in units of 1e6 bytes; compressed, where it is downloaded."""
    stored = target.bytes["int8"]
    weights = weight_bytes(layer, form, target)
    if not download:
        return (weights + stored.channel * layer.channels + stored.layer) / 1e6
    few = form != "int8" and weights == layer.weights
    entropy = layer.weights * layer.forms[form].entropy / 8
    packed = min(weights, entropy * (_FEW_BYTES if few else _FULL_BYTES))
    return (packed + _CHANNEL * stored.channel * layer.channels + _LAYER * stored.layer) / 1e6


def weight_bytes(layer: LayerCosts, form: WeightForm, target: Format) -> float:
    """What it spends on the weights alone."""
    return target.weight_bytes(form, layer.weights, layer.channels, layer.blocks, layer.pointwise)
