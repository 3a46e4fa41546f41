"""What a recipe asks a network to learn."""

from __future__ import annotations

from pipeline.recipe.values import Part


class TaskConfig(Part):
    """What is learned, and how it is judged.

    Attributes:
        kind: of the task.
    """

    kind: str = "classification"
