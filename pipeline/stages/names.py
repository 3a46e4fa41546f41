"""The names that no recipe can have, since something else is written under them beside runs."""

from __future__ import annotations

from pipeline.base.console import LOG
from pipeline.base.errors import InputError
from pipeline.base.profile import PAGE, TRACE
from pipeline.base.store import STORE
from pipeline.measure.baseline.record import BASELINES
from pipeline.recipe.recipe import Recipe
from pipeline.report.records import COMBINED

RESERVED = {
    STORE: "the folder of all stages' results",
    BASELINES: "the folder of `pocketnest baseline`",
    COMBINED: "the folder of the report of several recipes",
    LOG: "the file of what a run prints",
    TRACE: "the trace of `pocketnest run --profile`",
    PAGE: "the page of `pocketnest run --profile`",
}
"""What lies beside the folders of runs, by its name."""


def refuse_reserved(recipe: Recipe) -> None:
    """Refuse a recipe whose folder would be one of those.

    Raises:
        InputError: it would.
    """
    if recipe.name in RESERVED:
        raise InputError(
            f"name: got {recipe.name!r}, which is {RESERVED[recipe.name]} beside those of the "
            "runs; give the recipe another name"
        )
