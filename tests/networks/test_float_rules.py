"""Operations that are known in float alone: exact, and refused where they would be int8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pipeline.base.errors import InputError
from pipeline.networks.lowering.builder import ONLY_FLOAT
from pipeline.networks.lowering.lower import lower
from pipeline.networks.lowering.places import FloatPlaces
from tests.networks.test_lowering import SIDE, Map, graph_of, made

aten = torch.ops.aten
HOLDS = FloatPlaces(("operation",))
WRITTEN = {
    *(aten.conv2d.default, aten.add.Tensor, aten.mul.Tensor, aten.mean.dim, aten.relu.default),
    *(aten.batch_norm.default, aten.flatten.using_ints, aten.rsqrt.default, aten.exp.default),
    *(aten.log.default, aten.sqrt.default, aten.abs.default, aten.sin.default, aten.cos.default),
    *(aten.pow.Tensor_Scalar, aten.div.Tensor, aten.maximum.default, aten.minimum.default),
    *(aten.softmax.int, aten.sub.Tensor),
}
"""What is left of them: the writers of all formats know these in float."""


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class ChannelsLast(nn.LayerNorm):
    """As ConvNeXt has it, its factors not all one."""

    def __init__(self) -> None:
        super().__init__(8)
        nn.init.uniform_(self.weight, 0.5, 2)
        nn.init.uniform_(self.bias, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Embedded(nn.Module):
    """A summand for every number of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(1, 8, SIDE, SIDE))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.embedding


def positive(x: Tensor) -> Tensor:
    return F.relu(x) + 0.5


OPERATIONS: dict[str, nn.Module] = {
    "group norm": nn.GroupNorm(4, 8),
    "group norm of one": nn.GroupNorm(1, 8),
    "instance norm": nn.InstanceNorm2d(8),
    "instance norm, affine": nn.InstanceNorm2d(8, affine=True),
    "layer norm of channels": ChannelsLast(),
    "layer norm of images": nn.LayerNorm([8, SIDE, SIDE]),
    "softmax of channels": nn.Softmax(dim=1),
    "average pool": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "exponential": Of(torch.exp),
    "logarithm": Of(lambda x: positive(x).log()),
    "root": Of(lambda x: positive(x).sqrt()),
    "inverse root": Of(lambda x: positive(x).rsqrt()),
    "magnitude": Of(torch.abs),
    "sine": Of(torch.sin),
    "cosine": Of(torch.cos),
    "power": Of(lambda x: positive(x) ** 1.5),
    "quotient": Of(lambda x: x / positive(x)),
    "reciprocal": Of(lambda x: 1 / positive(x)),
    "maximum": Of(lambda x: torch.maximum(x, -x)),
    "minimum": Of(lambda x: torch.minimum(x, -x)),
    "map": Map(),
    "embedding": Embedded(),
}


def lowered(operation: nn.Module, places: FloatPlaces) -> tuple[nn.Module, fx.GraphModule]:
    model = made(nn.Sequential(operation, nn.ReLU()))
    return model, lower(graph_of(model), places)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_rewriting_is_exact(name: str) -> None:
    model, graph = lowered(OPERATIONS[name], HOLDS)
    x = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = model(x), graph(x)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    calls = [n for n in graph.graph.nodes if n.op == "call_function"]
    assert {n.target for n in calls} <= WRITTEN
    assert any(n.meta.get(ONLY_FLOAT) for n in calls)


@pytest.mark.parametrize("name", OPERATIONS)
def test_in_int8_each_is_refused_and_the_way_out_is_named(name: str) -> None:
    with pytest.raises(InputError, match=r"or leave it in float by `qat\.float: \[operation\.0\]`"):
        lowered(OPERATIONS[name], FloatPlaces())


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (torch.erf, "erf in operation.0: no rule for this operation, nor in float; put"),
        (lambda x: x.flip(2), "flip in operation.0: no rule for this operation, nor in float; put"),
        (lambda x: torch.softmax(x, 2), "in float, a softmax over axis 2 of an image; it may be"),
        (lambda x: F.layer_norm(x, [SIDE]), "it may be over the channels of every pixel, or"),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), "a pool with ceil_mode|with ceil_mode"),
    ],
)
def test_what_no_format_has_in_float_either_stays_refused(operation: Any, why: str) -> None:
    with pytest.raises(InputError, match=why) as told:
        lowered(Of(operation), HOLDS)
    assert "qat.float" not in str(told.value)
    with pytest.raises(InputError) as told:
        lowered(Of(operation), FloatPlaces())
    assert "qat.float" not in str(told.value), "it would not help"


def test_an_operation_without_a_module_cannot_be_named() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(self.first(x)).mean((2, 3))

    with pytest.raises(InputError, match=r"by `qat\.float`, once it is a module$"):
        lower(graph_of(Bare()), FloatPlaces(("*",)))


def test_factors_stay_what_is_trained() -> None:
    _, graph = lowered(OPERATIONS["layer norm of channels"], HOLDS)
    trained = {name for name, one in graph.named_parameters() if one.requires_grad}
    assert {"operation.0.weight", "operation.0.bias"} <= trained
    assert not any("variance" in name or "less_mean" in name for name in trained)
