"""Bundles as app teams get them: unpacked, and used through the code that is in them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.commands.bundle.contract import Contract, photo_words
from pipeline.commands.bundle.write import contract_in
from pipeline.formats.coreml import file as coreml_file
from pipeline.formats.formats import FORMATS
from pipeline.recipe.input_shape import square
from pipeline.tasks import classification
from pipeline.tasks.images.preparation import Preparation
from tests.making import HOUR
from tests.making.networks import CLASSES

VERSIONS = {
    "ai-edge-litert": "2.1.0",
    "coremltools": "9.0",
    "numpy": "1.26.4",
    "onnxruntime": "1.23.0",
    "pillow": "12.0.0",
}


def unpacked(archive: Path, folder: Path) -> Path:
    """The one folder of an archive."""
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None
        packed.extractall(folder)
    return folder / archive.stem


def golden_with(bundle: Path, packages: Path) -> subprocess.CompletedProcess[str]:
    """Run a bundle's own check with the packages in a folder, before any other."""
    return subprocess.run(
        [sys.executable, "-P", bundle / "python" / "classify.py", "--golden"],
        cwd=bundle.parent,
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=HOUR,
    )


def golden(bundle: Path) -> subprocess.CompletedProcess[str]:
    """Run a bundle's own check, as on another computer: without this package."""
    return subprocess.run(
        [sys.executable, "-P", bundle / "python" / "classify.py", "--golden"],
        cwd=bundle.parent,
        capture_output=True,
        text=True,
        timeout=HOUR,
    )


def code_of(bundle: Path) -> ModuleType:
    """The Python code of a bundle, to run in parts."""
    spec = importlib.util.spec_from_file_location("classify", bundle / "python" / "classify.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(bundle: Path) -> Callable[[Any], Any]:
    """In place of Core ML, which runs on Apple systems only: the reference evaluator.

    It takes what the bundle's code makes for Core ML, an array or a PIL image.
    """
    runnable = coreml_file.ReferenceRunnable(bundle / contract_in(bundle).file)

    def run(given: Any) -> Any:
        if not isinstance(given, np.ndarray):
            given = np.asarray(given).transpose(2, 0, 1)[None]
        runnable.set_input(given.astype(np.float32))
        runnable.invoke()
        return runnable.output()[0]

    return run


def contract(form: str, *, pixels: bool, **changes: Any) -> Contract:
    last = pixels or form == "tflite"
    real = "float16" if form == "coreml" else "float32"
    whole = {
        "name": "a-phone",
        "file": f"model{FORMATS[form].suffix}",
        "sha256": "0" * 64,
        "format": form,
        "runtime": "its runtime",
        "precision": "int8",
        "network": "resnest50",
        "input": {
            "name": "image",
            "kind": "image" if pixels and form == "coreml" else "tensor",
            "shape": (1, 32, 32, 3) if last else (1, 3, 32, 32),
            "layout": "NHWC" if last else "NCHW",
            "dtype": "uint8" if pixels else real,
            "color_order": "RGB",
            "channels": 3,
            "side": 32,
            "height": 32,
            "width": 32,
            "photo": photo_words(Preparation(shape=square(32))),
            "value": "how",
            "mean": None if pixels else (0.485, 0.456, 0.406),
            "std": None if pixels else (0.229, 0.224, 0.225),
        },
        "output": {
            "name": "logits",
            "shape": (1, CLASSES),
            "dtype": real,
            "classes": CLASSES,
            "gives": "logits",
            "link": "softmax",
            "meaning": classification.meaning().rule,
        },
        "golden": {"images": 3, "photos": 14, "tolerance": 2e-05, "why": "so", "computed_by": "it"},
    }
    return Contract.model_validate(whole | changes)


def contract_for(preparation: Preparation, form: str = "onnx") -> Contract:
    """A contract whose photos are prepared so."""
    shape = preparation.shape
    changed = {
        "photo": photo_words(preparation),
        "channels": shape.channels,
        "height": shape.height,
        "width": shape.width,
        "side": None,
        "mean": (0.485,) * shape.channels,
        "std": (0.229,) * shape.channels,
    }
    plain = contract(form, pixels=False)
    return plain.model_copy(update={"input": plain.input.model_copy(update=changed)})
