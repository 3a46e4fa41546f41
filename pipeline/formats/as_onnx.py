"""The quantized program as an ONNX model: the common origin of the ONNX and TFLite files."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.formats.onnx_graph import Graph, typed
from pipeline.formats.onnx_operations import OPERATIONS
from pipeline.formats.refusals import refuse_divisors

OPSET, _IR_VERSION = 21, 10
"""Of the operations, and of the file; the latter is the oldest that may hold the former."""
INPUT, OUTPUT = "image", "logits"
PROBABILITIES = "probabilities"
"""What the output is called instead of a file that makes probabilities of its logits."""
BATCH = "batch"
"""Name of the one dimension that is free in ONNX files."""

Array = NDArray[Any]


def to_onnx(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    """Translate the program op by op; quantized tensors become QuantizeLinear/DequantizeLinear.

    Raises:
        InputError: an operation that ONNX does not have, or that is not known here.
    """
    refuse_divisors(program)
    graph = Graph(program, OUTPUT)
    given = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            graph.take(node, INPUT)
            image = typed(INPUT, node, BATCH)
        elif node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            if node.target not in OPERATIONS:
                raise InputError(
                    f"{node.name}: {node.target} has no translation to ONNX "
                    "(pipeline.formats.onnx_operations)"
                )
            OPERATIONS[node.target](graph, node, *node.args, **node.kwargs)
    return graph.model(image, OPSET, _IR_VERSION)


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Every initializer by name."""
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def set_constant(model: onnx.ModelProto, name: str, value: Array) -> None:
    """Add the initializer `name`, or replace it."""
    kept = [i for i in model.graph.initializer if i.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(np.asarray(value), name)])


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node behind every tensor that a node makes."""
    return {output: node for node in model.graph.node for output in node.output}


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove initializers that no node reads any more."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [i for i in model.graph.initializer if i.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
