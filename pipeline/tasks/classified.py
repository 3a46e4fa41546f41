"""The classes of a single image: what the float network and every file make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.tasks.ranking import first_class, ranked


@dataclass(frozen=True, kw_only=True)
class Classified:
    """One image.

    Attributes:
        image: its name.
        classes: class names, best first by the float network.
        scores: softmax probability of each of `classes`, by column: the float network first,
            where it is there, then every file.
        best: name of the class that each column puts first.
        largest_difference: between a column's scores and the first one's, over all classes.
    """

    image: str
    classes: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    best: dict[str, str]
    largest_difference: float

    def heading(self) -> str:
        """What the rows are of."""
        return "class"

    def rows(self) -> list[tuple[str, dict[str, str]]]:
        """The probabilities of every class, by column."""
        return [
            (name, {column: f"{scores[row]:.4f}" for column, scores in self.scores.items()})
            for row, name in enumerate(self.classes)
        ]

    def notes(self) -> list[str]:
        """Where another class comes first, and how far the probabilities are apart."""
        others = [f"{name}: {best}" for name, best in self.best.items() if best != self.classes[0]]
        differs = [f"first class differs: {', '.join(others)}"] if others else []
        if len(self.scores) == 1:
            return differs  # there is nothing that it could differ from
        first = next(iter(self.scores))
        return [*differs, f"largest difference from {first}: {self.largest_difference:.4f}"]

    def drawn(self, pixels: Tensor) -> None:
        """Words say all."""


def classified(
    image: str, logits: Mapping[str, Tensor], classes: Sequence[str], top: int
) -> Classified:
    """The answers to one image, the classes ordered by the float network's logits.

    Args:
        image: its name.
        logits: (classes) by column, the float network's first.
        classes: names.
        top: how many classes to give.
    """
    first = next(iter(logits))
    # By the logits: probabilities of logits far apart are all 0, and would tie.
    order = ranked(logits[first])[:top].tolist()
    scores = {column: found.softmax(0) for column, found in logits.items()}
    return Classified(
        image=image,
        classes=tuple(classes[i] for i in order),
        scores={column: tuple(float(s[i]) for i in order) for column, s in scores.items()},
        best={column: classes[int(first_class(found))] for column, found in logits.items()},
        largest_difference=max(float((s - scores[first]).abs().max()) for s in scores.values()),
    )
