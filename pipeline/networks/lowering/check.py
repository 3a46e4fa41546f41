"""Whether a network can be rewritten, asked before it is trained."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from pipeline.base.profile import span
from pipeline.networks.lowering.lower import lower
from pipeline.networks.lowering.places import FloatPlaces
from pipeline.recipe.input_shape import InputShape


@span("trace", "the network, rewritten")
def lowered(
    model: nn.Module,
    shape: InputShape,
    floats: FloatPlaces = FloatPlaces(),  # noqa: B008  frozen
) -> fx.GraphModule:
    """The graph of a network in use as it is quantized; stops at what no rule rewrites.

    Args:
        model: not changed.
        shape: of an image.
        floats: modules that stay in float.

    Raises:
        InputError: names the operation and its module.
    """
    copied = copy.deepcopy(model).cpu().eval()
    batch = torch.export.Dim("batch", min=2)
    example = torch.zeros(shape.batch(2))
    with torch.no_grad():
        program = torch.export.export(copied, (example,), dynamic_shapes=({0: batch},))
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return lower(graph, floats)
