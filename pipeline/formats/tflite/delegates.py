"""Where a TFLite file runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.formats.delegates import Delegate, known, listed, unknown

_LITERT = "https://github.com/google-ai-edge/LiteRT/blob/"
_GPU = frozenset({
    "ABS", "ADD", "ADD_N", "ATAN2", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CAST", "CEIL",
    "CONCATENATION", "CONV_2D", "COS", "CUMSUM", "DENSIFY", "DEPTHWISE_CONV_2D",
    "DEPTH_TO_SPACE", "DEQUANTIZE", "DIV", "DYNAMIC_UPDATE_SLICE", "ELU",
    "EMBEDDING_LOOKUP", "EQUAL", "EXP", "FLOOR", "FLOOR_DIV", "FLOOR_MOD",
    "FULLY_CONNECTED", "GATHER", "GELU", "GREATER", "GREATER_EQUAL", "HARD_SWISH",
    "LEAKY_RELU", "LESS", "LESS_EQUAL", "LOG", "LOGICAL_AND", "LOGISTIC", "LSTM", "MAXIMUM",
    "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NEG", "NOT_EQUAL", "ONE_HOT",
    "PACK", "PAD", "PADV2", "POW", "PRELU", "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN",
    "REDUCE_PROD", "RELU", "RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SELECT", "SELECT_V2", "SIGN", "SIN", "SLICE",
    "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQRT", "SQUARE", "SQUARED_DIFFERENCE",
    "STABLEHLO_CLAMP", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TILE", "TRANSPOSE",
    "TRANSPOSE_CONV",
})  # fmt: skip
"""Kinds that are checked further, by shapes and types, and may be taken."""
_GPU_CODE = (
    "https://github.com/tensorflow/tensorflow/blob/03a5e4e19a9c8200e13c85f1c637877fdf589be6"
    "/tensorflow/lite/tools/versioning/gpu_compatibility.cc"
)
_QUALCOMM = frozenset({
    "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CAST", "CONCATENATION", "CONV_2D", "COS",
    "CUMSUM", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DEQUANTIZE", "DIV",
    "DYNAMIC_UPDATE_SLICE", "EMBEDDING_LOOKUP", "FLOOR_DIV", "FULLY_CONNECTED", "GATHER",
    "GATHER_ND", "GELU", "GREATER", "HARD_SWISH", "LEAKY_RELU", "LESS", "LOGICAL_AND",
    "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "NOT_EQUAL", "PACK",
    "PAD", "PADV2", "POW", "QUANTIZE", "RELU", "RELU6", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SELECT", "SELECT_V2", "SIN", "SLICE", "SOFTMAX",
    "SPACE_TO_DEPTH", "SPLIT", "SQUARE", "SQUARED_DIFFERENCE", "SUB", "SUM", "TANH",
    "TRANSPOSE", "TRANSPOSE_CONV",
})  # fmt: skip
_QUALCOMM_CODE = (
    f"{_LITERT}00120bd0382dfe8d36e72ee7974363324c171dcd"
    "/litert/vendors/qualcomm/compiler/qnn_compose_graph.cc"
)
_MEDIATEK = frozenset({
    "ABS", "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CAST", "CONCATENATION", "CONV_2D",
    "DEPTHWISE_CONV_2D", "DEQUANTIZE", "DIV", "FULLY_CONNECTED", "GELU", "GREATER",
    "HARD_SWISH", "L2_NORMALIZATION", "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D",
    "MEAN", "MINIMUM", "MUL", "PAD", "PADV2", "PRELU", "QUANTIZE", "REDUCE_MAX", "RELU",
    "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX",
    "SPLIT", "SQRT", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TILE",
    "TRANSPOSE", "TRANSPOSE_CONV", "UNPACK",
})  # fmt: skip
_MEDIATEK_CODE = (
    f"{_LITERT}07d751eb0ab1d165ee0838d613d2f66d80c0b7ad"
    "/litert/vendors/mediatek/compiler/compiler_plugin.cc"
)
FOUR_BITS = "FULLY_CONNECTED, weights of 4 bits"
"""A kind of its own: the GPU delegate leaves it out by its version, which is above the 9 that it
takes (`FullyConnectedOperationParser`). Qualcomm's plugin has a type for such weights, MediaTek's
unpacks them to int8 (`OperandMap`)."""
_READ = "as read on 2026-11-30"
_NNAPI = "https://developer.android.com/ndk/guides/neuralnetworks/migration-guide"


def checked(path: Path) -> tuple[Delegate, ...]:
    """What is known of accelerators and a TFLite file.

    `xnnpack` says of XNNPACK what the runtime does.
    """
    operations = operations_of(path)
    return (
        # Its analyzer (tf.lite.experimental.Analyzer) takes every file for compatible since 2.19,
        # and checks none: tensorflow/tensorflow, issue 77042.
        listed(
            "GPU delegate",
            operations,
            _GPU,
            f"code of the delegate that decides, {_READ}",
            _GPU_CODE,
            "its analyzer for files is not asked: it checks nothing since TensorFlow 2.19",
        ),
        listed(
            "Qualcomm QNN in LiteRT",
            operations,
            _QUALCOMM | {FOUR_BITS},
            f"LiteRT's plugin for it, {_READ}",
            _QUALCOMM_CODE,
        ),
        listed(
            "MediaTek NeuroPilot in LiteRT",
            operations,
            _MEDIATEK | {FOUR_BITS},
            f"LiteRT's plugin for it, {_READ}",
            _MEDIATEK_CODE,
        ),
        unknown("Google Tensor in LiteRT", "no list of operations was found"),
        unknown(
            "NNAPI",
            "deprecated since Android 15; NPUs are reached through their vendors' plugins",
            _NNAPI,
        ),
    )


def operations_of(path: Path) -> Counter[str]:
    """The operations of a file, by the names of the schema, save for `FOUR_BITS`."""
    from ai_edge_litert import schema_py_generated as schema

    # Not at the top: reports import this module, and need no writer.
    from pipeline.formats.tflite.flatbuffer import kind_of

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    tensors = model.subgraphs[0].tensors
    found: Counter[str] = Counter()
    for op in model.subgraphs[0].operators:
        kind = kind_of(model, op)
        few = kind == "FULLY_CONNECTED" and tensors[op.inputs[1]].type == schema.TensorType.INT4
        found[FOUR_BITS if few else kind] += 1
    return found


def xnnpack(
    ops: Mapping[str, int], partitions: int, outside: Sequence[str], runtime: str
) -> Delegate:
    """What LiteRT gave to XNNPACK here.

    Args:
        ops: of the file, by kind.
        partitions: parts that XNNPACK runs.
        outside: what it does not, in words.
        runtime: with its version.
    """
    total = sum(ops.values())
    parts = f"in {partitions} part{'s' * (partitions != 1)}"
    by = f"{runtime} ran the file here"
    return known("XNNPACK, CPU", total - len(outside), total, outside, by, None, parts)
