"""What was made of every test image, kept beside the results of stages and in a run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import safetensors.torch
import torch

from pipeline.base.errors import following
from pipeline.tasks.images.dataset import Dataset

NAMED = "named.safetensors"
"""Name of the file in which a stage keeps what was named for every test image."""
PREDICTIONS = "predictions.safetensors"
"""Name of the file in a run's directory that says what its file answered to every test image."""


Named = TypeVar("Named")
"""What is named for one image: the number of a class; or 0 or 1 for every label."""


@dataclass(frozen=True, kw_only=True)
class Predictions(Generic[Named]):
    """What is named for the images of one test set.

    Attributes:
        labels: what should be.
        float_model: named by the float model.
        file: named by the exported file.
    """

    labels: list[Named]
    float_model: list[Named]
    file: list[Named]


def write_named(named: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Keep what was named for every test image: int32 [N, ...] by test set, as safetensors."""
    kept = {name: torch.tensor(found, dtype=torch.int32) for name, found in named.items()}
    safetensors.torch.save_file(kept, path)


def read_named(path: Path) -> dict[str, list[Any]]:
    """What `write_named` kept."""
    return {name: kept.tolist() for name, kept in safetensors.torch.load_file(path).items()}


def gathered(dataset: Dataset, baseline: Path, file: Path) -> dict[str, Predictions[Any]]:
    """What two stages kept with `write_named` in their directories, by test set of `dataset`."""
    float_model, exported = read_named(baseline / NAMED), read_named(file / NAMED)
    return {
        name: Predictions(
            labels=images.labels.tolist(), float_model=float_model[name], file=exported[name]
        )
        for name, images in dataset.tests.items()
    }


def write_predictions(predictions: Mapping[str, Predictions[Any]], path: Path) -> None:
    """Keep what was named for every test image: int32 tensors TEST_SET/labels, /float, /file."""
    kept = {}
    for name, found in predictions.items():
        every = {"labels": found.labels, "float": found.float_model, "file": found.file}
        for whose, named in every.items():
            kept[f"{name}/{whose}"] = torch.tensor(named, dtype=torch.int32)
    safetensors.torch.save_file(kept, path)


@following("what was named for images")
def read_predictions(path: Path) -> dict[str, Predictions[Any]]:
    """What `write_predictions` kept, by test set."""
    kept = {name: found.tolist() for name, found in safetensors.torch.load_file(path).items()}
    return {
        name: Predictions(
            labels=kept[f"{name}/labels"],
            float_model=kept[f"{name}/float"],
            file=kept[f"{name}/file"],
        )
        for name in dict.fromkeys(key.rpartition("/")[0] for key in kept)
    }
