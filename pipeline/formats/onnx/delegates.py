"""Where an ONNX file runs."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from pipeline.formats.delegates import Delegate, known, listed, unknown
from pipeline.formats.onnx.few_bits import unpacked

_QNN = frozenset({
    "Abs", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "AveragePool",
    "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Conv", "ConvTranspose", "Cos",
    "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Einsum", "Elu", "Equal", "Exp",
    "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample",
    "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
    "Inverse", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "MatMul", "Max", "MaxPool",
    "Mean", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "Or", "PRelu", "Pad", "Pow",
    "QuantizeLinear", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "Relu", "RMSNormalization", "Reshape", "Resize", "RoiAlign",
    "Round", "STFT", "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin", "Slice",
    "Softmax", "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan",
    "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Unsqueeze", "Upsample",
    "Where",
})  # fmt: skip
"""Of the default domain, without those that are taken in patterns alone."""
_QNN_PAGE = (
    "https://github.com/onnxruntime/onnxruntime-qnn/blob/0131740f31800af002800abb7886dfba60d5febe"
    "/docs/execution_providers/QNN-ExecutionProvider.md#supported-onnx-operators"
)
_PROVIDERS = "https://onnxruntime.ai/docs/execution-providers/"
_FIXED = "takes a file whose number of images is fixed, as make_dynamic_shape_fixed makes it"


def checked(path: Path) -> tuple[Delegate, ...]:
    """What is known of accelerators and an ONNX file; ONNX Runtime's own checker runs here."""
    from onnxruntime.tools.mobile_helpers.usability_checker import (
        check_coreml_partitions,
        check_nnapi_partitions,
    )

    # As accelerators get it: constants are folded before the graph is parted, says
    # https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
    model = unpacked(onnx.load(path))
    operations = Counter(node.op_type for node in model.graph.node)
    total = operations.total()
    tool = f"ONNX Runtime {version('onnxruntime')}"
    nnapi = check_nnapi_partitions(model, False)
    program = check_coreml_partitions(model, False, "coreml_supported_mlprogram_ops.md")
    return (
        known("ONNX Runtime, CPU", total, total, (), f"{tool} ran the file here", None),
        unknown(
            "XNNPACK in ONNX Runtime",
            "its list is by operation and type, and no tool here looks a file up in it",
            f"{_PROVIDERS}Xnnpack-ExecutionProvider.html",
        ),
        _by_checker(
            "Core ML in ONNX Runtime", program, tool, f"{_PROVIDERS}CoreML-ExecutionProvider.html"
        ),
        _by_checker(
            "NNAPI in ONNX Runtime",
            nnapi,
            tool,
            f"{_PROVIDERS}NNAPI-ExecutionProvider.html",
            "NNAPI is deprecated since Android 15",
        ),
        listed(
            "Qualcomm QNN in ONNX Runtime",
            operations,
            _QNN,
            "list of onnxruntime-qnn, as read on 2026-11-30",
            _QNN_PAGE,
            _FIXED,
        ),
        unknown("MediaTek NeuroPilot", "ONNX Runtime lists no provider for it", _PROVIDERS),
    )


def _by_checker(name: str, found: Any, tool: str, source: str, more: str | None = None) -> Delegate:
    """What ONNX Runtime's mobile usability checker says."""
    parts = f"{found.num_partitions} part{'s' * (found.num_partitions != 1)}"
    note = "; ".join(filter(None, (f"in {parts}", _FIXED, more)))
    left = {kind.rpartition(":")[2] for kind in found.unsupported_ops}
    by = f"mobile usability checker of {tool}, run here; by kinds of operations"
    return known(name, found.num_supported_nodes, found.num_nodes, left, by, source, note)
