"""What annotations say of the images of one set, from whatever file, and what is wrong with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

_SLACK = 1.0
"""Pixels that a box may reach beyond its image, and is cut by: tools round otherwise than cameras
count."""
Sides = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Named:
    """One object.

    Attributes:
        sides: left, top, right, bottom, in pixels.
        name: of its class.
        ignored: whether it does not count where boxes are judged.
    """

    sides: Sides
    name: str
    ignored: bool = False


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """The annotations of one set.

    Attributes:
        sizes: width and height of every image in pixels, by what names it.
        objects: of every image, likewise.
        classes: names that the annotations list, in order; those of objects where they list none.
        problems: what is wrong, a line each.
    """

    sizes: Mapping[str, tuple[int, int]]
    objects: Mapping[str, tuple[Named, ...]]
    classes: tuple[str, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is wrong, gathered: a line for every kind of fault, with the first case of it.

    Attributes:
        where: file or folder, for the lines.
    """

    where: str
    _found: dict[tuple[str, str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, what: tuple[str, str], case: str, fix: str) -> None:
        """Remember a fault.

        Args:
            what: of one, and of several.
            case: this one.
            fix: what to do.
        """
        self._found[(*what, fix)].append(case)

    def lines(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(
            f"{self.where}: {len(cases)} {one if len(cases) == 1 else several}, "
            f"{'' if len(cases) == 1 else 'such as '}{cases[0]}; {fix}"
            for (one, several, fix), cases in self._found.items()
        )


def checked(sides: Sides, size: tuple[int, int], case: str, faults: Faults) -> Sides | None:
    """A box within its image; None of one that cannot be right, which is noted.

    Args:
        sides: left, top, right, bottom, in pixels.
        size: width and height of the image.
        case: names the box and its image.
        faults: takes what is wrong.
    """
    left, top, right, bottom = sides
    width, height = size
    shown = f"{case}: [{left:g}, {top:g}] to [{right:g}, {bottom:g}]"
    if not (right > left and bottom > top):
        fix = "remove it, or give it a width and a height"
        faults.note(("box has no area", "boxes have no area"), shown, fix)
        return None
    beyond = max(-left, -top, right - width, bottom - height)
    within = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    if beyond > _SLACK or within[0] >= within[2] or within[1] >= within[3]:
        faults.note(
            ("box reaches beyond its image", "boxes reach beyond their images"),
            f"{shown} of {width} x {height}",
            "correct it, or the size of the image",
        )
        return None
    return within
