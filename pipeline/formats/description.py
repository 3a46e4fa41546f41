"""What a file says of itself beside its network: classes, how its images are made, whose it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

CLASSES = "classes"
"""Name under which ONNX files and Core ML packages have the class names, as a JSON list."""

_MEAN, _STD = "mean", "std"


def properties(about: Description) -> dict[str, str]:
    """What ONNX files and Core ML packages say under names of our own."""
    found = {CLASSES: json.dumps(about.classes, ensure_ascii=False)}
    found["input"] = "uint8_rgb" if about.pixels else "normalized"
    found |= {_MEAN: json.dumps(about.mean), _STD: json.dumps(about.std)}
    return found


Channels = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Description:
    """The same for every format; each writes it where its own tools look for it.

    Attributes:
        name: of the network.
        text: what the file is, in a sentence.
        output: what the file gives, logits or probabilities; its output is called so.
        classes: names in the order of the logits; of a single one, the class that is a yes.
        pixels: whether the file takes 8-bit RGB pixels and normalises them itself.
        mean: per channel, of pixels as shares 0..1; an image is (pixel / 255 - mean) / std.
        std: likewise.
        meaning: of the file's output, in a sentence.
        author: who answers for the model; None where the recipe does not say.
        licence: of the model; None where the recipe does not say.
    """

    name: str
    text: str
    classes: tuple[str, ...]
    pixels: bool
    mean: Channels
    std: Channels
    meaning: str
    output: str = "logits"
    author: str | None = None
    licence: str | None = None

    def write(self, path: Path) -> None:
        """Keep it as JSON, for the process that writes the file."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")


def read_description(path: Path) -> Description:
    """What `Description.write` kept."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    listed = {name: tuple(kept[name]) for name in ("classes", "mean", "std")}
    return Description(**{**kept, **listed})


def labels_text(classes: Sequence[str]) -> str:
    """Class names as labels.txt has them: one a line, in the order of the logits."""
    return "".join(f"{label(name)}\n" for name in classes)


def label(name: str) -> str:
    """The name of a class as labels.txt has it: on one line."""
    return " ".join(name.split())
