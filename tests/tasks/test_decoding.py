"""Pictures become pixels: sizes, crops, modes, and files that are damaged."""

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.recipe.data import DigitsData, ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import AugmentConfig
from pipeline.tasks.images import pixels as images_module
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import decoded, load_dataset
from pipeline.tasks.images.pixels import Images, decode
from pipeline.tasks.images.preparation import LONGEST
from pipeline.tasks.images.stored import Files
from tests.making.datasets import GENTLE, complaint, in_memory, torn
from tests.making.photos import (
    SIZE,
    assert_same,
    every_pixel,
    plain,
    write_image,
)


def test_what_does_not_fit_in_memory_is_decoded_on_demand(
    folders: ImageFolderData, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load_dataset(folders, square(SIZE))
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    lazy = load_dataset(folders, square(SIZE))
    assert isinstance(kept.train.source, torch.Tensor)
    assert isinstance(lazy.train.source, Files)
    assert_same(kept, lazy)
    assert lazy.train.pixels(torch.tensor([], dtype=torch.int64)).shape == (0, 3, SIZE, SIZE)


def test_arrays_that_do_not_fit_in_memory_are_resized_on_demand(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    lazy = load_dataset(DigitsData(kind="digits"), square(SIZE))
    assert isinstance(lazy.train.source, torch.Tensor)
    assert lazy.train.source.shape[-1] == 8
    assert_same(digits, lazy)
    one = lazy.train.pixels(torch.tensor([7]))
    assert torch.equal(one, every_pixel(digits.train)[7:8])


def test_what_fits_in_memory_is_judged_of_all_sets_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = DigitsData(kind="digits")
    whole = load_dataset(config, square(SIZE))
    images = sum(map(len, (whole.train, whole.calibration, *whole.tests.values())))
    for spare, side in ((0, SIZE), (-1, 8)):
        monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", images * 3 * SIZE**2 + spare)
        found = load_dataset(config, square(SIZE))
        for images_of in (found.train, found.calibration, *found.tests.values()):
            assert isinstance(images_of.source, torch.Tensor)
            assert images_of.source.shape[-1] == side


@GENTLE
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.sampled_from([1, 7, 32, 64]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_decoding_resizes_and_crops_as_torchvision_does(
    width: int, height: int, size: int, interpolation: Any, tmp_path: Path
) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    file = tmp_path / "image.png"
    write_image(file, seed=width, width=width, height=height)
    by = InterpolationMode(interpolation)
    preparation = replace(plain(size), interpolation=interpolation)
    ours = decode(file.read_bytes(), file, preparation).transpose(1, 2, 0)
    assert ours.shape == (size, size, 3)
    if max(width, height) > LONGEST * min(width, height):
        return
    with Image.open(file) as image:
        resized = Resize(size, by)(image).size
        # Pillow chooses the order of the axes from version to version: one at a time, it cannot.
        axes = [Resize((height, resized[0]), by), Resize((resized[1], resized[0]), by)]
        expected = Compose([*axes, CenterCrop(size)])(image)
        assert np.array_equal(ours, np.asarray(expected))
        if interpolation == "bilinear":
            expected = Compose([Resize(size, by), CenterCrop(size)])(image)
            assert np.abs(ours.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize(("size", "crop_pct", "whole"), [(56, 0.875, 64), (32, 0.8, 40)])
@pytest.mark.parametrize("cached", [True, False])
def test_the_middle_is_cut_from_larger_images_as_torchvision_does(
    size: int,
    crop_pct: float,
    whole: int,
    cached: bool,
    folders: ImageFolderData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    folders = folders.model_copy(update={"crop_pct": crop_pct})
    if not cached:
        monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 1)
    dataset = load_dataset(folders, square(size), cache=tmp_path / "cache" if cached else None)
    assert folders.test is not None
    files = sorted(path for path in Path(folders.test["day"]).rglob("*") if path.is_file())
    delivered = dataset.tests["day"].pixels(torch.arange(len(files)))
    for file, ours in zip(files, delivered, strict=True):
        with Image.open(file) as image:
            fitted = Compose([Resize(whole), CenterCrop(size)])(image.convert("RGB"))
        assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(fitted)).max() <= 1
        assert torch.equal(decoded(folders, file.read_bytes(), file, square(size)), ours)
    around = dataset.train.with_margin(torch.arange(3))
    assert around.shape == (3, 3, whole, whole)
    margin = (whole - size) // 2
    within = around[:, :, margin:-margin, margin:-margin]
    assert torch.equal(dataset.train.pixels(torch.arange(3)), within)


def test_random_parts_are_taken_from_what_lies_around_the_middle() -> None:
    pixels = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    pixels[:, :, 2:6, 2:6] = 255  # all that evaluation sees
    labels = torch.arange(40) % 2
    images = Images(labels=labels, shape=square(4), source=pixels, margin=(2, 2))
    dataset = replace(in_memory(4)[1], train=images)
    generator = torch.Generator().manual_seed(0)
    plain = next(iter(batches(images, 40, dataset)))[0]
    assert plain.shape == (40, 3, 4, 4)
    assert bool((plain == 1).all())
    for crop, least in (((1.0, 1.0), 0.2), ((0.1, 0.2), 0.0)):
        config = AugmentConfig(crop=crop)
        (x, _), *_ = batches(images, 40, dataset, augment_config=config, generator=generator)
        assert x.shape == (40, 3, 4, 4)
        assert x.mean() < 0.9
        assert x.mean() > least


def test_an_image_of_the_right_size_is_untouched(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    write_image(file, seed=1, width=SIZE, height=SIZE)
    with Image.open(file) as image:
        assert np.array_equal(
            decode(file.read_bytes(), file, plain(SIZE)), np.asarray(image).transpose(2, 0, 1)
        )


def test_a_camera_turned_image_is_put_upright(tmp_path: Path) -> None:
    upright, turned = tmp_path / "upright.png", tmp_path / "turned.png"
    write_image(upright, seed=1, width=SIZE, height=SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    with Image.open(upright) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    assert np.array_equal(
        decode(turned.read_bytes(), turned, plain(SIZE)),
        decode(upright.read_bytes(), upright, plain(SIZE)),
    )


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_every_pixel_format_becomes_rgb(mode: str, tmp_path: Path) -> None:
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray(np.full((SIZE, SIZE), 128 << 8, dtype=np.uint16)).save(file)
    else:
        Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).convert(
            mode, dither=Image.Dither.NONE, palette=Image.Palette.ADAPTIVE
        ).save(file)
    pixels = decode(file.read_bytes(), file, plain(SIZE))
    assert pixels.shape == (3, SIZE, SIZE)
    assert set(np.unique(pixels)) <= ({0, 255} if mode == "1" else {127, 128, 129})


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "depth.tif"
    Image.fromarray(np.ones((SIZE, SIZE), dtype=np.float32)).save(file)
    with pytest.raises(InputError, match=r"depth\.tif: 32-bit pixels"):
        decode(file.read_bytes(), file, plain(SIZE))


def test_a_very_long_image_needs_no_more_memory_than_its_crop(tmp_path: Path) -> None:
    file = tmp_path / "long.png"
    write_image(file, seed=1, width=60_000, height=1)
    # Enlarged whole before the crop this would be 60,000 x 1024 x 1024 pixels.
    assert decode(file.read_bytes(), file, plain(1024)).shape == (3, 1024, 1024)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:.*:UserWarning:PIL")
@GENTLE
@given(suffix=st.sampled_from(["png", "jpg", "webp", "tif", "bmp"]), data=st.data())
def test_damaged_files_decode_or_are_named(
    suffix: str, data: st.DataObject, tmp_path: Path
) -> None:
    file = tmp_path / f"image.{suffix}"
    write_image(file, seed=1)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    problem = None
    try:
        assert decode(bytes(content), file, plain(SIZE)).shape == (3, SIZE, SIZE)
    except InputError as error:
        problem = str(error)
    assert problem is None or str(file) in problem


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\nshowpage\n", b"GIF89a"]
)
def test_only_the_named_formats_are_decoded(content: bytes, tmp_path: Path) -> None:
    # Pillow hands PostScript to a program that runs it.
    with pytest.raises(InputError, match=r"a\.png: not an image"):
        decode(content, tmp_path / "a.png", plain(SIZE))


def test_a_pipe_among_the_images_is_named_and_not_waited_for(
    folders: ImageFolderData, tmp_path: Path
) -> None:
    os.mkfifo(Path(folders.train) / "ant" / "x.png")
    with (Path(folders.train) / "bee" / "y.png").open("wb") as file:
        file.truncate(2**40)
    problem = complaint(folders)
    assert "ant/x.png: is not a file" in problem
    assert "bee/y.png: is larger than 256 MiB" in problem


@pytest.mark.parametrize("where", ["memory", "cache", "files"])
def test_damaged_files_are_left_out_by_choice(
    where: str, folders: ImageFolderData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_dataset(folders, square(SIZE))
    first = torn(tmp_path / "train" / "ant" / "0.png")
    torn(tmp_path / "day" / "bee" / "1.jpg").rename(tmp_path / "day" / "bee" / "0torn.jpg")
    if where == "files":
        monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    cache = tmp_path / "cache" if where == "cache" else None
    skipping = folders.model_copy(update={"damaged": "skip", "damaged_share": 0.2})
    for _ in range(2):
        found = load_dataset(skipping, square(SIZE), cache=cache)
        assert_same(whole, found)
        assert found.damaged == {"train": 1, "day": 1}
        assert found.training_sha256 == whole.training_sha256
        assert any("1 of 14 image files are damaged, skipped: ant/torn" in n for n in found.notes)
    for config in (folders, skipping.model_copy(update={"damaged_share": 0.05})):
        if where == "files" and config is folders:
            continue  # the header is whole: it is named when the image is decoded
        with pytest.raises(InputError) as caught:
            load_dataset(config, square(SIZE), cache=cache)
        assert first.name in str(caught.value)


def test_a_class_of_damaged_files_is_named(folders: ImageFolderData, tmp_path: Path) -> None:
    for file in (tmp_path / "night" / "cat").iterdir():
        file.write_bytes(b"no image")
    config = folders.model_copy(update={"damaged": "skip", "damaged_share": 1.0})
    assert "data.test.night: class 'cat' has damaged images only" in complaint(config)


def test_digits_that_are_enlarged_are_what_predict_makes_of_their_file(digits: Dataset) -> None:
    small = load_dataset(DigitsData(kind="digits"), square(8))
    rows = torch.arange(5)
    large = digits.calibration.pixels(rows)
    for image, expected in zip(small.calibration.pixels(rows), large, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "png")
        found = decoded(DigitsData(), file.getvalue(), Path("digit"), square(SIZE))
        assert torch.equal(found, expected)
