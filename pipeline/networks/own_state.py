"""A state that has a network's own names and shapes, given back to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn


def take_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state whose names are the network's, as one of the network's version.

    Modules have versions, which `state_dict()` keeps beside the tensors and files of tensors do
    not. Without one, torch takes a state for an old one: MNASNet of torchvision refuses it, and
    others rename what is right.

    Raises:
        RuntimeError: names or shapes are not those of the network.
    """
    versioned: OrderedDict[str, Any] = OrderedDict(state)
    versioned._metadata = getattr(model.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    model.load_state_dict(versioned)
