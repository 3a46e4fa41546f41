"""The tables whose names a recipe may hold."""

from __future__ import annotations

from pipeline.formats.formats import FORMATS
from pipeline.recipe.known import Known

KNOWN = Known(formats=FORMATS)
"""For `load_recipes`."""
