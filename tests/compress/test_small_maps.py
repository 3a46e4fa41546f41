"""Convolutions as matrix products: the same numbers as oneDNN's, forward and backward."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.compress.training.small_maps import ByProducts


def answers(conv: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """Output, and the gradients of input, weight and bias for one and the same loss."""
    x = x.clone().requires_grad_()
    y = conv(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    found = [y.detach(), x.grad, *(parameter.grad for parameter in conv.parameters())]
    conv.zero_grad()
    return found  # type: ignore[return-value]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    kernel=st.sampled_from([1, 3, 5]),
    padding=st.integers(0, 2),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    side=st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (4, 4), (5, 5)]),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_training_gives_the_numbers_of_a_plain_convolution(
    seed: int,
    kernel: int,
    padding: int,
    stride: int,
    groups: int,
    side: tuple[int, int],
    bias: bool,
    channels_last: bool,
) -> None:
    if min(side) + 2 * padding < kernel:
        return
    torch.manual_seed(seed)
    conv = nn.Conv2d(8, 12, kernel, stride, padding, groups=groups, bias=bias).double()
    x = torch.randn(3, 8, *side).double()
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    plain = answers(conv, x)
    with ByProducts():
        fast = answers(conv, x)
    for got, wanted in zip(fast, plain, strict=True):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_no_convolution_of_a_small_map_is_left_to_onednn(kernel: int, side: int) -> None:
    conv = nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=kernel // 2 + 1, bias=False)
    program = torch.export.export(conv, (torch.zeros(2, 8, side, side),)).module()
    for network in (conv, program):
        with torch.profiler.profile() as seen, ByProducts():
            network(torch.zeros(2, 8, side, side))
        assert not [event.key for event in seen.key_averages() if "conv" in event.key]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    "given",
    [
        {"stride": 1, "padding": 1, "dilation": 1},
        {"stride": [1], "padding": [1], "dilation": [1]},
        {"stride": (1, 1), "padding": "same", "dilation": (1, 1)},
        {"stride": 2, "padding": 0},
        {},
    ],
    ids=str,
)
def test_sides_come_in_every_spelling_of_torch(kernel: int, given: dict[str, Any]) -> None:
    """TResNet's blurring filters give whole numbers, and its training ended with a TypeError."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 3, 3), torch.randn(8, 4, kernel, kernel, requires_grad=True)
    plain = torch.conv2d(x, weight, **given)
    with ByProducts():
        found = torch.conv2d(x, weight, **given)
    torch.testing.assert_close(found, plain)
