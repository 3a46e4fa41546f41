"""Products of matrices for LiteRT to be timed with, and what each layer of a file does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import following
from pipeline.formats.file_facts import conv_macs
from pipeline.formats.gemm import Gemm, Product, Work, described, windowed
from pipeline.formats.tflite.flatbuffer import pack

OPERATIONS: tuple[Product, ...] = ("1x1 convolution",)
"""XNNPACK has the same kernels for fully connected layers."""

_SCALE, _WEIGHT_SCALE = 1 / 64, 1 / 1024
_CONV_VERSION = 5
"""Of the operation, as TensorFlow's converter writes it; int8 came with 3."""


def gemm_file(gemm: Gemm, precision: str) -> bytes:
    """A TFLite file of one 1x1 convolution with random weights.

    Args:
        gemm: its size.
        precision: `int8`, with a scale for each output channel as in our files, or `float`.
    """
    from ai_edge_litert import schema_py_generated as schema

    builder = _Builder()
    image = builder.activation("image", (1, gemm.side, gemm.side, gemm.inputs), precision)
    weight = builder.weight((gemm.outputs, 1, 1, gemm.inputs), precision)
    bias = builder.bias(gemm.outputs, precision)
    output = builder.activation("logits", (1, gemm.side, gemm.side, gemm.outputs), precision)
    code, op, options = schema.OperatorCodeT(), schema.OperatorT(), schema.Conv2DOptionsT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    code.version = _CONV_VERSION
    options.strideH = options.strideW = 1
    op.opcodeIndex, op.inputs, op.outputs = 0, [image, weight, bias], [output]
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.Conv2DOptions, options
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.operators = builder.tensors, [op]
    graph.inputs, graph.outputs = [image], [output]
    model.version, model.operatorCodes = 3, [code]
    model.subgraphs, model.buffers = [graph], builder.buffers
    return pack(model)


class _Builder:
    """The tensors of a model, and the buffers that hold their values."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self.tensors: list[Any] = []
        # By convention the first buffer is empty, and every tensor without values has it.
        self.buffers = [schema.BufferT()]

    def activation(self, name: str, shape: tuple[int, ...], precision: str) -> int:
        dtype, scales = (np.int8, [_SCALE]) if precision == "int8" else (np.float32, [])
        return self._tensor(name, shape, np.zeros(0, dtype), scales)

    def weight(self, shape: tuple[int, ...], precision: str) -> int:
        random = np.random.default_rng(0)
        if precision == "int8":
            values = random.integers(-127, 128, shape, np.int8)
            return self._tensor("weight", shape, values, [_WEIGHT_SCALE] * shape[0])
        floats = random.normal(0, 1 / 32, shape).astype(np.float32)
        return self._tensor("weight", shape, floats, [])

    def bias(self, channels: int, precision: str) -> int:
        if precision == "int8":
            scales = [_SCALE * _WEIGHT_SCALE] * channels
            return self._tensor("bias", (channels,), np.zeros(channels, np.int32), scales)
        return self._tensor("bias", (channels,), np.zeros(channels, np.float32), [])

    def _tensor(
        self, name: str, shape: tuple[int, ...], values: NDArray[Any], scales: list[float]
    ) -> int:
        """Add a tensor, with zero points of 0 where there are scales; returns its number."""
        types = self._schema.TensorType
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, np.array(shape, np.int32), 0
        tensor.type = getattr(types, values.dtype.name.upper())
        if scales:
            tensor.quantization = self._schema.QuantizationParametersT()
            tensor.quantization.scale = np.array(scales, np.float32)
            tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        if values.size:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            tensor.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.tensors.append(tensor)
        return len(self.tensors) - 1


def opened(content: bytes, threads: int) -> Callable[[], object]:
    """A run of a file on one image of noise, in an interpreter as every other of ours.

    Args:
        content: a TFLite file from `tflite.write` or `gemm_file`.
        threads: of LiteRT.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    image, random = interpreter.get_input_details()[0], np.random.default_rng(1)
    if image["dtype"] == np.float32:
        fed: Any = random.standard_normal(image["shape"], np.float32)
    else:
        limits = np.iinfo(image["dtype"])
        fed = random.integers(limits.min, limits.max + 1, image["shape"], image["dtype"])
    interpreter.set_tensor(image["index"], fed)

    def run() -> object:
        return interpreter.invoke()

    return run


@following("a TFLite file")
def layer_work(content: bytes) -> dict[str, Work]:
    """What every layer of a file computes, by the name that `tflite_layers.layer_times` gives it.

    Args:
        content: a TFLite file from `tflite.write`.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    names = {
        number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()
    }
    found: dict[str, Work] = {}
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        tensors = [graph.tensors[index] for index in (*op.inputs, *op.outputs) if index >= 0]
        found[tensors[-1].name.decode()] = _work(name, [t.shape.tolist() for t in tensors])
    return found


def _work(name: str, shapes: list[list[int]]) -> Work:
    """The work of an operation, from the shapes of its inputs and, last, its output."""
    before, after = shapes[0], shapes[-1]
    title, macs = name, 0
    if name in {"CONV_2D", "DEPTHWISE_CONV_2D"}:
        weight = shapes[1]
        groups = before[-1] // weight[-1] if name == "CONV_2D" else 1
        title = windowed(name, weight[1:3], groups, after[-1])
    if name in {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}:
        # Depthwise weights are (1, height, width, channels), and every output channel has its
        # own: the same product.
        macs = conv_macs(shapes[1], int(np.prod(after[1:-1])))
    return Work(op=title, shape=described(_first(before), _first(after)), macs=macs)


def _first(shape: list[int]) -> list[int]:
    """The shape with channels first, the batch left out."""
    return [shape[-1], *shape[1:-1]]
