"""Which ResNeSt a checkpoint is of that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from pipeline.networks.checkpoint_fit import fits
from pipeline.networks.resnest.network import CLASSIFIER, NAMED, ResNeSt, Stem

_HEAD = (f"{CLASSIFIER}.weight", f"{CLASSIFIER}.bias")
_FIRST: dict[Stem, str] = {"deep": "conv1.0.weight", "small": "conv1.weight"}
"""Name of the first convolution's weights, by stem."""


def hints(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What to set in the recipe, a line each.

    Args:
        state: tensors of the checkpoint.
        wanted: those of the recipe's network.
    """
    stem, needed = _stem(state), _stem(wanted)
    other = stem is not None and stem != needed
    lines = []
    if other:
        lines.append(f"its stem is {stem}, the recipe's is {needed}: set model.stem: {stem}")
    odd = [key for key in state.keys() | wanted.keys() if not _both(key, state, wanted)]
    if not other or any(not key.startswith("conv1.") for key in odd):
        lines.append(_closest(state, stem or "deep"))
    return lines


def _both(key: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return key in state and key in wanted and fits(state[key], wanted[key])


def _stem(state: Mapping[str, Tensor]) -> Stem | None:
    """The stem that a network's tensors have, by its first 3x3 convolution; None for neither."""
    found = [stem for stem, key in _FIRST.items() if key in state]
    if len(found) != 1 or state[_FIRST[found[0]]].shape[1:] != (3, 3, 3):
        return None
    return found[0]


@cache
def _named_bodies(stem: Stem) -> dict[str, dict[str, Tensor]]:
    """The tensors of every named network but its classifier's, without values."""
    shapes = {name: replace(config, stem=stem) for name, config in NAMED.items()}
    with torch.device("meta"):
        states = {name: ResNeSt(shape).state_dict() for name, shape in shapes.items()}
    return {
        name: {key: value for key, value in state.items() if key not in _HEAD}
        for name, state in states.items()
    }


def _closest(state: Mapping[str, Tensor], stem: Stem) -> str:
    """Which named networks share most names and shapes with `state`, the classifier aside.

    Args:
        state: of a checkpoint.
        stem: that the named networks are given.
    """
    found = {key: value for key, value in state.items() if key not in _HEAD}
    shares: dict[str, float] = {}
    for name, body in _named_bodies(stem).items():
        fitting = sum(key in found and fits(found[key], body[key]) for key in body)
        shares[name] = fitting / len(body.keys() | found.keys())
    best = max(shares.values())
    names = " or ".join(name for name, share in shares.items() if share == best)
    if best == 1.0:
        if stem == "deep":
            return f"it fits {names}: set model.name to that, without overrides"
        return f"it fits {names}: set model.name to that, model.stem: {stem}, nothing else"
    if best < 0.1:
        return "no network that model.name allows is close; is this a ResNeSt?"
    return (
        f"closest is {names} ({int(100 * best)}% of the tensors fit); set model.name, or the "
        "overrides it was trained with"
    )
