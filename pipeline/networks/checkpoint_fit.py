"""Whether a checkpoint's tensors are a network's, and in words why not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from pipeline.base.errors import listed
from pipeline.networks.family import Checkpoint

REPLACE = "set model.head: replace, which trains a new classifier"

_PROFILED = {"total_ops", "total_params"}
"""What profilers leave in a network."""


def is_counter(name: str) -> bool:
    """Whether a tensor counts the batches of a normalisation: nothing is computed with it."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def fits(found: Tensor, wanted: Tensor) -> bool:
    """Whether a tensor can take another's place.

    Of the same shape, and weights are real numbers; their precision may differ.
    """
    return (
        found.shape == wanted.shape and found.is_floating_point() == wanted.is_floating_point()
    ) and not found.is_complex()


def surplus(state: Collection[str], beside: Sequence[str], own: Collection[str]) -> list[str]:
    """Names in a checkpoint that are not the network's, without those that profilers leave.

    Args:
        state: names after a prefix was taken off.
        beside: names that do not begin with the prefix.
        own: of the network.
    """
    names = [*(name for name in state if name not in own), *beside]
    return [name for name in names if name.rpartition(".")[2] not in _PROFILED]


def mismatch(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    known: Checkpoint,
    classes: Sequence[str] | None,
    unexpected: Sequence[str],
) -> str:
    """What keeps `state` from loading, grouped, one group a line; empty if nothing does.

    Args:
        state: of the checkpoint, by the network's names.
        wanted: of the network.
        known: of checkpoints of such networks.
        classes: of the data.
        unexpected: names in the checkpoint that are not the network's.
    """
    missing = [key for key in wanted if key not in state]
    wrong = [key for key in wanted if key in state and not fits(state[key], wanted[key])]
    whole = all(map(is_counter, missing)) and _may_be_passed_over(unexpected, state, wanted)
    if whole and not wrong:
        return ""
    if whole and set(wrong) == set(known.head):
        found, need = (tuple(one[key].shape for key in known.head) for one in (state, wanted))
        if len(found[0]) > 1 and found[0][1:] == need[0][1:] and found[0][:1] == found[1]:
            names = f" ({listed(classes)})" if classes else ""
            return (
                f"was trained for {found[0][0]} classes, the data has {need[0][0]}{names}; all "
                f"else fits; use a checkpoint trained on this data's classes, or {REPLACE}"
            )
    shapes = [f"{key} is {_shape(state[key])} not {_shape(wanted[key])}" for key in wrong]
    groups = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    lines = [f"{name} ({len(keys)}): {listed(keys)}" for name, keys in groups.items() if keys]
    lines += known.hints(state, wanted)
    return "\n  ".join(["does not fit the model of the recipe", *lines])


def _shape(value: Tensor) -> str:
    return str(list(value.shape)) + ("" if value.is_floating_point() else f" {value.dtype}")


def _may_be_passed_over(
    unexpected: Sequence[str], state: Collection[str], wanted: Collection[str]
) -> bool:
    """Whether names that are not the network's are of modules beside it.

    Those of a criterion or a teacher are. Those of a deeper network stand where this one has
    modules, or are more than all of its own. Copies of the network under a prefix do not count.
    """
    tops = {name.partition(".")[0] for name in wanted}
    if any(name in state and name.partition(".")[0] in tops for name in unexpected):
        return False
    return sum(not _is_copy(name, wanted) for name in unexpected) <= len(wanted)


def _is_copy(name: str, wanted: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[count:]) in wanted for count in range(1, min(len(parts), 20)))
