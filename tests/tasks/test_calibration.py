"""Calibration images that cannot set ranges are refused; test sets beyond them are named."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.recipe.data import DigitsData
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.stages import run
from pipeline.tasks import classification
from pipeline.tasks.images.calibration import check_calibration
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import load_dataset
from pipeline.tasks.images.pixels import Images
from tests.making import networks
from tests.making.recipes import DEVICE_RECIPES, NARROW

SIDE = 32


def noise(count: int, low: int = 0, high: int = 256, seed: int = 0) -> Tensor:
    """Images (count, 3, 32, 32) of any levels from `low` to `high` - 1."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(low, high, (count, 3, SIDE, SIDE), generator=generator)
    return whole.to(torch.uint8)


def of_colours(count: int, spread: int = 0) -> Tensor:
    """Every image of one colour, but for `spread` levels."""
    colours = torch.randint(0, 250, (count, 3, 1, 1), generator=torch.Generator().manual_seed(1))
    return (colours + noise(count, 0, spread + 1)).to(torch.uint8)


def made_of(
    calibration: Tensor, train: Tensor | None = None, tests: dict[str, Tensor] | None = None
) -> Dataset:
    def images(pixels: Tensor) -> Images:
        labels = torch.zeros(len(pixels), dtype=torch.int64)
        return Images(labels=labels, shape=square(SIDE), source=pixels)

    return replace(
        networks.dataset(),
        calibration=images(calibration),
        train=images(calibration if train is None else train),
        tests={name: images(pixels) for name, pixels in (tests or {}).items()},
    )


def refusal(dataset: Dataset) -> str:
    with pytest.raises(InputError) as caught:
        check_calibration(dataset)
    (line,) = str(caught.value).splitlines()
    return line


# Constant images


@pytest.mark.parametrize("spread", [0, 2])
@pytest.mark.parametrize("count", [1, 5, 200])
def test_images_of_one_colour_each_are_refused(count: int, spread: int) -> None:
    looked_at = min(count, 64)
    assert refusal(made_of(of_colours(count, spread))) == (
        f"calibration images: each of the {looked_at} that were looked at is of one colour, so no "
        "range for int8 can be learned from them; they are drawn from the training images: check "
        "those, or raise data.calibration_images"
    )


@pytest.mark.parametrize("count", [2, 16, 200])
def test_images_that_are_all_the_same_are_refused(count: int) -> None:
    same = noise(1).expand(count, -1, -1, -1) // 2 + noise(count, 0, 3)
    assert refusal(made_of(same)).startswith(
        f"calibration images: the {min(count, 64)} that were looked at are all the same, so no "
    )


def test_one_image_is_like_itself() -> None:
    assert check_calibration(made_of(noise(1))) == ()


def test_a_scene_that_hardly_changes_passes() -> None:
    """A camera that does not move, with a sensor's noise and a spot that moves."""
    still = noise(1).expand(40, -1, -1, -1).clone() // 2
    assert "all the same" in refusal(made_of(still))
    for index in range(1, 40):
        still[index, :, index % SIDE, index % SIDE] += 9
    assert check_calibration(made_of(still)) == ()


def test_some_images_of_one_colour_pass() -> None:
    mixed = torch.cat([of_colours(60), noise(4)])
    assert check_calibration(made_of(mixed)) == ()


# Another range


def test_images_of_another_brightness_are_refused() -> None:
    assert refusal(made_of(noise(20, 0, 2) * 4, train=noise(100))) == (
        "calibration images: the mean of red is 2 to 2 of 255 in all 20 that were looked at, and "
        "128 in the median image trained on; int8 ranges would be those of other images: "
        "calibrate on images like those trained on"
    )


def test_images_of_another_contrast_are_refused() -> None:
    line = refusal(made_of(noise(20, 120, 137), train=noise(100)))
    assert "the standard deviation of red is 5 to 5 of 255 in all 20" in line


def test_one_channel_is_enough() -> None:
    tinted = noise(20)
    tinted[:, 2] //= 2
    assert "the mean of blue is 6" in refusal(made_of(tinted, train=noise(100)))


def test_few_images_prove_nothing() -> None:
    assert check_calibration(made_of(noise(15, 0, 100), train=noise(100))) == ()
    assert check_calibration(made_of(noise(20, 0, 100), train=noise(15))) == ()


def test_images_drawn_from_the_same_folder_pass() -> None:
    """However unlike each other: one in sixteen is bright, the others are nearly black."""
    for seed in range(15):
        whole = torch.cat([noise(150, 0, 12, seed=seed), noise(10, seed=seed)])
        order = torch.randperm(160, generator=torch.Generator().manual_seed(seed))
        found = check_calibration(made_of(whole[order[:16]], train=whole[order[16:]]))
        assert found == ()


# Test sets


def test_a_test_set_beyond_the_calibrated_range_is_noted() -> None:
    seen = noise(30, 0, 101)
    night, bright = noise(30, 0, 9), noise(30, 90, 256)
    (note,) = check_calibration(
        made_of(seen, tests={"day": noise(30, 20, 90), "night": night, "snow": bright})
    )
    assert note == (
        "test set snow: 93% of its pixel values are outside of what the calibration images hold "
        "(red 0 to 100, green 0 to 100, blue 0 to 100 of 255), where int8 files clip; if phones "
        "will see such images, add some to the training images"
    )


# In a run


def test_the_embedded_data_and_the_tests_networks_pass() -> None:
    assert check_calibration(networks.dataset()) == ()
    for tile in (None, 32):
        assert check_calibration(load_dataset(DigitsData(tile=tile), square(64))) == ()


def folders(root: Path, pixels: Tensor) -> str:
    """`data` of a recipe whose two classes hold some images, half each."""
    for index, image in enumerate(pixels):
        path = root / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())).save(path)
    return f"data={{kind: image_folder, train: {root}, test: {{t: {root}}}, calibration_images: 4}}"


def test_a_run_refuses_before_it_trains(tmp_path: Path) -> None:
    data = folders(tmp_path / "images", of_colours(12))
    recipes = load_recipes([DEVICE_RECIPES["onnx"]], [*NARROW, data])
    shown = io.StringIO()
    with pytest.raises(InputError, match="calibration images: each of the 4 that were looked at"):
        run.run_recipes(recipes, tmp_path / "out", Console(file=shown), until="train")
    assert shown.getvalue() == ""
    assert not list((tmp_path / "out").glob(".store/train-*"))


def test_a_run_shows_the_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bright = made_of(noise(16, 0, 100), tests={"test": noise(16, 110, 256)})
    monkeypatch.setattr(classification, "load", lambda *_, **__: bright)
    recipes = load_recipes([DEVICE_RECIPES["onnx"]])
    shown = io.StringIO()
    run._prepared(recipes, (), tmp_path, Console(file=shown, width=400), allow_mismatch=False)
    assert shown.getvalue().startswith("test set test: 100% of its pixel values are outside")


def test_large_sets_are_looked_at_in_a_moment() -> None:
    pixels = torch.randint(0, 256, (300, 3, 224, 224), dtype=torch.uint8)
    sets = Images(labels=torch.zeros(300, dtype=torch.int64), shape=square(224), source=pixels)
    large = replace(networks.dataset(), train=sets, calibration=sets, tests={"a": sets, "b": sets})
    started = time.process_time()
    check_calibration(large)
    assert time.process_time() - started < 10  # 0.2 s; what else the machine does is not counted
