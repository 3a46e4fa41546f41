"""What stands in the output of the run of three targets."""

from __future__ import annotations

import json
from pathlib import Path

MODEL_FILES = {
    "android-litert-int8": {"model.tflite"},
    "linux-arm-onnxruntime-int8": {"model.onnx"},
    "iphone-coreml-w8a8": {
        "model.mlpackage/Manifest.json",
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    },
}


def files_below(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def report_of(out: Path, name: str) -> dict:
    return json.loads((out / name / "report.json").read_text())
