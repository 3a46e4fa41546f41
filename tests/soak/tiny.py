"""The runs that a campaign disturbs: of the recipes that are shipped, on networks of seconds."""

from __future__ import annotations

from tests.making.recipes import PLAIN_MODEL

FORMATS = {
    "onnx": ["onnx"],
    "tflite": ["tflite"],
    "coreml": ["coreml"],
    "all": ["tflite", "onnx", "coreml"],
    "plain": ["onnx"],
}
"""The files of each; `plain` is for a few faults, where the network does not matter."""

_RESNEST = (
    "model.name=resnest14",
    "model.width_multiplier=0.25",
    "model.layers=[1,1,1,1]",
    "train.epochs=2",
)
_PLAIN = (PLAIN_MODEL, "data={test_images: 32, calibration_images: 32}", "train.epochs=1")
_ALL = (
    "threads=1",
    "train.warmup_epochs=0",
    "prune.round_to=8",
    "prune.finetune.epochs=1",
    "qat.train.epochs=1",
    "save.steps=10",
    "measure.rounds=2",
    "measure.warmup=1",
    "budgets.speedup=null",
    "budgets.accuracy_drop_pt=null",
)
RUNS = {name: (*(_PLAIN if name == "plain" else _RESNEST), *_ALL) for name in FORMATS}
"""What each changes of its recipes."""
