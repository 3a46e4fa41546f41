"""Times of files: fitted by layer, held against the file, corrected where they are off."""

import functools
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compress.pruning.costs import Channels, Widths
from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.groups import Group
from pipeline.compress.pruning.widths import Plan
from pipeline.measure import width_times
from pipeline.measure.file_layers import FileLayer, file_layers, sized_layers
from pipeline.measure.layers import layers_of
from pipeline.measure.width_times import (
    Sample,
    choose_in_time,
    fit,
    nearest,
)
from pipeline.networks.family import Structure
from pipeline.networks.resnest.branches import branch_form
from pipeline.recipe.input_shape import square
from tests.making.networks import SHALLOW, SIDE, VARIANTS, small, structure
from tests.making.programs import program
from tests.making.pruning import plain_group

pytestmark = pytest.mark.slow

GROUPS = tuple(
    plain_group(name, channels)
    for name, channels in (("layer1.0.a", 64), ("layer1.0.b", 128), ("layer2.0.a", 32))
)
TRUE = {"first": (0.0, 0.01, 0.02, 0.3), "inner": (1e-4, 0.0, 0.01, 0.1), "last": (0, 0.05, 0, 0)}


def of(group: str) -> Channels:
    return Channels(fixed=0, of=((group, Fraction(1)),))


LAYERS = (
    FileLayer(
        name="q1", place="layer1.0.a", kind="first", inputs=Channels(fixed=3),
        outputs=of("layer1.0.a"), sized=True,
    ),
    FileLayer(
        name="q2", place="layer1.0.b", kind="inner", inputs=of("layer1.0.a"),
        outputs=of("layer1.0.b"), sized=True,
    ),
    FileLayer(
        name="q3", place="layer2.0.a", kind="inner", inputs=of("layer1.0.b"),
        outputs=of("layer2.0.a"), sized=True,
    ),
    FileLayer(
        name="q4", place="fc", kind="last", inputs=of("layer2.0.a"), outputs=Channels(fixed=5),
        sized=False,
    ),
)  # fmt: skip


def true_times(widths: Widths) -> dict[str, float]:
    found = {}
    for layer in LAYERS:
        a, b, c, d = TRUE[layer.kind]
        products, inputs, outputs = layer.features(widths)
        found[layer.name] = a * products + b * inputs + c * outputs + d
    return found


def samples(noise: float, seed: int = 0, counted: float = 0.8) -> list[Sample]:
    """Files that take what `TRUE` says; their layers, timed alone, add up to a part of it."""
    chance = random.Random(seed)
    assigned = [{g.name: g.channels for g in GROUPS}]
    count = width_times.SAMPLES + width_times.HELD_OUT
    assigned += [width_times.random_widths(GROUPS, 8, i) for i in range(count)]
    return [
        Sample(
            widths=widths,
            milliseconds=sum(times.values()) * (1 + noise * chance.uniform(-1, 1)),
            layers={name: counted * ms for name, ms in times.items()} | {"(other)": 0.01},
        )
        for widths in assigned
        for times in [true_times(widths)]
    ]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_what_layers_take_is_found_again(seed: int) -> None:
    found = fit(LAYERS, samples(noise=0.0))
    widths = width_times.random_widths(GROUPS, 8, seed)
    assert found.cost.of(widths) == pytest.approx(sum(true_times(widths).values()), rel=0.02)
    assert len(found.errors) == width_times.HELD_OUT
    assert max(map(abs, found.errors)) < 0.02


def test_noise_shows_in_the_errors_of_files_that_the_fit_has_not_seen() -> None:
    assert max(map(abs, fit(LAYERS, samples(noise=0.3, seed=1)).errors)) > 0.03


def test_terms_know_their_groups_and_never_sink_below_zero() -> None:
    cost = fit(LAYERS, samples(noise=0.2)).cost
    assert [term.groups for term in cost.terms] == [
        ("layer1.0.a",),
        ("layer1.0.a", "layer1.0.b"),
        ("layer1.0.b", "layer2.0.a"),
        ("layer2.0.a",),
    ]
    whole = {g.name: g.channels for g in GROUPS}
    for g in GROUPS:
        assert cost.of(whole | {g.name: 8}) <= cost.of(whole)


def plan() -> Plan:
    return Plan(
        structure=Structure(classifier="fc"),
        groups=GROUPS,
        scores={g.name: torch.ones(g.channels, dtype=torch.float64) for g in GROUPS},
        cost=fit(LAYERS, samples(noise=0.0)).cost,
        round_to=1,
    )


@pytest.mark.parametrize("off", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("scope", ["layer", "network"])
def test_a_prediction_that_is_off_is_corrected(off: float, scope: str) -> None:
    """What a file gains on its way down is more or less than predicted."""
    searched = plan()
    whole = searched.cost.of(searched.present())

    def measured(widths: Widths) -> float:
        return 1 - (1 - searched.cost.of(widths) / whole) * off

    attempts = choose_in_time(searched, 0.7 * whole, whole, scope, measured)
    assert attempts[0].predicted == pytest.approx(0.7, abs=0.05)
    best = nearest(attempts, 0.7)
    assert best.measured == pytest.approx(0.7, rel=0.03)
    assert abs(best.measured - 0.7) == min(abs(a.measured - 0.7) for a in attempts)
    assert len(attempts) <= 6


def test_nothing_is_corrected_below_the_floor() -> None:
    searched = plan()
    whole, floor = searched.cost.of(searched.present()), searched.cost.of(searched.floor())
    attempts = choose_in_time(searched, floor, whole, "network", lambda widths: 0.9)
    assert all(attempt.widths == searched.floor() for attempt in attempts)


def test_random_widths_are_in_reach() -> None:
    odd = (*GROUPS, plain_group("c", 20, parts=2))
    for seed in range(50):
        for group, width in zip(odd, width_times.random_widths(odd, 8, seed).values(), strict=True):
            assert 0 < width <= group.channels
            assert width % 8 == 0


@functools.cache
def layers_and_groups(variant: str) -> tuple[tuple[FileLayer, ...], tuple[Group, ...]]:
    model = branch_form(small(**{"layers": SHALLOW} | VARIANTS[variant]))
    groups = groups_of(model, square(SIDE), structure(model))
    return file_layers(program(variant), groups), groups


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_of_the_file_knows_its_groups(variant: str) -> None:
    layers, groups = layers_and_groups(variant)
    channels = {group.name: group.channels for group in groups}
    shapes = {n.name: n.meta["val"].shape for n in program(variant).graph.nodes if "val" in n.meta}
    assert {layer.name for layer in layers} == {
        layer.name for layer in layers_of(program(variant)) if layer.inputs
    }
    assert {group for layer in layers if layer.sized for group in layer.outputs.groups} == set(
        channels
    )
    for layer in layers:
        assert layer.outputs.at(channels) == shapes[layer.name][1]
    widths = sized_layers(layers, channels)
    assert widths == {layer.name: shapes[layer.name][1] for layer in layers if layer.sized}


def test_layers_of_one_kind_are_fitted_together() -> None:
    layers, _ = layers_and_groups("plain")
    kinds = [layer.kind for layer in layers]
    assert len(set(kinds)) < len(kinds)
