"""A first recipe, with a comment at every line that is likely to be changed.

recipe_text(Answers(device="android", train=Path("photos/train"), test=Path("photos/test")))
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.recipe.loading import write_yaml
from pipeline.recipe.tree import NAMED


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a kind of device needs."""

    shown: str
    format: str
    runtime: str
    speedup: float | None


DEVICES = {
    "android": Device(
        shown="Android phone (CPU)", format="tflite", runtime="LiteRT with XNNPACK", speedup=1.5
    ),
    "iphone": Device(
        shown="iPhone (iOS 17 or later)", format="coreml", runtime="Core ML", speedup=None
    ),
    "linux-arm": Device(
        shown="Linux on ARM, 64 bit (CPU)", format="onnx", runtime="ONNX Runtime", speedup=1.5
    ),
}
"""By the name that `pocketnest init --device` takes."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a first recipe depends on.

    Attributes:
        device: key of `DEVICES`.
        train: folder with one folder of images per class, or shards as `data.train` of the kind
            webdataset names them; None takes the embedded digits.
        test: such a folder of other images, or such shards.
        checkpoint: of the trained network; None trains one.
        input_size: side of the images in pixels.
        size_mb: most that the file may hold, in units of 1e6 bytes; None sets no limit.
        pixels: the file takes 8-bit RGB pixels and normalises them inside.
    """

    device: str
    train: Path | None = None
    test: Path | None = None
    checkpoint: Path | None = None
    input_size: int = 224
    size_mb: float | None = None
    pixels: bool = False


def recipe_text(answers: Answers, folder: Path) -> str:
    """The text of a recipe that lies in `folder`, from where its paths lead.

    Raises:
        KeyError: there is no such device.
    """
    device = DEVICES[answers.device]

    def text(value: object) -> str:
        return write_yaml({"x": value}).removeprefix("x:").strip()  # type: ignore[dict-item]

    def place(path: Path) -> str:
        # From where the recipe lies: it may be read from anywhere.
        return text(os.path.relpath(path, folder))

    speedup = f"{device.speedup}  # over the float model"
    if device.speedup is None:
        speedup = "null  # Core ML cannot be timed on Linux"
    lines = [
        f"# {device.shown}: an int8 file for {device.runtime}.",
        "#",
        "#     pocketnest check THIS_FILE      every mistake at once, in a second",
        "#     pocketnest run THIS_FILE        leaves the file and report.html in artifacts/",
        "",
        "model:",
        "  name: resnest50  # resnest14 to resnest269",
        f"  input_size: {answers.input_size}  # side of the images in pixels",
    ]
    if answers.checkpoint is not None:
        named = str(answers.checkpoint).startswith(NAMED)
        where = text(str(answers.checkpoint)) if named else place(answers.checkpoint)
        if answers.checkpoint.is_dir():
            where = text(os.path.relpath(answers.checkpoint, folder) + "/")
        lines.append(f"  checkpoint: {where}  # official, timm or our own")
        lines.append("  head: keep  # replace: a new classifier for these classes, and training")
    else:
        lines.append("  # checkpoint: resnest50.pth  # without one, a network is trained")
    lines += ["", *_data(answers, place), "", *_training(answers), ""]
    lines += [
        "prune:  # null keeps every channel",
        "  macs: 0.5  # or params: 0.4, size_mb: 8, latency: 0.5 (of its time), latency: 30 ms",
        "  round_to: 16  # channel counts stay multiples of this",
        "  finetune: {epochs: 6, batch_size: 32, learning_rate: 0.02, clip_norm: 5.0}",
        "",
        "qat:  # training with int8 rounding in the loop",
        "  train: {epochs: 4, batch_size: 32, learning_rate: 0.005, clip_norm: 5.0}",
        "",
        "target:",
        f"  device: {text(device.shown)}",
        f"  format: {device.format}",
        "  precision: int8  # or float",
        f"  input: {'uint8_rgb' if answers.pixels else 'normalized'}"
        "  # uint8_rgb takes the camera's pixels; normalized takes floats",
        "",
        "budgets:  # exit code 3 where one is missed",
        "  accuracy_drop_pt: 1.0  # points of top-1 against the float model",
        f"  size_mb: {text(answers.size_mb)}  # of the file, in units of 1e6 bytes",
        f"  speedup: {speedup}",
    ]
    return "\n".join(lines) + "\n"


def _data(answers: Answers, place: Callable[[Path], str]) -> list[str]:
    if answers.train is None or answers.test is None:
        return ["data:", "  kind: digits  # embedded; photos: kind: image_folder, train, test"]
    kind = "image_folder  # one folder per class, such as train/cat/1.jpg"
    if _are_shards(answers.train):
        kind = "webdataset  # .tar files of samples such as 1.jpg and 1.cls; else say label: folder"
    return [
        "data:",
        f"  kind: {kind}",
        f"  train: {place(answers.train)}",
        f"  test: {{clean: {place(answers.test)}}}  # several are fine: {{day: a/b, night: a/c}}",
    ]


def _are_shards(path: Path) -> bool:
    return "*" in path.name or path.suffix == ".tar" or any(path.glob("*.tar"))


def _training(answers: Answers) -> list[str]:
    photos = answers.train is not None
    augment = "{flip: true, shift: 0.06, scale: 0.08}" if photos else "{shift: 0.06, rotate_deg: 8}"
    return [
        "train:  # skipped where model.checkpoint is given",
        f"  epochs: {30 if photos else 14}",
        "  batch_size: 32",
        "  learning_rate: 0.05",
        "  warmup_epochs: 1",
        "  clip_norm: 5.0",
        f"  augment: {augment}",
    ]
