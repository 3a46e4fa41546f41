"""Shards of 200,000 photos: the first start, later starts, memory, and what headers take.

    python -m tests.scale shards data/imagenet-samples [--folder data/scale-shards] [--count 200000]

The photos are made as those of `images` are, and lie in shards of about 1 GB, mixed, each beside a
.cls member. Every start is a process of its own; before the first one the shards are put out of
memory. The folder is removed at the end.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.scale.images import (
    CLASSES,
    FIRST_SECONDS,
    GIBIBYTES,
    LATER_SECONDS,
    commented,
    forget,
    measured,
    parser_of,
    photo,
    start_on,
    started,
)
from tests.scale.report import Found

_SHARD_BYTES = 10**9
_ROUNDS = 5


def make(photos: Path, folder: Path, count: int) -> int:
    """Write `train/NUMBER.tar` and a small `test`; bytes of photos there are in `train`."""
    contents = [photo(file) for file in sorted(photos.glob("*/*.jpg"))[:CLASSES]]
    for name in ("train", "test"):
        (folder / name).mkdir(parents=True)
    numbers = iter(range(count))
    total, left = 0, count
    while left:
        size = 0
        shard = folder / "train" / f"{len(os.listdir(folder / 'train')):05}.tar"
        with tarfile.open(shard, "w") as archive:
            while left and size < _SHARD_BYTES:
                number, left = next(numbers), left - 1
                size += _add(archive, number, contents[number % len(contents)], len(contents))
        total += size
    with tarfile.open(folder / "test" / "00000.tar", "w") as archive:
        for number, content in enumerate(contents):
            _add(archive, number, commented(content, "test"), len(contents))
    return total


def _add(archive: tarfile.TarFile, number: int, content: bytes, classes: int) -> int:
    content = commented(content, str(number))
    for suffix, part in (("jpg", content), ("cls", str(number % classes).encode())):
        member = tarfile.TarInfo(f"{number:09}.{suffix}")
        member.size = len(part)
        archive.addfile(member, io.BytesIO(part))
    return len(content)


def start(folder: Path, keep: bool) -> dict[str, float]:
    """`start_on` the shards in a folder."""
    from pipeline.recipe.data import WebDatasetData

    config = WebDatasetData(train=str(folder / "train"), test={"test": str(folder / "test")})
    return start_on(config, folder / "cache", keep)


def starts(folder: Path) -> Iterator[Found]:
    """The first start, later ones, and the one after a shard was written anew."""
    forget(folder)
    first = started(folder, part="shards")
    count = first["images"]
    yield Found(what="images", value=count, unit="files")
    yield Found(what="shards", value=len(os.listdir(folder / "train")), unit="files")
    yield Found(what="first start", value=first["seconds"], unit="s", limit=FIRST_SECONDS)
    yield Found(what="first start, CPU", value=first["cpu"], unit="s")
    later = [started(folder, part="shards") for _ in range(_ROUNDS)]
    least = min(one["seconds"] for one in later)
    yield Found(what="later start", value=least, unit="s", limit=LATER_SECONDS)
    yield Found(what="later start, CPU", value=min(one["cpu"] for one in later), unit="s")
    most = max(one["gib"] for one in [first, *later])
    yield Found(what="most memory", value=most, unit="GiB", limit=GIBIBYTES)
    own = most - first["gib before"]
    yield Found(what="of it, for an image", value=own * 2**30 / count, unit="bytes")
    kept = sum(file.stat().st_size for file in (folder / "cache" / ".index").iterdir())
    yield Found(what="index and table, an image", value=kept / count, unit="bytes")
    os.utime(folder / "train" / "00000.tar")
    again = started(folder, part="shards")["seconds"]
    yield Found(what="start after a shard was touched", value=again, unit="s")


def headers(folder: Path) -> Iterator[Found]:
    """Headers and labels alone, by our own reader and by tarfile, in memory."""
    from pipeline.tasks.images.shard_scan import scan_shards

    for _ in range(2):  # the first one brings the headers into memory
        began = time.process_time()
        scan = scan_shards("train", folder / "train", "cls", None)
        ours = time.process_time() - began
    yield Found(what="headers and labels, CPU", value=ours / len(scan.images) * 1e6, unit="us each")
    began = time.process_time()
    for shard in sorted((folder / "train").iterdir()):
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.name.endswith(".cls"):
                    archive.extractfile(member).read()  # type: ignore[union-attr]
                archive.members = []  # type: ignore[assignment]
    theirs = time.process_time() - began
    yield Found(what="the same by tarfile", value=theirs / len(scan.images) * 1e6, unit="us each")


def main(arguments: list[str]) -> int:
    """Measure shards of photos; 1 where a bar is missed."""
    parser = parser_of("shards", __doc__, "data/scale-shards")
    given = parser.parse_args(arguments)
    if given.start is not None:
        print(json.dumps(start(given.start, keep=False)))
        return 0
    if given.photos is None:
        parser.error("give a folder of class folders of photos")
    return measured(given, make, "photos", (starts, headers))
