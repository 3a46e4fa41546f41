"""What there is to say of the forms that layers' weights were given; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.base.record import Positive, Record, Text
from pipeline.recipe.weight_forms import WEIGHT_FORMS, WeightForm

NotNegative = Annotated[float, Field(ge=0)]


class ChosenForm(Record):
    """The form of one layer's weights.

    Attributes:
        layer: path of the module.
        form: of its weights.
        weights: how many.
        megabytes: that the file is predicted to spend on them, in units of 1e6 bytes.
        loss: the divergence it was predicted to cost, nats an image; None where it was not found.
    """

    layer: Text
    form: WeightForm
    weights: Positive
    megabytes: NotNegative
    loss: NotNegative | None


class Expected(Record):
    """What was known of all forms together before anything was trained.

    Attributes:
        size_mb: that the file is predicted to have, in units of 1e6 bytes.
        download_mb: the same compressed; None where no costs were found.
        loss: the sum of the layers' losses, nats an image; None where no costs were found.
        divergence: of the network's answers to the calibration images, with all weights rounded
            and nothing else, from those of the float network, nats an image; what `loss` predicts.
            None where no costs were found.
    """

    size_mb: NotNegative
    download_mb: NotNegative | None = None
    loss: NotNegative | None = None
    divergence: NotNegative | None = None


class FormTotal(Record):
    """The layers whose weights have one form.

    Attributes:
        layers: how many.
        weights: of all of them.
        megabytes: that the file is predicted to spend on these, in units of 1e6 bytes.
    """

    layers: Positive
    weights: Positive
    megabytes: NotNegative


class Weights(Record):
    """The bits of a network's weights, where a recipe gives or allows layers fewer than 8.

    Attributes:
        forms: what there is of each, in the order of `WeightForm`.
        expected: of all of them.
        layers: each with its form, in the order of the network.
    """

    forms: dict[WeightForm, FormTotal]
    expected: Expected
    layers: Annotated[tuple[ChosenForm, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _of_these_layers(self) -> Self:
        if self.forms != by_form(self.layers):
            raise ValueError("forms: are not those of layers")
        return self


def by_form(layers: Sequence[ChosenForm]) -> dict[WeightForm, FormTotal]:
    """The layers of each form that there is."""
    found = {form: [one for one in layers if one.form == form] for form in WEIGHT_FORMS}
    return {
        form: FormTotal(
            layers=len(some),
            weights=sum(one.weights for one in some),
            megabytes=sum(one.megabytes for one in some),
        )
        for form, some in found.items()
        if some
    }


def weights_of(layers: Sequence[ChosenForm], expected: Expected) -> Weights:
    """The record of some layers."""
    return Weights(forms=by_form(layers), expected=expected, layers=tuple(layers))
