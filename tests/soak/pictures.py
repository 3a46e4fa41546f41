"""Images: damaged, enormous, of other kinds, and no files at all."""

from __future__ import annotations

import io
import random
import shutil
import struct
import zlib
from pathlib import Path

from tests.soak import base, checkpoints, runs
from tests.soak.mutate import TEXTS, damaged, replace_by_oddity, rubbish
from tests.soak.sandbox import Case, Place

_FORMS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
_MODES = ("RGB", "L", "RGBA", "P", "1", "LA", "I;16", "CMYK", "I", "F")


def picture(rng: random.Random) -> tuple[str, bytes]:
    """An image that is one, and the suffix of its kind."""
    from PIL import Image

    while True:
        form = rng.choice((*_FORMS, "PNG", "JPEG", "WEBP"))
        side = rng.choice((1, 2, 31, 64))
        image = Image.new(rng.choice(_MODES), (side, rng.choice((1, 33, 400, side))), 7)
        content = io.BytesIO()
        more = {"exif": b"Exif\0\0" + rng.randbytes(30)} if rng.random() < 0.2 else {}
        try:
            image.save(content, form, **more)
        except (
            OSError,
            ValueError,
            KeyError,
            SyntaxError,
            struct.error,
        ):  # not every mode in every format
            continue
        return _FORMS[form], content.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def bomb(rng: random.Random) -> tuple[str, bytes]:
    """A small file of a huge image."""
    side = rng.choice((9_000, 13_000, 20_000, 60_000, 2**31 - 1))
    depth, colour = rng.choice(((1, 0), (8, 2), (8, 6), (16, 6), (8, 3)))
    header = struct.pack(">IIBBBBB", side, rng.choice((side, 1, 8)), depth, colour, 0, 0, 0)
    body = zlib.compress(bytes(min(side * side // 8, 20_000_000)), 9)
    chunks = [_chunk(b"IHDR", header), _chunk(b"PLTE", bytes(768)), _chunk(b"IDAT", body)]
    if rng.random() < 0.3:
        text = zlib.compress(bytes(100 * 2**20), 9)
        chunks.insert(1, _chunk(b"zTXt", b"a\0\0" + text))
    return ".png", b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def foreign(rng: random.Random) -> tuple[str, bytes]:
    """What image libraries read too, but no photo is: PostScript, icons, films, ..."""
    return rng.choice((".png", ".jpg", ".webp", ".tif", ".bmp", ".ppm")), rng.choice(
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n"
            b"(%pipe%touch ran) (w) file\nshowpage\n%%EOF\n",
            b"GIF89a\x10\0\x10\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x10\0\x10\0\0\x02\x0e",
            b"P6\n99999 99999\n255\n",
            b"P5 4 4 65535 " + bytes(32),
            b"P6 -1 5 255\n",
            b"qoif\0\0\xff\xff\0\0\xff\xff\4\0" + bytes(100),
            b"DDS |\0\0\0" + bytes(120),
            b"8BPS\0\1" + bytes(40),
            b"icns\0\0\0\x10" + bytes(20),
            b"\0\0\1\0\1\0" + b"\xff" * 40,
            b"#define x_width 99999\n#define x_height 99999\nstatic char x_bits[] = {\n",
            b"/* XPM */\nstatic char * x[] = {\n" + b'"' * 1000,
            rubbish(rng),
        )
    )


def _some(rng: random.Random) -> tuple[str, bytes]:
    chance = rng.random()
    if chance < 0.6:
        suffix, content = picture(rng)
        return suffix, damaged(content, rng)
    if chance < 0.7:
        return bomb(rng)
    if chance < 0.85:
        return foreign(rng)
    suffix, content = picture(rng)
    return rng.choice((".png", ".jpg", suffix)), content


def predicted(rng: random.Random, place: Place) -> Case:
    """One image, or a folder of them, through `predict`."""
    runs.copied(place)
    folder = place.given / "images"
    folder.mkdir()
    files = []
    for index in range(rng.choice((1, 1, 3))):
        suffix, content = _some(rng)
        name = f"{index}{rng.choice(TEXTS)[:40] if rng.random() < 0.2 else ''}{suffix}"
        name = name.replace("/", "_").replace("\0", "0")
        files.append(folder / name)
        files[-1].write_bytes(content)
    if rng.random() < 0.15:
        replace_by_oddity(files[0], place.canary, rng)
    target = rng.choice((files[0], folder))
    run = base.run_of(place.out, rng.choice(base.FORMATS))
    return Case(argv=["predict", str(run), str(target)], names=("images",))


def _folder(rng: random.Random, root: Path) -> list[Path]:
    files = []
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for index in range(3):
            suffix, content = picture(rng)
            files.append(root / name / f"{index}{suffix}")
            files[-1].write_bytes(content)
    return files


def in_a_folder(rng: random.Random, place: Place) -> Case:
    """One image of the folders that a recipe names."""
    train, test = place.given / "images" / "train", place.given / "images" / "test"
    files = [*_folder(rng, train), *_folder(rng, test)]
    file = rng.choice(files)
    chance = rng.random()
    if chance < 0.7:
        suffix, content = _some(rng)
        file.unlink()
        file = file.with_suffix(suffix)
        file.write_bytes(content)
    elif chance < 0.9:
        replace_by_oddity(rng.choice((file, file.parent, train, test)), place.canary, rng)
    else:
        odd = rng.choice(TEXTS).replace("/", "_").replace("\0", "0")[:60] or "_"
        if odd not in (".", ".."):
            shutil.copytree(train / "dog", train / odd, symlinks=True)
            shutil.copytree(test / "dog", test / odd, symlinks=True)
    recipe = place.given / "recipe.yaml"
    recipe.write_text(
        f"extends: {base.recipe(place.base, 'onnx')}\n"
        f"data: {{kind: image_folder, test_images: null, train: {train},"
        f" test: {{test: {test}}}, calibration_images: 2}}\n"
        "train: {epochs: 0}\n"
    )
    argv = ["run", str(recipe), "--out", str(place.out), "--until", checkpoints.LAST]
    return Case(argv=argv, names=("images", "data."))
