"""Write what a file says of itself into it, in each format's standard place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.formats.description import Description

CLASSES = "classes"
"""Name under which ONNX files and Core ML packages have the class names, as a JSON list."""

_MEAN, _STD = "mean", "std"


def properties(about: Description) -> dict[str, str]:
    """What ONNX files and Core ML packages say under names of our own."""
    found = {CLASSES: json.dumps(about.classes, ensure_ascii=False)}
    found["input"] = "uint8_rgb" if about.pixels else "normalized"
    found |= {_MEAN: json.dumps(about.mean), _STD: json.dumps(about.std)}
    return found


def describe_onnx(path: Path, about: Description) -> None:
    """Name the file's axes and give it metadata_props.

    The names `Image.*`, `model_author` and `model_license`, and the denotations of the axes, are
    those of ONNX's own documents (MetadataProps.md, DimensionDenotation.md, TypeDenotation.md).
    """
    import onnx

    model = onnx.load(path)
    model.doc_string = about.text
    model.graph.name = about.name
    found = properties(about) | {"Image.ColorSpaceGamma": "SRGB"}
    if about.pixels:
        found["Image.BitmapPixelFormat"] = "Rgb8"
        found["Image.NominalPixelRange"] = "NominalRange_0_255"
    if about.author:
        found["model_author"] = about.author
    if about.licence:
        found["model_license"] = about.licence
    onnx.helper.set_model_props(model, found)
    (image,) = model.graph.input
    image.type.denotation = "IMAGE"
    axes = ["DATA_BATCH", "DATA_CHANNEL", "DATA_FEATURE", "DATA_FEATURE"]
    if about.pixels:
        axes = ["DATA_BATCH", "DATA_FEATURE", "DATA_FEATURE", "DATA_CHANNEL"]
    for axis, denotation in zip(image.type.tensor_type.shape.dim, axes, strict=True):
        axis.denotation = denotation
    onnx.save(model, path)


def describe_tflite(path: Path, about: Description) -> None:
    """Give the file the metadata that Android's tools read, and labels.txt."""
    from ai_edge_litert import schema_py_generated as schema

    from pipeline.formats.flatbuffer import pack, share_zero_points
    from pipeline.formats.tflite_metadata import NAME, metadata, with_labels

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    side = int(graph.tensors[graph.inputs[0]].shape[1])
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(metadata(about, side), np.uint8)
    entry.name, entry.buffer = NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    path.write_bytes(with_labels(share_zero_points(pack(model)), about))


def describe_coreml(path: Path, about: Description) -> None:
    """Give the package the metadata that Xcode shows; the class names under `classes`.

    The package stays one that gives logits. Core ML's own classifier would give a class and a
    dictionary in their place, which no host but Apple's could check.
    """
    from pipeline.formats import mil

    spec: Any = mil.specification(path)
    metadata = spec.description.metadata
    metadata.shortDescription = about.text
    metadata.author, metadata.license = about.author or "", about.licence or ""
    for name, value in properties(about).items():
        metadata.userDefined[name] = value
    (image,), (logits,) = spec.description.input, spec.description.output
    image.shortDescription = "An upright RGB image"
    if not about.pixels:
        image.shortDescription += ", (pixel / 255 - mean) / std per channel"
    logits.shortDescription = "A number for every class; softmax makes probabilities of them"
    mil.write_specification(spec, path)


WRITERS = {"onnx": describe_onnx, "tflite": describe_tflite, "coreml": describe_coreml}
"""By format."""
