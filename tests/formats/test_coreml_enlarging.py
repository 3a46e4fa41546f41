"""How the reference evaluator enlarges images, beside plain sums."""

from __future__ import annotations

import numpy as np
import pytest

from tests.making.packages import Array, answers, network, normal, of_x

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("factors", [(2, 2), (3, 1), (1, 4)])
def test_nearest_neighbours_are_repeated(factors: tuple[int, int]) -> None:
    x = normal(2, 1, 3, 4, 5)
    high, wide = map(float, factors)
    net = network(
        of_x("upsample_nearest_neighbor", scale_factor_height=high, scale_factor_width=wide),
        x.shape[1:],
    )
    (found,) = answers(net, x, "float32")
    np.testing.assert_array_equal(found, x.repeat(factors[0], 3).repeat(factors[1], 4))


@pytest.mark.parametrize("factors", [(2, 2), (4, 2), (1, 3)])
def test_bilinear_values_stand_in_the_middle_of_their_squares(factors: tuple[int, int]) -> None:
    x = normal(2, 1, 3, 4, 5)
    high, wide = map(float, factors)
    net = network(
        of_x(
            "upsample_bilinear",
            scale_factor_height=high,
            scale_factor_width=wide,
            align_corners=False,
            half_pixel_centers=True,
        ),
        x.shape[1:],
    )
    (found,) = answers(net, x, "float32")
    wanted = np.einsum("yh,xw,nbchw->nbcyx", shares(4, factors[0]), shares(5, factors[1]), x)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def shares(size: int, factor: int) -> Array:
    """What each of `size` values has in each of `factor` times as many: (new, old)."""
    places = ((np.arange(size * factor) + 0.5) / factor - 0.5).clip(0, size - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size))).astype(np.float32)


def test_aligned_corners_are_refused() -> None:
    x = normal(1, 1, 3, 4, 5)
    net = network(
        of_x(
            "upsample_bilinear",
            scale_factor_height=2.0,
            scale_factor_width=2.0,
            align_corners=True,
        ),
        x.shape[1:],
    )
    with pytest.raises(NotImplementedError, match="aligned corners"):
        answers(net, x)
