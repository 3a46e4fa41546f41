"""Average precision and F1 of labels: how well images that have a label are told from the others.

The average precision of a label is the mean of the precision over its recall,

    AP = sum over n of (R_n - R_(n-1)) P_n

where n counts the different logits from the largest down, and P_n and R_n are precision and recall
of all images whose logit is at least the n-th. Nothing is interpolated. It is the definition of
scikit-learn's `average_precision_score` (its user guide, "Precision, recall and F-measures", after
M. Zhu, "Recall, Precision and Average Precision", 2004).

Images of equal logits, of which an int8 file gives many, come together: there is one n for all of
them. So the value does not depend on the order of the images.
"""

from __future__ import annotations

import torch
from torch import Tensor


def average_precision(logits: Tensor, has: Tensor) -> float | None:
    """Of one label; None where no image has it.

    Args:
        logits: (images); only their order counts.
        has: (images), not 0 where an image has the label.
    """
    order = logits.argsort(descending=True)
    ordered, found = logits[order], has[order].bool().cumsum(0)
    if int(found[-1]) == 0:
        return None
    # Of images that tie, the last one: what holds from there on up holds for all of them.
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    taken = last.nonzero().flatten() + 1
    right = found[last].double()
    gained = right.diff(prepend=right.new_zeros(1))
    return min(1.0, float((gained * right / taken).sum() / right[-1]))


def micro_f1(named: Tensor, has: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) over all images and labels; 1 where none is named and none is there.

    With TP the labels that are named and there, FP those named alone, FN those there alone
    (C. J. van Rijsbergen, "Information Retrieval", 1979, chapter 7, with equal weights).

    Args:
        named: bool (images, labels).
        has: (images, labels), not 0 where an image has a label.
    """
    both = int((named & has.bool()).sum())
    either = int(named.sum()) + int(has.bool().sum())
    return 2 * both / either if either else 1.0
