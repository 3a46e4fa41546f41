"""What the formats say of work: products of matrices to time, and what each layer computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

Product = Literal["1x1 convolution", "matrix product"]
"""What a file calls a product of matrices; runtimes may have other kernels for either."""


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """A product of matrices, (side x side, inputs) times (inputs, outputs), as a file's one layer.

    Attributes:
        operation: that computes it.
        side: of the image, in pixels; each pixel is a row.
        inputs: channels.
        outputs: channels.
    """

    operation: Product
    side: int
    inputs: int
    outputs: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return self.side**2 * self.inputs * self.outputs

    @property
    def shape(self) -> str:
        """In words, such as `512 to 512 channels, 28 x 28`."""
        if self.operation == "matrix product":
            return f"{self.side**2} x {self.inputs} by {self.inputs} x {self.outputs}"
        return f"{self.inputs} to {self.outputs} channels, {self.side} x {self.side}"


SIZES = ((14, 512, 512), (28, 512, 512), (28, 1024, 1024), (56, 256, 256))
"""Side, inputs and outputs of the products to try; which is fastest depends on the caches."""


def candidates(operations: Sequence[Product]) -> list[Gemm]:
    """Products of all `SIZES` by each operation that a runtime is to be timed with."""
    return [
        Gemm(operation=operation, side=side, inputs=inputs, outputs=outputs)
        for operation, (side, inputs, outputs) in product(operations, SIZES)
    ]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a layer of a file computes for one image.

    Attributes:
        op: its operation, with the window of a convolution: `Conv 3x3`.
        shape: of its first input and its output, channels first, without the batch.
        macs: multiply-accumulates; 0 for all that is no convolution or linear layer.
    """

    op: str
    shape: str
    macs: int


def described(before: Sequence[int], after: Sequence[int]) -> str:
    """Shapes (channels, height, width) of an input and an output, in words."""
    return " to ".join("x".join(map(str, map(int, shape))) for shape in (before, after))


def windowed(op: str, kernel: Sequence[int], groups: int, channels: int) -> str:
    """A convolution's name with its window, and its groups where they are not one.

    Args:
        op: the format's name for it.
        kernel: height and width.
        groups: of its channels.
        channels: of its output; as many groups are called depthwise.
    """
    name = f"{op} {'x'.join(map(str, map(int, kernel)))}"
    if groups == 1:
        return name
    return f"{name} depthwise" if groups == channels else f"{name} in {groups} groups"
