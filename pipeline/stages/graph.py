"""The stages, in the order of the work."""

from __future__ import annotations

from typing import Any

from pipeline.base.errors import InputError
from pipeline.stages import (
    arm64,
    baseline,
    export,
    fold,
    judge,
    measure,
    prune,
    qat,
    sparsify,
    times,
    train,
    verify,
    weights,
)
from pipeline.stages.judge import JUDGES
from pipeline.stages.stage import Stage

STAGES: tuple[Stage[Any], ...] = (
    train.STAGE,
    baseline.STAGE,
    times.STAGE,
    prune.STAGE,
    judge.PRUNE,
    sparsify.STAGE,
    judge.SPARSIFY,
    weights.STAGE,
    qat.STAGE,
    fold.STAGE,
    judge.FOLD,
    export.STAGE,
    verify.STAGE,
    arm64.STAGE,
    measure.STAGE,
)
"""The pipeline. Reporting is what is done with the last results."""


_JUDGES = {stage.name for stage in JUDGES.values()}


def stages_until(last: str | None) -> tuple[Stage[Any], ...]:
    """The stages up to one of them, which is judged; all where none is named.

    Raises:
        InputError: there is no such stage.
    """
    if last is None:
        return STAGES
    names = [stage.name for stage in STAGES]
    made = [name for name in names if name not in _JUDGES]
    if last not in made:
        raise InputError(f"--until: got {last!r}; must be one of {', '.join(made)}")
    end = names.index(last) + 1
    judged = last in JUDGES and names[end : end + 1] == [JUDGES[last].name]
    return STAGES[: end + judged]
