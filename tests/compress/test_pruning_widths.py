"""The search for widths keeps its limit, wastes nothing, and takes what matters least."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compress.pruning import costs
from pipeline.compress.pruning.costs import Cost, Term
from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.groups import Group, stage_of
from pipeline.compress.pruning.removal import remove
from pipeline.compress.pruning.widths import Plan, choose, in_tiles, weakest
from pipeline.networks.count import count
from pipeline.networks.family import Structure
from pipeline.networks.libraries.structure import structure_of
from pipeline.networks.resnest.branches import branch_form
from pipeline.recipe.input_shape import square
from tests.making.networks import SIDE, VARIANTS, small, structure
from tests.making.plain_net import plain
from tests.making.pruning import plain_group

pytestmark = pytest.mark.slow

STRUCTURE = Structure(classifier="fc", stages=("layer1", "layer2", "layer3", "layer4"))
SCOPES = ["layer", "stage", "network"]


def group(name: str, channels: int, parts: int = 1) -> Group:
    return plain_group(name, channels, parts, stage_of(name, STRUCTURE.stages))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Chains of layers with every width, importance and rounding; costs of products and sums."""
    round_to = draw(st.sampled_from([1, 2, 3, 8]))
    groups = []
    for index in range(draw(st.integers(1, 6))):
        parts = draw(st.sampled_from([1, 2]))
        channels = draw(st.integers(1, 24)) * parts
        groups.append(group(f"layer{1 + index % 4}.{index}", channels, parts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    scores = {
        g.name: torch.rand(g.channels // g.parts, generator=generator, dtype=torch.float64)
        for g in groups
    }
    terms = []
    for one, two in zip(groups, groups[1:] + groups[:1], strict=True):
        factor = draw(st.integers(1, 9))
        terms.append(
            Term(
                layer=two.name,
                groups=tuple({one.name, two.name}),
                value=lambda w, a=one.name, b=two.name, f=factor: f * w[a] * w[b] + w[b],
            )
        )
    constant = float(draw(st.integers(0, 20)))
    return Plan(
        structure=STRUCTURE,
        groups=tuple(groups),
        scores=scores,
        cost=Cost(terms=tuple(terms), constant=constant),
        round_to=round_to,
    )


@pytest.mark.parametrize("scope", SCOPES)
@settings(deadline=None)
@given(plan=plans(), share=st.floats(0, 1))
def test_widths_keep_the_limit_and_leave_no_room_unused(
    scope: str, plan: Plan, share: float
) -> None:
    least, most = plan.cost.of(plan.floor()), plan.cost.of(plan.present())
    limit = least + share * (most - least)
    widths = choose(plan, limit, scope)
    assert plan.cost.of(widths) <= limit
    for g in plan.groups:
        step = math.lcm(plan.round_to, g.parts)
        width = widths[g.name]
        assert min(g.channels, step) <= width <= g.channels
        assert width == g.channels or width % step == 0
        if width < g.channels:
            wider = min(g.channels, (width // step + 1) * step)
            assert plan.cost.of(widths | {g.name: wider}) > limit


@pytest.mark.parametrize("scope", SCOPES)
@settings(deadline=None)
@given(plan=plans())
def test_a_limit_out_of_reach_is_refused(scope: str, plan: Plan) -> None:
    least = plan.cost.of(plan.floor())
    with pytest.raises(ValueError, match=r"the narrowest widths cost"):
        choose(plan, least * 0.99 - 0.01, scope)
    assert choose(plan, least, scope) == plan.floor() or plan.cost.of(plan.present()) <= least


@functools.cache
def plan_of_network(variant: str = "plain", round_to: int = 2) -> Plan:
    model = branch_form(small(**{"width_multiplier": 0.5} | VARIANTS[variant]))
    groups = groups_of(model, square(SIDE), structure(model))
    generator = torch.Generator().manual_seed(0)
    return Plan(
        structure=STRUCTURE,
        groups=groups,
        scores={
            g.name: torch.rand(g.channels // g.parts, generator=generator, dtype=torch.float64)
            for g in groups
        },
        cost=costs.macs(costs.layer_shapes(groups, count(model, square(SIDE)))),
        round_to=round_to,
    )


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_the_macs_of_every_kind_of_network(variant: str, scope: str) -> None:
    plan = plan_of_network(variant)
    whole = plan.cost.of(plan.present())
    assert 0.49 * whole <= plan.cost.of(choose(plan, 0.5 * whole, scope)) <= 0.5 * whole


@pytest.mark.parametrize(("channels", "step"), [(64, 16), (16, 8)])
def test_a_first_layer_keeps_widths_that_amx_multiplies_rightly(channels: int, step: int) -> None:
    """40 of 64 channels, and files of ONNX Runtime were not the program on CPUs with AMX."""
    model = plain(10, channels)
    found = structure_of(model, square(SIDE))
    groups = groups_of(model, square(SIDE), found)
    plan = replace(plan_of_network(), groups=groups, round_to=8, in_tiles=in_tiles(model, groups))
    stem, *others = groups
    assert "stem.0" in stem.makers
    assert plan.step(stem) == step
    assert {plan.step(group) for group in others} == {8}


def test_by_layer_every_group_keeps_the_same_share() -> None:
    plan = plan_of_network()
    widths = choose(plan, 0.5 * plan.cost.of(plan.present()), "layer")
    shares = {g.name: widths[g.name] / g.channels for g in plan.groups if g.channels >= 32}
    spatial = [share for name, share in shares.items() if ".fc1" not in name]
    assert min(spatial) > 0.5
    assert sorted(spatial)[len(spatial) // 2] < 0.85


def test_by_stage_every_stage_keeps_the_same_share() -> None:
    plan = plan_of_network()
    widths = choose(plan, 0.5 * plan.cost.of(plan.present()), "stage")
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        terms = [t for t in plan.cost.terms if t.layer.startswith(stage)]
        before = sum(t.value(plan.present()) for t in terms)
        assert 0.3 < sum(t.value(widths) for t in terms) / before < 0.7


def test_over_the_network_what_matters_least_for_its_cost_goes() -> None:
    """Two groups of the same cost, one of them of no importance."""
    first, second = group("layer1.0", 32), group("layer2.0", 32)
    plan = Plan(
        structure=STRUCTURE,
        groups=(first, second),
        scores={
            "layer1.0": torch.full((32,), 1e-3, dtype=torch.float64),
            "layer2.0": torch.ones(32, dtype=torch.float64),
        },
        cost=Cost(
            terms=tuple(
                Term(layer=g.name, groups=(g.name,), value=lambda w, n=g.name: w[n])
                for g in (first, second)
            )
        ),
        round_to=8,
    )
    assert choose(plan, 40, "network") == {"layer1.0": 8, "layer2.0": 32}
    assert choose(plan, 32, "network") == {"layer1.0": 8, "layer2.0": 24}
    assert choose(plan, 48, "layer") == {"layer1.0": 24, "layer2.0": 24}


def test_a_runtime_that_computes_in_tiles_does_not_stop_the_search() -> None:
    """Eight channels less gain nothing there; channels that cost nothing are kept."""
    wide = group("layer1.0", 256)
    plan = Plan(
        structure=STRUCTURE,
        groups=(wide,),
        scores={"layer1.0": torch.ones(256, dtype=torch.float64)},
        cost=Cost(
            terms=(
                Term(
                    layer="layer1.0",
                    groups=("layer1.0",),
                    value=lambda w: -(-w["layer1.0"] // 64) * 64.0,
                ),
            )
        ),
        round_to=8,
    )
    for scope in SCOPES:
        assert choose(plan, 200, scope) == {"layer1.0": 192}
        assert choose(plan, 128, scope) == {"layer1.0": 128}


def test_the_least_important_channels_go() -> None:
    plan = Plan(
        structure=STRUCTURE,
        groups=(group("a", 4), group("b", 6, parts=2)),
        scores={
            "a": torch.tensor([3.0, 1.0, 2.0, 4.0], dtype=torch.float64),
            "b": torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64),
        },
        cost=Cost(terms=()),
        round_to=1,
    )
    assert weakest(plan, {"a": 2, "b": 4}) == {"a": [1, 2], "b": [2, 5]}
    assert weakest(plan, {"a": 4, "b": 6}) == {}


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=4, deadline=None)
@given(share=st.floats(0.3, 1.0))
def test_costs_are_those_of_the_pruned_network(variant: str, share: float) -> None:
    """MACs and parameters by formula, and counted in the network with the channels removed."""
    model = branch_form(small(**VARIANTS[variant]))
    groups, counts = groups_of(model, square(SIDE), structure(model)), count(model, square(SIDE))
    shapes = costs.layer_shapes(groups, counts)
    plan = Plan(
        structure=STRUCTURE,
        groups=groups,
        scores={g.name: torch.rand(g.channels // g.parts).double() for g in groups},
        cost=costs.params(shapes, groups, counts),
        round_to=2,
    )
    assert plan.cost.of(plan.present()) == counts.params
    assert costs.macs(shapes).of(plan.present()) == counts.macs
    limit = max(share * counts.params, plan.cost.of(plan.floor()))
    widths = choose(plan, limit, "network")
    after = count(remove(model, groups, weakest(plan, widths)), square(SIDE))
    assert plan.cost.of(widths) == after.params
    assert costs.macs(shapes).of(widths) == after.macs
