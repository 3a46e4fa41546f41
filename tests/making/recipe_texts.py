"""Recipes as text, and what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.recipe.recipe import Recipe, load_recipes
from pipeline.stages.known import KNOWN

WHOLE = """\
model:
  name: resnest50
data:
  kind: digits
train:
  epochs: 2
  batch_size: 32
  learning_rate: 0.1
qat:
  train: {epochs: 1, batch_size: 8, learning_rate: 1e-4}
target:
  device: test
  format: onnx
  precision: int8
"""
FOLDERS = "data: {kind: image_folder, train: a, test: {real: b}}\n"


def load(text: str, *overrides: str, name: str = "x.yaml") -> Recipe:
    Path(name).write_text(text)
    (recipe,) = load_recipes([Path(name)], overrides, KNOWN)
    return recipe


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    return str(caught.value).splitlines()


def changed(text: str) -> str:
    return f"extends: whole.yaml\n{text}"
