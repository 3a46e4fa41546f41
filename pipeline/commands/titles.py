"""Words for a file's runtime, at the head of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.stages.finished_run import Finished


def runtime_title(run: Finished, computed_by: str) -> str:
    """The runtime of a run's file; `computed_by` is "runtime" or "reference", as formats say it."""
    reference = " (reference)" if computed_by == "reference" else ""
    return f"{run.format.runtime}{reference}"
