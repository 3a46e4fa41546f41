"""WebDataset shards: of bytes, and of the photos of class folders."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import InputError
from pipeline.recipe.data import WebDatasetData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import load_dataset
from tests.making.photos import SIZE

Named = tuple[str, bytes]
"""A member's name and its content."""


def write_shard(file: Path, members: Iterable[Named], form: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar file of these members, in their order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def samples_of(folder: Path, label: str = "cls", names: bool = False) -> list[list[Named]]:
    """The photos of class folders, one class after the other, each with its label."""
    found: list[list[Named]] = []
    for number, place in enumerate(sorted(folder.iterdir())):
        for file in sorted(place.iterdir()):
            key, image = f"{len(found):06}", (file.suffix, file.read_bytes())
            said: str | int = place.name if names else number
            if label == "folder":
                found.append([(f"{place.name}/{file.name}", image[1])])
            elif label == "cls":
                found.append([(key + image[0], image[1]), (f"{key}.cls", str(said).encode())])
            else:
                text = json.dumps({label.removeprefix("json:"): said, "other": "x"})
                found.append([(f"{key}.json", text.encode()), (key + image[0], image[1])])
    return found


def write_shards(folder: Path, samples: list[list[Named]], each: int = 4, first: str = "") -> Path:
    """Shards of so many samples."""
    for number, begin in enumerate(range(0, len(samples), each)):
        part = [member for sample in samples[begin : begin + each] for member in sample]
        write_shard(folder / f"{first}{number:04}.tar", part)
    return folder


def as_shards(root: Path, out: Path, label: str = "cls", **changes: Any) -> WebDatasetData:
    """What `make_folders` made below `root`, as shards below `out` with names as labels."""
    for name in ("train", "day", "night"):
        write_shards(out / name, samples_of(root / name, label, names=True))
    return shards_config(out, label=label, **changes)


def shards_config(root: Path, **changes: Any) -> WebDatasetData:
    """A recipe's data of the shards in `train`, `day` and `night`."""
    fields: dict[str, Any] = {
        "kind": "webdataset",
        "train": str(root / "train"),
        "test": {"day": str(root / "day"), "night": str(root / "night")},
        "calibration_images": 5,
    }
    return WebDatasetData.model_validate(fields | changes)


def load(config: Any, cache: Path | None = None) -> Dataset:
    return load_dataset(config, square(SIZE), cache=cache)


def complaint(config: WebDatasetData, cache: Path | None = None) -> str:
    """What loading is refused with."""
    with pytest.raises(InputError) as caught:
        load(config, cache)
    return str(caught.value)
