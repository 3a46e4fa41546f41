"""Checkpoints by name: found in the cache, fetched, or said to be out of reach."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from pipeline.base.errors import InputError
from pipeline.networks.hub import local_file
from pipeline.recipe.recipe import load_recipes
from tests.making import ROOT
from tests.making.cli import environment, process
from tests.making.recipes import DEVICE_RECIPES, device_recipe, settings

NAME = "timm:resnest50d.in1k"


def test_a_path_is_a_path(tmp_path: Path) -> None:
    assert local_file(str(tmp_path / "a.pth")) == tmp_path / "a.pth"


def offline(cache: Path) -> dict[str, str]:
    return environment() | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}


def said(cache: Path) -> str:
    """What another process, whose cache is `cache` and which is offline, makes of the name."""
    code = f"from pipeline.networks.hub import local_file; print(local_file({NAME!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=offline(cache), capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_offline_it_is_said_what_to_do(tmp_path: Path) -> None:
    message = said(tmp_path)
    assert "InputError: model.checkpoint: timm:resnest50d.in1k is not in the cache" in message
    assert "offline" in message
    assert "https://huggingface.co/timm/resnest50d.in1k" in message


def test_what_was_fetched_is_found_offline(tmp_path: Path) -> None:
    commit = "0" * 40
    place = tmp_path / "hub" / "models--timm--resnest50d.in1k"
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    file = place / "snapshots" / commit / "model.safetensors"
    file.write_bytes(b"weights")
    assert said(tmp_path).strip() == str(file)


@pytest.mark.slow
def test_a_run_offline_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in offline(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    changes = settings(f"model.checkpoint={NAME}", "model.head=replace")
    done = process("run", DEVICE_RECIPES["onnx"], "--out", tmp_path / "out", *changes)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: model.checkpoint: {NAME} is not in the cache")
    assert "Traceback" not in done.stderr


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        answer = SimpleNamespace(headers={}, request=None)
        raise RepositoryNotFoundError("404", response=answer)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    with pytest.raises(
        InputError, match=r"the hub has no timm/resnest50d\.in1k; names are such as"
    ):
        local_file(NAME)


def test_whatever_else_goes_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space\nleft")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(InputError, match=r"could not be fetched \(no space left\); fetch model"):
        local_file(NAME)


def test_a_recipe_keeps_the_name() -> None:
    recipe = device_recipe(f"model.checkpoint={NAME}")
    assert recipe.model.checkpoint == NAME


@pytest.mark.parametrize("name", ["timm:", "timm:../x", "timm:a/b", "timm:a b", "hub:resnest50d"])
def test_names_of_another_form_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"model\.checkpoint: got .*; must be a path that ends"):
        load_recipes([DEVICE_RECIPES["onnx"]], [f"model.checkpoint={name}"])


def test_a_head_is_replaced_only_where_there_is_one() -> None:
    with pytest.raises(InputError, match=r"model\.head: .*replace needs model\.checkpoint"):
        load_recipes([DEVICE_RECIPES["onnx"]], ["model.head=replace"])
