"""Graphs of narrow networks, prepared and calibrated, and what is looked for in them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.compress.quantization import qat
from pipeline.recipe.input_shape import square
from tests.making.networks import SIDE, deploy, images

EXAMPLE = torch.zeros(2, 3, SIDE, SIDE)

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
QUANTIZE = quantized.quantize_per_tensor.default
DEQUANTIZE = quantized.dequantize_per_tensor.default
WEIGHT = quantized.dequantize_per_channel.default
INPUTS = {
    aten.conv2d.default: 1,
    aten.add.Tensor: 2,
    aten.mul.Tensor: 2,
    aten.mean.dim: 1,
    aten.sigmoid.default: 1,
    aten.softmax.int: 1,
    aten.reshape.default: 1,
    aten.slice.Tensor: 1,
    aten.max_pool2d.default: 1,
    aten.flatten.using_ints: 1,
}
"""How many inputs of an operation of the phones are activations."""


@functools.cache
def _prepared(variant: str) -> fx.GraphModule:
    return qat.prepare(deploy(variant), square(SIDE))


def prepared(variant: str = "plain") -> fx.GraphModule:
    """A graph from `qat.prepare`, the caller's own; the export behind it is done once."""
    return copy.deepcopy(_prepared(variant))


@functools.cache
def _calibrated(variant: str) -> fx.GraphModule:
    graph = prepared(variant)
    qat.calibrate(graph, lambda: [images(8), images(8, seed=1)])
    return graph


def calibrated(variant: str = "plain") -> fx.GraphModule:
    """A prepared graph in evaluation mode with ranges from 16 images, the caller's own."""
    return copy.deepcopy(_calibrated(variant))


def in_graph(model: nn.Module, target: Any) -> list[fx.Node]:
    """The nodes of a graph that call `target`, in order."""
    assert isinstance(model, fx.GraphModule)
    return [node for node in model.graph.nodes if node.target is target]


def attribute(model: nn.Module, node: Any) -> Tensor:
    """The tensor that a `get_attr` node reads."""
    assert node.op == "get_attr"
    value = functools.reduce(getattr, node.target.split("."), model)
    assert isinstance(value, Tensor)
    return value.detach()


def compute_nodes(graph: fx.Graph) -> list[fx.Node]:
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return [node for node in calls if node.target not in {QUANTIZE, DEQUANTIZE, WEIGHT}]


def activations(node: fx.Node) -> list[Any]:
    return list(node.args[: INPUTS[node.target]])


def islands(graph: fx.Graph) -> list[str]:
    """Every place where a float number passes from one operation to another."""
    found = []
    for node in compute_nodes(graph):
        if node.target not in INPUTS:
            found.append(f"{node.name}: {node.target} is not an operation of the phones")
            continue
        found += [
            f"{node.name} reads float {source}"
            for source in activations(node)
            if source.target is not DEQUANTIZE
        ]
        if node.target is aten.conv2d.default and node.args[1].target is not WEIGHT:
            found.append(f"{node.name} has float weights")
        found += [f"{node.name} feeds float {u}" for u in node.users if u.target is not QUANTIZE]
    for node in graph.nodes:
        if node.target is DEQUANTIZE:
            source = node.args[0]
            if source.target is not QUANTIZE or source.args[1:] != node.args[1:]:
                found.append(f"{node.name} reads another grid than {source} wrote")
        if node.op == "output":
            found += [
                f"float {a} comes out" for a in node.all_input_nodes if a.target is not DEQUANTIZE
            ]
    return found
