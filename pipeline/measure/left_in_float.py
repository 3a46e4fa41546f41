"""What of a quantized program stays in float."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, fx

from pipeline.compress.quantization.other_rounding import QUANTIZE
from pipeline.compress.quantization.quantizer import CLAMPS, CONVOLUTIONS, RULES
from pipeline.formats.file_facts import conv_macs
from pipeline.measure.layers import DEQUANTIZE, layers_of
from pipeline.networks.float_layer import FloatLayer
from pipeline.networks.lowering.places import module_paths

aten = torch.ops.aten
WITHOUT_MODULE = "the network's own forward"


def left_in_float(program: torch.export.ExportedProgram) -> tuple[FloatLayer, ...]:
    """The operations between int8 layers that are computed in float, by the module that has them.

    What only moves or picks numbers is not among them.

    Args:
        program: quantized.
    """
    names: defaultdict[str, list[str]] = defaultdict(list)
    macs: defaultdict[str, int] = defaultdict(int)
    for node in program.graph.nodes:
        moves = RULES.get(node.target) == "input" and node.target not in CLAMPS
        if _computes(node) and not moves and is_float(node):
            *_, module = ("", *module_paths(node))
            names[module or WITHOUT_MODULE].append(node.target._schema.name.rpartition("::")[2])
            macs[module or WITHOUT_MODULE] += _macs(node)
    return tuple(
        FloatLayer(module=module, operations=tuple(found), macs=macs[module])
        for module, found in names.items()
    )


def tensor_places(program: torch.export.ExportedProgram) -> dict[str, str]:
    """The module that makes each tensor of a file, by the names that files give them.

    Those of layers, and, of what stays in float, those of the program's operations; none of a float
    program.
    """
    layers = layers_of(program)
    places = {
        node.name: ("", *module_paths(node))[-1]
        for node in program.graph.nodes
        if layers and _computes(node) and is_float(node)
    }
    return places | {layer.name: layer.module for layer in layers}


def is_float(node: fx.Node) -> bool:
    """Whether an operation has float weights, reads or gives float numbers, or is no int8 one."""
    source: Any = node.args[0]
    if node.target in CLAMPS and source.target not in DEQUANTIZE:
        return source.op == "placeholder" or is_float(source)  # it belongs to what it reads
    of_image = node.meta["val"].dim() == _AXES
    if node.target not in RULES or (node.target is aten.softmax.int and of_image):
        return True
    given: list[Any] = [one for one in node.all_input_nodes if one.target is not _SIZE]
    if any(one.target not in DEQUANTIZE for one in given if not _is_bias(node, one)):
        return True
    readers = [user for user in node.users if user.target is not _SIZE]
    if len(readers) == 1 and readers[0].target in CLAMPS:
        readers = [user for user in readers[0].users if user.target is not _SIZE]
    return any(reader.target is not QUANTIZE for reader in readers)


_AXES = 4
"""Of an image; a softmax over its channels has no int8 form."""
_SIZE = aten.sym_size.int


def _computes(node: fx.Node) -> bool:
    rounds = node.target is QUANTIZE or node.target in DEQUANTIZE
    is_call = node.op == "call_function" and not rounds
    return is_call and isinstance(node.meta.get("val"), Tensor)


def _is_bias(node: fx.Node, given: fx.Node) -> bool:
    """Whether it is the bias of a convolution, which the program has in float in any case."""
    return node.target in CONVOLUTIONS and node.args[2:3] == (given,)


def _macs(node: fx.Node) -> int:
    if node.target not in CONVOLUTIONS:
        return 0
    weight: Any = node.args[1]
    return conv_macs(weight.meta["val"].shape, math.prod(node.meta["val"].shape[2:]))
