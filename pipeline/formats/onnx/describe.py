"""What an ONNX file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.base.errors import following
from pipeline.formats.description import Description, properties
from pipeline.formats.ports import Interface, Port


def describe(path: Path, about: Description) -> None:
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
        found["Image.BitmapPixelFormat"] = "Rgb8" if len(about.mean) == 3 else "Gray8"
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


@following("an ONNX graph")
def interface(path: Path) -> Interface:
    """What a file of ONNX takes and gives."""
    import onnx

    def port(value: Any) -> Port:
        tensor = value.type.tensor_type
        return Port(
            name=value.name,
            shape=tuple(d.dim_value or None for d in tensor.shape.dim),
            dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        )

    graph = onnx.load(path, load_external_data=False).graph
    (image,), (logits,) = graph.input, graph.output
    return Interface(input=port(image), output=port(logits))
