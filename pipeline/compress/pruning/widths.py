"""Choosing widths: as little importance lost as a cost allows.

Greedy by importance lost for each unit of cost gained, as in NetAdapt (Yang et al. 2018,
https://arxiv.org/abs/1804.03230) and HALP (Shen et al. 2021, https://arxiv.org/abs/2110.10811):
the same search serves multiply-accumulates, parameters, bytes and milliseconds, since it only
asks what a change of one group's width changes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.compress.pruning.costs import Cost, Term
from pipeline.compress.pruning.groups import Group, Removed, stage_of
from pipeline.compress.pruning.importance import Scores
from pipeline.compress.pruning.kept import Kept
from pipeline.networks.family import Structure

_SEARCH_STEPS = 24
_FURTHEST = 128
"""Channels that one move takes at most, once it gains something: twice the largest tile known."""
TILE, _ALIGNED = 16, 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search starts from.

    Attributes:
        structure: of the network.
        groups: those that may become narrower.
        scores: importance of their channels.
        cost: what is to become smaller.
        round_to: widths are multiples of this, in equal parts, or the present width.
        kept: layers whose channels all stay.
        by_norm: groups that were judged by the norm of their weights, since the criterion says
            nothing of them.
        in_tiles: groups whose widths are multiples of TILE, too.
    """

    structure: Structure
    groups: tuple[Group, ...]
    scores: Scores
    cost: Cost
    round_to: int
    kept: tuple[Kept, ...] = ()
    by_norm: frozenset[str] = frozenset()
    in_tiles: frozenset[str] = frozenset()

    def step(self, group: Group) -> int:
        """Widths of a group are multiples of this."""
        tile = TILE if group.name in self.in_tiles else 1
        return math.lcm(self.round_to, group.parts, tile)

    def floor(self) -> dict[str, int]:
        """The narrowest widths."""
        return {g.name: min(g.channels, self.step(g)) for g in self.groups}

    def present(self) -> dict[str, int]:
        """The widths before anything is removed."""
        return {g.name: g.channels for g in self.groups}


def in_tiles(model: nn.Module, groups: Sequence[Group]) -> frozenset[str]:
    """Groups that are kept to multiples of TILE, since a runtime miscalculates other widths.

    ONNX Runtime 1.23 has an int8 kernel of its own for convolutions whose inputs come in fours.
    Others, such as the first one, which reads three, become products of matrices; on x86 with AMX
    those are wrong where the outputs leave 17 to 31 over a multiple of 32
    (microsoft/onnxruntime#26324). Up to TILE channels all widths are right.
    """
    layers = dict(model.named_modules())

    def apart(layer: nn.Module) -> bool:
        return (
            isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels % _ALIGNED != 0
        )

    return frozenset(
        group.name
        for group in groups
        if group.channels > TILE and any(apart(layers[name]) for name in group.makers)
    )


def choose(plan: Plan, limit: float, scope: str) -> dict[str, int]:
    """Widths that cost at most `limit`.

    Args:
        plan: groups, scores and cost.
        limit: in the unit of the cost.
        scope: `layer` narrows all groups by the same share, `stage` lowers the cost of every
            stage by the same share, `network` takes the least important channels anywhere. What
            rounding leaves unused is given back to the most important channels.

    Raises:
        ValueError: even the narrowest widths cost more.
    """
    if (least := plan.cost.of(plan.floor())) > limit:
        raise ValueError(f"limit: got {limit:g}; the narrowest widths cost {least:g}")
    if plan.cost.of(plan.present()) <= limit:
        return plan.present()
    if scope == "network":
        widths = _narrowed(plan, plan.present(), plan.groups, plan.cost.terms, limit)
    else:
        widths = _by_share(plan, limit, _layers_at if scope == "layer" else _stages_at)
    return _given_back(plan, widths, limit)


def _by_share(plan: Plan, limit: float, at: object) -> dict[str, int]:
    """The largest share, of those `at` gives widths for, that keeps within `limit`."""
    assert callable(at)
    low, high = 0.0, 1.0
    widths: dict[str, int] = plan.floor()
    for _ in range(_SEARCH_STEPS):
        share = (low + high) / 2
        tried = at(plan, share)
        if plan.cost.of(tried) <= limit:
            low, widths = share, tried
        else:
            high = share
    return widths


def _layers_at(plan: Plan, share: float) -> dict[str, int]:
    """Every group at `share` of its channels, rounded to the nearest width."""
    floor = plan.floor()
    widths = {}
    for group in plan.groups:
        step = plan.step(group)
        width = round(group.channels * share / step) * step
        widths[group.name] = min(group.channels, max(floor[group.name], width))
    return widths


def _stages_at(plan: Plan, share: float) -> dict[str, int]:
    """Every stage at `share` of what it costs, its least important channels gone."""
    widths = plan.present()
    stages = plan.structure.stages
    of_layer = {term.layer: stage_of(term.layer, stages) for term in plan.cost.terms}
    for stage in dict.fromkeys(group.stage for group in plan.groups):
        groups = tuple(group for group in plan.groups if group.stage == stage)
        terms = tuple(term for term in plan.cost.terms if of_layer[term.layer] == stage)
        whole = sum(term.value(plan.present()) for term in terms)
        widths = _narrowed(plan, widths, groups, terms, share * whole)
    return widths


@dataclass(frozen=True, kw_only=True)
class _Move:
    """One group a step narrower: what is lost and what is gained."""

    name: str
    width: int
    lost: float
    gained: float

    @property
    def price(self) -> float:
        return self.lost / self.gained if self.gained > 0 else math.inf


class _Moves:
    """The next narrower width of every group, and its price at the present widths."""

    def __init__(self, plan: Plan, groups: Sequence[Group], terms: Sequence[Term]) -> None:
        self._floor = plan.floor()
        self._step = {group.name: plan.step(group) for group in groups}
        self._parts = {group.name: group.parts for group in groups}
        self._sums = {g.name: _lost_up_to(plan.scores[g.name]) for g in groups}
        self._terms = {
            group.name: tuple(term for term in terms if group.name in term.groups)
            for group in groups
        }

    def narrower(self, name: str, widths: dict[str, int]) -> _Move | None:
        """The move to the narrower width of the lowest price; None at the floor.

        Not just the next one: runtimes round channels up to their tiles, and the next width may
        gain nothing where the one after does.
        """
        present = widths[name]
        cost = self._cost(name, widths, present)
        # A width that is no multiple comes down to one first.
        first = (present - 1) // self._step[name] * self._step[name]
        best: _Move | None = None
        for width in range(first, self._floor[name] - 1, -self._step[name]):
            lost = self._lost(name, width) - self._lost(name, present)
            gained = cost - self._cost(name, widths, width)
            move = _Move(name=name, width=width, lost=lost, gained=gained)
            if best is None or move.price < best.price:
                best = move
            elif best.price < math.inf and width < present - _FURTHEST:
                break
        return best

    def wider(self, name: str, channels: int, widths: dict[str, int]) -> _Move | None:
        """The move to the next wider width, with what it gives back and costs; None at the top."""
        present = widths[name]
        if present >= channels:
            return None
        width = min(channels, (present // self._step[name] + 1) * self._step[name])
        back = self._lost(name, present) - self._lost(name, width)
        more = self._cost(name, widths, width) - self._cost(name, widths, present)
        return _Move(name=name, width=width, lost=back, gained=more)

    def _lost(self, name: str, width: int) -> float:
        """Importance of the channels that are gone at `width`, all cardinal groups together."""
        parts, sums = self._parts[name], self._sums[name]
        return parts * sums[len(sums) - 1 - width // parts]

    def _cost(self, name: str, widths: dict[str, int], width: int) -> float:
        """Of the terms of a group at a width of its own; `widths` is as it was afterwards."""
        present, widths[name] = widths[name], width
        cost = sum(term.value(widths) for term in self._terms[name])
        widths[name] = present
        return cost


def _lost_up_to(scores: Tensor) -> list[float]:
    """Sums of the 0, 1, 2, ... least important channels."""
    return [0.0, *torch.cumsum(scores.sort().values, 0).tolist()]


def _narrowed(
    plan: Plan,
    widths: dict[str, int],
    groups: Sequence[Group],
    terms: Sequence[Term],
    limit: float,
) -> dict[str, int]:
    """Take the cheapest move again and again until `terms` cost at most `limit`, or all is floor.

    A move that was priced before its neighbours became narrower gains less than it was priced
    for, never more, so only the cheapest needs a new price before it is taken.
    """
    widths = dict(widths)
    moves = _Moves(plan, groups, terms)
    constant = plan.cost.constant if len(terms) == len(plan.cost.terms) else 0.0
    left = constant + sum(term.value(widths) for term in terms)
    queue: list[tuple[float, str]] = []
    for group in groups:
        _push(queue, moves.narrower(group.name, widths))
    while queue and left > limit:
        priced, name = heapq.heappop(queue)
        move = moves.narrower(name, widths)
        assert move is not None
        if move.price > priced and queue and move.price > queue[0][0]:
            _push(queue, move)
            continue
        widths[name] = move.width
        left -= move.gained
        _push(queue, moves.narrower(name, widths))
    return widths


def _push(queue: list[tuple[float, str]], move: _Move | None) -> None:
    if move is not None:
        heapq.heappush(queue, (move.price, move.name))


def _given_back(plan: Plan, widths: dict[str, int], limit: float) -> dict[str, int]:
    """Widen what fits into the limit again, most importance for its cost first."""
    widths = dict(widths)
    moves = _Moves(plan, plan.groups, plan.cost.terms)
    room = limit - plan.cost.of(widths)
    open_groups = {group.name: group.channels for group in plan.groups}
    while open_groups:
        found = [moves.wider(name, channels, widths) for name, channels in open_groups.items()]
        fitting = [move for move in found if move is not None and move.gained <= room]
        if not fitting:
            break
        best = max(fitting, key=lambda move: move.lost / max(move.gained, 1e-12))
        widths[best.name] = best.width
        room -= best.gained
        names = {move.name for move in fitting}
        open_groups = {n: c for n, c in open_groups.items() if n in names}
    return widths


def weakest(plan: Plan, widths: Mapping[str, int]) -> Removed:
    """The least important channels of every group, down to `widths`; the same of every part."""
    removed = {}
    for group in plan.groups:
        size, count = group.channels // group.parts, group.channels - widths[group.name]
        if count:
            gone = plan.scores[group.name].argsort(stable=True)[: count // group.parts].tolist()
            removed[group.name] = sorted(p * size + i for p in range(group.parts) for i in gone)
    return removed
