"""The labels of a single image: what the float network and every file make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.tasks.ranking import ranked


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One image.

    Attributes:
        image: its name.
        labels: that the float network or a file names, the likeliest first by the float network.
        scores: probability of each of `labels`, by column: the float network first, where it is
            there, then every file.
        named: whether a column names each of `labels`.
        threshold: probability above which a label is named.
        largest_difference: between a column's probabilities and the first one's, over all labels.
    """

    image: str
    labels: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    named: dict[str, tuple[bool, ...]]
    threshold: float
    largest_difference: float

    def heading(self) -> str:
        """What the rows are of."""
        return "label"

    def rows(self) -> list[tuple[str, dict[str, str]]]:
        """The probabilities of every label, by column; in brackets where it is not named."""
        if not self.labels:
            return [("no label", dict.fromkeys(self.scores, ""))]
        return [
            (
                name,
                {
                    column: f"{scores[row]:.4f}"
                    if self.named[column][row]
                    else f"({scores[row]:.4f})"
                    for column, scores in self.scores.items()
                },
            )
            for row, name in enumerate(self.labels)
        ]

    def notes(self) -> list[str]:
        """Which columns name other labels, and how far the probabilities are apart."""
        first, *rest = self.named
        if not rest:
            return []  # there is nothing that it could differ from
        others = [column for column in rest if self.named[column] != self.named[first]]
        lines = [f"in brackets: not above {self.threshold:g}, so not named"] if others else []
        lines += [f"other labels than {first}: {', '.join(others)}"] if others else []
        return [*lines, f"largest difference from {first}: {self.largest_difference:.4f}"]

    def drawn(self, pixels: Tensor) -> None:
        """Words say all."""


def labelled(
    image: str,
    logits: Mapping[str, Tensor],
    labels: Sequence[str],
    threshold: float,
    above: float,
) -> Labelled:
    """The labels of one image, ordered by the float network's logits.

    Args:
        image: its name.
        logits: (labels) by column, the float network's first.
        labels: names.
        threshold: probability above which a label is named.
        above: the same as a logit.
    """
    first = next(iter(logits))
    named = {column: (found.float() > above).tolist() for column, found in logits.items()}
    shown = [
        row for row in ranked(logits[first]).tolist() if any(said[row] for said in named.values())
    ]
    scores = {column: found.sigmoid() for column, found in logits.items()}
    return Labelled(
        image=image,
        labels=tuple(labels[row] for row in shown),
        scores={column: tuple(float(s[row]) for row in shown) for column, s in scores.items()},
        named={column: tuple(said[row] for row in shown) for column, said in named.items()},
        threshold=threshold,
        largest_difference=max(float((s - scores[first]).abs().max()) for s in scores.values()),
    )
