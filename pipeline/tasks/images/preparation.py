"""How a photo becomes pixels: one definition, which the code of every bundle follows to the bit.

A photo is turned upright, made 8-bit red, green and blue, scaled to the least that covers a shape
and cut to its middle. The scaling is Pillow's of one axis at a time, columns before rows: which of
the two comes first is Pillow's own choice otherwise, and differs from version to version.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.recipe.data import (
    WHITE,
    Aspect,
    CocoData,
    Colour,
    DataConfig,
    Interpolation,
    PhotoData,
    VocData,
)
from pipeline.recipe.input_shape import InputShape

LONGEST = 8
"""Of a photo, in lengths of the largest part with the proportions of the shape: of a longer one
the middle alone is scaled. A photo of one row would need gigabytes."""

VOID = 255
"""In masks, of pixels that have no class."""
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class MaskValues:
    """What the pixel values of masks say.

    Attributes:
        listed: classes that are named; the value is the class.
        void: value of pixels without a class, which may be one of those; None where there is none.
    """

    listed: int
    void: int | None

    def table(self) -> NDArray[np.int64]:
        """What becomes of every value: outputs of a network, `VOID`, or -1 of what says nothing."""
        found = np.full(256, -1, np.int64)
        named = [value for value in range(self.listed) if value != self.void]
        found[named] = range(len(named))
        if self.void is not None:
            found[self.void] = VOID
        return found


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What decides the pixels of a photo.

    Attributes:
        shape: C, H and W of what a network sees.
        margin: rows above and below, and columns left and right, that are kept besides.
        interpolation: of the scaling, which averages where it makes smaller.
        background: red, green and blue, 0 to 255, under what is transparent, and around what does
            not fill the shape.
        aspect: how a photo of other proportions fills the shape: cut, stretched, or whole in the
            middle of `background`.
        mask: of masks, whose pixels are classes and no colours; None of photos. A mask is scaled
            and cut as its photo, every pixel to that of the nearest.
    """

    shape: InputShape
    margin: tuple[int, int] = (0, 0)
    interpolation: Interpolation = "bilinear"
    background: Colour = WHITE
    aspect: Aspect = "crop"
    mask: MaskValues | None = None

    @property
    def whole(self) -> InputShape:
        """The shape with its margin: what a photo is scaled to cover."""
        return self.shape.within(self.margin)

    def ingredients(self) -> dict[str, object]:
        """All of it as plain JSON, for keys of what is made from photos."""
        values = self.mask
        of_masks = {} if values is None else {"mask": [values.listed, values.void]}
        return of_masks | {
            "shape": list(self.shape.batch(1)),
            "margin": list(self.margin),
            "interpolation": self.interpolation,
            "background": list(self.background),
            **({} if self.aspect == "crop" else {"aspect": self.aspect}),
        }


def preparation_of(config: DataConfig, shape: InputShape) -> Preparation:
    """How the photos of a recipe are prepared, and those that its files will see."""
    if not isinstance(config, PhotoData):
        return Preparation(shape=shape)
    return Preparation(
        shape=shape,
        margin=margin_of(shape, config.crop_pct),
        interpolation=config.interpolation,
        background=config.background,
        aspect=config.aspect if isinstance(config, CocoData | VocData) else "crop",
    )


def margin_of(shape: InputShape, crop_pct: float) -> tuple[int, int]:
    """Rows and columns around an image so that its sides are a share `crop_pct` of the whole.

    224 x 224 and 0.875 give 16 and 16: an image's shorter side becomes 256.
    """
    share = (1 / crop_pct - 1) / 2
    return round(shape.height * share), round(shape.width * share)


def prepared(image: Image.Image, preparation: Preparation) -> NDArray[np.uint8]:
    """A photo as an opened file has it, prepared: uint8 [C, H, W] with the margin.

    It may be turned upright in place.

    Raises:
        ValueError: its pixels have no known range.
        OSError: they cannot be decoded.
    """
    fitted = fit(rgb_of(image, preparation.background), preparation)
    if preparation.shape.channels == 1:
        return np.asarray(fitted.convert("L"))[None]
    return np.asarray(fitted).transpose(2, 0, 1)


def rgb_of(image: Image.Image, background: Colour) -> Image.Image:
    """The 8-bit RGB of a photo, upright, what is transparent laid on `background`.

    Raises:
        ValueError: its pixels have no known range.
    """
    ImageOps.exif_transpose(image, in_place=True)
    image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    laid = Image.new("RGB", image.size, background)
    # Each channel (alpha * over + (255 - alpha) * under) / 255, rounded to the nearest.
    laid.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return laid


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits, which Pillow takes itself of coloured images; grey it would clip."""
    # Pillow has 16-bit PGM in 32 bits, and 16-bit PNG before version 11.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels; save it with 8 or 16 bits a channel")
    return image


def fit(rgb: Image.Image, preparation: Preparation) -> Image.Image:
    """Scale to the least that covers the shape with its margin, and cut the middle of that size.

    Or, as `preparation.aspect` says, to the shape itself or to the most that fits into it.
    """
    shape, whole = preparation.shape, preparation.whole
    if preparation.aspect != "crop":
        return _fit_whole(rgb, preparation)
    rgb = _shortened(rgb, whole)
    height, width = covering(rgb.height, rgb.width, whole)
    top = start(height, shape.height) - preparation.margin[0]
    left = start(width, shape.width) - preparation.margin[1]
    by = _FILTERS[preparation.interpolation]
    if preparation.mask is not None:
        by = Image.Resampling.NEAREST
    rgb = rgb.resize((width, rgb.height), by).crop((left, 0, left + whole.width, rgb.height))
    return rgb.resize((whole.width, height), by).crop((0, top, whole.width, top + whole.height))


def _fit_whole(rgb: Image.Image, preparation: Preparation) -> Image.Image:
    """All of a photo, stretched or with `background` around it."""
    top, left, height, width = placed(rgb.height, rgb.width, preparation)
    by, shape = _FILTERS[preparation.interpolation], preparation.shape
    scaled = rgb.resize((width, rgb.height), by).resize((width, height), by)
    if scaled.size == (shape.width, shape.height):
        return scaled
    laid = Image.new("RGB", (shape.width, shape.height), preparation.background)
    laid.paste(scaled, (left, top))
    return laid


def placed(height: int, width: int, preparation: Preparation) -> tuple[int, int, int, int]:
    """Where all of a photo of `height` x `width` lies in the shape: top, left, height, width.

    Of `aspect: crop` it reaches beyond the shape.
    """
    shape = preparation.shape
    if preparation.aspect == "stretch":
        return 0, 0, shape.height, shape.width
    if preparation.aspect == "crop":
        tall, wide = covering(height, width, preparation.whole)
        return -start(tall, shape.height), -start(wide, shape.width), tall, wide
    if width * shape.height >= height * shape.width:
        tall, wide = max(1, height * shape.width // width), shape.width
    else:
        tall, wide = shape.height, max(1, width * shape.height // height)
    return (shape.height - tall) // 2, (shape.width - wide) // 2, tall, wide


def covering(height: int, width: int, shape: InputShape) -> tuple[int, int]:
    """Height and width of an image, scaled to the least that covers `shape`.

    The side that is longer than need be is rounded down, as by torchvision's Resize.
    """
    if width * shape.height <= height * shape.width:
        return height * shape.width // width, shape.width
    return shape.height, width * shape.height // height


def start(side: int, part: int) -> int:
    """Where the middle `part` of a side begins; halves go to the even number.

    As torchvision's CenterCrop has it.
    """
    return round((side - part) / 2)


def _shortened(rgb: Image.Image, shape: InputShape) -> Image.Image:
    """The middle of a photo that is longer than LONGEST times what `shape` shows of it."""
    width = LONGEST * -(-rgb.height * shape.width // shape.height)
    height = LONGEST * -(-rgb.width * shape.height // shape.width)
    if rgb.width > width:
        left = (rgb.width - width) // 2  # as much on the right: the middle stays the middle
        return rgb.crop((left, 0, rgb.width - left, rgb.height))
    if rgb.height > height:
        top = (rgb.height - height) // 2
        return rgb.crop((0, top, rgb.width, rgb.height - top))
    return rgb
