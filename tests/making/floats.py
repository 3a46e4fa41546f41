"""Programs with layers that stay in float, for tests that write and run real files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import quantized_program
from pipeline.networks.lowering.places import FloatPlaces
from pipeline.networks.rewrites import with_normalization
from pipeline.recipe.input_shape import square
from tests.making.networks import randomise
from tests.making.plain_net import plain

SIDE = 16


def noise(count: int = 16, seed: int = 1, side: int = SIDE) -> Tensor:
    """Images (count, 3, side, side)."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Between(nn.Module):
    """An operation between two convolutions, a pool and a classifier."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.operation = operation
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.second(self.operation(self.first(x))))
        return self.fc(y.mean((2, 3)))  # type: ignore[no-any-return]


class Mixed(nn.Module):
    """Two branches from the image beside each other, a gate, a product and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 3, 2, 1)
        self.both, self.gate, self.on = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.both(torch.cat([self.a(x), torch.relu(self.b(x))], 1))
        gated = self.on(y) * torch.sigmoid(self.gate(y)) + y
        return self.fc(gated.mean((2, 3)))  # type: ignore[no-any-return]


def mixed() -> Mixed:
    torch.manual_seed(0)
    model = Mixed().eval()
    randomise(model)
    return model


class Row(nn.Module):
    """Operations in a row, a convolution before each of them."""

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.operations = nn.ModuleList(operations)
        self.convolutions = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in operations)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv, operation in zip(self.convolutions, self.operations, strict=True):
            x = operation(conv(x))
        return self.fc(self.last(x).mean((2, 3)))  # type: ignore[no-any-return]


def in_a_row(operations: Sequence[nn.Module]) -> Row:
    torch.manual_seed(0)
    model = Row(operations).eval()
    randomise(model)
    return model


def between(operation: nn.Module) -> Between:
    torch.manual_seed(0)
    model = Between(operation).eval()
    randomise(model)
    return model


def six_layers() -> nn.Module:
    """The network of `PLAIN_MODEL`, its weights random."""
    torch.manual_seed(0)
    model = plain(10).eval()
    randomise(model)
    return model


def prepared(*patterns: str, model: nn.Module | None = None, side: int = SIDE) -> fx.GraphModule:
    """A graph of a network, ready for training, with what the patterns name in float."""
    deploy = with_normalization(six_layers() if model is None else model, None)
    return qat.prepare(deploy, square(side), floats=FloatPlaces(patterns))


def program(
    *patterns: str, model: nn.Module | None = None, side: int = SIDE
) -> torch.export.ExportedProgram:
    """The quantized program of such a graph, its ranges those of noise."""
    graph = prepared(*patterns, model=model, side=side)
    qat.calibrate(graph, lambda: list(noise(side=side).split(8)))
    qat.set_training(graph, False)
    return quantized_program(graph, noise(2, side=side))
