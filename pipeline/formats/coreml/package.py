"""Core ML packages (mlprogram), read from disk into plain records.

What is read is the specification and the weight file of a package, nothing of the converter's
memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import following
from pipeline.base.safe_files import json_of
from pipeline.formats.coreml.imports import import_coremltools

MANIFEST = "Manifest.json"
"""Names the parts of a package."""

Constant = NDArray[Any] | str
_Blobs = Callable[[str, int], NDArray[Any]]

_BLOB_READERS = {
    "float16": "read_fp16_data",
    "float32": "read_float_data",
    "int8": "read_int8_data",
    "uint8": "read_uint8_data",
    "int32": "read_int32_data",
    "int4": "read_int4_data",
    "uint1": "read_uint1_data",
    "uint2": "read_uint2_data",
    "uint3": "read_uint3_data",
    "uint4": "read_uint4_data",
    "uint6": "read_uint6_data",
}
"""By the type that a file names."""

_HELD_BY = {"uint1": "bool", "int4": "int8"} | dict.fromkeys(
    ("uint2", "uint3", "uint4", "uint6"), "uint8"
)
"""Numpy's type for integers of a file that have fewer bits than any of numpy's."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of the file: its name, element type as numpy names it, and shape.

    Of integers with fewer bits than 8, which numpy does not have, `dtype` is the type that holds
    them: bool for uint1, as masks of sparse weights are, int8 for int4, uint8 for the others.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Input:
    """What the file takes; `kind` is how apps give it, `image` being 8-bit RGB pixels."""

    value: Value
    kind: Literal["array", "image"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One operation.

    Attributes:
        type: such as `conv`; a `const` has its value in the attribute `val`.
        name: its own.
        inputs: arguments by name: names of tensors, or a constant that stands in place.
        attributes: constants by name, for operations that take nothing else.
        outputs: what it makes.
    """

    type: str
    name: str
    inputs: Mapping[str, tuple[str, ...] | Constant]
    attributes: Mapping[str, Constant]
    outputs: tuple[Value, ...]

    def tensor(self, argument: str) -> str:
        """The name of the tensor that is the argument `argument`.

        Raises:
            ValueError: it is a constant or a list.
        """
        given = self.inputs[argument]
        if not isinstance(given, tuple) or len(given) != 1:
            raise ValueError(f"{self.type} '{self.name}': '{argument}' is not one tensor")
        return given[0]

    def constant(self, argument: str, made_by: Mapping[str, Operation]) -> Constant | None:
        """The constant that is the argument `argument`; None where it is left out."""
        given = self.inputs.get(argument)
        return made_by[given[0]].attributes["val"] if isinstance(given, tuple) else given


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """The main function of a package, in the order in which it computes.

    `labels` are the names of the classes of a classifier: `outputs` is then the tensor of their
    probabilities, and the operation that looks the names up is left out. Else it is None.
    """

    inputs: tuple[Input, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    labels: tuple[str, ...] | None = None

    def producers(self) -> dict[str, Operation]:
        """The operation behind every tensor that is made inside."""
        return {value.name: op for op in self.operations for value in op.outputs}


def specification(path: Path) -> Any:
    """The protobuf message in a package.

    Not by coremltools' `load_spec`: that writes the package's manifest anew at every reading.

    Raises:
        ValueError: it is not a package, or the message cannot be read.
    """
    import_coremltools()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    try:
        listed = json_of(path / MANIFEST)
        part = listed["itemInfoEntries"][listed["rootModelIdentifier"]]["path"]
        file = (path / "Data" / part).resolve(strict=True)
        if not file.is_relative_to(path.resolve()):
            raise ValueError(f"{MANIFEST} leads out of the package, to {part}")
        spec = Model_pb2.Model()
        spec.ParseFromString(file.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise ValueError(f"{path}: not a Core ML package that can be read ({error})") from error
    return spec


def write_specification(spec: Any, path: Path) -> None:
    """Put a protobuf message in the place of a package's; the same one gives the same bytes."""
    (file,) = path.rglob("*.mlmodel")
    file.write_bytes(spec.SerializeToString(deterministic=True))


@following("a Core ML package")
def read(path: Path) -> Network:
    """Read a package.

    Raises:
        ValueError: it cannot be read, or the weight file is missing.
        NotImplementedError: something in the file that these records have no place for.
    """
    spec = specification(path)
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    blobs = _blob_reader(path)
    *before, last = block.operations
    classifies = last.type == "classify"
    features = {feature.name: feature for feature in spec.description.input}
    return Network(
        inputs=tuple(
            Input(value=_value(i.name, i.type), kind=input_kind(features[i.name]))
            for i in function.inputs
        ),
        operations=tuple(
            _operation(op, blobs) for op in (before if classifies else block.operations)
        ),
        outputs=(str(last.inputs["probabilities"].arguments[0].name),)
        if classifies
        else tuple(str(name) for name in block.outputs),
        labels=_labels(last) if classifies else None,
    )


def _labels(classify: Any) -> tuple[str, ...]:
    """The names that a classifier gives, in the order of its probabilities.

    Raises:
        NotImplementedError: they are numbers.
    """
    listed = classify.inputs["classes"].arguments[0].value.immediateValue.list.values
    found = [value.immediateValue.tensor.strings.values for value in listed]
    if not all(found):
        raise NotImplementedError("a classifier whose classes are numbers; names are known")
    return tuple(str(name[0]) for name in found)


def input_kind(feature: Any) -> Literal["array", "image"]:
    """How apps give an input, from its description; inside, the network takes floats either way.

    Raises:
        NotImplementedError: neither an array nor an RGB or grey image.
    """
    kind = feature.type.WhichOneof("Type")
    if kind == "multiArrayType":
        return "array"
    if kind == "imageType":
        space = feature.type.imageType.colorSpace
        if space in (feature.type.imageType.RGB, feature.type.imageType.GRAYSCALE):
            return "image"
        kind = f"image of colour space {space}"
    raise NotImplementedError(
        f"input '{feature.name}' is of type {kind}; RGB, grey and arrays are known"
    )


def _value(name: str, declared: Any) -> Value:
    tensor = declared.tensorType
    fixed = all(d.WhichOneof("dimension") == "constant" for d in tensor.dimensions)
    if declared.WhichOneof("type") != "tensorType" or not fixed:
        raise NotImplementedError(f"'{name}' is not a tensor of fixed shape")
    dtype = type_name(tensor)
    return Value(
        name=str(name),
        dtype=_HELD_BY.get(dtype, dtype),
        shape=tuple(int(d.constant.size) for d in tensor.dimensions),
    )


def type_name(tensor: Any) -> str:
    """The element type of a tensor, as the file names it, such as int4."""
    from coremltools.proto import MIL_pb2

    return str(MIL_pb2.DataType.Name(tensor.dataType)).lower()


def _operation(op: Any, blobs: _Blobs) -> Operation:
    attributes = {str(n): _constant(str(n), v, blobs) for n, v in op.attributes.items()}
    outputs = tuple(_value(o.name, o.type) for o in op.outputs)
    return Operation(
        type=str(op.type),
        name=str(attributes.pop("name", outputs[0].name)),
        inputs={str(name): _argument(name, given, blobs) for name, given in op.inputs.items()},
        attributes=attributes,
        outputs=outputs,
    )


def _argument(name: str, given: Any, blobs: _Blobs) -> tuple[str, ...] | Constant:
    kinds = {a.WhichOneof("binding") for a in given.arguments}
    if kinds == {"name"}:
        return tuple(str(a.name) for a in given.arguments)
    if len(given.arguments) != 1:
        raise NotImplementedError(f"argument '{name}' is a list with constants inside")
    return _constant(name, given.arguments[0].value, blobs)


def _constant(name: str, stored: Any, blobs: _Blobs) -> Constant:
    """A constant of the specification, stored in place or in the weight file."""
    declared, kind = _value(name, stored.type), type_name(stored.type.tensorType)
    if stored.HasField("blobFileValue"):
        return blobs(kind, stored.blobFileValue.offset).reshape(declared.shape)
    tensor = stored.immediateValue.tensor
    field = tensor.WhichOneof("value")
    content: Any = getattr(tensor, field).values if field is not None else []
    if field == "strings" and declared.shape == ():
        return str(content[0])
    if field == "bytes" and kind in _HELD_BY:
        count = math.prod(declared.shape)
        return _unpacked(content, kind, count).astype(declared.dtype).reshape(declared.shape)
    if field == "bytes":
        return np.frombuffer(content, declared.dtype).reshape(declared.shape)
    return np.asarray(content, declared.dtype).reshape(declared.shape)


def _unpacked(content: bytes, kind: str, count: int) -> NDArray[np.int8]:
    """Integers of few bits, one behind the other from the lowest bit of the first byte on."""
    bits = int(kind.removeprefix("u").removeprefix("int"))
    packed = np.frombuffer(content, np.uint8)
    each = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    found = each @ (1 << np.arange(bits))
    if kind.startswith("int"):
        found -= each[:, -1].astype(np.int64) << bits  # the highest bit is the sign
    return found.astype(np.int8)


def _blob_reader(path: Path) -> _Blobs:
    """Reader of the package's weight file: (type as the file names it, offset) to a flat array."""
    from coremltools.libmilstoragepython import _BlobStorageReader

    file = next(path.rglob("weight.bin"), None)
    reader = _BlobStorageReader(str(file)) if file is not None else None

    def read_blob(dtype: str, offset: int) -> NDArray[Any]:
        if reader is None:
            raise ValueError(f"{path} names a weight file that is not there")
        if dtype not in _BLOB_READERS:
            raise NotImplementedError(f"{path}: weights of type {dtype}")
        content = np.asarray(getattr(reader, _BLOB_READERS[dtype])(offset))
        if dtype in _HELD_BY:
            return content.astype(_HELD_BY[dtype])
        return content.view(np.float16) if dtype == "float16" else content

    return read_blob
