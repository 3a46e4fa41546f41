"""The metadata of TFLite files: what Android's tools read of an image classifier.

It is a flatbuffer in a buffer of the model, named `TFLITE_METADATA`, and the files that it names
in a ZIP archive behind the model. Tables and the numbers of their fields are those of TensorFlow's
metadata_schema.fbs, version 1.5; a field of a flatbuffer never changes its number. The package
with the code generated from it (tflite-support) needs a protobuf that TensorFlow refuses.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.formats.description import Description, labels_text


def describe(path: Path, about: Description) -> None:
    """Give the file the metadata that Android's tools read, and labels.txt."""
    from ai_edge_litert import schema_py_generated as schema

    from pipeline.formats.tflite.flatbuffer import pack, share_zero_points

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    _, height, width, _ = map(int, graph.tensors[graph.inputs[0]].shape)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(metadata(about, height, width), np.uint8)
    entry.name, entry.buffer = NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    path.write_bytes(with_labels(share_zero_points(pack(model)), about))


NAME = "TFLITE_METADATA"
"""Of the entry in the model's list of metadata."""
LABELS = "labels.txt"
"""Of the file with the class names."""

_IDENTIFIER = b"M001"
_TENSOR_AXIS_LABELS = 2  # AssociatedFileType
_IMAGE_PROPERTIES = 2  # ContentProperties
_RGB, _GREY = 1, 2  # ColorSpaceType
_NORMALIZATION = 1  # ProcessUnitOptions

_Field = Callable[[Any], None]
"""Adds one field to the table that a builder has begun."""


def metadata(about: Description, height: int, width: int) -> bytes:
    """The metadata of a file that takes images of so many pixels."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    labels = _table(
        builder,
        5,
        _text(builder, 0, LABELS),
        _text(builder, 1, f"Class names, in the order of the {about.output}."),
        lambda b: b.PrependInt8Slot(2, _TENSOR_AXIS_LABELS, 0),
    )
    output = _table(
        builder,
        7,
        _text(builder, 0, about.output),
        _text(builder, 1, about.meaning),
        _offset(6, _vector(builder, [labels])),
    )
    subgraph = _table(
        builder,
        4,
        _offset(2, _vector(builder, [_input(builder, about, height, width)])),
        _offset(3, _vector(builder, [output])),
    )
    fields = [
        _text(builder, 0, about.name),
        _text(builder, 1, about.text),
        _offset(3, _vector(builder, [subgraph])),
        *([_text(builder, 4, about.author)] if about.author else []),
        *([_text(builder, 5, about.licence)] if about.licence else []),
        _text(builder, 7, "1.0.0"),
    ]
    builder.Finish(_table(builder, 8, *fields), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _input(builder: Any, about: Description, height: int, width: int) -> int:
    coloured = len(about.mean) == 3
    size = _table(
        builder,
        2,
        lambda b: b.PrependUint32Slot(0, width, 0),
        lambda b: b.PrependUint32Slot(1, height, 0),
    )
    space = _RGB if coloured else _GREY
    image = _table(builder, 2, lambda b: b.PrependInt8Slot(0, space, 0), _offset(1, size))
    content = _table(
        builder, 3, lambda b: b.PrependUint8Slot(0, _IMAGE_PROPERTIES, 0), _offset(1, image)
    )
    # In pixel values, as the schema has it: (pixel - mean) / std.
    mean, std = ([255 * value for value in values] for values in (about.mean, about.std))
    if about.pixels:
        mean, std = [0.0], [1.0]
    normalization = _table(
        builder, 2, _offset(0, _floats(builder, mean)), _offset(1, _floats(builder, std))
    )
    unit = _table(
        builder, 2, lambda b: b.PrependUint8Slot(0, _NORMALIZATION, 0), _offset(1, normalization)
    )
    return _table(
        builder,
        7,
        _text(builder, 0, "image"),
        _text(builder, 1, "An upright RGB image." if coloured else "An upright grey image."),
        _offset(3, content),
        _offset(4, _vector(builder, [unit])),
    )


def _table(builder: Any, slots: int, *fields: _Field) -> int:
    """A table of `slots` fields at most; what it refers to must be built already."""
    builder.StartObject(slots)
    for add in fields:
        add(builder)
    return int(builder.EndObject())


def _offset(slot: int, value: int) -> _Field:
    return lambda builder: builder.PrependUOffsetTRelativeSlot(slot, value, 0)


def _text(builder: Any, slot: int, text: str) -> _Field:
    return _offset(slot, int(builder.CreateString(text)))


def _vector(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _floats(builder: Any, values: Sequence[float]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return int(builder.EndVector())


def with_labels(model: bytes, about: Description) -> bytes:
    """A TFLite file with the class names behind it, as an archive that `unzip` opens."""
    whole = io.BytesIO(model)
    # Appending: the archive's own offsets then count from the start of the file.
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_STORED) as archive:
        # Not by name alone: that would take today's date, and other bytes every time.
        archive.writestr(zipfile.ZipInfo(LABELS), labels_text(about.classes))
    return whole.getvalue()
