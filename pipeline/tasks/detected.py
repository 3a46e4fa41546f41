"""The boxes of a single image: what the float network and every file make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.tasks.box_code import overlaps
from pipeline.tasks.drawing import joined, photo
from pipeline.tasks.drawn_boxes import Drawn, with_boxes
from pipeline.tasks.found import Found, partners


@dataclass(frozen=True, kw_only=True)
class Box:
    """One box, found by some of the columns.

    Attributes:
        name: of its class.
        sides: left, top, right, bottom, shares of the image, by the first column that found it.
        scores: by column; None of one that has not found it.
        overlap: of each column's box with that of the first, likewise.
    """

    name: str
    sides: tuple[float, float, float, float]
    scores: dict[str, float | None]
    overlap: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Detected:
    """One image.

    Attributes:
        image: its name.
        boxes: the best first by the float network, then those that only files found.
        found: all boxes by column, to be drawn.
        left_out: boxes that are not among `boxes`, since only some were asked for.
    """

    image: str
    boxes: tuple[Box, ...]
    found: dict[str, tuple[Drawn, ...]]
    left_out: int

    def heading(self) -> str:
        """What the rows are of."""
        return "box"

    def drawn(self, pixels: Tensor) -> Image.Image:
        """The image with the boxes of every column, side by side.

        Args:
            pixels: of the image, uint8 [C, H, W].
        """
        return joined([with_boxes(photo(pixels), boxes) for boxes in self.found.values()])

    def rows(self) -> list[tuple[str, dict[str, str]]]:
        """The score of every box, by column, and how much it overlaps the first column's."""
        if not self.boxes:
            return [("no box", dict.fromkeys(self.found, ""))]
        return [(_title(box), {c: _cell(box, c) for c in self.found}) for box in self.boxes]

    def notes(self) -> list[str]:
        """What the columns found otherwise, and how far the boxes are apart."""
        first, *rest = self.found
        lines = [f"{self.left_out} more boxes"] if self.left_out else []
        if not rest:
            return lines
        others = [
            c
            for c in rest
            if any((b.scores[c] is None) != (b.scores[first] is None) for b in self.boxes)
        ]
        lines += [f"other boxes than {first}: {', '.join(others)}"] if others else []
        least = [b.overlap[c] for b in self.boxes for c in rest]
        known = [one for one in least if one is not None]
        if known:
            lines.append(f"in brackets: overlap with the box of {first}, {min(known):.3f} at least")
        return lines


def _title(box: Box) -> str:
    left, top, right, bottom = box.sides
    return f"{box.name} ({left:.3f}, {top:.3f}) to ({right:.3f}, {bottom:.3f})"


def _cell(box: Box, column: str) -> str:
    score, overlap = box.scores[column], box.overlap[column]
    if score is None:
        return "-"
    return f"{score:.3f}" if overlap is None else f"{score:.3f} ({overlap:.3f})"


def detected(image: str, found: Mapping[str, Found], classes: Sequence[str], top: int) -> Detected:
    """The boxes of one image side by side.

    Args:
        image: its name.
        found: by column, the float network's first.
        classes: names.
        top: how many boxes to give.
    """
    boxes: list[Box] = []
    seen = {column: np.zeros(len(one.scores), np.bool_) for column, one in found.items()}
    for first, own in found.items():
        left = np.flatnonzero(~seen[first])
        pairs = {}
        for column, other in found.items():
            if column == first:
                continue
            free = np.flatnonzero(~seen[column])
            which = partners(
                own.boxes[left], own.classes[left], other.boxes[free], other.classes[free]
            )
            pairs[column] = np.where(which >= 0, free[which] if len(free) else -1, -1)
        for place, row in enumerate(left.tolist()):
            partner = {column: int(which[place]) for column, which in pairs.items()}
            boxes.append(_box(first, row, found, partner, classes))
            for column, other_row in partner.items():
                if other_row >= 0:
                    seen[column][other_row] = True
        seen[first][:] = True
    return Detected(
        image=image,
        boxes=tuple(boxes[:top]),
        found={column: _drawn(one, classes) for column, one in found.items()},
        left_out=max(0, len(boxes) - top),
    )


def _box(
    first: str,
    row: int,
    found: Mapping[str, Found],
    partner: Mapping[str, int],
    classes: Sequence[str],
) -> Box:
    own = found[first]
    scores: dict[str, float | None] = {}
    crossed: dict[str, float | None] = {}
    for column, other in found.items():
        at = row if column == first else partner.get(column, -1)
        scores[column] = float(other.scores[at]) if at >= 0 else None
        both = at >= 0 and column != first
        area = overlaps(own.boxes[[row]], other.boxes[[at]])[0, 0] if both else None
        crossed[column] = None if area is None else float(area)
    left, top, right, bottom = (float(side) for side in own.boxes[row])
    return Box(
        name=classes[int(own.classes[row])],
        sides=(left, top, right, bottom),
        scores=scores,
        overlap=crossed,
    )


def _drawn(found: Found, classes: Sequence[str]) -> tuple[Drawn, ...]:
    rows = zip(found.classes.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True)
    return tuple(
        Drawn(number=number, title=f"{classes[number]} {score:.2f}", sides=tuple(sides))
        for number, sides, score in rows
    )
