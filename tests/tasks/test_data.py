"""Datasets: splits, fingerprints, decoding, batches, and what a bad dataset is told."""

import hashlib
import io
import math
import os
import pickle
import shutil
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from pipeline.base.errors import InputError
from pipeline.recipe.data import CifarData, DigitsData, ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import AugmentConfig
from pipeline.tasks.images import pixels as images_module
from pipeline.tasks.images.augment import augment, augment_as, draw_changes, random_parts
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset, draw_stratified
from pipeline.tasks.images.load import decoded, load_dataset
from pipeline.tasks.images.pixels import Images, decode, normalize
from pipeline.tasks.images.preparation import LONGEST
from tests.making.photos import (
    SIZE,
    all_sets,
    assert_same,
    every_pixel,
    folder_config,
    make_folders,
    plain,
    write_image,
)

DIGITS_SHA256 = "c75a9e79bc9f03bdb2bb77ee9ecfe929be1be948ab82ac2f71ffab3a82a6b0d4"
GENTLE = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def contents(images: Images) -> list[str]:
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in every_pixel(images)]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DigitsData(kind="digits"), square(SIZE))


@pytest.fixture
def folders(tmp_path: Path) -> ImageFolderData:
    return make_folders(tmp_path)


# Splits


def test_digits_are_split_into_fixed_sets_of_upscaled_grey_images(digits: Dataset) -> None:
    sizes = {name: len(images) for name, images in all_sets(digits).items()}
    assert sizes == {"train": 1167, "calibration": 180, "test": 450}
    assert digits.classes == tuple("0123456789")
    for images in all_sets(digits).values():
        pixels = every_pixel(images)
        assert pixels.shape == (len(images), 3, SIZE, SIZE)
        assert pixels.dtype == torch.uint8
        assert images.labels.dtype == torch.int64
        assert torch.equal(pixels[:, 0], pixels[:, 1])
        assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert int(every_pixel(digits.train).max()) == 255


def test_a_tiled_digit_is_drawn_again_and_again() -> None:
    tiled = every_pixel(load_dataset(DigitsData(tile=32), square(80)).calibration)
    small = every_pixel(load_dataset(DigitsData(tile=32), square(32)).calibration)
    assert tiled.shape[-2:] == (80, 80)
    inner = slice(4, 28)  # beside its own edge a digit is blended with the next one's
    for top, left in ((0, 0), (0, 32), (32, 0), (32, 32)):
        part = tiled[:, :, top : top + 32, left : left + 32]
        assert torch.equal(part[:, :, inner, inner], small[:, :, inner, inner])


def test_a_tile_that_ends_inside_a_pixel_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.tile: got 96; 8 times model\.input_size \(224\)"):
        load_dataset(DigitsData(tile=96), square(224))


def test_digits_splits_are_complete_and_stratified(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    total = torch.bincount(torch.from_numpy(load_digits().target))
    counts = {name: torch.bincount(images.labels) for name, images in all_sets(digits).items()}
    assert torch.equal(sum(counts.values()), total)
    for name, images in all_sets(digits).items():
        proportional = total * len(images) / 1797
        assert (counts[name] - proportional).abs().max() < 2, name


def test_fewer_test_images_leave_the_other_sets_alone(digits: Dataset) -> None:
    fewer = load_dataset(DigitsData(test_images=32), square(16))
    assert len(fewer.tests["test"]) == 32
    whole = load_dataset(DigitsData(), square(16))
    for left, right in ((fewer.train, whole.train), (fewer.calibration, whole.calibration)):
        assert left.labels.equal(right.labels)
    assert fewer.tests["test"].labels.equal(whole.tests["test"].labels[:32])


def test_digits_are_the_same_everywhere(digits: Dataset) -> None:
    # The split must not move with a new torch, numpy or scikit-learn: figures would shift.
    assert digits.sha256 == DIGITS_SHA256


def test_digits_mean_and_std_are_those_of_the_stored_training_pixels() -> None:
    small = load_dataset(DigitsData(kind="digits"), square(8))
    x = every_pixel(small.train).double() / 255
    assert x.mean().item() == pytest.approx(small.mean[0], abs=2e-3)
    assert x.std().item() == pytest.approx(small.std[0], abs=2e-3)


def test_the_seed_picks_calibration_images_and_never_the_test_set(digits: Dataset) -> None:
    other = load_dataset(DigitsData(kind="digits"), square(SIZE), seed=1)
    assert contents(other.tests["test"]) == contents(digits.tests["test"])
    assert set(contents(other.calibration)) != set(contents(digits.calibration))
    assert len(other.calibration) == 180


def test_folder_splits_are_disjoint_stratified_and_complete(
    folders: ImageFolderData, tmp_path: Path
) -> None:
    dataset = load_dataset(folders, square(SIZE))
    assert dataset.classes == ("ant", "bee", "cat")
    assert {name: len(images) for name, images in all_sets(dataset).items()} == {
        "train": 8,
        "calibration": 5,
        "day": 6,
        "night": 6,
    }
    train, calibration = contents(dataset.train), contents(dataset.calibration)
    assert not set(train) & set(calibration)
    files = sorted((tmp_path / "train").rglob("*.*"))
    expected = [decode(file.read_bytes(), file, plain(SIZE)).tobytes() for file in files]
    assert sorted(train + calibration) == sorted(
        hashlib.sha256(pixels).hexdigest() for pixels in expected
    )
    assert torch.bincount(dataset.calibration.labels).tolist() == [3, 1, 1]


def test_labels_follow_the_class_folders(folders: ImageFolderData, tmp_path: Path) -> None:
    day = load_dataset(folders, square(SIZE)).tests["day"]
    assert day.labels.tolist() == [0, 0, 1, 1, 2, 2]
    files = sorted((tmp_path / "day").rglob("*.*"))
    for index, file in enumerate(files):
        pixels = day.pixels(torch.tensor([index]))[0].numpy()
        assert np.array_equal(pixels, decode(file.read_bytes(), file, plain(SIZE)))


def test_calibration_images_are_not_sorted_by_class(digits: Dataset) -> None:
    assert len(digits.calibration.labels[:30].unique()) >= 8


@GENTLE
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=8),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_a_stratified_draw_is_proportional_and_leaves_one_of_each(
    counts: list[int], share: float, seed: int
) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    most = sum(counts) - len(counts)
    wanted = int(share * most)
    drawn = draw_stratified(labels, wanted, seed)
    assert len(drawn.unique()) == len(drawn) == wanted
    per_class = torch.bincount(labels[drawn], minlength=len(counts)).tolist()
    for count, got in zip(counts, per_class, strict=True):
        assert got <= count - 1
        assert abs(got - wanted * (count - 1) / max(most, 1)) < 1
    assert torch.equal(drawn, draw_stratified(labels, wanted, seed))


def test_drawing_more_than_there_is_to_spare_is_refused() -> None:
    with pytest.raises(ValueError, match="got 3; at most 2"):
        draw_stratified(torch.tensor([0, 0, 1, 1]), 3, seed=0)


# Repeatability and fingerprints


def test_loading_twice_gives_the_same_images(folders: ImageFolderData, digits: Dataset) -> None:
    assert_same(load_dataset(folders, square(SIZE)), load_dataset(folders, square(SIZE)))
    assert_same(digits, load_dataset(DigitsData(kind="digits"), square(SIZE)))


def test_the_fingerprint_is_of_the_stored_data(
    folders: ImageFolderData, digits: Dataset, tmp_path: Path
) -> None:
    whole = load_dataset(folders, square(SIZE)).sha256
    assert len(whole) == 64
    assert whole == load_dataset(folders, square(64)).sha256
    assert digits.sha256 == load_dataset(DigitsData(kind="digits"), square(16)).sha256
    moved = tmp_path / "moved"
    for part in ("train", "day", "night"):
        shutil.move(tmp_path / part, moved / part)
    assert whole == load_dataset(folder_config(moved), square(SIZE)).sha256


def change_one_pixel(root: Path) -> None:
    file = root / "night" / "cat" / "0.png"
    with Image.open(file) as image:
        changed = image.copy()
    red, green, blue = changed.getpixel((3, 3))
    changed.putpixel((3, 3), (red ^ 1, green, blue))
    changed.save(file)


def rename_a_class(root: Path) -> None:
    for part in ("train", "day", "night"):
        (root / part / "cat").rename(root / part / "cow")


def move_an_image_to_another_class(root: Path) -> None:
    (root / "train" / "ant" / "5.jpg").rename(root / "train" / "bee" / "-.jpg")


def remove_an_image(root: Path) -> None:
    (root / "train" / "ant" / "5.jpg").unlink()


@pytest.mark.parametrize(
    "change", [change_one_pixel, rename_a_class, move_an_image_to_another_class, remove_an_image]
)
def test_the_fingerprint_changes_with(
    change: Callable[[Path], None], folders: ImageFolderData, tmp_path: Path
) -> None:
    before = load_dataset(folders, square(SIZE))
    change(tmp_path)
    after = load_dataset(folders, square(SIZE))
    assert after.sha256 != before.sha256
    trained = after.training_sha256 == before.training_sha256
    assert trained is (change is change_one_pixel), "only that one is in a test set"


def test_another_test_set_leaves_the_fingerprint_of_training(
    folders: ImageFolderData, tmp_path: Path
) -> None:
    before = load_dataset(folders, square(SIZE))
    shutil.copytree(tmp_path / "night", tmp_path / "dusk")
    more = {**(folders.test or {}), "dusk": tmp_path / "dusk"}
    after = load_dataset(folders.model_copy(update={"test": more}), square(SIZE))
    assert set(after.tests) == {*before.tests, "dusk"}
    assert after.sha256 != before.sha256
    assert after.training_sha256 == before.training_sha256
    assert len(before.training_sha256) == 64


def test_the_fingerprint_changes_with_the_calibration_split(folders: ImageFolderData) -> None:
    fewer = folders.model_copy(update={"calibration_images": 4})
    found, whole = load_dataset(fewer, square(SIZE)), load_dataset(folders, square(SIZE))
    assert found.sha256 != whole.sha256
    assert found.training_sha256 != whole.training_sha256


def test_what_does_not_fit_in_memory_is_decoded_on_demand(
    folders: ImageFolderData, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load_dataset(folders, square(SIZE))
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    lazy = load_dataset(folders, square(SIZE))
    assert isinstance(kept.train.source, torch.Tensor)
    assert isinstance(lazy.train.source, tuple)
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


# Decoding


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
    images = Images(labels=labels, shape=square(4), source=pixels.numpy(), margin=(2, 2))
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


def torn(file: Path) -> Path:
    """A copy of an image beside it, cut off."""
    copy = file.with_name(f"torn{file.suffix}")
    copy.write_bytes(file.read_bytes()[:200])
    return copy


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


def test_random_parts_are_scaled_as_the_images_are() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 24, 24), np.uint8))
    _, dataset = in_memory(6)
    config = AugmentConfig(crop=(0.2, 0.9))
    found = {}
    for interpolation in ("bilinear", "bicubic"):
        images = Images(
            labels=torch.arange(6) % 2,
            shape=square(24),
            source=noise,
            interpolation=interpolation,
        )
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        given = batches(images, 6, dataset, augment_config=config, generator=generator)
        found[interpolation] = next(given)[0] * 255
        torch.manual_seed(0)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
        parts = random_parts(noise[order], (0.2, 0.9), square(24), interpolation)
        assert torch.equal(found[interpolation].round().to(torch.uint8), parts)
    assert not torch.equal(found["bilinear"], found["bicubic"])


# Normalisation and augmentation


@GENTLE
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
    seed=st.integers(0, 2**31),
)
def test_normalize_can_be_inverted(
    mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (2, 3, 5, 5), generator=generator).to(torch.uint8)
    x = normalize(pixels, mean, std)
    assert x.dtype == torch.float32
    assert x.shape == pixels.shape
    channels = torch.tensor([mean, std]).view(2, 1, 3, 1, 1)
    back = (x * channels[1] + channels[0]) * 255
    assert torch.equal(back.round().to(torch.uint8), pixels)


def ramp(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((count, 3, SIZE, SIZE), generator=generator)


def test_augment_with_everything_off_is_the_identity() -> None:
    x = ramp(4)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(augment(x, AugmentConfig(), generator), x)
    assert torch.equal(generator.get_state(), before)


def test_flip_mirrors_about_half_of_the_images_exactly() -> None:
    x = ramp(200)
    out = augment(x, AugmentConfig(flip=True), torch.Generator().manual_seed(0))
    same = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 70 < int(mirrored.sum()) < 130


@GENTLE
@given(
    shift=st.floats(0, 0.5),
    rotate_deg=st.floats(0, 180),
    scale=st.floats(0, 0.5),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_augment_keeps_shape_and_range_and_is_repeatable(
    shift: float, rotate_deg: float, scale: float, flip: bool, seed: int
) -> None:
    config = AugmentConfig(shift=shift, rotate_deg=rotate_deg, scale=scale, flip=flip)
    x = ramp(3)
    out = augment(x, config, torch.Generator().manual_seed(seed))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert bool(out.isfinite().all())
    assert x.min() - 1e-3 <= out.min() <= out.max() <= x.max() + 1e-3
    assert torch.equal(out, augment(x, config, torch.Generator().manual_seed(seed)))


def centre_of_mass(x: torch.Tensor) -> torch.Tensor:
    """Of each image's first channel, as [B, 2] x and y in pixels from the middle."""
    mass = x[:, 0] / x[:, 0].sum((1, 2), keepdim=True)
    place = torch.arange(SIZE) - (SIZE - 1) / 2
    return torch.stack(((mass.sum(1) * place).sum(1), (mass.sum(2) * place).sum(1)), dim=1)


def test_shift_moves_by_up_to_its_share_of_the_side() -> None:
    x = torch.zeros(300, 3, SIZE, SIZE)
    x[:, :, 14:18, 14:18] = 1
    out = augment(x, AugmentConfig(shift=0.25), torch.Generator().manual_seed(0))
    moved = centre_of_mass(out).abs()
    assert 7.5 < float(moved.max()) <= 8.01


def test_shift_alone_moves_by_whole_pixels_as_the_grid_does() -> None:
    x = torch.rand(60, 3, SIZE, SIZE)
    out = augment(x, AugmentConfig(shift=0.25), torch.Generator().manual_seed(0))
    draws = draw_changes(60, AugmentConfig(shift=0.25), torch.Generator().manual_seed(0))
    whole = (draws * 2 - 1) * SIZE * 0.25
    for image, shifted, (right, down) in zip(x, out, whole[3:].round().int().T, strict=True):
        padded = functional.pad(image[None], (8, 8, 8, 8), mode="replicate")[0]
        assert torch.equal(
            shifted, padded[:, 8 + down : 8 + down + SIZE, 8 + right : 8 + right + SIZE]
        )
    # The same places as where images are resampled, to half a pixel.
    nearly = augment_as(x, AugmentConfig(shift=0.25, rotate_deg=1e-9), draws)
    exact = draws.clone()
    exact[3:] = (whole[3:].round() / (SIZE * 0.25) + 1) / 2
    resampled = augment_as(x, AugmentConfig(shift=0.25, rotate_deg=1e-9), exact)
    assert torch.allclose(out, resampled, atol=1e-4)
    assert not torch.allclose(out, nearly, atol=1e-2)


def test_rotation_stays_within_its_angle_and_keeps_the_radius() -> None:
    x = torch.zeros(300, 3, SIZE, SIZE)
    x[:, :, 15:17, 25:27] = 1
    out = augment(x, AugmentConfig(rotate_deg=30), torch.Generator().manual_seed(0))
    centres = centre_of_mass(out)
    angles = torch.atan2(centres[:, 1], centres[:, 0]) * 180 / math.pi
    assert 28 < float(angles.abs().max()) < 31
    assert bool((angles < -10).any())
    assert bool((angles > 10).any())
    assert float((centres.norm(dim=1) - 10).abs().max()) < 0.3


def test_scale_enlarges_and_shrinks_within_its_share() -> None:
    x = torch.zeros(300, 3, SIZE, SIZE)
    x[:, :, 8:24, 8:24] = 1
    out = augment(x, AugmentConfig(scale=0.25), torch.Generator().manual_seed(0))
    sides = out[:, 0].sum((1, 2)).sqrt() / 16
    assert 0.73 < float(sides.min()) < 0.8
    assert 1.2 < float(sides.max()) < 1.27


# Batches


def in_memory(count: int) -> tuple[Images, Dataset]:
    """Images whose every pixel is their own number, so that a batch shows who is in it."""
    numbers = torch.arange(count, dtype=torch.uint8)
    source = numbers[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    images = Images(labels=torch.arange(count) % 2, shape=square(4), source=source)
    dataset = Dataset(
        name="numbers",
        classes=("even", "odd"),
        train=images,
        calibration=images,
        tests={"test": images},
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        sha256="",
        training_sha256="",
    )
    return images, dataset


def who(x: torch.Tensor) -> list[int]:
    return (x[:, 0, 0, 0] * 255).round().int().tolist()


@GENTLE
@given(count=st.integers(0, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_batches_cover_every_image_once(count: int, batch_size: int, seed: int) -> None:
    images, dataset = in_memory(count)
    plain = list(batches(images, batch_size, dataset))
    assert [n for x, _ in plain for n in who(x)] == list(range(count))

    def shuffled() -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        epoch = list(batches(images, batch_size, dataset, generator=generator))
        for x, y in epoch:
            assert 2 <= len(x) <= max(batch_size, 2)
            assert x.dtype == torch.float32
            assert y.dtype == torch.int64
            assert [n % 2 for n in who(x)] == y.tolist()
        return [n for x, _ in epoch for n in who(x)]

    order = shuffled()
    assert order == shuffled()
    if batch_size == 1:
        assert order == []
        return
    dropped = int(count % batch_size == 1)
    assert len(set(order)) == len(order) == count - dropped


def test_each_epoch_of_one_generator_has_its_own_order() -> None:
    images, dataset = in_memory(40)
    generator = torch.Generator().manual_seed(0)
    epochs = [
        [n for x, _ in batches(images, 8, dataset, generator=generator) for n in who(x)]
        for _ in range(2)
    ]
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_batches_are_normalised_and_augmented_repeatably(digits: Dataset) -> None:
    config = AugmentConfig(shift=0.1, rotate_deg=10)
    runs = [
        torch.cat(
            [
                x
                for x, _ in batches(
                    digits.calibration,
                    64,
                    digits,
                    augment_config=config,
                    generator=torch.Generator().manual_seed(3),
                )
            ]
        )
        for _ in range(2)
    ]
    assert torch.equal(runs[0], runs[1])
    x, _ = next(batches(digits.calibration, 64, digits))
    expected = normalize(digits.calibration.pixels(torch.arange(64)), digits.mean, digits.std)
    assert torch.equal(x, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_augments_as_a_cpu_does(digits: Dataset) -> None:
    for config in (AugmentConfig(shift=0.1, flip=True), AugmentConfig(shift=0.1, rotate_deg=10)):
        (cpu, labels), (gpu, same_labels) = (
            next(
                batches(
                    digits.train,
                    64,
                    digits,
                    augment_config=config,
                    generator=torch.Generator().manual_seed(3),
                    place=torch.device(place),
                )
            )
            for place in ("cpu", "cuda")
        )
        assert gpu.device.type == "cuda"
        assert torch.equal(labels, same_labels)
        assert torch.allclose(cpu, gpu.cpu(), atol=1e-4)


def test_batches_are_sent_as_bytes_and_changed_where_they_come_to_be(digits: Dataset) -> None:
    """A device that computes nothing tells: what is drawn on the CPU must be sent there first."""
    config = AugmentConfig(shift=0.1, flip=True)
    generator, place = torch.Generator().manual_seed(0), torch.device("meta")
    given = batches(
        digits.train, 64, digits, augment_config=config, generator=generator, place=place
    )
    x, labels = next(given)
    assert (x.device.type, x.shape, x.dtype) == ("meta", (64, 3, SIZE, SIZE), torch.float32)
    assert labels.device.type == "cpu"


def test_batches_refuse_wrong_arguments_at_once() -> None:
    images, dataset = in_memory(4)
    with pytest.raises(ValueError, match="needs a generator"):
        batches(images, 2, dataset, augment_config=AugmentConfig())
    with pytest.raises(ValueError, match="batch_size: got 0"):
        batches(images, 0, dataset)


# What a bad folder is told


def complaint(config: ImageFolderData) -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(config, square(SIZE))
    return str(caught.value)


def test_all_missing_paths_are_named_at_once(folders: ImageFolderData, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "night")
    (tmp_path / "night").write_text("")
    lines = complaint(folders).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"data.train: {tmp_path / 'train'} does not exist")
    assert lines[1].startswith(f"data.test.night: {tmp_path / 'night'} is not a folder")


def test_one_path_stands_for_all_folders(folders: ImageFolderData, tmp_path: Path) -> None:
    (tmp_path / "day").rename(tmp_path / "test-day")
    (tmp_path / "night").rename(tmp_path / "validation")
    (tmp_path / "readme.txt").write_text("")
    (tmp_path / "notes").mkdir()
    config = ImageFolderData(path=tmp_path, calibration_images=5)
    dataset = load_dataset(config, square(SIZE))
    assert (len(dataset.train), list(dataset.tests)) == (8, ["test-day", "validation"])
    tests = {"day": str(tmp_path / "test-day"), "night": str(tmp_path / "validation")}
    apart = load_dataset(folder_config(tmp_path, test=tests), square(SIZE))
    assert torch.equal(every_pixel(dataset.train), every_pixel(apart.train))


def test_a_path_without_training_or_test_images_says_what_it_holds(
    folders: ImageFolderData, tmp_path: Path
) -> None:
    config = ImageFolderData(path=tmp_path)
    wanted = f"data.path: {tmp_path} holds day, night, train; it must hold train/<class>/ and test"
    assert wanted in complaint(config)
    assert "does not exist" in complaint(ImageFolderData(path=tmp_path / "nowhere"))
    (tmp_path / "day").rename(tmp_path / "test set")
    assert f"data.path: {tmp_path / 'test set'}: " in complaint(config)


def test_where_images_are_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.path says where the images are; remove one"):
        folder_config(tmp_path, path=str(tmp_path))
    with pytest.raises(ValueError, match="Field required"):
        ImageFolderData()


def test_a_folder_without_classes_is_named(folders: ImageFolderData, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train" / ".hidden").mkdir(parents=True)
    assert f"data.train: {tmp_path / 'train'} is empty" in complaint(folders)


def test_a_single_class_is_named(folders: ImageFolderData, tmp_path: Path) -> None:
    for part in ("train", "day", "night"):
        shutil.rmtree(tmp_path / part / "ant")
        shutil.rmtree(tmp_path / part / "bee")
    assert "data.train" in complaint(folders)
    assert "one class only, 'cat'" in complaint(folders)


def test_an_empty_class_is_named(folders: ImageFolderData, tmp_path: Path) -> None:
    for file in (tmp_path / "day" / "bee").iterdir():
        file.rename(file.with_suffix(".heic"))
    assert f"data.test.day: class 'bee' has no images in {tmp_path / 'day' / 'bee'}" in complaint(
        folders
    )


def test_differing_test_classes_are_named(folders: ImageFolderData, tmp_path: Path) -> None:
    (tmp_path / "night" / "cat").rename(tmp_path / "night" / "owl")
    message = complaint(folders)
    assert message.startswith("data.test.night: class folders differ")
    assert "missing 'cat'; not in train 'owl'" in message


def test_unreadable_images_are_named(folders: ImageFolderData, tmp_path: Path) -> None:
    torn, text = tmp_path / "train" / "ant" / "0.png", tmp_path / "night" / "cat" / "1.jpg"
    torn.write_bytes(torn.read_bytes()[:300])
    text.write_text("not a picture")
    lines = complaint(folders).splitlines()
    assert len(lines) == 2
    assert str(torn) in lines[0]
    assert f"{text}: not an image" in lines[1]


def test_many_unreadable_images_are_counted(folders: ImageFolderData, tmp_path: Path) -> None:
    for index in range(14):
        (tmp_path / "day" / "ant" / f"bad{index:02}.png").write_bytes(b"")
    lines = complaint(folders).splitlines()
    assert len(lines) == 11
    assert "4 more" in lines[-1]


def test_an_image_that_breaks_later_is_named(
    folders: ImageFolderData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    torn = tmp_path / "day" / "ant" / "0.png"
    torn.write_bytes(torn.read_bytes()[:300])
    day = load_dataset(folders, square(SIZE)).tests["day"]
    with pytest.raises(InputError, match=r"ant/0\.png"):
        every_pixel(day)
    torn.unlink()
    with pytest.raises(InputError, match=r"ant/0\.png: No such file"):
        every_pixel(day)
    torn.write_bytes(b"text")
    assert str(torn) in complaint(folders)


def test_more_calibration_images_than_can_be_spared_are_refused(folders: ImageFolderData) -> None:
    message = complaint(folders.model_copy(update={"calibration_images": 11}))
    assert message.startswith("data.calibration_images: got 11;")
    assert "13 images in 3 classes" in message
    assert "at most 10" in message
    kept = load_dataset(folders.model_copy(update={"calibration_images": 10}), square(SIZE))
    assert sorted(kept.train.labels.tolist()) == [0, 1, 2]


def test_other_files_and_nested_folders(folders: ImageFolderData, tmp_path: Path) -> None:
    before = load_dataset(folders, square(SIZE))
    (tmp_path / "train" / "notes.txt").write_text("")
    (tmp_path / "train" / "ant" / "Thumbs.db").write_text("")
    (tmp_path / "train" / "ant" / "._0.png").write_text("")
    assert_same(before, load_dataset(folders, square(SIZE)))
    write_image(tmp_path / "train" / "ant" / "more" / "DEEP.PNG", seed=99)
    assert len(load_dataset(folders, square(SIZE)).train) == len(before.train) + 1


# CIFAR


def write_cifar(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small dataset in CIFAR's own file format: 40 training and 20 test images."""
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    label_key, classes = ("labels", 10) if kind == "cifar10" else ("fine_labels", 100)
    folder = root / source.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def part(count: int, seed: int) -> dict[str, object]:
        data = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": data, label_key: [index % 10 for index in range(count)]}

    monkeypatch.setattr(source, "train_list", [["train", write("train", part(40, 0))]])
    monkeypatch.setattr(source, "test_list", [["test", write("test", part(20, 1))]])
    names = {source.meta["key"]: [f"class{index}" for index in range(classes)]}
    meta = source.meta | {"md5": write(source.meta["filename"], names)}
    monkeypatch.setattr(source, "meta", meta)


def cifar_config(kind: str, root: Path, **changes: Any) -> CifarData:
    fields = {"kind": kind, "path": str(root), "calibration_images": 10}
    return CifarData.model_validate(fields | changes)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_own_files(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, kind, monkeypatch)
    dataset = load_dataset(cifar_config(kind, tmp_path), square(SIZE))
    assert dataset.name == kind
    assert len(dataset.classes) == (10 if kind == "cifar10" else 100)
    assert {name: len(images) for name, images in all_sets(dataset).items()} == {
        "train": 30,
        "calibration": 10,
        "test": 20,
    }
    assert torch.bincount(dataset.calibration.labels).tolist() == [1] * 10
    assert not set(contents(dataset.train)) & set(contents(dataset.calibration))
    stored = np.random.default_rng(1).integers(0, 256, (20, 3072), dtype=np.uint8)
    assert np.array_equal(
        every_pixel(dataset.tests["test"]).numpy(), stored.reshape(20, 3, SIZE, SIZE)
    )
    assert_same(dataset, load_dataset(cifar_config(kind, tmp_path), square(SIZE)))
    assert every_pixel(load_dataset(cifar_config(kind, tmp_path), square(64)).train).shape[-1] == 64


def test_absent_cifar_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(cifar_config("cifar10", tmp_path), square(SIZE))
    message = str(caught.value)
    assert f"looked for cifar10 in {tmp_path / 'cifar-10-batches-py'}: no such folder" in message
    assert "data.download: true" in message
    assert "cifar-10-python.tar.gz" in message


def test_damaged_cifar_is_told_from_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, "cifar10", monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test").write_bytes(b"")
    with pytest.raises(InputError, match="incomplete or damaged"):
        load_dataset(cifar_config("cifar10", tmp_path), square(SIZE))


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(InputError) as caught:
        load_dataset(cifar_config("cifar100", tmp_path, download=True), square(SIZE))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("data.download: could not fetch https://www.cs.toronto.edu/")
    assert "Name or service not known" in message
