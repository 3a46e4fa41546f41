"""Datasets: splits, fingerprints, and CIFAR's own files."""

import hashlib
import pickle
import shutil
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.base.errors import InputError
from pipeline.recipe.data import CifarData, DigitsData, ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.dataset import Dataset, draw_stratified, sample_rows
from pipeline.tasks.images.digits import grey_digits
from pipeline.tasks.images.load import load_dataset
from pipeline.tasks.images.pixels import Images, decode
from tests.making.datasets import GENTLE
from tests.making.photos import (
    SIZE,
    all_sets,
    assert_same,
    every_pixel,
    folder_config,
    plain,
)

DIGITS_SHA256 = "c75a9e79bc9f03bdb2bb77ee9ecfe929be1be948ab82ac2f71ffab3a82a6b0d4"


def contents(images: Images) -> list[str]:
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in every_pixel(images)]


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


def test_digits_are_those_of_scikit_learn() -> None:
    grey, labels = grey_digits()
    given = load_digits()
    assert torch.equal(grey, torch.from_numpy(given.images))
    assert torch.equal(labels, torch.from_numpy(given.target))


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


def images_of(labels: torch.Tensor) -> Images:
    pixels = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
    return Images(labels=labels, shape=square(1), source=pixels)


def test_a_sample_has_of_every_class_its_share_and_is_in_order() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100)]
    rows = sample_rows(images_of(labels), 20)
    assert torch.bincount(labels[rows]).tolist() == [12, 6, 2]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.equal(rows, sample_rows(images_of(labels), 20))
    # A class of one image can be drawn as well as others.
    assert len(sample_rows(images_of(torch.arange(50)), 49)) == 49


def test_a_sample_of_few_images_is_all_and_of_several_labels_is_drawn() -> None:
    assert sample_rows(images_of(torch.tensor([1, 0, 2])), 3).tolist() == [0, 1, 2]
    several = torch.ones(40, 4, dtype=torch.uint8)
    rows = sample_rows(images_of(several), 10)
    assert len(set(rows.tolist())) == 10
    assert rows.tolist() == sorted(rows.tolist())


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
