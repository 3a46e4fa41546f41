"""Weights of 4 bits in TFLite files, where they cost next to no time.

XNNPACK has kernels for them in fully connected layers of int8 with an even number of inputs. Of
convolutions it takes none: LiteRT's own kernels then unpack them at every run. A convolution of
each pixel alone is a fully connected layer of every pixel, but on ARM the kernels of 4 bits are
slower than those of int8: five times as many instructions without a dot product, half as many
again where there is a matrix multiplication of int8. So only layers of one pixel, such as the last
one, take them. Each weight is used once there: they are many of a network's weights and few of its
multiplications. `docs/formats/tflite.md` has the measurements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.tflite.flatbuffer import drop_unread, kind_of, pack
from pipeline.formats.tflite.int4 import LARGEST, packed
from pipeline.formats.tflite.weights import Constants, readers

_VERSION = 10
"""Of FULLY_CONNECTED, the first with weights of 4 bits beside int8 (`op_version.cc` of LiteRT):
what does not know them refuses the file or leaves the operation to the CPU."""
_ALIGNED = 16
"""Bytes on which constants lie (`force_align` of the schema)."""
_KIND = 64
"""Bytes of a kind of operation, at most."""
_MOST = 2**31 // 16
"""Of a sum: XNNPACK's kernels add up 16 times products and bias in int32, without a check, since
the weight in a byte's upper half is 16 times the number (`xnn_pack_qs8_qc4w_gemm_goi_w`)."""
_WIDEST = 2 * 255
"""Between two numbers of an activation, and again for its zero point, which goes into the bias."""


def in_few_bits(content: bytes) -> bytes:
    """Store weights -7..7 in 4 bits where a layer has one pixel.

    before: x (1, 1, 1, in) -> CONV_2D(weight int8 (out, 1, 1, in), activation) -> y
    after:  x (1, 1, 1, in) -> FULLY_CONNECTED(weight int4 (out, in), keepNumDims, activation) -> y

    A file that would not be smaller is given back as it is.

    Args:
        content: of a file whose weights are the program's (`weights.with_weights`).
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    constants, products, saved = Constants(model), [], 0
    for weight, read_by in readers(model.subgraphs[0]).items():
        if all(_is_product(model, op, weight) for op in read_by):
            codes = constants.values(weight)
            if _is_taken(codes) and all(_fits(constants, op, codes) for op in read_by):
                products.append((weight, codes, read_by))
                saved += _bytes(codes.size) - _bytes(codes.size // 2)
    if saved <= _KIND:
        return content
    kind = _fully_connected(model)
    for weight, codes, read_by in products:
        made = _in_4_bits(constants, weight, codes)
        for op in read_by:
            op.opcodeIndex, op.inputs = kind, [op.inputs[0], made, *op.inputs[2:]]
            _take_options(op)
    drop_unread(model)
    return pack(model)


def _fully_connected(model: Any) -> int:
    """The number of a new kind of operation in a model."""
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = _VERSION
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _is_product(model: Any, op: Any, weight: int) -> bool:
    """Whether an operation multiplies the int8 numbers of one pixel by int8 weights."""
    from ai_edge_litert import schema_py_generated as schema

    tensors, kind = model.subgraphs[0].tensors, kind_of(model, op)
    if kind not in {"CONV_2D", "FULLY_CONNECTED"} or int(op.inputs[1]) != weight:
        return False
    data, filters, made = (tensors[int(i)] for i in (*op.inputs[:2], op.outputs[0]))
    if {data.type, filters.type, made.type} != {schema.TensorType.INT8}:
        return False
    if model.buffers[filters.buffer].data is None:  # computed
        return False
    read, written = int(np.prod(data.shape)), int(np.prod(made.shape))
    one_pixel = (read, written) == (data.shape[-1], made.shape[-1])
    # As many weights as that only where they have one window of one pixel, and no groups.
    return one_pixel and int(np.prod(filters.shape)) == read * written


def _bytes(size: int) -> int:
    """Of a constant of `size` bytes in a file."""
    return -(-size // _ALIGNED) * _ALIGNED


def _is_taken(codes: NDArray[np.int8]) -> bool:
    """Whether weights (out, ..., in) fit into 4 bits, and XNNPACK takes them so.

    It takes an even number of inputs, and scales for each of several outputs.
    """
    if codes.shape[-1] % 2 or codes.shape[0] == 1:
        return False
    return bool(np.abs(codes.astype(np.int16)).max() <= LARGEST)


def _fits(constants: Constants, op: Any, codes: NDArray[np.int8]) -> bool:
    """Whether no sum of a layer is too large for XNNPACK's kernels of 4 bits.

    Channels of hardly any weights have biases of many of their small steps.
    """
    sums = np.abs(codes.astype(np.int64)).reshape(len(codes), -1).sum(1) * _WIDEST
    for bias in op.inputs[2:]:
        if bias >= 0:
            sums = sums + np.abs(constants.values(bias).astype(np.int64))
    return bool(sums.max() < _MOST)


def _in_4_bits(constants: Constants, weight: int, codes: NDArray[np.int8]) -> int:
    """The number of a new tensor of 4 bits."""
    from ai_edge_litert import schema_py_generated as schema

    scales = np.asarray(constants.tensor(weight).quantization.scale, np.float32)
    made = constants.like(weight, packed(codes), scales)
    tensor = constants.tensor(made)
    tensor.type = schema.TensorType.INT4
    tensor.shape = np.array([codes.shape[0], codes.shape[-1]], np.int32)
    return made


def _take_options(op: Any) -> None:
    """Give an operation the options of a fully connected layer, and the activation it has."""
    from ai_edge_litert import schema_py_generated as schema

    if op.builtinOptionsType == schema.BuiltinOptions.FullyConnectedOptions:
        return
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = op.builtinOptions.fusedActivationFunction
    options.keepNumDims = True
    op.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    op.builtinOptions = options
