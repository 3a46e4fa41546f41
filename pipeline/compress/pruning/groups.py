"""Groups of tied channels: what torch-pruning's dependency graph says of a network.

The network is taken in its family's prunable form, the form in which that graph can follow every
tie between channels.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import nn
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency import Dependency

from pipeline.base.errors import InputError
from pipeline.networks.family import Structure
from pipeline.recipe.input_shape import InputShape

Removed = Mapping[str, Sequence[int]]
"""Indices of the channels to remove, by the name of their group."""

STEM = "stem"

CutKind = Literal["makes", "reads", "follows", "norms", "scales"]

_MADE_BY = {
    nn.Conv2d: tp.prune_conv_out_channels,
    nn.Linear: tp.prune_linear_out_channels,
}
_KINDS: dict[Any, CutKind] = {
    tp.prune_conv_out_channels: "makes",
    tp.prune_linear_out_channels: "makes",
    tp.prune_conv_in_channels: "reads",
    tp.prune_linear_in_channels: "reads",
    tp.prune_depthwise_conv_out_channels: "follows",
    tp.prune_batchnorm_out_channels: "norms",
    tp.prune_prelu_out_channels: "scales",
    tp.prune_parameter_out_channels: "scales",
}
_WEIGHTED = (nn.Conv2d, nn.Linear)
_IN_PLACE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Relu", "Hardtanh", "Sigmoid", "Tanh", "Silu", "Hardswish"),
        *("NativeBatchNorm", "CudnnBatchNorm", "MaxPool2DWithIndices", "AvgPool2D", "T"),
    }
)
"""Operations, by torch's names, that say nothing of why channels could not be followed."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a layer loses with channels of a group.

    Attributes:
        layer: its path, or that of a parameter that stands in no layer.
        kind: makes: outputs of a convolution or linear layer. reads: inputs of one. follows: both
            of a depthwise convolution, or of a batch normalisation without factors. norms: of one
            with factors and biases. scales: one number a channel, such as PReLU's slopes.
        positions: along those outputs, inputs or numbers.
        channels: of the group, the one at each position. A linear layer behind a flattened image
            reads a channel at many positions, one behind a concatenation at some of all.
    """

    layer: str
    kind: CutKind
    positions: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels that can only be removed together, in every layer that makes or reads them.

    Attributes:
        name: of the first layer that makes them.
        channels: how many there are.
        parts: equal parts that they are in, each after the other, as grouped convolutions and
            chunks have them; every part must lose the same of its channels.
        cuts: what every layer loses with them.
        stage: where they are made: `stem`, or the path of a stage.
        passes: operations on their way that may change which channel is where, by torch's names.
    """

    name: str
    channels: int
    parts: int
    cuts: tuple[Cut, ...]
    stage: str = STEM
    passes: tuple[str, ...] = ()

    @property
    def makers(self) -> tuple[str, ...]:
        """Convolutions and linear layers whose outputs they are."""
        return self.layers("makes")

    @property
    def readers(self) -> tuple[str, ...]:
        """Convolutions and linear layers whose inputs they are."""
        return self.layers("reads")

    @property
    def norms(self) -> tuple[str, ...]:
        """Batch normalisations of them."""
        return self.layers("norms")

    def layers(self, kind: CutKind) -> tuple[str, ...]:
        """Layers that lose something of one kind, in the order of the network."""
        return tuple(cut.layer for cut in self.cuts if cut.kind == kind)


@dataclass(frozen=True, kw_only=True)
class Ties:
    """What torch-pruning's graph says of a network.

    Attributes:
        groups: in the order of the layers that make them.
        records: torch-pruning's own of every group, by its name.
        kept: layers that are in no group, by their path, with the reason.
    """

    groups: tuple[Group, ...]
    records: dict[str, Any]
    kept: dict[str, str]


class _Graph(tp.DependencyGraph):  # type: ignore[misc]
    """torch-pruning's graph, which takes a view of other axes for a flattened image or fails."""

    def _trace(self, *args: Any, **options: Any) -> Any:
        found = super()._trace(*args, **options)
        for node in found.values():
            if node.type == tp.ops.OPTYPE.RESHAPE and not _flattens(node.grad_fn):
                node.type = tp.ops.OPTYPE.ELEMENTWISE
        return found

    def record_of(self, layer: nn.Conv2d | nn.Linear) -> Any:
        """All that is tied to the outputs of a layer, as torch-pruning's own search finds it.

        That one follows the same channels again for every way that leads to them, which never ends
        where parts of a sum lie beside each other (ReXNet); here each is followed once.
        """
        handler, root = _MADE_BY[type_of(layer)], self.module2node[layer]
        pending = [(Dependency(handler, handler, source=root, target=root), _all_of(layer))]
        found = {(root, handler): (pending[0][0], {i.idx: i for i in pending[0][1]})}
        while pending:
            dependency, given = pending.pop()
            for onward in dependency.target.dependencies:
                if not onward.is_triggered_by(dependency.handler):
                    continue
                reached = given
                for mapping in filter(None, onward.index_mapping):
                    reached = mapping(reached)
                _, known = found.setdefault((onward.target, onward.handler), (onward, {}))
                new: dict[int, Any] = {}
                for index in reached:
                    if index.idx not in known:
                        new.setdefault(index.idx, index)
                known.update(new)
                if new:
                    pending.append((onward, list(new.values())))
        return _as_group(found.values())


def _all_of(layer: nn.Module) -> list[Any]:
    assert isinstance(layer.weight, torch.Tensor)
    return [_HybridIndex(idx=place, root_idx=place) for place in range(len(layer.weight))]


def _as_group(found: Iterable[tuple[Dependency, dict[int, Any]]]) -> Any:
    """A group as torch-pruning's criteria take it."""
    group = tp.dependency.Group()
    for dependency, indices in found:
        if indices:
            group.add_dep(dependency, list(indices))
            group[len(group) - 1].root_idxs = [index.root_idx for index in indices.values()]
    return group


def _flattens(view: Any) -> bool:
    """Whether a view's channels are those that it reads, as often as there are pixels, or back."""
    before, after = view._saved_self_sym_sizes, view._input_metadata[0].shape
    return len(before) in (2, 4) and len(after) in (2, 4)


class _NotFollowedError(Exception):
    """Channels that cannot be cut out by what the graph says of them; the text says why."""


def stage_of(layer: str, stages: Sequence[str]) -> str:
    """The stage that a layer stands in, by its path; all that stands in none is the stem."""
    inside = (stage for stage in stages if layer == stage or layer.startswith(f"{stage}."))
    return next(inside, STEM)


def ties(model: nn.Module, shape: InputShape, structure: Structure) -> Ties:
    """torch-pruning's groups of a network in prunable form, as it says they are.

    The classifier's outputs are the classes, and in no group.

    Args:
        model: in evaluation mode, its parameters with `requires_grad`.
        shape: of an image.
        structure: of the network.

    Raises:
        InputError: torch-pruning cannot follow the network at all.
    """
    place = next(model.parameters()).device
    example = torch.zeros(shape.batch(1), device=place)
    try:
        graph = _Graph().build_dependency(model, example, verbose=False)
    except Exception as error:
        raise InputError(
            f"prune: torch-pruning cannot follow this network ({first_line(error)}); set "
            "prune: null"
        ) from error
    found: dict[str, tuple[Group, Any]] = {}
    kept: dict[str, str] = {}
    for name, layer in _roots(model, graph, structure):
        if any(name in group.makers for group, _ in found.values()):
            continue
        try:
            record = graph.record_of(layer)
            group = _group(model, record, structure)
            _refuse_overlap(group, [other for other, _ in found.values()])
            found[group.name] = group, record
        except _NotFollowedError as error:
            kept[name] = str(error)
        except Exception as error:  # torch-pruning's own, of any kind
            kept[name] = f"torch-pruning cannot follow its channels ({first_line(error)})"
    made = {maker for group, _ in found.values() for maker in group.makers}
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return Ties(
        groups=tuple(sorted((g for g, _ in found.values()), key=lambda g: order[g.name])),
        records={name: record for name, (_, record) in found.items()},
        kept={name: reason for name, reason in kept.items() if name not in made},
    )


def _roots(
    model: nn.Module, graph: Any, structure: Structure
) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Layers that make channels of their own, in the order in which the graph has them."""
    names = {module: name for name, module in model.named_modules()}
    for layer in list(graph.module2node):
        if isinstance(layer, _WEIGHTED) and names[layer] not in structure.last:
            depthwise = isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.out_channels
            if not depthwise:
                yield names[layer], layer


def type_of(layer: nn.Module) -> Any:
    """`nn.Conv2d` or `nn.Linear`, whichever a layer is a kind of."""
    return next(kind for kind in _WEIGHTED if isinstance(layer, kind))


def first_line(error: Exception) -> str:
    """The first line of an error, shortened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:120]


def _group(model: nn.Module, record: Any, structure: Structure) -> Group:
    """A record of torch-pruning as a group.

    Raises:
        _NotFollowedError: the channels cannot be cut out of every layer alike.
    """
    modules = dict(model.named_modules())
    names: dict[Any, str] = {one: name for name, one in model.named_parameters()}
    names |= {module: name for name, module in modules.items()}
    order = {name: place for place, name in enumerate(names.values())}
    channels, passes = len(record[0].idxs), []
    record.items[:] = [item for item in record.items if not _spreads(item)]
    cuts: list[Cut] = []
    for item in record.items:
        target = item.dep.target.module
        if target not in names:
            passes.append(_operation(item.dep.target))
            continue
        cuts.append(_cut(names[target], target, item, structure))
    cuts.sort(key=lambda cut: order[cut.layer])
    for cut in cuts:
        _refuse_parts_of_makers(cut, modules)
    parts = math.lcm(*(_parts(cut, channels, modules) for cut in cuts))
    for cut in cuts:
        _refuse_uneven(cut, channels // parts)
    name = next(cut.layer for cut in cuts if cut.kind == "makes")
    return Group(
        name=name,
        channels=channels,
        parts=parts,
        cuts=tuple(cuts),
        stage=stage_of(name, structure.stages),
        passes=tuple(dict.fromkeys(filter(None, passes))),
    )


def _operation(node: Any) -> str:
    """What torch calls an operation that may change which channel is where; "" for others."""
    name = re.sub(r"Backward\d*$", "", getattr(node.grad_fn, "name", str)())
    return "" if name in _IN_PLACE else name


def _cut(name: str, target: Any, item: Any, structure: Structure) -> Cut:
    kind = _KINDS.get(item.dep.handler)
    if kind is None:
        what = type(target).__name__
        raise _NotFollowedError(f"{name}, a {what}, works on all of its channels together")
    if kind in ("makes", "reads") and not isinstance(target, _WEIGHTED):
        raise _NotFollowedError(f"{name} is a {type(target).__name__}, which is not pruned")
    if kind == "norms" and target.weight is None:
        kind = "follows"  # nothing but statistics
    if kind == "makes" and name in structure.last:
        raise _NotFollowedError("its channels are tied to the classes")
    if None in item.root_idxs:
        raise _NotFollowedError(f"torch-pruning does not know which of them {name} has where")
    return Cut(layer=name, kind=kind, positions=tuple(item.idxs), channels=tuple(item.root_idxs))


def _spreads(item: Any) -> bool:
    """Whether a layer's only output meets all of the channels, as a map of places to look at."""
    made = _KINDS.get(item.dep.handler) == "makes"
    return made and len(item.dep.target.module.weight) == 1 < len(item.idxs)


def _refuse_overlap(group: Group, others: Sequence[Group]) -> None:
    """Stop where another group has some of the same channels, but not all."""
    taken = {(cut.layer, cut.kind): set(cut.positions) for cut in group.cuts}
    for other in others:
        for cut in other.cuts:
            if not taken.get((cut.layer, cut.kind), set()).isdisjoint(cut.positions):
                raise _NotFollowedError(
                    f"{cut.layer} has its channels among those of {other.name}, and others"
                )


def _refuse_parts_of_makers(cut: Cut, modules: Mapping[str, nn.Module]) -> None:
    """Stop where a layer has others beside them; a depthwise convolution may, behind a join."""
    layer = modules.get(cut.layer)
    if not isinstance(layer, _WEIGHTED) or cut.kind not in ("makes", "follows"):
        return
    if isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels == layer.out_channels:
        return
    tied, outputs = len(cut.positions), len(layer.weight)
    if tied != outputs:
        raise _NotFollowedError(
            f"torch-pruning ties {tied} channels to {cut.layer}, which makes {outputs}"
        )


def _parts(cut: Cut, channels: int, modules: Mapping[str, nn.Module]) -> int:
    """Equal parts that a layer asks of the channels of a group."""
    layer = modules.get(cut.layer)
    if isinstance(layer, nn.Conv2d) and layer.groups > 1 and cut.kind in ("makes", "reads"):
        whole = layer.out_channels if cut.kind == "makes" else layer.in_channels
        if not cut.positions == cut.channels == tuple(range(whole)):
            raise _NotFollowedError(
                f"{cut.layer} has them beside others, or in another order, in {layer.groups} groups"
            )
        return layer.groups
    present = sorted(set(cut.channels))
    if len(present) == channels:
        return 1
    first, size = present[0], len(present)
    if present != list(range(first, first + size)) or channels % size or first % size:
        raise _NotFollowedError(f"{cut.layer} has {size} of {channels} of them, no equal part")
    return channels // size


def _refuse_uneven(cut: Cut, size: int) -> None:
    """Stop where a layer has one channel of a part more often than another."""
    if len(set(Counter(channel % size for channel in cut.channels).values())) > 1:
        raise _NotFollowedError(f"{cut.layer} has some of them more often than others")


def differentiable(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters all have gradients: the graph is read off them."""
    return copy.deepcopy(model).eval().requires_grad_(True)
