"""Probabilities in Core ML packages, and packages that are classifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.formats.as_onnx import OUTPUT, PROBABILITIES
from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.coreml.imports import import_coremltools
from pipeline.recipe.task import Link

CLASS, DICTIONARY = "classLabel", "classLabel_probs"
"""What classifiers give: the name of the class, and all probabilities by name. coremltools calls
them so where it makes a classifier."""
_FLOAT = "logits_float32"


def add(path: Path, link: Link, labels: Sequence[str] | None = None) -> None:
    """Put a softmax or sigmoid behind the logits of a package, in place.

    In float32: float16 has no probabilities below 6e-8, and few above 0.99.

    before: ... -> logits
    after:  ... -> logits -> cast to float32 -> softmax -> probabilities
            with labels also -> classify -> classLabel and classLabel_probs

    Args:
        path: of the package.
        link: what makes probabilities.
        labels: names of the classes, no two alike, to make a classifier; None makes none.
    """
    import_coremltools()
    from coremltools.proto import FeatureTypes_pb2, MIL_pb2

    spec: Any = coreml_package.specification(path)
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    (given,) = (value for op in block.operations for value in op.outputs if value.name == OUTPUT)
    real = MIL_pb2.ValueType()
    real.CopyFrom(given.type)
    real.tensorType.dataType = MIL_pb2.DataType.FLOAT32
    added = [
        _constant(f"{_FLOAT}_dtype", "fp32"),
        _operation("cast", {"x": OUTPUT, "dtype": f"{_FLOAT}_dtype"}, {_FLOAT: real}),
    ]
    takes = {"x": _FLOAT}
    if link == "softmax":
        added.append(_constant(f"{PROBABILITIES}_axis", np.int32(-1)))
        takes["axis"] = f"{PROBABILITIES}_axis"
    added.append(_operation(link, takes, {PROBABILITIES: real}))
    (output,) = spec.description.output
    output.name = PROBABILITIES
    output.type.multiArrayType.dataType = FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    names = [PROBABILITIES]
    if labels is not None:
        added.append(_classify(labels))
        names = [CLASS, DICTIONARY]
        _say_classifier(spec.description)
    block.operations.extend(added)
    del block.outputs[:]
    block.outputs.extend(names)
    coreml_package.write_specification(spec, path)


def _constant(name: str, value: str | np.int32) -> Any:
    from coremltools.converters.mil.backend.mil.helper import create_scalar_value

    made: Any = create_scalar_value(value)
    operation = _operation("const", {}, {name: made.type})
    operation.attributes["val"].CopyFrom(made)
    return operation


def _operation(kind: str, takes: Mapping[str, str], makes: Mapping[str, Any]) -> Any:
    """An operation of MIL: the tensors that it takes by argument, the types of what it makes."""
    from coremltools.converters.mil.backend.mil.helper import create_scalar_value
    from coremltools.proto import MIL_pb2

    operation = MIL_pb2.Operation(type=kind)
    for argument, tensor in takes.items():
        operation.inputs[argument].arguments.add().name = tensor
    for name, made in makes.items():
        operation.outputs.add(name=name, type=made)
    operation.attributes["name"].CopyFrom(create_scalar_value(next(iter(makes))))
    return operation


def _classify(labels: Sequence[str]) -> Any:
    from coremltools.converters.mil.backend.mil.helper import create_list_scalarvalue
    from coremltools.proto import MIL_pb2

    text, by_name = MIL_pb2.ValueType(), MIL_pb2.ValueType()
    text.tensorType.dataType = MIL_pb2.DataType.STRING
    by_name.dictionaryType.keyType.CopyFrom(text)
    by_name.dictionaryType.valueType.tensorType.dataType = MIL_pb2.DataType.FLOAT64
    operation = _operation(
        "classify", {"probabilities": PROBABILITIES}, {CLASS: text, DICTIONARY: by_name}
    )
    # As a constant in place: Core ML takes no other.
    classes = operation.inputs["classes"].arguments.add()
    classes.value.CopyFrom(create_list_scalarvalue(list(labels), str))
    return operation


def _say_classifier(description: Any) -> None:
    """Describe the outputs of a classifier in the place of those of a network."""
    del description.output[:]
    description.output.add(name=CLASS).type.stringType.MergeFromString(b"")
    description.output.add(name=DICTIONARY).type.dictionaryType.stringKeyType.MergeFromString(b"")
    description.predictedFeatureName = CLASS
    description.predictedProbabilitiesName = DICTIONARY
