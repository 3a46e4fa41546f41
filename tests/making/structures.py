"""Small networks, one for each way in which channels are tied; all end in a classifier `fc`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.networks.family import Structure

CLASSES, SIDE = 5, 16
STRUCTURE = Structure(classifier="fc")


def conv(inputs: int, outputs: int, kernel: int = 3, *, norm: bool = True, groups: int = 1):  # type: ignore[no-untyped-def]
    layer = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=not norm, groups=groups)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU()) if norm else layer


class Classifier(nn.Module):
    """The mean of all pixels, and a linear layer."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


class NoNorm(Classifier):
    """Biased convolutions behind which zero becomes something else, a pool and hidden units."""

    def __init__(self) -> None:
        super().__init__(16)
        self.one, self.two = conv(3, 16, norm=False), conv(16, 16, norm=False)
        self.pool = nn.AvgPool2d(4)
        self.hidden = nn.Linear(16 * 16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardsigmoid(self.two(torch.sigmoid(self.one(x))))
        return self.fc(torch.tanh(self.hidden(self.pool(x).flatten(1))))  # type: ignore[no-any-return]


class Concat(Classifier):
    """Branches with and without batch normalisation beside each other, and the input of both."""

    def __init__(self) -> None:
        super().__init__(24)
        self.stem = conv(3, 8)
        self.left, self.right = conv(8, 16), conv(8, 8, 1, norm=False)
        self.last = conv(32, 24)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        beside = torch.cat([self.left(x), torch.sigmoid(self.right(x)), x], 1)
        return self.last(beside)  # type: ignore[no-any-return]


class Dense(Classifier):
    """Every layer reads all before it, its batch normalisation and ReLU in front of it."""

    def __init__(self) -> None:
        super().__init__(32)
        self.stem = conv(3, 8, norm=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 8 * i) for i in range(3))
        self.convs = nn.ModuleList(conv(8 + 8 * i, 8, norm=False) for i in range(3))

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, layer(norm(x).relu())], 1)
        return x


class Halves(Classifier):
    """Two halves of the channels go different ways."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem = conv(3, 16)
        self.one, self.two = conv(8, 8), conv(8, 8, norm=False)

    def features(self, x: Tensor) -> Tensor:
        one, two = self.stem(x).chunk(2, 1)
        return torch.cat([self.two(two), self.one(one)], 1)


class Unequal(Classifier):
    """Widths that are written into the code; one layer is free."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.one, self.two = conv(3, 16), conv(4, 8), conv(12, 8)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat([self.one(x[:, :4]), self.two(x[:, 4:])], 1)


class Shuffled(Classifier):
    """Channels dealt out anew between two halves, of which one goes on as it is."""

    def __init__(self) -> None:
        super().__init__(32)
        self.stem = conv(3, 16)
        self.one, self.middle, self.two = conv(8, 16, 1), conv(16, 16, groups=16), conv(16, 8, 1)
        self.last = conv(16, 32, 1)

    def features(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.two(self.middle(self.one(right)))], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return self.last(x.reshape(batch, channels, height, width))  # type: ignore[no-any-return]


class Grouped(Classifier):
    """A grouped convolution, and one that reads a concatenation."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.grouped = conv(3, 16), conv(16, 16, groups=4)
        self.left, self.right = conv(16, 12, 1), conv(16, 4, 1)
        self.beside = conv(16, 16, groups=2)

    def features(self, x: Tensor) -> Tensor:
        x = self.grouped(self.stem(x))
        return self.beside(torch.cat([self.left(x), self.right(x)], 1))  # type: ignore[no-any-return]


class Gated(Classifier):
    """Depthwise, squeeze and excite by linear layers, slopes and factors for each channel."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem = conv(3, 16, norm=False)
        self.slopes = nn.PReLU(16)
        self.depthwise = conv(16, 16, groups=16, norm=False)
        self.norm = nn.BatchNorm2d(16, affine=False)
        self.squeeze, self.excite = nn.Linear(16, 8), nn.Linear(8, 16)
        self.factors = nn.Parameter(torch.rand(16, 1, 1))

    def features(self, x: Tensor) -> Tensor:
        x = self.norm(self.depthwise(self.slopes(self.stem(x))))
        gate = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * gate[:, :, None, None] * self.factors


class Mixing(Classifier):
    """A softmax and a mean over channels: what one channel is the others decide."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.free, self.last = conv(3, 8), conv(8, 8), conv(8, 8)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x).softmax(1)
        return self.last(self.free(x)) - self.last[0].weight.new_ones(1) * x.mean(1, keepdim=True)


class PartlyTied(Classifier):
    """A shortcut over a concatenation: its channels are those of both branches."""

    def __init__(self) -> None:
        super().__init__(16)
        self.left, self.right, self.around = conv(3, 8), conv(3, 8), conv(3, 16)

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1) + self.around(x)


class Separable(Classifier):
    """A depthwise convolution of what lies beside each other, as decoders have it."""

    def __init__(self) -> None:
        super().__init__(16)
        self.left, self.right = conv(3, 8), conv(3, 16)
        self.each, self.last = conv(24, 24, groups=24), conv(24, 16, 1)

    def features(self, x: Tensor) -> Tensor:
        beside = torch.cat([self.left(x), self.right(x)], 1)
        return self.last(self.each(beside))  # type: ignore[no-any-return]


class Looked(Classifier):
    """A map of one channel that all others are multiplied by."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.places = conv(3, 16), nn.Conv2d(16, 1, 3, 1, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x * self.places(x).sigmoid()


EVERY = (
    NoNorm,
    Concat,
    Dense,
    Halves,
    Unequal,
    Shuffled,
    Grouped,
    Gated,
    Mixing,
    PartlyTied,
    Separable,
    Looked,
)
