"""What a Core ML file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.base.errors import following
from pipeline.formats.description import Description, properties
from pipeline.formats.ports import Interface, Port


def describe(path: Path, about: Description) -> None:
    """Give the package the metadata that Xcode shows; the class names under `classes`.

    The package stays one that gives logits. Core ML's own classifier would give a class and a
    dictionary in their place, which no host but Apple's could check.
    """
    from pipeline.formats.coreml import package as coreml_package

    spec: Any = coreml_package.specification(path)
    metadata = spec.description.metadata
    metadata.shortDescription = about.text
    metadata.author, metadata.license = about.author or "", about.licence or ""
    for name, value in properties(about).items():
        metadata.userDefined[name] = value
    (image,), (logits,) = spec.description.input, spec.description.output
    colours = "RGB" if len(about.mean) == 3 else "grey"
    image.shortDescription = f"An upright {colours} image"
    if not about.pixels:
        image.shortDescription += ", (pixel / 255 - mean) / std per channel"
    logits.shortDescription = about.meaning.removesuffix(".")
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

    spec = coreml_package.specification(path)
    (image,), (logits,) = spec.description.input, spec.description.output
    given, made = (
        tuple(int(size) for size in feature.type.multiArrayType.shape)
        for feature in (image, logits)
    )
    return Interface(input=port(image, given), output=port(logits, made))
