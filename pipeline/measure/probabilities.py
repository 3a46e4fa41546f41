"""Logits, of files that give probabilities: what the rest of the house compares and judges.

A softmax hides what all logits of an image have in common, a float32 sigmoid how far a logit is
above 16. What is told apart else is told apart in logits as in probabilities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.recipe.task import Link

_LEAST = torch.finfo(torch.float32).tiny
"""Smallest probability that has all digits; below it kernels may give 0."""
_MOST = 1 - 2.0**-24
"""Largest float32 below 1."""
_RELATIVE, _ABSOLUTE = 2.0**-16, 2.0**-23
"""By how much a runtime may be off whose exponential is an approximation in float32. A step of
logits is more: the finest grid has steps of 2^-14."""


def logits_of(answers: Tensor, link: Link | None) -> Tensor:
    """The logits that a file's answers stand for, as near to those inside as can be told.

    Args:
        answers: of a file, float32 (images, numbers).
        link: what made probabilities of them; None where they are logits.

    Returns:
        float32; of a softmax those logits whose exponentials are 1 in sum.
    """
    if link is None:
        return answers
    shares = answers.double().clamp(min=_LEAST)
    if link == "softmax":
        return shares.log().float()
    return shares.clamp(max=_MOST).logit().float()


def probabilities_of(logits: Tensor, link: Link) -> Tensor:
    """What a file makes of its logits (images, numbers), in double precision."""
    logits = logits.double()
    return logits.softmax(-1) if link == "softmax" else logits.sigmoid()


def told(answers: Tensor, wanted: Tensor, link: Link | None) -> Tensor:
    """A file's logits beside those that they should be.

    Where a probability is that of the wanted logits to the digits of a float32, the file's logit is
    the wanted one. Else it is taken from the probability; of a softmax, with what the wanted logits
    of the image have in common.

    Args:
        answers: of a file, float32 (images, numbers).
        wanted: logits of the same shape, such as the program's.
        link: as of `logits_of`.

    Returns:
        float32 like `wanted`; not a number where an answer is none.
    """
    if link is None:
        return answers
    found, meant = answers.double(), probabilities_of(wanted, link)
    allowed = _RELATIVE * torch.minimum(meant, 1 - meant) + _ABSOLUTE * meant + _LEAST
    same = (found - meant).abs() <= allowed
    logits = logits_of(answers, link).double()
    if link == "softmax":
        logits = logits + (wanted.double() - logits).median(-1, keepdim=True).values
    own = torch.where(answers.isfinite(), logits, torch.nan)
    return torch.where(same, wanted.double(), own).float()


def most_apart(logits: float, link: Link) -> float:
    """By how much a probability can move where every logit moves by `logits` at most.

    The slope of a sigmoid is steepest in the middle, where it is the tangent of half its range; of
    a softmax the logit of one class against the others moves by twice as much.
    """
    return math.tanh(logits / (2 if link == "softmax" else 4))
