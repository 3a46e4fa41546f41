"""Files of deployed networks, their structure and their answers."""

import copy
import functools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.removal import remove
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import quantized_program
from pipeline.formats import as_onnx
from pipeline.formats.formats import FORMATS
from pipeline.measure.layers import layers_of
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import DeployNet, deploy_form
from pipeline.networks.resnest.family import FAMILY
from pipeline.recipe.input_shape import square
from tests.making import graphs, networks

LAYERED = ("onnx", "tflite")
# Radix 2; radix 4 with two cardinal groups; two basic blocks of radix 1 with two of them.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"layers": networks.ONE_BLOCK},
    "four_splits": networks.VARIANTS["four_splits"],
    "one_split": {
        **networks.VARIANTS["basic_one_split"],
        **{"cardinality": 2, "avd_first": True, "layers": networks.SHALLOW},
    },
}


def layers_module(format_name: str) -> Any:
    return FORMATS[format_name].layers()


@functools.cache
def deployed(variant: str, *, pruned: bool = False) -> DeployNet:
    branched = branch_form(networks.small(**VARIANTS[variant]))
    if not pruned:
        return deploy_form(branched)
    removed = {}
    groups = groups_of(branched, square(networks.SIDE), FAMILY.structure(branched))
    for number, group in enumerate(groups):
        # About a third of every cardinal group, not the same everywhere.
        size = group.channels // group.parts
        lost = size // 3 + number % 2
        removed[group.name] = [
            part * size + channel for part in range(group.parts) for channel in range(lost)
        ]
    return deploy_form(remove(branched, groups, removed))


@functools.cache
def program(variant: str, *, pruned: bool = False) -> Any:
    graph = qat.prepare(deployed(variant, pruned=pruned), square(networks.SIDE))
    qat.calibrate(graph, lambda: [networks.images(4)])
    return quantized_program(graph, graphs.EXAMPLE)


to_onnx = functools.cache(as_onnx.to_onnx)


def write(format_name: str, source: Any) -> bytes:
    """Write a file; what both formats begin with, most of the time it takes, is done once."""
    module = FORMATS[format_name].module()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(as_onnx, "to_onnx", lambda given: copy.deepcopy(to_onnx(given)))
        path = Path(folder, "model")
        module.write(source, path)
        return path.read_bytes()


@functools.cache
def content(format_name: str, variant: str, *, pruned: bool = False) -> bytes:
    return write(format_name, program(variant, pruned=pruned))


def widths(variant: str, *, pruned: bool = False) -> dict[str, int]:
    """Output channels of every regular convolution but the classifier, by layer name."""
    network, found = deployed(variant, pruned=pruned), {}
    for layer in layers_of(program(variant)):
        module = network.get_submodule(layer.module)
        if isinstance(module, nn.Conv2d) and module.groups < module.out_channels:
            found[layer.name] = module.out_channels
    del found[classifier(variant)]
    return found


def classifier(variant: str) -> str:
    return layer_at(variant, "fc")


def layer_at(variant: str, module: str) -> str:
    (name,) = (layer.name for layer in layers_of(program(variant)) if layer.module == module)
    return name


def structure(format_name: str, file: bytes) -> Any:
    return (onnx_structure if format_name == "onnx" else tflite_structure)(file)


def tflite_structure(file: bytes) -> Counter[Any]:
    """Type, shapes and layer of every operation, and the constants that are shapes."""
    model = schema.ModelT.InitFromPackedBuf(file, 0)
    graph = model.subgraphs[0]
    activations = {int(i) for op in graph.operators for i in op.outputs} | {int(graph.inputs[0])}

    def described(index: int) -> Any:
        tensor = graph.tensors[index]
        grid, data = tensor.quantization, model.buffers[tensor.buffer].data
        scales = len(grid.scale) if grid and grid.scale is not None else 0
        zeros = len(grid.zeroPoint) if grid and grid.zeroPoint is not None else 0
        small = data is not None and tensor.type == schema.TensorType.INT32 and scales == 0
        values = tuple(np.asarray(data).view(np.int32)) if small else None
        size = None if index in activations else len(data)
        return (*map(int, tensor.shape), tensor.type, scales, zeros, values, size)

    return Counter(
        (
            model.operatorCodes[op.opcodeIndex].builtinCode,
            tuple(described(i) for i in (*op.inputs, *op.outputs)),
            graph.tensors[op.outputs[0]].type == schema.TensorType.INT8
            and graph.tensors[op.outputs[0]].name.decode().split("/")[-1],
        )
        for op in graph.operators
    )


def onnx_structure(file: bytes) -> Any:
    """Type, output, constants' shapes and groups of every node, and the shape of every tensor."""
    model = onnx.load_from_string(file)
    onnx.checker.check_model(model)
    values = as_onnx.constants(model)
    nodes = [
        (
            node.op_type,
            node.output[0],
            [values[i].shape for i in node.input if i in values],
            [values[i].tolist() for i in node.input if i in values and values[i].dtype == np.int64],
            [a.i for a in node.attribute if a.name == "group"],
        )
        for node in model.graph.node
    ]
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.graph.value_info, *inferred.graph.output)
    }
    return nodes, shapes


def opened(format_name: str, file: bytes) -> Any:
    module = FORMATS[format_name].module()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        path.write_bytes(file)
        return module.open_file(path)


def logits(format_name: str, file: bytes) -> Any:
    runnable = opened(format_name, file)
    runnable.set_input(networks.images(1).numpy())
    runnable.invoke()
    return runnable.output()
