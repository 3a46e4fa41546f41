"""A user's project: photos, a network of their own and a recipe, in a folder that can be moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from tests.making import ROOT
from tests.making.photos import write_image
from tests.making.recipes import DEVICE_RECIPES

NAME = "shop"
CLASSES = ("ant", "bee", "cat")
EACH = {"train": 20, "day": 12, "night": 2}
"""Images of a class, by folder: more to calibrate on than a run carries."""
CALIBRATION = 48


def make_project(folder: Path) -> Path:
    """The recipe of a new project in `folder`, which names all its files relative to itself."""
    seed = 0
    for part, count in EACH.items():
        for name in CLASSES:
            for number in range(count):
                write_image(folder / "photos" / part / name / f"{number}.png", seed)
                seed += 1
    shutil.copy(ROOT / "tests" / "making" / "plain_net.py", folder / "nets.py")
    training = {"epochs": 1, "batch_size": 16, "learning_rate": 0.05}
    recipe = {
        "name": NAME,
        "model": {"name": "python:nets.py:plain", "input_size": 32},
        "data": {
            "kind": "image_folder",
            "train": "photos/train",
            "test": {"day": "photos/day", "night": "photos/night"},
            "calibration_images": CALIBRATION,
        },
        "train": training,
        "prune": {"macs": 0.6, "finetune": {"epochs": 1}, "round_to": 8},
        "qat": {"train": {"epochs": 0}, "distill": None},
        "guard": {"accuracy_drop_pt": None},
        "measure": {"rounds": 3, "warmup": 1},
        "budgets": {"accuracy_drop_pt": None, "speedup": None},
        "extends": str(DEVICE_RECIPES["onnx"]),
    }
    path = folder / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
