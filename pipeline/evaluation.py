"""One accuracy count for every stage that judges a network or a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.data import Dataset, Images, batches
from pipeline.health import refuse_bad_logits
from pipeline.records import Accuracy

_EVALUATION_BATCH, _EVALUATION_PIXELS = 64, 2**19


def evaluation_batch(side: int) -> int:
    """Images of `side` pixels that are run at once: few large ones, so that caches hold them."""
    return max(2, min(_EVALUATION_BATCH, _EVALUATION_PIXELS // side**2))


def predictions(predict: Callable[[Tensor], Tensor], images: Images, dataset: Dataset) -> Tensor:
    """Logits (images, classes) of `predict`, float32 on the CPU, in the order of `images`."""
    size = evaluation_batch(images.size)
    with torch.inference_mode():
        parts = [predict(x).float().cpu() for x, _ in batches(images, size, dataset)]
    return torch.cat(parts)


def accuracy(logits: Tensor, labels: Tensor) -> Accuracy:
    """Share of images whose label is the first, or among the first five, of `logits`."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    return Accuracy(
        top1=float(hits[:, 0].double().mean()),
        top5=float(hits.any(1).double().mean()),
        images=len(labels),
    )


def evaluate(model: nn.Module, dataset: Dataset, stage: str = "evaluation") -> dict[str, Accuracy]:
    """Accuracy of a network on every test set; the network must be in evaluation mode.

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
        logits = predictions(predict, images, dataset)
        refuse_bad_logits(f"{stage}: test set {name}", logits, model, partial(image_at, images))
        found[name] = accuracy(logits, images.labels)
    return found
