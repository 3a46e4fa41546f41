"""Which form each layer gets: beside all choices that there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compress.quantization import bits
from pipeline.recipe.weight_forms import WEIGHT_FORMS, WeightForm

Table = dict[str, dict[WeightForm, float]]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, Table]:
    """Losses and sizes of up to four layers; not every one has every form."""
    losses: Table = {}
    sizes: Table = {}
    for number in range(draw(st.integers(1, 4))):
        forms = draw(st.lists(st.sampled_from(WEIGHT_FORMS), min_size=1, max_size=4, unique=True))
        name = f"layer{number}"
        losses[name] = {form: draw(st.floats(0.0, 1.0)) for form in forms}
        sizes[name] = {form: draw(st.floats(0.01, 10.0)) for form in forms}
    return losses, sizes


def choices(losses: Table) -> list[bits.Forms]:
    every = itertools.product(*losses.values())
    return [dict(zip(losses, forms, strict=True)) for forms in every]


@settings(deadline=None, max_examples=100)
@given(table=tables(), share=st.floats(0.0, 1.0))
def test_the_least_loss_within_a_size(table: tuple[Table, Table], share: float) -> None:
    losses, sizes = table
    most = sum(max(forms.values()) for forms in sizes.values())
    limit = bits.least(sizes) + share * (most - bits.least(sizes)) + 1e-6
    found = bits.within_size(losses, sizes, limit)
    assert set(found) == set(losses)
    assert all(form in losses[name] for name, form in found.items())
    assert bits.total(sizes, found) <= limit * (1 + 1e-6)
    fitting = [one for one in choices(losses) if bits.total(sizes, one) <= limit]
    best = min(bits.total(losses, one) for one in fitting)
    largest = max(loss for forms in losses.values() for loss in forms.values())
    assert bits.total(losses, found) <= best * (1 + 1e-3) + 1e-5 * largest


def test_a_size_below_the_least_is_refused() -> None:
    sizes: Table = {"a": {"int8": 2.0, "int4": 1.0}, "b": {"int8": 3.0}}
    losses: Table = {"a": {"int8": 0.0, "int4": 1.0}, "b": {"int8": 0.0}}
    assert bits.least(sizes) == 4
    assert bits.within_size(losses, sizes, 4.0) == {"a": "int4", "b": "int8"}
    with pytest.raises(ValueError, match=r"no choice of forms comes to 3\.9; the least is 4"):
        bits.within_size(losses, sizes, 3.9)


def ladder(layers: int = 12) -> tuple[Table, Table]:
    """Layers of which each costs more than all before it."""
    names = [f"layer{number}" for number in range(layers)]
    sizes: Table = {name: {"int8": 1.0, "int4": 0.5} for name in names}
    losses: Table = {name: {"int8": 0.0, "int4": 2.0**n} for n, name in enumerate(names)}
    return losses, sizes


@pytest.mark.parametrize("allowed", [0, 1, 5, 11, 12])
def test_a_loss_that_is_allowed_decides_how_small_it_gets(allowed: int) -> None:
    losses, sizes = ladder()
    asked: list[int] = []

    def holds(forms: bits.Forms) -> bool:
        fewer = sum(form == "int4" for form in forms.values())
        asked.append(fewer)
        return fewer <= allowed

    found = bits.within_loss(losses, sizes, holds)
    fewer = [name for name, form in found.items() if form == "int4"]
    assert len(fewer) == allowed
    assert fewer == list(losses)[:allowed], "those that cost least"
    assert len(asked) <= 9


def test_where_nothing_holds_every_layer_has_its_least_loss() -> None:
    losses, sizes = ladder(3)
    losses["layer1"] = {"int8": 0.5, "int4": 0.25}
    found = bits.within_loss(losses, sizes, lambda forms: False)
    assert found == {"layer0": "int8", "layer1": "int4", "layer2": "int8"}
