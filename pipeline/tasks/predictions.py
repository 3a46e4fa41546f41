"""What was made of every test image, kept beside the results of stages and in a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from pipeline.base.errors import following
from pipeline.tasks.images.dataset import Dataset

NAMED = "named.safetensors"
"""Name of the file in which a stage keeps what was named for every test image."""
PREDICTIONS = "predictions.safetensors"
"""Name of the file in a run's directory that says what its file answered to every test image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A few images of a test set with what is made of them, where that can be drawn.

    Attributes:
        pixels: uint8 [K, C, H, W].
        labels: what should be: class maps uint8 [K, H, W], or float32 [K, M, 6]: of every box left,
            top, right, bottom, class (-1 of none), and 0.
        float_model: as the float model has it; of boxes the score for 0.
        file: as the exported file has it, likewise.
    """

    pixels: Tensor
    labels: Tensor
    float_model: Tensor
    file: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What is named for the images of one test set.

    Whole numbers: [N], the number of a class; or [N, labels], 0 or 1 for every label; or of class
    maps [N, 2 classes], pixels that each class is named for, then those of them that have it, and
    in `labels` [N, classes], those that have it.

    Attributes:
        labels: what should be.
        float_model: named by the float model.
        file: named by the exported file.
        shown: images to draw; they are kept by no file.
    """

    labels: Tensor
    float_model: Tensor
    file: Tensor
    shown: Shown | None = None


def kept_maps(name: str) -> str:
    """Under what the class maps of a test set's images are kept beside what was counted of all."""
    return f"{name}/maps"


def write_named(named: Mapping[str, Tensor], path: Path) -> None:
    """Keep what was named for every test image, by test set, as safetensors."""
    kept = {name: _kept(found) for name, found in named.items()}
    safetensors.torch.save_file(kept, path)


def _kept(named: Tensor) -> Tensor:
    """Of as few bytes as do: 50,000 images of 1,000 labels are 50 million numbers.

    Boxes to draw stay as they are.
    """
    if named.is_floating_point():
        return named.contiguous()
    large = named.ndim == 1 or (named.numel() > 0 and int(named.max()) > 255)
    return named.to(torch.int32 if large else torch.uint8).contiguous()


def read_named(path: Path) -> dict[str, Tensor]:
    """What `write_named` kept."""
    return safetensors.torch.load_file(path)


def gathered(
    dataset: Dataset, baseline: Path, file: Path, labels: Mapping[str, Tensor] | None = None
) -> dict[str, Predictions]:
    """What two stages kept with `write_named` in their directories, by test set of `dataset`.

    Args:
        dataset: of the run.
        baseline: directory of a stage.
        file: directory of the other.
        labels: what should be, by test set; those of the images where left out.
    """
    wanted = {name: images.labels for name, images in dataset.tests.items()}
    wanted = wanted if labels is None else {name: labels[name] for name in wanted}
    float_model, exported = read_named(baseline / NAMED), read_named(file / NAMED)
    return {
        name: Predictions(labels=_kept(found), float_model=float_model[name], file=exported[name])
        for name, found in wanted.items()
    }


def write_predictions(predictions: Mapping[str, Predictions], path: Path) -> None:
    """Keep what was named for every test image: tensors TEST_SET/labels, /float, /file."""
    kept = {}
    for name, found in predictions.items():
        every = {"labels": found.labels, "float": found.float_model, "file": found.file}
        for whose, named in every.items():
            # A copy: safetensors refuses tensors that share memory.
            kept[f"{name}/{whose}"] = _kept(named).clone()
    safetensors.torch.save_file(kept, path)


@following("what was named for images")
def read_predictions(path: Path) -> dict[str, Predictions]:
    """What `write_predictions` kept, by test set."""
    kept = safetensors.torch.load_file(path)
    return {
        name: Predictions(
            labels=kept[f"{name}/labels"],
            float_model=kept[f"{name}/float"],
            file=kept[f"{name}/file"],
        )
        for name in dict.fromkeys(key.rpartition("/")[0] for key in kept)
    }
