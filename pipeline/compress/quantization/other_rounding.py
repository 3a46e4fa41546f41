"""How far a quantized program's own answers move when its numbers are rounded otherwise.

answers = rounded_otherwise(program, torch.finfo(torch.float32).eps)
logits = answers(images)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchao.quantization.pt2e  # noqa: F401  registers the quantized_decomposed operations
from torch import Tensor, fx

from pipeline.compress.quantization.fold import bias_roundings

QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
"""The operation that rounds the numbers of a layer to its grid."""


def rounded_otherwise(
    program: torch.export.ExportedProgram, share: float, *, biases: bool = False
) -> Callable[[Tensor], Tensor]:
    """Another way to compute a program: as good, but with other roundings.

    Before a layer's numbers go to its grid, each is multiplied by 1 + `share` * u, u uniform in
    [-1, 1]. With `share` the machine epsilon of an arithmetic, that is what summing in another
    order does in it. A number between two steps then falls to the other one now and then, and the
    layers after it carry that on. No file can be asked to be nearer to the program than this.

    Args:
        program: quantized.
        share: by how much a number may change, as a share of itself.
        biases: whether those of convolutions change as well, by up to half a step of the grid
            that they are rounded to (`fold.bias_to_grid`).

    Returns:
        Logits (batch, ...) for images (batch, 3, side, side); from call to call other numbers
        change, those of the first call are always the same.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return _Rounded(graph, share, bias_roundings(graph) if biases else {}).run


class _Rounded(fx.Interpreter):
    """Runs a quantized graph with noise below the roundings of its grids."""

    def __init__(self, graph: fx.GraphModule, share: float, biases: dict[str, Tensor]) -> None:
        super().__init__(graph)
        self._share, self._biases = share, biases
        self._generator = torch.Generator().manual_seed(0)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is QUANTIZE:
            args = (self._moved(args[0], self._share), *args[1:])
        return super().call_function(target, args, kwargs)

    def run_node(self, node: fx.Node) -> Any:
        """A convolution's biases move as its numbers do."""
        result = super().run_node(node)
        if (most := self._biases.get(node.name)) is None:
            return result
        return result + (most * self._noise(most))[:, None, None]

    def _moved(self, numbers: Tensor, share: float) -> Tensor:
        return numbers * (1 + share * self._noise(numbers))

    def _noise(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).uniform_(-1, 1, generator=self._generator)
