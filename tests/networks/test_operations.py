"""What converters merge, move or put on another grid, in a file of every format."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.formats.formats import FORMATS
from tests.networks.operations import rows
from tests.networks.test_lowering import made

pytestmark = pytest.mark.slow


class Odd(nn.Module):
    """A concatenation of all signs, equal operations, cuts of cuts, padding, shuffles, resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Conv2d(24, 8, 2, padding="same")
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        near = F.avg_pool2d(F.relu(x), 3, 1, 1)
        y = self.even(torch.cat([F.relu(x), x, near], 1))
        # Another reads the convolution, so that the normalisation is not folded into it.
        y = torch.channel_shuffle(y + self.norm(y), 2)
        y = torch.cat([y[:, :, 1:, 1:][:, 2:], F.elu(y)[:, :6, 1:, :-1]], 1)
        small = F.adaptive_avg_pool2d(y, (2, 3))
        large = F.interpolate(small, scale_factor=2, mode="bilinear")
        return torch.cat([F.adaptive_avg_pool2d(large, 5), F.adaptive_avg_pool2d(y, 5)], 1)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_what_the_program_has(form: str) -> None:
    (found,) = rows(made(Odd()), (form,)).values()
    assert found.misses == []
