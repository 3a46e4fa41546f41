"""What a Core ML file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.base.errors import following
from pipeline.formats.description import Description, properties
from pipeline.formats.ports import Interface, Port

_IOS = {8: 17, 9: 18}
"""The iOS of each specification version that is written."""


def describe(path: Path, about: Description) -> None:
    """Give the package the metadata that Xcode shows; the class names under `classes`.

    What is said of the output stands at the first one and, in a classifier, at its probabilities.
    """
    from pipeline.formats.coreml import package as coreml_package

    spec: Any = coreml_package.specification(path)
    metadata = spec.description.metadata
    metadata.shortDescription = about.text
    metadata.author, metadata.license = about.author or "", about.licence or ""
    for name, value in properties(about).items():
        metadata.userDefined[name] = value
    (image,), outputs = spec.description.input, spec.description.output
    colours = "RGB" if len(about.mean) == 3 else "grey"
    image.shortDescription = f"An upright {colours} image"
    if not about.pixels:
        image.shortDescription += ", (pixel / 255 - mean) / std per channel"
    outputs[0].shortDescription = "The class whose probability is the largest"
    outputs[-1].shortDescription = about.meaning.removesuffix(".")
    coreml_package.write_specification(spec, path)


@following("a Core ML package")
def interface(path: Path) -> Interface:
    """What a file of Core ML takes and gives."""
    from pipeline.formats.coreml import package as coreml_package

    def port(feature: Any, shape: tuple[int, ...]) -> Port:
        if coreml_package.input_kind(feature) == "image":
            size = feature.type.imageType
            return Port(
                name=feature.name,
                shape=(1, size.height, size.width, 3),
                dtype="uint8",
                kind="image",
            )
        array = feature.type.multiArrayType
        names = {number: name.lower() for name, number in array.ArrayDataType.items()}
        return Port(name=feature.name, shape=shape, dtype=names[array.dataType])

    def shape(feature: Any) -> tuple[int, ...]:
        return tuple(int(size) for size in feature.type.multiArrayType.shape)

    spec = coreml_package.specification(path)
    (image,), outputs = spec.description.input, spec.description.output
    given, name = port(image, shape(image)), spec.description.predictedProbabilitiesName
    ios = _IOS.get(spec.specificationVersion)
    if name:
        classes = coreml_package.read(path).labels or ()
        made = Port(name=name, shape=(1, len(classes)), dtype="float64", kind="dictionary")
        return Interface(input=given, output=made, ios=ios)
    (logits,) = outputs
    return Interface(input=given, output=port(logits, shape(logits)), ios=ios)
