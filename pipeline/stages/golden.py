"""Which test images show that an app feeds a file as it was trained, and how far it may be off."""

from __future__ import annotations

from torch import Tensor

from pipeline.formats.formats import FORMATS
from pipeline.report.records import TargetResult
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.task import TaskModule

MOST = 10
"""Golden images, where the test set has as many."""
_CANDIDATES = 40


def candidates(task: TaskModule, images: Images) -> Tensor:
    """Rows of the test images to choose from, of as many classes as can be: int64 [N]."""
    return task.golden_order(images.labels)[:_CANDIDATES]


def clear_ones(task: TaskModule, answers: Tensor, allowed: float) -> Tensor:
    """Rows of the candidates that are chosen, by the file's answers to all of them: int64 [N].

    Where there are enough, every first class leads by more than twice what is allowed, so that
    whoever keeps to that names the same class.
    """
    return task.golden_clear(answers, allowed)[:MOST].sort().values


def tolerance(target: TargetResult, step: float | None, answers: Tensor) -> tuple[float, str]:
    """How far a number may be off, from what runtimes were allowed and seen to differ.

    Args:
        target: says what was seen.
        step: of the grid that the answers lie on; None of a float file.
        answers: of the file.

    Returns:
        The tolerance, and where it comes from, in words.
    """
    limits = FORMATS[target.format].limits
    steps = target.parity.steps
    if steps is None or step is None:
        largest = float(answers.abs().max())
        share = 2 * limits.difference
        return share * largest, f"{share:g} of the largest logit, {largest:.4g}"
    rounding = target.parity.rounding
    # A phone's kernels sum in an order of their own, too.
    most = max(limits.p99, steps.largest, rounding.largest if rounding else 0)
    why = (
        f"{most} steps of {step:.6g}, the grid of the logits: the most by which this file and its "
        f"program differed on {target.parity.images} images, or the program from itself where it "
        f"was rounded otherwise, and no less than {limits.p99}"
    )
    return most * step, why
