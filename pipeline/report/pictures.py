"""Pictures of what was made of a few test images, beside the report that shows them.

They lie in the folder of a run as text that the page takes in, so that it needs no other file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.base.errors import following, reading
from pipeline.base.safe_files import json_of

PICTURES = "pictures.json"
"""Name of the file in the folder of a run, where what it learns can be drawn."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture.

    Attributes:
        title: what it shows, such as `float model`.
        png: a PNG, in base64.
    """

    title: str
    png: str


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """A test image with what is made of it.

    Attributes:
        run: whose file is shown.
        test_set: that it is of.
        panels: the image, what should be, what the float model and the file make of it, and where
            the two differ.
    """

    run: str
    test_set: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Colour:
    """What stands for a class in pictures.

    Attributes:
        name: of the class.
        rgb: such as `#800000`.
    """

    name: str
    rgb: str


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """All pictures of a run, or of several.

    Attributes:
        images: a row each.
        colours: of the classes.
    """

    images: tuple[ShownImage, ...] = ()
    colours: tuple[Colour, ...] = ()


def write_pictures(found: Pictures, directory: Path) -> None:
    """Write the pictures into the folder of a run that is being made; none writes nothing."""
    if found.images:
        text = json.dumps(asdict(found), ensure_ascii=False)
        (directory / PICTURES).write_text(text, encoding="utf-8")


def read_pictures(directory: Path) -> Pictures:
    """The pictures in the folder of a run; none where it has no such file.

    Raises:
        InputError: the file is another.
    """
    path = directory / PICTURES
    if not path.is_file():
        return Pictures()
    with reading(path):
        return _pictures(json_of(path))


def joined(found: Sequence[Pictures]) -> Pictures:
    """The pictures of several runs of the same classes."""
    colours = next((one.colours for one in found if one.images), ())
    return Pictures(images=tuple(image for one in found for image in one.images), colours=colours)


@following("pictures")
def _pictures(content: dict[str, object]) -> Pictures:
    images, colours = content["images"], content["colours"]
    assert isinstance(images, list)
    assert isinstance(colours, list)
    return Pictures(
        images=tuple(
            ShownImage(
                run=one["run"],
                test_set=one["test_set"],
                panels=tuple(Panel(**panel) for panel in one["panels"]),
            )
            for one in images
        ),
        colours=tuple(Colour(**one) for one in colours),
    )
