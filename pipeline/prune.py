"""Channel pruning to a share of the multiply-accumulates, on torch-pruning's dependency graph.

The network is pruned in branch form (see `pipeline.models.branches`), the form in which a channel
of one radix split is tied to the same channel of the others by plain element-wise operations.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models.branches import BranchedBlock
from pipeline.models.count import count
from pipeline.models.resnest import ResNeSt

EQUALITY_TOLERANCE = 1e-4
"""Largest difference to the masked original, relative to its largest output."""

_SEARCH_STEPS = 9
_LARGEST_RATIO = 0.95

Removed = dict[str, list[int]]
"""Removed channels by the name of the batch normalisation that carries them."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned network, what it has left of the MACs, and how far it is from the masked one."""

    model: ResNeSt
    removed: Removed
    macs_share: float
    difference: float


def prune_to_macs(branched: ResNeSt, input_size: int, share: float, round_to: int) -> Pruned:
    """Remove the weakest channels, the same ratio in every layer, until `share` of MACs is left.

    A channel's weight is the L2 norm of everything that goes with it (its dependency group).

    Args:
        branched: the network in branch form, in evaluation mode; not changed.
        input_size: side of the images in pixels.
        share: of the multiply-accumulates to keep, in (0, 1].
        round_to: channel counts stay multiples of this.

    Raises:
        InputError: the share cannot be reached; gives the smallest that can.
        RuntimeError: the pruned network is not the original with those channels zeroed.
    """
    whole = count(branched, input_size).macs
    if share == 1.0:
        return Pruned(model=copy.deepcopy(branched), removed={}, macs_share=1.0, difference=0.0)
    low, high = 0.0, _LARGEST_RATIO
    best: tuple[float, ResNeSt, Removed] | None = None
    smallest = 1.0
    for step in range(_SEARCH_STEPS):
        ratio = _LARGEST_RATIO if step == 0 else (low + high) / 2
        model, removed = _pruned_at(branched, input_size, ratio, round_to)
        left = count(model, input_size).macs / whole
        smallest = min(smallest, left)
        if left <= share:
            high = ratio
            if best is None or left > best[0]:
                best = (left, model, removed)
        elif step == 0:
            break
        else:
            low = ratio
    if best is None:
        raise InputError(
            f"prune.macs: got {share:g}; this network with channel counts rounded to {round_to} "
            f"reaches {smallest:.3f} at the least; ask for that or more, or lower prune.round_to"
        )
    left, model, removed = best
    difference = masked_difference(branched, model, removed, input_size)
    if not difference <= EQUALITY_TOLERANCE:
        raise RuntimeError(
            f"the pruned network differs from the masked one by {difference:.2e} of its largest "
            f"output (allowed {EQUALITY_TOLERANCE:.0e}); this is a bug in PocketNest"
        )
    return Pruned(model=model, removed=removed, macs_share=left, difference=difference)


def _pruned_at(
    branched: ResNeSt, input_size: int, ratio: float, round_to: int
) -> tuple[ResNeSt, Removed]:
    model = copy.deepcopy(branched).cpu().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    names = {module: name for name, module in model.named_modules()}
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, 3, input_size, input_size),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        pruning_ratio_dict={
            layer: min(ratio, largest) for layer, largest in _largest_ratios(model, round_to)
        },
        round_to=round_to,
        ignored_layers=[model.fc],
    )
    removed: Removed = {}
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            module = dependency.target.module
            if isinstance(module, nn.BatchNorm2d):
                removed[names[module]] = sorted(int(i) for i in indices)
        group.prune()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and min(module.in_channels, module.out_channels) < 1:
            raise RuntimeError(f"pruning emptied the layer {names[module]}")
    return model, removed


def _largest_ratios(model: nn.Module, round_to: int) -> list[tuple[nn.Conv2d, float]]:
    """The highest ratio for every convolution after which rounding leaves it some channels.

    torch-pruning rounds the channels that stay down, and leaves a layer whole where that gives
    none: without this bound a higher ratio would prune less. Between cardinal groups it rounds
    up what every group loses.
    """
    cardinality = {
        layer: block.fc1.groups
        for block in model.modules()
        if isinstance(block, BranchedBlock)
        for part in (block.branches, block.fc1, block.fc2)
        for layer in part.modules()
    }
    bounds = []
    for conv in [m for m in model.modules() if isinstance(m, nn.Conv2d)]:
        whole = conv.out_channels
        group = whole // cardinality.get(conv, 1)
        cut = max(
            (n for n in range(group) if whole - (whole - n) // round_to * round_to < group),
            default=0,
        )
        # Half a channel less, so that no rounding error of the ratio takes one more.
        bounds.append((conv, max(0.0, (cut - 0.5) / group)))
    return bounds


def masked_difference(
    original: ResNeSt, pruned: ResNeSt, removed: Removed, input_size: int
) -> float:
    """Largest output difference between `pruned` and the original with those channels zeroed.

    Relative to the largest output. A channel is zeroed by its batch normalisation's weight and
    bias, so that what follows sees exact zeros.
    """
    masked = copy.deepcopy(original).cpu().eval()
    modules = dict(masked.named_modules())
    with torch.no_grad():
        for name, indices in removed.items():
            norm = modules[name]
            norm.weight[indices] = 0.0
            norm.bias[indices] = 0.0
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 3, input_size, input_size, generator=generator)
        expected: Tensor = masked(images)
        got: Tensor = pruned.eval()(images)
    return float((expected - got).abs().max() / expected.abs().max())


def take_shapes(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give `model` the widths found in `state` and load it; the way back from a saved pruning.

    Raises:
        InputError: the state has other names than the model.
    """
    wanted, found = set(model.state_dict()), set(state)
    if wanted != found:
        odd = sorted(wanted ^ found)
        raise InputError(f"pruned weights do not fit the network: {', '.join(odd[:5])}")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = state[f"{name}.weight"]
            grouped = module.groups > 1
            depthwise = grouped and module.groups == module.out_channels
            module.groups = weight.shape[0] if depthwise else module.groups
            module.out_channels = weight.shape[0]
            module.in_channels = weight.shape[1] * module.groups
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = state[f"{name}.weight"].shape[0]
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = state[f"{name}.weight"].shape
        else:
            continue
        for key, tensor in list(module.named_parameters()) + list(module.named_buffers()):
            tensor.data = torch.empty_like(state[f"{name}.{key}"])
    model.load_state_dict(state)
