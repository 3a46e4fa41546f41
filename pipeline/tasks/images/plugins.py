"""Image formats that Pillow reads where something is installed besides."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module, metadata
from importlib.util import find_spec

from PIL import features

HEIF = "pillow-heif"


def plugged_in() -> tuple[str, ...]:
    """Names of Pillow's formats that are read here and not everywhere; they are registered."""
    found = ["AVIF"] if features.check("avif") else []
    if find_spec("pillow_heif") is not None:
        import_module("pillow_heif").register_heif_opener()
        found.append("HEIF")
    return tuple(found)


def versions() -> dict[str, str | None]:
    """What decides the pixels of these formats, for keys."""
    found = {"avif": features.version("avif"), HEIF: None}
    with suppress(metadata.PackageNotFoundError):
        found[HEIF] = metadata.version(HEIF)
    return found
