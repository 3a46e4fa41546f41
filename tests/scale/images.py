"""A folder of 200,000 photos: the first start, later starts, decoding, memory.

    python -m tests.scale images data/imagenet-samples [--folder data/scale] [--count 200000]

The photos are those of a folder of class folders, 1,000 at the most, made 500 x 375 and JPEG files
of about 110 KB; each of the files has a comment of its own, so that no two have the same bytes.
Every start is a process of its own. Before the first one the files are put out of memory, as far as
the kernel follows the advice. The folder is removed at the end.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tests.scale.report import Found

if TYPE_CHECKING:
    from pipeline.recipe.data import DataConfig

COUNT, CLASSES = 200_000, 1000
DECODED = 4000
FIRST_SECONDS, LATER_SECONDS, GIBIBYTES, OF_FASTEST = 180.0, 3.0, 2.0, 0.9
"""Bars."""
_LONG, _SHORT, _QUALITY = 500, 375, 99
_TRAINING_SIDE = 224
_ROUNDS = 5


def photo(file: Path) -> bytes:
    """A photo as ImageNet's are: 500 x 375, upright or not, about 110 KB."""
    with Image.open(file) as image:
        wide = image.width >= image.height
        size = (_LONG, _SHORT) if wide else (_SHORT, _LONG)
        resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    content = io.BytesIO()
    resized.save(content, "jpeg", quality=_QUALITY)
    return content.getvalue()


def commented(jpeg: bytes, text: str) -> bytes:
    """A JPEG file with a comment: other bytes, the same pixels."""
    comment = text.encode()
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + jpeg[2:]


def make(photos: Path, folder: Path, count: int) -> int:
    """Write `train/CLASS/NUMBER.jpg` and a small `test`; how many bytes there are in `train`."""
    sources = sorted(photos.glob("*/*.jpg"))[:CLASSES]
    each = -(-count // len(sources))

    def write(number: int) -> int:
        content, name = photo(sources[number]), f"class{number:04}"
        (folder / "train" / name).mkdir(parents=True)
        total = 0
        for image in range(min(each, count - number * each)):
            path = folder / "train" / name / f"image_{image:05}.jpg"
            one = commented(content, f"{number} {image}")
            path.write_bytes(one)
            total += len(one)
        (folder / "test" / name).mkdir(parents=True)
        (folder / "test" / name / "image.jpg").write_bytes(commented(content, "test"))
        return total

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(write, range(len(sources))))


def forget(folder: Path) -> None:
    """Put files out of the kernel's memory."""
    os.sync()  # it keeps what is not on the disk
    for place, _, names in os.walk(folder):
        for name in names:
            number = os.open(os.path.join(place, name), os.O_RDONLY)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(number)


def start(folder: Path, keep: bool) -> dict[str, float]:
    """`start_on` the class folders in a folder."""
    from pipeline.recipe.data import ImageFolderData

    config = ImageFolderData(train=str(folder / "train"), test={"test": str(folder / "test")})
    return start_on(config, folder / "cache", keep)


def start_on(config: DataConfig, cache: Path, keep: bool) -> dict[str, float]:
    """Load images as a run does: seconds, and the most memory that the process had."""
    from pipeline.recipe.input_shape import square
    from pipeline.tasks.images import cache as kept
    from pipeline.tasks.images import pixels
    from pipeline.tasks.images.load import load_dataset

    if not keep:
        # No disk is so large, no memory so small: nothing is decoded.
        kept._RESERVE_BYTES, pixels.MEMORY_LIMIT_BYTES = 2**60, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    dataset = load_dataset(config, square(_TRAINING_SIDE), cache=cache)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "images": len(dataset.train) + len(dataset.calibration),
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "gib before": before / 2**20,
    }


def started(folder: Path, *, keep: bool = False, part: str = "images") -> dict[str, float]:
    """`start` in a process of its own."""
    command = [sys.executable, "-m", "tests.scale", part, "--start", str(folder)]
    done = subprocess.run([*command, *(["--keep"] if keep else [])], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def starts(folder: Path) -> Iterator[Found]:
    """The first start, later ones, and those after a change."""
    forget(folder)
    first = started(folder)
    count = first["images"]
    yield Found(what="images", value=count, unit="files")
    yield Found(what="first start", value=first["seconds"], unit="s", limit=FIRST_SECONDS)
    yield Found(what="first start, CPU", value=first["cpu"], unit="s")
    later = [started(folder) for _ in range(_ROUNDS)]
    least = min(one["seconds"] for one in later)
    yield Found(what="later start", value=least, unit="s", limit=LATER_SECONDS)
    yield Found(what="later start, slowest", value=max(o["seconds"] for o in later), unit="s")
    yield Found(what="later start, CPU", value=min(one["cpu"] for one in later), unit="s")
    most = max(one["gib"] for one in [first, *later])
    yield Found(what="most memory", value=most, unit="GiB", limit=GIBIBYTES)
    own = most - first["gib before"]
    yield Found(what="of it, for an image", value=own * 2**30 / count, unit="bytes")
    index = sum(file.stat().st_size for file in (folder / "cache" / ".index").iterdir())
    yield Found(what="index, an image", value=index / count, unit="bytes")
    path = folder / "train" / "class0000" / "image_00000.jpg"
    path.write_bytes(commented(path.read_bytes(), "changed"))
    yield Found(what="start after one change", value=started(folder)["seconds"], unit="s")


def decoding(folder: Path) -> Iterator[Found]:
    """Decode some of the photos and keep them; start again."""
    some = folder / "some"
    for name in sorted(os.listdir(folder / "train")):
        files = sorted((folder / "train" / name).iterdir())[: -(-DECODED // CLASSES)]
        (some / "train" / name).mkdir(parents=True)
        for file in files:
            os.link(file, some / "train" / name / file.name)
    os.link(files[0], some / "one.jpg")
    (some / "test").symlink_to(folder / "test", target_is_directory=True)
    kept = started(some, keep=True)
    images = kept["images"] + len(os.listdir(folder / "test"))
    yield Found(what="decoded and kept", value=images / kept["seconds"], unit="images/s")
    yield Found(what="a CPU second decodes", value=images / kept["cpu"], unit="images")
    again = started(some, keep=True)["seconds"]
    yield Found(what=f"later start, {images:.0f} kept", value=again, unit="s")


def decoders() -> Mapping[str, Callable[[bytes], Any]]:
    """From a JPEG file to 8-bit RGB, by every library that is installed."""
    found: dict[str, Callable[[bytes], Any]] = {}

    def pillow(content: bytes) -> Image.Image:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            return image.convert("RGB")

    found["Pillow"] = pillow
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def torchvision(content: bytes) -> Image.Image:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        pixels = decode_jpeg(data, mode=ImageReadMode.RGB).permute(1, 2, 0)
        return Image.fromarray(pixels.contiguous().numpy())

    found["torchvision"] = torchvision
    try:
        import cv2

        cv2.setNumThreads(1)
        found["OpenCV"] = lambda content: Image.fromarray(
            cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        )
    except ImportError:
        pass
    try:
        import simplejpeg

        found["simplejpeg"] = lambda content: Image.fromarray(
            simplejpeg.decode_jpeg(content, "RGB")
        )
    except ImportError:
        pass
    return found


def _rate(task: tuple[str, list[bytes]]) -> tuple[float, int]:
    """Images decoded and scaled in a second of the processor, and how many have Pillow's bits."""
    from pipeline.recipe.input_shape import square
    from pipeline.tasks.images.preparation import Preparation, fit

    name, contents = task
    decode, reference = decoders()[name], decoders()["Pillow"]
    preparation = Preparation(shape=square(_TRAINING_SIDE), margin=(16, 16))
    same = sum(
        np.array_equal(np.asarray(decode(one)), np.asarray(reference(one))) for one in contents
    )
    began = time.process_time()
    for content in contents:
        fit(decode(content), preparation)
    return len(contents) / (time.process_time() - began), same


def libraries(folder: Path) -> Iterator[Found]:
    """Every library on all cores, taking turns: a process a core."""
    files = sorted((folder / "train").glob("*/image_00000.jpg"))[:400]
    contents = [file.read_bytes() for file in files]
    cores = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {name: [] for name in decoders()}
    same: dict[str, int] = {}
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        for _ in range(_ROUNDS):
            for name in random.sample(sorted(rates), len(rates)):
                found = pool.map(_rate, [(name, contents[part::cores]) for part in range(cores)])
                rates[name].append(sum(rate for rate, _ in found))
                same[name] = sum(count for _, count in found)
    best = {name: max(found) for name, found in rates.items()}
    for name, rate in best.items():
        what = f"{name}: decoded and scaled, {same[name]} of {len(contents)} to Pillow's bits"
        yield Found(what=what, value=rate, unit=f"images in a CPU second of {cores} cores")
    ratio = max(best.values()) / best["Pillow"]
    yield Found(what="fastest over Pillow", value=ratio, unit="times", limit=1 / OF_FASTEST)


def parser_of(part: str, about: str | None, folder: str) -> argparse.ArgumentParser:
    """What the parts take that measure photos in a folder."""
    parser = argparse.ArgumentParser(prog=f"tests.scale {part}", description=about)
    parser.add_argument("photos", type=Path, nargs="?", help="folder of class folders of photos")
    parser.add_argument("--folder", type=Path, default=Path(folder))
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--stay", action="store_true", help="leave the folder")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    return parser


def measured(
    given: argparse.Namespace,
    making: Callable[[Path, Path, int], int],
    what: str,
    parts: Sequence[Callable[[Path], Iterator[Found]]],
) -> int:
    """Make the folder, measure, remove it; 1 where a bar is missed."""
    folder: Path = given.folder
    try:
        if not folder.is_dir():
            total = making(given.photos, folder, given.count)
            print(Found(what=what, value=total / 1e9, unit="GB").line(), flush=True)
        for left in ("cache", "some"):
            shutil.rmtree(folder / left, ignore_errors=True)
        missed = False
        for part in parts:
            for found in part(folder):
                print(found.line(), flush=True)
                missed |= found.limit is not None and found.value > found.limit
    finally:
        if not given.stay:
            shutil.rmtree(folder, ignore_errors=True)
    return int(missed)


def main(arguments: list[str]) -> int:
    """Measure folders of photos; 1 where a bar is missed."""
    parser = parser_of("images", __doc__, "data/scale")
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.start is not None:
        print(json.dumps(start(given.start, given.keep)))
        return 0
    if given.photos is None:
        parser.error("give a folder of class folders of photos")
    return measured(given, make, "files", (starts, decoding, libraries))
