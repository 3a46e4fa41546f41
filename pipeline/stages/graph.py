"""The stages, in the order of the work."""

from __future__ import annotations

from typing import Any

from pipeline.base.errors import InputError
from pipeline.stages import (
    baseline,
    export,
    fold,
    measure,
    prune,
    qat,
    sparsify,
    times,
    train,
    verify,
)
from pipeline.stages.stage import Stage

STAGES: tuple[Stage[Any], ...] = (
    train.STAGE,
    baseline.STAGE,
    times.STAGE,
    prune.STAGE,
    sparsify.STAGE,
    qat.STAGE,
    fold.STAGE,
    export.STAGE,
    verify.STAGE,
    measure.STAGE,
)
"""The pipeline. Reporting is what is done with the last results."""


def stages_until(last: str | None) -> tuple[Stage[Any], ...]:
    """The stages up to one of them; all where none is named.

    Raises:
        InputError: there is no such stage.
    """
    names = [stage.name for stage in STAGES]
    if last is None:
        return STAGES
    if last not in names:
        raise InputError(f"--until: got {last!r}; must be one of {', '.join(names)}")
    return STAGES[: names.index(last) + 1]
