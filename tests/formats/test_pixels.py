"""Camera pixels: conversion of images, and refusals where a file would answer wrongly."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.formats.pixels import camera_pixels, refuse_learned_input
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import pixel_values
from tests.making import programs
from tests.making.networks import dataset

pytestmark = pytest.mark.slow


def test_images_become_those_of_a_camera() -> None:
    wanted = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    found = camera_pixels(wanted.transpose(0, 3, 1, 2).astype(np.float32))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted)


def test_the_datasets_pixels_are_taken_for_what_they_are() -> None:
    every = dataset()
    stored = every.train.pixels(torch.arange(len(every.train)))
    (fed, _) = next(batches(every.train, len(every.train), pixel_values(every)))
    assert (fed - stored).abs().max() <= 1e-4
    found = camera_pixels(fed.numpy())
    np.testing.assert_array_equal(found, stored.permute(0, 2, 3, 1).numpy())


@given(
    st.one_of(
        st.floats(0.002, 254.998).filter(lambda x: abs(x - round(x)) > 0.002),
        st.floats(max_value=-0.6),
        st.floats(min_value=255.6),
        st.just(float("nan")),
    )
)
def test_what_is_no_pixel_is_refused(value: float) -> None:
    images = np.full((1, 3, 2, 2), 7.0)
    images[0, 1, 1, 0] = value
    with pytest.raises(ValueError, match=r"whole numbers 0 to 255; feed .*pixel_values"):
        camera_pixels(images)


def test_normalised_images_are_refused() -> None:
    with pytest.raises(ValueError, match="not a normalised one"):
        camera_pixels(programs.examples().numpy())


def test_a_program_without_the_grid_of_pixels_is_refused() -> None:
    refuse_learned_input(programs.quantized("radix1", pixels=True).program)
    with pytest.raises(ValueError, match=r"scale 0\.\d+ and zero point -?\d+; .*normalization"):
        refuse_learned_input(programs.quantized("radix1").program)
