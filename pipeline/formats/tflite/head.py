"""Probabilities in TFLite files."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pipeline.formats.as_onnx import PROBABILITIES
from pipeline.formats.tflite.flatbuffer import pack, share_zero_points
from pipeline.recipe.task import Link


def add(path: Path, link: Link, labels: Sequence[str] | None = None) -> None:
    """Put a softmax or sigmoid behind the logits of a file, in place.

    before: ... -> logits
    after:  ... -> logits -> SOFTMAX -> probabilities

    Args:
        path: of the file.
        link: what makes probabilities.
        labels: TFLite files name no classes; `describe` writes labels.txt.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    logits = int(graph.outputs[0])
    made = deepcopy(graph.tensors[logits])
    made.name = PROBABILITIES
    made.buffer = len(model.buffers)
    model.buffers.append(schema.BufferT())
    graph.tensors.append(made)
    graph.operators.append(_operation(model, link, logits, len(graph.tensors) - 1))
    graph.outputs = [len(graph.tensors) - 1]
    for signature in model.signatureDefs or []:
        for output in signature.outputs:
            output.tensorIndex, output.name = len(graph.tensors) - 1, PROBABILITIES
    path.write_bytes(share_zero_points(pack(model)))


def _operation(model: Any, link: Link, read: int, made: int) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    kinds = schema.BuiltinOperator
    code.builtinCode = kinds.SOFTMAX if link == "softmax" else kinds.LOGISTIC
    code.deprecatedBuiltinCode, code.version = code.builtinCode, 1
    operation = schema.OperatorT()
    operation.opcodeIndex = len(model.operatorCodes)
    model.operatorCodes.append(code)
    operation.inputs, operation.outputs = [read], [made]
    if link == "softmax":
        operation.builtinOptionsType = schema.BuiltinOptions.SoftmaxOptions
        operation.builtinOptions = schema.SoftmaxOptionsT()
        operation.builtinOptions.beta = 1.0
    return operation
