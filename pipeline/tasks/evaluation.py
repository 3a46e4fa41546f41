"""The answers of a network or a file to a set of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.base import torchrun
from pipeline.base.profile import span
from pipeline.networks.sanity import refuse_bad_logits
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images

_EVALUATION_BATCH, _EVALUATION_PIXELS = 64, 2**19


def evaluation_batch(shape: InputShape) -> int:
    """Images of `shape` that are run at once: few large ones, so that caches hold them."""
    return max(2, min(_EVALUATION_BATCH, _EVALUATION_PIXELS // shape.area))


@span("evaluate", "test images")
def predictions(predict: Callable[[Tensor], Tensor], images: Images, dataset: Dataset) -> Tensor:
    """Answers (images, ...) of `predict`, float32 on the CPU, in the order of `images`.

    The processes of `processes.together` take a part of the images each, and all get all answers.
    """
    size = evaluation_batch(images.shape)
    own = torchrun.own_rows(len(images))
    with torch.inference_mode():
        given = batches(images, size, dataset, order=own)
        parts = [predict(x).float().cpu() for x, _ in given]
        if not parts:  # fewer images than processes: one is run for the shape of its answer
            ((x, _),) = batches(images.take(torch.tensor([0])), 1, dataset)
            parts = [predict(x).float().cpu()[:0]]
    return torchrun.all_rows(torch.cat(parts), len(images))


def network_logits(model: nn.Module, dataset: Dataset, stage: str) -> dict[str, Tensor]:
    """Answers (images, ...) of a network by test set; it must be in evaluation mode.

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
