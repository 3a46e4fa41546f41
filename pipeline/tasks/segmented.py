"""The classes of a single image's pixels: what the float network and every file make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from pipeline.tasks.drawing import coloured, different, joined, photo
from pipeline.tasks.images.preparation import VOID


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """One image.

    Attributes:
        image: its name.
        classes: names of those with the most pixels, by the float network.
        shares: of the pixels, of each of `classes`, by column: the float network first, where it
            is there, then every file.
        maps: uint8 [H, W] of every column.
    """

    image: str
    classes: tuple[str, ...]
    shares: dict[str, tuple[float, ...]]
    maps: dict[str, Tensor]

    def heading(self) -> str:
        """What the rows are of."""
        return "share of pixels"

    def rows(self) -> list[tuple[str, dict[str, str]]]:
        """The share of the pixels of every class, by column."""
        return [
            (name, {column: f"{shares[row]:.2%}" for column, shares in self.shares.items()})
            for row, name in enumerate(self.classes)
        ]

    def notes(self) -> list[str]:
        """How many pixels have the first column's class."""
        first, *rest = self.maps
        same = {name: float((self.maps[name] == self.maps[first]).double().mean()) for name in rest}
        told = ", ".join(f"{name} {share:.2%}" for name, share in same.items())
        return [f"pixels with the class of {first}: {told}"] if same else []

    def drawn(self, pixels: Tensor) -> Image.Image:
        """The image, what every column makes of it, and where that differs from the first one's.

        Args:
            pixels: of the image, uint8 [C, H, W].
        """
        first, *rest = self.maps
        panels = [photo(pixels), *(coloured(found) for found in self.maps.values())]
        panels += [different(self.maps[name], self.maps[first]) for name in rest]
        return joined(panels)


def segmented(
    image: str, maps: Mapping[str, Tensor], classes: Sequence[str], top: int
) -> Segmented:
    """The classes of one image, those first that have the most pixels by the first column.

    Args:
        image: its name.
        maps: uint8 [H, W] by column, the float network's first.
        classes: names.
        top: how many classes to give.
    """
    counts = {
        name: torch.bincount(found.flatten().int(), minlength=VOID)[: len(classes)]
        for name, found in maps.items()
    }
    first = next(iter(counts.values()))
    order = first.argsort(descending=True, stable=True).tolist()
    named = [row for row in order if any(found[row] for found in counts.values())][:top]
    return Segmented(
        image=image,
        classes=tuple(classes[row] for row in named),
        shares={
            name: tuple(float(found[row]) / maps[name].numel() for row in named)
            for name, found in counts.items()
        },
        maps=dict(maps),
    )
