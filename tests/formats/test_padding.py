"""A padding before a convolution, which a file may leave to the convolution."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import quantized_program
from pipeline.formats.file_facts import learned_scales
from pipeline.formats.formats import FORMATS
from pipeline.recipe.input_shape import square
from tests.making.graphs import in_graph
from tests.networks.operations import row

pytestmark = pytest.mark.slow

PAD = torch.ops.aten.constant_pad_nd.default


class _Padded(nn.Module):
    """At stride 2 the extra row and column lie at the bottom and right, as TensorFlow has them."""

    def __init__(self) -> None:
        super().__init__()
        first = [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2), nn.ReLU6()]
        second = [nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.ReLU6()]
        self.layers = nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x))


@functools.cache
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    graph = qat.prepare(_Padded(), square(16))
    qat.calibrate(graph, lambda: [torch.randn(8, 3, 16, 16)])
    qat.set_training(graph, False)
    return quantized_program(graph, torch.zeros(2, 3, 16, 16))


def test_a_padded_tensor_is_on_the_grid_before_it_and_counts_once() -> None:
    pads = in_graph(program().graph_module, PAD)
    assert len(pads) == 2
    layers, _ = learned_scales(program())
    assert not {next(iter(pad.users)).name for pad in pads} & layers.keys()


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_file_that_pads_within_the_convolution_passes_every_gate(form: str) -> None:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert row(program(), images, FORMATS[form]).misses == []
