"""Which test images show that an app feeds a file as it was trained, and how far it may be off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.formats.format import Format
from pipeline.measure.parity_record import Parity
from pipeline.measure.probabilities import logits_of
from pipeline.recipe.task import Link
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.task import TaskModule

MOST = 10
"""Golden images, where the test set has as many."""
_CANDIDATES = 40

Fed = Callable[[Tensor], Tensor]
"""Images at rows (int64 [B]) as a file takes them, float32 [B, C, H, W]."""
Moved = Callable[[Tensor], Tensor]
"""The largest difference that each fault makes in the answers at rows: [faults, B]."""


def candidates(task: TaskModule, images: Images) -> Tensor:
    """Rows of the test images to choose from, of as many classes as can be: int64 [N]."""
    return task.golden_order(images.labels)[:_CANDIDATES]


def chosen(task: TaskModule, answers: Tensor, allowed: float, moved: Moved | None = None) -> Tensor:
    """Rows of the candidates that are chosen, by the file's answers to all of them: int64 [N].

    Where there are enough, every first class leads by more than twice what is allowed, so that
    whoever keeps to that names the same class. Where devices have known faults, each moves an
    answer of some image by more than twice what is allowed, if it does so with any candidate.

    Args:
        task: what the answers are of.
        answers: of the file, to all candidates.
        allowed: how far a number may be off.
        moved: how far faults move answers; None where none are known.
    """
    clear: Tensor = task.golden_clear(answers, allowed)
    rows = clear[:MOST]
    if moved is None:
        return rows.sort().values
    hidden = ~(moved(rows) > 2 * allowed).any(1)
    if hidden.any():
        telling = moved(clear)[hidden].argmax(1)
        both = torch.cat([clear[telling], rows]).tolist()
        rows = torch.tensor(list(dict.fromkeys(both))[:MOST], dtype=torch.int64)
    return rows.sort().values


def moved_by_faults(
    form: Format, path: Path, answers: Tensor, fed: Fed, link: Link | None = None
) -> Moved | None:
    """How far known faults of devices move the answers of a file; None where none can befall it.

    Args:
        form: of the file.
        path: of the file.
        answers: logits, to all candidates.
        fed: the candidates at some rows, as the file takes them.
        link: what makes probabilities in the file; None of one that gives logits.
    """
    if form.faults is None:
        return None
    module = form.faults()

    def moved(rows: Tensor) -> Tensor:
        wrong = module.wrong_answers(path, fed(rows).numpy())
        far = [
            (logits_of(torch.from_numpy(w), link) - answers[rows]).abs().flatten(1).amax(1)
            for w in wrong.values()
        ]
        return torch.stack(far) if far else torch.empty(0, len(rows))

    return moved


def tolerance(form: Format, seen: Parity, step: float | None, answers: Tensor) -> tuple[float, str]:
    """How far a number may be off, from what runtimes were allowed and seen to differ.

    Args:
        form: of the file.
        seen: how the file differed from its program.
        step: of the grid that the answers lie on; None of a float file.
        answers: of the file.

    Returns:
        The tolerance, and where it comes from, in words.
    """
    limits, steps = form.limits, seen.steps
    if steps is None or step is None:
        largest = float(answers.abs().max())
        share = 2 * limits.difference
        return share * largest, f"{share:g} of the largest logit, {largest:.4g}"
    rounding = seen.rounding
    # A phone's kernels sum in an order of their own, too.
    most = max(limits.p99, steps.largest, rounding.largest if rounding else 0)
    why = (
        f"{most} steps of {step:.6g}, the grid of the logits: the most by which this file and its "
        f"program differed on {seen.images} images, or the program from itself where it "
        f"was rounded otherwise, and no less than {limits.p99}"
    )
    return most * step, why
