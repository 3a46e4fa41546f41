"""The quantized program as an ONNX model: the common origin of the ONNX and TFLite files."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from pipeline.formats.onnx_graph import Graph, typed
from pipeline.formats.onnx_operations import OPERATIONS, are_all_known
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
        InputError: an operation that ONNX does not have, and torch's exporter passes over.
    """
    refuse_divisors(program)
    if not are_all_known(program):
        return by_torch(program)
    graph = Graph(program, OUTPUT)
    given = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in given:
            graph.take(node, INPUT)
            image = typed(INPUT, node, BATCH)
        elif node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            OPERATIONS[node.target](graph, node, *node.args, **node.kwargs)
    return graph.model(image, OPSET, _IR_VERSION)


def by_torch(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    """Translate a program by torch's own exporter, which knows the operations of any network.

    `optimize=True` is needed: without it list-valued operations stay sequences.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            optimize=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    assert exported is not None
    model = exported.model_proto
    _strip_traces(model)
    _name_batch(model)
    pool_means(model)
    return model


def _strip_traces(model: onnx.ModelProto) -> None:
    """Drop the exporter's stack traces: they hold local paths and change with every edit."""
    for holder in (model.graph, *model.graph.node, *model.graph.value_info):
        del holder.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]


def _name_batch(model: onnx.ModelProto) -> None:
    """Call the free dimension `batch`; the exporter makes up a name such as s77."""
    graph = model.graph
    made_up = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if made_up and dimension.dim_param == made_up:
                dimension.dim_param = BATCH


def pool_means(model: onnx.ModelProto) -> None:
    """Write means over height and width that keep them as GlobalAveragePool, in place.

    ONNX Runtime has an integer kernel for that one and none for ReduceMean; onnx2tf keeps the
    layout straight through it. Means over other axes stay what they are.

    before: x -> ReduceMean(axes=[2, 3], keepdims=1) -> y
    after:  x -> GlobalAveragePool -> y
    """
    values, graph = constants(model), model.graph
    known = (*graph.input, *graph.value_info)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in known}
    for node in graph.node:
        if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4:
            continue
        axes = values[node.input[1]] if len(node.input) > 1 and node.input[1] else np.arange(4)
        keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if keeps and sorted(axes % 4) == [2, 3]:
            del node.input[1:]
            del node.attribute[:]
            node.op_type = "GlobalAveragePool"


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
