"""Networks whose modules have versions, as torchvision's MNASNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.compress.pruning.prune import take_shapes
from pipeline.compress.training.hooks import Hooks
from pipeline.networks.checkpoints import load_checkpoint
from pipeline.networks.family import Checkpoint
from pipeline.networks.own_state import take_state


class Versioned(nn.Module):
    """Takes states of its second version, as MNASNet does."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"version should be 2 instead of {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)  # type: ignore[no-untyped-call]


def saved() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return dict(Versioned().state_dict())


def test_torch_takes_plain_tensors_for_an_old_version() -> None:
    with pytest.raises(ValueError, match="version should be 2 instead of None"):
        Versioned().load_state_dict(saved())


@pytest.mark.parametrize("load", [take_state, take_shapes, Hooks().load])
def test_plain_tensors_are_of_the_networks_version(load: Any) -> None:
    model, state = Versioned(), saved()
    load(model, state)
    assert torch.equal(model.conv.weight, state["conv.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_load(suffix: str, tmp_path: Path) -> None:
    model, state, path = Versioned(), saved(), tmp_path / f"model{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    known = Checkpoint(head=("conv.weight", "conv.bias"), hints=lambda found, wanted: [])
    load_checkpoint(model, path, known)
    assert torch.equal(model.conv.weight, state["conv.weight"])


def test_a_bare_network_has_its_state_back() -> None:
    bare = nn.Linear(2, 3)
    take_state(bare, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)})
    assert bare.weight.sum() == 6
    with pytest.raises(RuntimeError, match="Missing key"):
        take_state(bare, {})
