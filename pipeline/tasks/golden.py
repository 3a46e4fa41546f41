"""Test images that show whether an app feeds a classifier as it was trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.tasks.ranking import first_class, ranked


def spread(labels: Tensor) -> Tensor:
    """Rows of images, a first one of every class, then a second one, and so on.

    Args:
        labels: int64 [N].

    Returns:
        int64 [N].
    """
    seen: dict[int, int] = {}
    turn = []
    for label in labels.tolist():
        turn.append(seen.get(label, 0))
        seen[label] = turn[-1] + 1
    return torch.tensor(
        sorted(range(len(turn)), key=lambda row: (turn[row], int(labels[row]), row))
    )


def clearest(logits: Tensor, tolerance: float) -> Tensor:
    """Rows of logits [N, classes], those first whose best class leads by over twice `tolerance`.

    Returns:
        int64 [N]; else in their order.
    """
    best = logits.gather(1, ranked(logits)[:, :2])
    return (best[:, 0] - best[:, 1] <= 2 * tolerance).to(torch.uint8).argsort(stable=True)


def table(logits: Tensor, labels: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """The class of each image, the class that is named, and the logits, float32 [N, classes].

    Nine digits: a float32 comes back as it was.
    """
    heads = ["label", "named", *(f"logit_{n}" for n in range(logits.shape[1]))]
    named = first_class(logits).tolist()
    rows = [
        [str(label), str(first), *(f"{value:.9g}" for value in values)]
        for label, first, values in zip(labels, named, logits.float().tolist(), strict=True)
    ]
    return heads, rows
