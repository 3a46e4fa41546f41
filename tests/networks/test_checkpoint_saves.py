"""What is saved reads back, or nothing is left."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pipeline.base.errors import InputError
from pipeline.networks.checkpoints import read_checkpoint, save_checkpoint
from pipeline.networks.resnest.network import ResNeSt
from tests.making.weights import CLASSES, other, same


def test_what_is_saved_reads_back(model: ResNeSt, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    metadata = {"recipe": "r", "ünï": "ç\n", "classes": json.dumps(CLASSES)}
    save_checkpoint(model, path, metadata)
    assert same(read_checkpoint(path), model.state_dict())
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata


def test_same_weights_same_bytes(model: ResNeSt, tmp_path: Path) -> None:
    metadata = {str(i): str(i) for i in range(8)}
    contents = set()
    for i in range(8):
        path = tmp_path / f"{i}.safetensors"
        save_checkpoint(model, path, dict(sorted(metadata.items(), reverse=i % 2 == 0)))
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_views_shared_and_strided_tensors_are_saved(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(2, 3, 4)
    state = {
        "base": base,
        "view": base[0],
        "strided": base[..., ::2],
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(7),
        "gradient": torch.nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3),
        "empty": torch.ones(0, 2),
    }
    save_checkpoint(state, tmp_path / "a.safetensors")
    assert same(read_checkpoint(tmp_path / "a.safetensors"), state)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    model: ResNeSt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(model, path)
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(other(), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_file_has_the_usual_rights(model: ResNeSt, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    save_checkpoint(model, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_only_safetensors_is_written(model: ResNeSt, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"written as \.safetensors"):
        save_checkpoint(model, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_saving_into_a_missing_folder(model: ResNeSt, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_checkpoint(model, tmp_path / "none" / "a.safetensors")
