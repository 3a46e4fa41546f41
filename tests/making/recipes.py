"""Recipes as tests have them: the shipped ones, on a network narrow enough."""

from __future__ import annotations

from pipeline.recipe.recipe import Recipe, load_recipes
from tests.making import ROOT

RECIPES = ROOT / "recipes" / "resnest50"
DEVICE_RECIPES = {
    "tflite": RECIPES / "android-litert-int8.yaml",
    "onnx": RECIPES / "linux-arm-onnxruntime-int8.yaml",
    "coreml": RECIPES / "iphone-coreml-w8a8.yaml",
}
NARROW_MODEL = ("model.name=resnest14", "model.width_multiplier=0.25")
PLAIN_MODEL = f"model={{name: 'python:{ROOT}/tests/making/plain_net.py:plain', input_size: 32}}"
"""A network of six layers, where what a command does matters and the network does not."""
SHORT = (
    # One core is enough for so small a network, and two threads wait for each other.
    "threads=1",
    "train.epochs=6",
    # ONNX Runtime 1.23 miscalculates convolutions of some widths, such as 22, with AMX.
    "prune.round_to=8",
    "prune.finetune.epochs=2",
    "qat.train.epochs=2",
    "measure.rounds=5",
    "measure.warmup=1",
    "budgets.speedup=null",
)
NARROW = (*NARROW_MODEL, *SHORT)


def device_recipe(*overrides: str, form: str = "onnx") -> Recipe:
    """The shipped recipe of a format, changed."""
    (recipe,) = load_recipes([DEVICE_RECIPES[form]], overrides)
    return recipe


def settings(*overrides: str) -> list[str]:
    """`--set` for every override."""
    return [part for override in overrides for part in ("--set", override)]
