"""One accuracy count for every stage that judges a network or a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import processes
from pipeline.data import Dataset, Images, batches
from pipeline.health import refuse_bad_logits
from pipeline.records import Accuracy

NAMED = "named.safetensors"
"""Name of the file in which a stage keeps the class that was named for every test image."""
PREDICTIONS = "predictions.safetensors"
"""Name of the file in a run's directory that says what its file answered to every test image."""

_EVALUATION_BATCH, _EVALUATION_PIXELS = 64, 2**19


def evaluation_batch(side: int) -> int:
    """Images of `side` pixels that are run at once: few large ones, so that caches hold them."""
    return max(2, min(_EVALUATION_BATCH, _EVALUATION_PIXELS // side**2))


def predictions(predict: Callable[[Tensor], Tensor], images: Images, dataset: Dataset) -> Tensor:
    """Logits (images, classes) of `predict`, float32 on the CPU, in the order of `images`.

    The processes of `processes.together` take a part of the images each, and all get all logits.
    """
    size = evaluation_batch(images.size)
    own = processes.own_rows(len(images))
    with torch.inference_mode():
        given = batches(images, size, dataset, order=own)
        parts = [predict(x).float().cpu() for x, _ in given]
    logits = torch.cat(parts) if parts else torch.empty(0, len(dataset.classes))
    return processes.all_rows(logits, len(images))


def named(logits: Tensor) -> Tensor:
    """The class that is named first for every image: int64 [N] of logits [N, classes]."""
    return _ranked(logits)[:, 0]


def _ranked(logits: Tensor) -> Tensor:
    """The first five classes; of equal logits, which an int8 file has many, any may come first."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


def accuracy(logits: Tensor, labels: Tensor) -> Accuracy:
    """Share of images whose label is the first, or among the first five, of `logits`."""
    hits = _ranked(logits) == labels[:, None]
    return Accuracy(
        top1=float(hits[:, 0].double().mean()),
        top5=float(hits.any(1).double().mean()),
        images=len(labels),
    )


def accuracies(logits: Mapping[str, Tensor], dataset: Dataset) -> dict[str, Accuracy]:
    """Accuracy by test set of `dataset`; `logits` may hold those of further images."""
    return {name: accuracy(logits[name], test.labels) for name, test in dataset.tests.items()}


def evaluate(model: nn.Module, dataset: Dataset, stage: str = "evaluation") -> dict[str, Accuracy]:
    """Accuracy of a network on every test set; as `network_logits`."""
    return accuracies(network_logits(model, dataset, stage), dataset)


def network_logits(model: nn.Module, dataset: Dataset, stage: str) -> dict[str, Tensor]:
    """Logits [images, classes] of a network by test set; it must be in evaluation mode.

    Raises:
        InputError: logits are not finite; names `stage`, the test set and the first layer.
    """
    place = next(model.parameters()).device

    def predict(images: Tensor) -> Tensor:
        return model(images.to(place))  # type: ignore[no-any-return]

    def image_at(images: Images, row: int) -> Tensor:
        ((image, _),) = batches(images.take(torch.tensor([row])), 1, dataset)
        return image.to(place)

    found = {}
    for name, images in dataset.tests.items():
        found[name] = predictions(predict, images, dataset)
        where = f"{stage}: test set {name}"
        refuse_bad_logits(where, found[name], model, partial(image_at, images))
    return found


def write_named(logits: Mapping[str, Tensor], dataset: Dataset, path: Path) -> None:
    """Keep which class was named for every test image: int32 [N] by test set, as safetensors."""
    kept = {name: named(logits[name]).to(torch.int32) for name in dataset.tests}
    safetensors.torch.save_file(kept, path)


def read_named(path: Path) -> dict[str, list[int]]:
    """What `write_named` kept."""
    return {name: kept.tolist() for name, kept in safetensors.torch.load_file(path).items()}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The classes of the images of one test set.

    Attributes:
        labels: their own.
        float_model: named by the float model.
        file: named by the exported file.
    """

    labels: list[int]
    float_model: list[int]
    file: list[int]


def gathered(dataset: Dataset, baseline: Path, file: Path) -> dict[str, Predictions]:
    """What two stages kept with `write_named` in their directories, by test set of `dataset`."""
    float_model, exported = read_named(baseline / NAMED), read_named(file / NAMED)
    return {
        name: Predictions(
            labels=images.labels.tolist(), float_model=float_model[name], file=exported[name]
        )
        for name, images in dataset.tests.items()
    }


def write_predictions(predictions: Mapping[str, Predictions], path: Path) -> None:
    """Keep the classes of every test image, as int32 tensors TEST_SET/labels, /float and /file."""
    kept = {}
    for name, found in predictions.items():
        every = {"labels": found.labels, "float": found.float_model, "file": found.file}
        for whose, classes in every.items():
            kept[f"{name}/{whose}"] = torch.tensor(classes, dtype=torch.int32)
    safetensors.torch.save_file(kept, path)


def read_predictions(path: Path) -> dict[str, Predictions]:
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
