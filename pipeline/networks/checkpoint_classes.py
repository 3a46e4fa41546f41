"""What a checkpoint says of the images and classes that it was trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pipeline.base.errors import listed
from pipeline.base.safe_files import json_of, parsed
from pipeline.networks.checkpoint_files import CONFIG

_PLACEHOLDER = re.compile(r"LABEL_\d+")
"""What transformers call classes that nobody has named."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a file, or the folder that it lies in, says.

    Attributes:
        classes: in the order of the logits; None where they have no names.
        count: of the classes; None where it is not said.
        notes: of mean, standard deviation and size of the images, a phrase each.
    """

    classes: tuple[str, ...] | None = None
    count: int | None = None
    notes: tuple[str, ...] = ()

    def other_than(self, classes: Sequence[str]) -> str:
        """How the data's classes differ from these; empty where they do not."""
        fix = "use the checkpoint of this data"
        if self.classes is not None and list(self.classes) != list(classes):
            return f"was trained on other classes: {_differences(self.classes, classes)}; {fix}"
        if self.classes is None and self.count not in (None, len(classes)):
            return (
                f"was trained for {self.count} classes ({CONFIG}), the data has {len(classes)}; "
                f"{fix}"
            )
        return ""


def said_of(path: Path, folder: Path | None = None) -> Said:
    """What is said of the weights in a file.

    Args:
        path: of a file that can be read.
        folder: of the Hugging Face Hub that it was found in.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            named = _names(_parsed((file.metadata() or {}).get("classes", "null")))
        if named is not None:
            return Said(classes=named)
    return Said() if folder is None else _said_by_config(folder / CONFIG)


def _parsed(text: str) -> Any:
    try:
        return parsed(text)
    except ValueError:
        return None  # another program's key of the same name


def _names(value: Any) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list) else None


def _said_by_config(path: Path) -> Said:
    """What a configuration of timm or transformers says."""
    try:
        config = json_of(path)
    except (OSError, ValueError):
        return Said()
    if not isinstance(config, dict):
        return Said()
    inner = config.get("pretrained_cfg")
    config = {**(inner if isinstance(inner, dict) else {}), **config}
    count = next(
        (n for k in ("num_classes", "num_labels") if type(n := config.get(k)) is int), None
    )
    classes = _labels(config)
    keys = {"mean": "mean", "std": "std", "input_size": "input size"}
    numbers = {words: _numbers(config.get(key)) for key, words in keys.items()}
    notes = [f"{words} {said}" for words, said in numbers.items() if said]
    if classes is not None or count is not None:
        notes.append(f"{len(classes) if classes else count} classes")
    return Said(
        classes=classes,
        count=count,
        notes=(f"{CONFIG} says " + ", ".join(notes),) if notes else (),
    )


def _labels(config: dict[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes, in the order of the logits; None where there are none to go by."""
    named = _names(config.get("label_names"))
    by_number = config.get("id2label")
    if named is None and isinstance(by_number, dict) and by_number:
        named = tuple(str(by_number.get(str(n), "")) for n in range(len(by_number)))
    if not named or all(not one or _PLACEHOLDER.fullmatch(one) for one in named):
        return None
    return named


def _numbers(value: Any) -> str:
    """A number, or up to three, for a note; empty for anything else."""
    numbers = value if isinstance(value, list) else [value]
    real = all(type(n) in (int, float) and abs(n) < 1e6 for n in numbers)
    return " ".join(f"{n:g}" for n in numbers) if real and 0 < len(numbers) <= 3 else ""


def _differences(saved: Sequence[str], classes: Sequence[str]) -> str:
    """Which classes only the checkpoint knows, which only the data has, or where the order is."""
    groups = {
        "only the checkpoint has": [name for name in saved if name not in set(classes)],
        "only the data has": [name for name in classes if name not in set(saved)],
    }
    found = [f"{words} {listed(names)}" for words, names in groups.items() if names]
    if not found:
        pairs = zip(saved, classes, strict=False)
        place = next((n for n, (one, two) in enumerate(pairs) if one != two), len(classes))
        named = " and ".join(
            listed(names[place : place + 1]) or "none" for names in (saved, classes)
        )
        found = [f"the same ones in another order, number {place + 1} is {named}"]
    return "; ".join(found)
