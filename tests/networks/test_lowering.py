"""Every operation's rewriting is exact, and what has none is refused by name and place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pipeline.base.errors import InputError
from pipeline.compress.quantization.quantizer import RULES
from pipeline.networks.lowering.lower import lower
from tests.making.networks import randomise

SIDE = 12
aten = torch.ops.aten


class Around(nn.Module):
    """A convolution, an operation, a pool and a classifier."""

    def __init__(self, operation: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        y = self.operation(self.norm(self.first(x)))
        return y if y.dim() == 2 else y.mean((2, 3))


def graph_of(model: nn.Module, side: int = SIDE) -> fx.GraphModule:
    example = torch.zeros(2, 3, side, side)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    graph = exported.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return graph


def lowered(model: nn.Module, side: int = SIDE) -> fx.GraphModule:
    return lower(graph_of(model, side))


def made(module: Callable[[Tensor], Tensor] | nn.Module) -> Around:
    torch.manual_seed(0)
    model = Around(module).eval()
    randomise(model)
    return model


class Gate(nn.Module):
    """Squeeze and excite, by linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        gate = torch.sigmoid(self.two(F.relu(self.one(squeezed))))
        return x * gate[:, :, None, None]


class Pixels(nn.Module):
    """Linear layers of every pixel's channels, as ConvNeXt has them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.gelu(self.one(x.permute(0, 2, 3, 1))))
        return x + y.permute(0, 3, 1, 2)


class Scaled(nn.Module):
    """A learned factor for each channel, as layer scale has it."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-1, 1, 8)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Map(nn.Module):
    """A factor for each column."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.linspace(0, 1, SIDE))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def unshuffled(x: Tensor) -> Tensor:
    """Space to depth as TResNet has it, its channels in another order than pixel_unshuffle's."""
    n, c, h, w = x.shape
    parts = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
    return parts.view(n, c * 4, h // 2, w // 2)


def selected(x: Tensor) -> Tensor:
    """Two branches of which a softmax chooses, as selective kernels have it."""
    both = torch.stack([x, F.relu(x)], dim=1)
    pooled = both.sum(1).mean((2, 3), keepdim=True)
    logits = torch.cat([pooled, -pooled], 1).view(x.size(0), 2, 8, 1, 1)
    return (both * torch.softmax(logits, dim=1)).sum(dim=1)


def halves(x: Tensor) -> Tensor:
    one, two = x.chunk(2, 1)
    return torch.cat([F.relu(two), one], 1)


OPERATIONS: dict[str, Any] = {
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp from": lambda x: x.clamp(min=-0.3),
    "clamp to": lambda x: x.clamp(max=0.3),
    "hard sigmoid": F.hardsigmoid,
    "hard swish": F.hardswish,
    "hard swish, by hand": lambda x: x * F.relu6(x + 3) / 6,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "leaky relu, slight": lambda x: F.leaky_relu(x, 0.001),
    "prelu": nn.PReLU(8),
    "prelu of one slope": nn.PReLU(),
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "dilated": nn.Conv2d(8, 4, 3, padding=2, dilation=2),
    "dilated by its stride": nn.Conv2d(8, 4, 3, 2, padding=2, dilation=2),
    "dilated and of a stride": nn.Conv2d(8, 4, 3, 2, padding=1, dilation=(3, 2), groups=2),
    "same, even": nn.Conv2d(8, 4, 2, padding="same"),
    "transposed": nn.ConvTranspose2d(8, 4, 3, padding=1),
    "transposed, grouped": nn.ConvTranspose2d(8, 4, 3, groups=2),
    "transposed, of a stride": nn.ConvTranspose2d(8, 4, 2, 2),
    "transposed, cut": nn.ConvTranspose2d(8, 6, 3, 2, padding=1, output_padding=1, groups=2),
    "transposed, dilated": nn.ConvTranspose2d(8, 4, 3, 3, padding=1, output_padding=2, dilation=2),
    "norm alone": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)),
    "norm without factors": nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4, affine=False)),
    "average pool": nn.AvgPool2d(3, 2, 1),
    "average pool, whole": nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
    "max pool": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "adaptive, 1": nn.AdaptiveAvgPool2d(1),
    "adaptive, 3": nn.AdaptiveAvgPool2d(3),
    "adaptive, 5": nn.AdaptiveAvgPool2d((5, 7)),
    "adaptive, more": nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(5)),
    "adaptive, more, linear": nn.Sequential(
        *(nn.AdaptiveAvgPool2d((2, 3)), nn.AdaptiveAvgPool2d((5, 6)), nn.Flatten()),
        *(nn.Dropout(), nn.Linear(240, 5)),
    ),
    "adaptive, more, and back": nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Unflatten(1, (8, 3, 3))
    ),
    "adaptive max": nn.AdaptiveMaxPool2d(2),
    "mean of channels": lambda x: x * x.mean(1, keepdim=True),
    "linear of an image": nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 5)),
    "two linear": nn.Sequential(
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 6)),
        *(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)),
    ),
    "gate": Gate(),
    "linear of pixels": Pixels(),
    "layer scale": Scaled(),
    "sum with itself": lambda x: x + F.relu(x),
    "difference": lambda x: x - 2 * F.relu(x),
    "one less": lambda x: 1 - x,
    "share": lambda x: x / 3 + 0.5,
    "weighted sum": lambda x: torch.add(x, F.relu(x), alpha=0.5),
    "negative": lambda x: -x,
    "halves": halves,
    "parts": lambda x: torch.cat(torch.split(x, [3, 4, 1], 1)[::-1], 1),
    "beside a sigmoid": lambda x: torch.cat([x, F.relu(x), torch.sigmoid(x), F.relu(x)], 1),
    "slices": lambda x: x[:, ::2, 1:-1, 2:],
    "channel shuffle": shuffled,
    "channel shuffle, by name": lambda x: torch.channel_shuffle(x, 4),
    "space to depth": unshuffled,
    "pixel unshuffle": nn.PixelUnshuffle(2),
    "pixel shuffle": nn.PixelShuffle(2),
    "nearest, larger": nn.Upsample(scale_factor=3),
    "nearest, ten times": nn.Upsample(scale_factor=10),
    "nearest, of a pixel": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Upsample(size=(2, 9))),
    "nearest, to a size": nn.Upsample(size=(24, 24)),
    "nearest, smaller": nn.Upsample(scale_factor=0.5),
    "nearest exact, smaller": nn.Upsample(scale_factor=0.25, mode="nearest-exact"),
    "bilinear, larger": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear, thrice": nn.Upsample(scale_factor=3, mode="bilinear"),
    "bilinear, four times": nn.Upsample(scale_factor=4, mode="bilinear"),
    "bilinear, of a pixel": nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Upsample(size=(5, 7), mode="bilinear")
    ),
    "bilinear, smaller": nn.Upsample(scale_factor=0.25, mode="bilinear"),
    "bilinear, a third": nn.Upsample(size=(4, 4), mode="bilinear"),
    "zero padding": nn.ZeroPad2d((1, 2, 0, 3)),
    "reflected": nn.ReflectionPad2d((1, 2, 2, 0)),
    "replicated": nn.ReplicationPad2d(2),
    "selected": selected,
    "squeezed": lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "flat and back": lambda x: x.flatten(1).view(-1, 8, SIDE, SIDE),
}
KNOWN = {*RULES, aten.batch_norm.default}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_rewriting_is_exact(name: str) -> None:
    model = made(OPERATIONS[name])
    x = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    graph = lowered(model)
    with torch.no_grad():
        expected, got = model(x), graph(x)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    left = {n.target for n in graph.graph.nodes if n.op == "call_function"}
    assert left <= KNOWN, "every runtime has what is left"


def test_a_wrong_rewriting_would_be_seen() -> None:
    model = made(F.hardswish)
    graph = lowered(model)
    x = torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if "hard_sigmoid.weight" in name:
                parameter.mul_(1.01)
        assert not torch.allclose(graph(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (torch.sin, r"sin in .*: no rule"),
        (lambda x: x / F.relu(x + 1), "div in .*: a division by what the network computes"),
        (lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), "padding .* does not count"),
        (lambda x: torch.softmax(x, 1), "softmax in .*: a softmax over axis 1"),
        (lambda x: x.flip(2), "flip in"),
        (nn.Upsample(size=(24, 36)), "upsample_nearest2d in .*: a resizing of .* to .24, 36."),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "align_corners=False"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "upsample_bicubic2d in"),
        (Map(), "a constant of shape"),
        (lambda x: F.instance_norm(x), "in"),
    ],
)
def test_what_has_no_form_is_refused_by_name(operation: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        lowered(made(operation))


def test_the_place_is_that_of_the_users_module() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erf(x)

    with pytest.raises(InputError, match=r"^erf in operation\.1: no rule for this operation; "):
        lowered(made(nn.Sequential(nn.ReLU(), Block())))


def test_a_linear_layer_takes_the_windows_of_a_pool_into_its_weights() -> None:
    """Where the images are small, as AlexNet and VGG meet it: no window is cut out."""
    layers = (nn.AdaptiveAvgPool2d((2, 3)), nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten())
    graph = lowered(made(nn.Sequential(*layers, nn.Linear(288, 5))))
    left = [n.target for n in graph.graph.nodes if n.op == "call_function"]
    assert aten.slice.Tensor not in left
    assert aten.cat.default not in left
    shapes = {name: tuple(weight.shape) for name, weight in graph.named_parameters()}
    assert shapes["operation.3.weight"] == (5, 8, 2, 3)


def test_what_no_common_grid_suits_is_rounded_to_it_by_an_operation_of_its_own() -> None:
    """A ReLU keeps all of its steps beside others; a mean of ReLUs is never negative."""
    both = lowered(made(lambda x: torch.cat([F.relu(x), x, F.relu(-x), F.relu(x)], 1)))
    (cat,) = [n for n in both.graph.nodes if n.target is aten.cat.default]
    made_by = [n.target is aten.conv2d.default for n in cat.args[0]]
    assert made_by == [True, False, True, True]
    assert len(set(cat.args[0])) == 3, "two of them are the same"
    alike = lowered(made(lambda x: torch.cat([F.avg_pool2d(F.relu(x), 3, 1, 1), F.relu(x)], 1)))
    convs = [n for n in alike.graph.nodes if n.target is aten.conv2d.default]
    assert len(convs) == 2, "the first layer and the pool"


def test_weights_that_two_operations_share_stay_shared_or_are_refused() -> None:
    linear = nn.Linear(8, 8)

    def twice(x: Tensor) -> Tensor:
        y = x.mean((2, 3))
        return linear(F.relu(linear(y)))

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return twice(x)

    model = made(Twice())
    x = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.allclose(lowered(model)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_whole_networks_are_what_they_were(name: str) -> None:
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=5, **options).eval()
    randomise(model)
    x = torch.randn(2, 3, 64, 64)
    graph = lowered(model, 64)
    with torch.no_grad():
        expected = model(x)
        assert float((graph(x) - expected).abs().max() / expected.abs().max()) < 1e-4


def test_many_side_by_side_are_joined_in_steps_that_xnnpack_takes() -> None:
    def dense(x: Tensor) -> Tensor:
        parts = [x]
        for shift in range(1, 7):
            parts.append(torch.cat(parts, 1)[:, shift : shift + 8] * shift)
        return torch.cat(parts, 1)

    model = made(dense)
    graph = lowered(model)
    cats = [n for n in graph.graph.nodes if n.target is aten.cat.default]
    assert [len(cat.args[0]) for cat in cats] == [2] * 6, "each goes on from the one before"
    x = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-4)
    wide = lowered(made(lambda x: torch.cat([x[:, ::step] for step in range(1, 8)], 1)))
    assert [len(n.args[0]) for n in wide.graph.nodes if n.target is aten.cat.default] == [4, 4]
