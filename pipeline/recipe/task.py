"""What a recipe asks a network to learn."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from pipeline.recipe.known import known_task
from pipeline.recipe.values import Part


class TaskConfig(Part):
    """What is learned, and how it is judged.

    Attributes:
        kind: of the task.
    """

    kind: Annotated[str, AfterValidator(known_task)] = "classification"
