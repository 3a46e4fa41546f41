"""Prints the reference of all recipe keys.

python -m pipeline.commands.recipe_page > docs/recipe.md
"""

from __future__ import annotations

import sys

from pipeline.recipe.reference_page import markdown
from pipeline.stages.known import KNOWN

if __name__ == "__main__":
    sys.stdout.write(markdown(KNOWN))
