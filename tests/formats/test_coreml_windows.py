"""Convolution and pooling of the reference evaluator, against numpy, torch and TensorFlow."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.nn import functional as F

from tests.making.packages import Array, Case, check, normal, of_torch, of_x

pytestmark = pytest.mark.slow

# A batching rule that torch lacks makes one operation of many images a slow loop.
pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")

FEW = settings(max_examples=4, deadline=None, derandomize=True)
"""Every example is a package with several operations."""


def several(case: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(case, min_size=8, max_size=8)


def pairs(low: int, high: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(low, high), min_size=2, max_size=2)


SIZES = st.tuples(st.integers(5, 9), st.integers(5, 9))


def windows(x: Array, kernel: Sequence[int], strides: Any, dilations: Any = (1, 1)) -> Array:
    """(batch, channels, *positions, *kernel)."""
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    found = sliding_window_view(x, extent, axis=(2, 3))  # type: ignore[call-overload]
    return np.asarray(found[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]])


def numpy_conv(
    x: Array, weight: Array, bias: Array, strides: Any, pad: Any, dilations: Any, groups: int
) -> Array:
    x = np.pad(x, [(0, 0), (0, 0), tuple(pad[:2]), tuple(pad[2:])])
    parts = [
        np.einsum("bchwij,ocij->bohw", windows(part, weight.shape[2:], strides, dilations), w)
        for part, w in zip(np.split(x, groups, 1), np.split(weight, groups), strict=True)
    ]
    return np.concatenate(parts, 1) + bias[:, None, None]


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.sampled_from([1, 2, 4]))
    channels = groups * draw(st.integers(1, 2))
    return {
        "weight": normal(channels, 4 // groups, *draw(pairs(1, 3)), seed=channels),
        "bias": normal(channels),
        "strides": draw(pairs(1, 3)),
        "dilations": draw(pairs(1, 2)),
        "pad": draw(pairs(0, 2)) + draw(pairs(0, 2)),
        "groups": groups,
    }


@FEW
@given(several(convolutions()))
def test_convolution_is_numpys(drawn: list[dict[str, Any]]) -> None:
    check(
        [(of_x("conv", pad_type="custom", **d), partial(numpy_conv, **d)) for d in drawn],
        normal(1, 4, 7, 9),
    )


def of_tensorflow(function: Callable[[Any], Any]) -> Callable[[Array], Array]:
    """The same on channels first."""
    return lambda x: np.asarray(function(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


@FEW
@given(SIZES, st.lists(st.tuples(pairs(1, 4), pairs(1, 3)), min_size=3, max_size=3))
def test_same_padding_is_tensorflows(sizes: tuple[int, int], drawn: list[Any]) -> None:
    cases: list[Case] = []
    for kernel, strides in drawn:
        weight = normal(3, 2, *kernel)
        place: dict[str, Any] = {"strides": strides, "pad_type": "same"}
        theirs: dict[str, Any] = {"strides": strides, "padding": "SAME"}
        filters = weight.transpose(2, 3, 1, 0)
        cases.append(
            (
                of_x("conv", weight=weight, **place),
                of_tensorflow(partial(tf.nn.conv2d, filters=filters, **theirs)),
            )
        )
        place["kernel_sizes"] = theirs["ksize"] = kernel
        # TensorFlow's mean leaves padding out.
        mean = of_x("avg_pool", exclude_padding_from_average=True, **place)
        cases.append((mean, of_tensorflow(partial(tf.nn.avg_pool2d, **theirs))))
        largest = of_x("max_pool", **place)
        cases.append((largest, of_tensorflow(partial(tf.nn.max_pool2d, **theirs))))
    check(cases, normal(1, 2, *sizes))


def test_same_lower_pads_before_where_same_pads_after() -> None:
    weight = normal(3, 2, 3, 3)

    def convolve(x: Array) -> Tensor:
        before = np.pad(x, [(0, 0), (0, 0), (1, 0), (1, 0)])
        return F.conv2d(torch.from_numpy(before), torch.from_numpy(weight), stride=2)

    lower = of_x("conv", weight=weight, strides=[2, 2], pad_type="same_lower")
    check([(lower, convolve)], normal(1, 2, 8, 8))


def test_one_and_three_dimensions_are_torchs() -> None:
    functions = {
        1: (F.conv1d, F.avg_pool1d, F.max_pool1d),
        3: (F.conv3d, F.avg_pool3d, F.max_pool3d),
    }
    for rank, (convolve, mean, largest) in functions.items():
        weight = normal(3, 2, *[2] * rank)
        place: dict[str, Any] = {"strides": [2] * rank, "pad_type": "valid"}
        pool = place | {"kernel_sizes": [2] * rank}
        check(
            [
                (
                    of_x("conv", weight=weight, **place),
                    of_torch(convolve, weight=torch.from_numpy(weight), stride=2),
                ),
                (of_x("avg_pool", **pool), of_torch(mean, kernel_size=2)),
                (of_x("max_pool", **pool), of_torch(largest, kernel_size=2)),
            ],
            normal(1, 2, *[5] * rank),
        )


@FEW
@given(several(st.tuples(pairs(1, 4), pairs(1, 3), pairs(0, 2), pairs(0, 2))))
def test_pools_are_numpys(drawn: list[Any]) -> None:
    def numpy_pool(reduce: Any, value: float, pool: dict[str, Any]) -> Callable[[Array], Array]:
        rows, columns = pool["pad"][:2], pool["pad"][2:]

        def apply(x: Array) -> Array:
            padded = np.pad(x, [(0, 0), (0, 0), rows, columns], constant_values=value)
            found = windows(padded, pool["kernel_sizes"], pool["strides"])
            return np.asarray(reduce(found, axis=(4, 5)))

        return apply

    cases: list[Case] = []
    for kernel, strides, rows, columns in drawn:
        pool = {"kernel_sizes": kernel, "strides": strides, "pad": rows + columns}
        ours = {"pad_type": "custom", **pool}
        cases.append((of_x("avg_pool", **ours), numpy_pool(np.mean, 0, pool)))
        cases.append((of_x("max_pool", **ours), numpy_pool(np.max, -np.inf, pool)))
        if max(rows + columns) < min(kernel):  # else there are means of nothing
            ours["exclude_padding_from_average"] = True
            cases.append((of_x("avg_pool", **ours), numpy_pool(np.nanmean, np.nan, pool)))
    check(cases, normal(1, 3, 6, 7))


@st.composite
def ceiled_pools(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], bool]:
    kernel = draw(pairs(1, 4))
    # coremltools and torch disagree on windows that begin past the end of an input without pads.
    strides = [draw(st.integers(1, k)) for k in kernel]
    return kernel, strides, [draw(st.integers(0, k // 2)) for k in kernel], draw(st.booleans())


@FEW
@given(SIZES, several(ceiled_pools()))
def test_ceil_mode_is_torchs(sizes: tuple[int, int], drawn: list[Any]) -> None:
    cases: list[Case] = []
    for kernel, strides, pad, exclude in drawn:
        ours = {"kernel_sizes": kernel, "strides": strides, "pad": [n for n in pad for _ in "ab"]}
        ours |= {"pad_type": "custom", "ceil_mode": True}
        theirs: dict[str, Any] = {"kernel_size": kernel, "stride": strides, "padding": pad}
        theirs["ceil_mode"] = True
        mean = of_x("avg_pool", exclude_padding_from_average=exclude, **ours)
        cases.append((mean, of_torch(F.avg_pool2d, count_include_pad=not exclude, **theirs)))
        cases.append((of_x("max_pool", **ours), of_torch(F.max_pool2d, **theirs)))
    check(cases, normal(1, 3, *sizes))
