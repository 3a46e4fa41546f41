"""The tables whose names a recipe may hold."""

from __future__ import annotations

from pipeline.formats.formats import FORMATS
from pipeline.networks.families import FAMILIES
from pipeline.recipe.known import Known
from pipeline.tasks.tasks import TASKS

KNOWN = Known(families=FAMILIES, formats=FORMATS, tasks=TASKS)
"""For `load_recipes`."""
