"""Which class is named: one rule for every answer, also where logits tie.

The largest logit names the class; of equal ones the class of the lower index, as numpy's `argmax`
does. Logits of an int8 file lie on a grid of 256 steps, so equal ones are common. The code of a
bundle follows the same rule, in each of its languages.
"""

from __future__ import annotations

from torch import Tensor


def first_class(logits: Tensor) -> Tensor:
    """The class that is named: int64 (...) of logits (..., classes)."""
    # torch promises the index of the first of equal values here, and in `topk` it does not.
    return logits.argmax(dim=-1)


def ranked(logits: Tensor) -> Tensor:
    """All classes, best first: int64 (..., classes) of logits (..., classes)."""
    return logits.argsort(dim=-1, descending=True, stable=True)
