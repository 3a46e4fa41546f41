"""Images with a mask each, which says the class of every pixel: folders, or scenes of digits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pipeline.base.errors import InputError, listed
from pipeline.recipe.data import DigitScenesData, MaskFolderData
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.cache import kept_or_decoded
from pipeline.tasks.images.classes import listed_classes
from pipeline.tasks.images.dataset import Dataset, array_dataset, split_evenly
from pipeline.tasks.images.digits import DIGITS
from pipeline.tasks.images.folders import (
    CALIBRATION,
    TEST,
    TRAIN,
    FoundImages,
    as_dataset,
    image_folders,
    places_of,
)
from pipeline.tasks.images.kept import KeptImages
from pipeline.tasks.images.pixels import WORKERS, Images
from pipeline.tasks.images.preparation import MaskValues, Preparation, preparation_of
from pipeline.tasks.images.scan import Scan, Scanned, scan_all
from pipeline.tasks.images.scenes import BACKGROUND, scene_sets
from pipeline.tasks.images.statistics import mean_and_std
from pipeline.tasks.images.stored import Files

_LAYOUT = "train/images/, train/masks/ and the same in test/ (or val/)"
_IMAGES, _MASKS, _CLASSES, _MASK = "images", "masks", "classes.txt", ".png"
_MOST_CLASSES = 255
_ORIENTATION, _TURNED = 0x0112, range(5, 9)
"""Key of Exif, and its values of photos whose rows are stored as columns."""


def scenes_dataset(config: DigitScenesData, shape: InputShape) -> Dataset:
    """Scenes of digits with their masks."""
    sets = {
        name: Images(labels=found.masks, shape=shape, source=found.pixels)
        for name, found in scene_sets(config, shape).items()
    }
    return array_dataset(config.kind, SCENE_CLASSES, sets, *mean_and_std(config, shape.channels))


SCENE_CLASSES = (BACKGROUND, *DIGITS)
"""In the order of the values of masks."""


def masked_dataset(
    config: MaskFolderData, shape: InputShape, seed: int, cache: Path | None
) -> Dataset:
    """Folders of images with their masks.

    Raises:
        InputError: an image has no mask or a mask no image, they have other sizes, or a pixel has
            no known class; or files cannot be read.
    """
    sets, classes = _scanned(config), mask_classes(config)
    _refuse_other_sizes(sets)
    preparation = _of_masks(config, shape)
    labels = {
        key: _masks(one.masks, preparation, cache)
        if one.masks is not None
        # Ranges are set without classes.
        else torch.zeros(1, 1, 1, dtype=torch.uint8).expand(
            len(one.images.images), shape.height, shape.width
        )
        for key, one in sets.items()
    }
    scans: dict[str, Scanned] = {key: one.images for key, one in sets.items()}
    found = FoundImages(scans=scans, classes=classes, labels=labels)
    return as_dataset(found, config, shape, seed, cache, split_evenly)


def mask_classes(config: MaskFolderData) -> tuple[str, ...]:
    """The classes that a network has an output for: those of the file, without void.

    Raises:
        InputError: there is no such file, or it names too few or too many.
    """
    names = _listed(config)
    return tuple(name for value, name in enumerate(names) if value != config.void)


def mask_places(config: MaskFolderData, shape: InputShape, cache: Path) -> set[Path]:
    """Where in `cache` decoded images and masks are looked for, and their indexes.

    Raises:
        InputError: a folder is not what it was, or cannot be looked at.
    """
    sets = _scanned(config)
    images: dict[str, Scanned] = {key: one.images for key, one in sets.items()}
    masks: dict[str, Scanned] = {
        key: one.masks for key, one in sets.items() if one.masks is not None
    }
    found = places_of(images, preparation_of(config, shape), cache)
    return found | places_of(masks, _of_masks(config, shape), cache)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Set:
    """Images, and the mask of each in the same order; None of images that need none."""

    images: Scan
    masks: Scan | None


def _listed(config: MaskFolderData) -> tuple[str, ...]:
    if config.classes is None and config.path is None:
        raise InputError("data.classes: missing; name the file with the name of every class")
    path = Path(config.path or "") / _CLASSES if config.classes is None else Path(config.classes)
    names = listed_classes(path)
    left = len(names) - (config.void is not None and config.void < len(names))
    if left < 2 or len(names) > _MOST_CLASSES:
        raise InputError(
            f"data.classes: {path}: {left} classes beside void; there must be 2 to {_MOST_CLASSES}"
        )
    return names


def _of_masks(config: MaskFolderData, shape: InputShape) -> Preparation:
    values = MaskValues(listed=len(_listed(config)), void=config.void)
    return replace(preparation_of(config, shape), shape=replace(shape, channels=1), mask=values)


def _scanned(config: MaskFolderData) -> dict[str, _Set]:
    """The images and masks of every set, by the key of the recipe.

    Raises:
        InputError: they are not there, or not one mask for each image.
    """
    train, tests = image_folders(config, _LAYOUT)
    roots = {} if train is None else {TRAIN: train}
    roots |= {f"{TEST}{name}": path for name, path in tests.items()}
    found: dict[str, _Set] = {}
    problems: list[str] = []
    for key, root in roots.items():
        images = scan_all(key, root / _IMAGES)
        masks = scan_all(key, root / _MASKS, lambda file: False)
        problems += images.problems or masks.problems
        if not (images.problems or masks.problems):
            paired, wrong = _paired(images, masks)
            found[key] = _Set(images=images, masks=paired)
            problems += wrong
    if config.calibration is not None:
        images = scan_all(CALIBRATION, Path(config.calibration))
        problems += images.problems
        found[CALIBRATION] = _Set(images=images, masks=None)
    if problems:
        raise InputError("\n".join(problems))
    return found


def _paired(images: Scan, masks: Scan) -> tuple[Scan, list[str]]:
    """The masks in the order of their images, and what is wrong with either, a line each."""
    names = [images.images.name(row) for row in range(len(images.images))]
    of_mask = {
        name[: -len(_MASK)]: name
        for name in (masks.images.name(row) for row in range(len(masks.images)))
        if name.lower().endswith(_MASK)
    }
    stems = [name[: name.rindex(".")] for name in names]
    twice = [stem for stem, times in Counter(stems).items() if times > 1]
    without = [name for stem, name in zip(stems, names, strict=True) if stem not in of_mask]
    alone = [name for stem, name in of_mask.items() if stem not in set(stems)]
    told = (
        (twice, "names with more than one image", images.root, "give every image its own name"),
        (without, "images without a mask", images.root, f"put a PNG of that name in {masks.root}"),
        (alone, "masks without an image", masks.root, f"put it in {images.root}, or remove them"),
    )
    problems = [
        f"{images.key}: {len(some)} {what} in {root}: {listed(some)}; {fix}"
        for some, what, root, fix in told
        if some
    ]
    ordered = Files.of(masks.root, [] if problems else [of_mask[stem] for stem in stems])
    return replace(masks, images=ordered, counts={"": len(ordered)}, others=()), problems


def _refuse_other_sizes(sets: Mapping[str, _Set]) -> None:
    """Stop where a mask has not the size of its image, by the headers of both files."""
    problems: list[str] = []
    for one in sets.values():
        if one.masks is None:
            continue
        with ThreadPoolExecutor(WORKERS) as pool:
            sizes = pool.map(_size, (*one.images.images, *one.masks.images))
            both = list(sizes)
        count = len(one.masks.images)
        for row, (image, mask) in enumerate(zip(both[:count], both[count:], strict=True)):
            # What cannot be read is named where it is decoded.
            if image is not None and mask is not None and image != mask:
                problems.append(
                    f"mask {one.masks.images.path(row)}: {mask[0]} x {mask[1]} pixels, and its "
                    f"image has {image[0]} x {image[1]}; make the mask as large as the image"
                )
    if problems:
        rest = [f"... and {len(problems) - 10} more masks of another size"]
        raise InputError("\n".join(problems[:10] + (rest if len(problems) > 10 else [])))


def _size(file: Path) -> tuple[int, int] | None:
    """Width and height of a picture as it is shown; None where its header cannot be read."""
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            return (image.height, image.width) if turned else (image.width, image.height)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        return None


def _masks(scan: Scan, preparation: Preparation, cache: Path | None) -> Tensor:
    """The masks of a set, in memory: uint8 [N, H, W]."""
    kept = kept_or_decoded(scan.root, scan.images, preparation, cache, in_memory=True).source
    if isinstance(kept, KeptImages):
        kept = torch.from_numpy(kept.take(np.arange(len(kept))))
    assert isinstance(kept, Tensor)  # since it may be in memory
    return kept[:, 0]
