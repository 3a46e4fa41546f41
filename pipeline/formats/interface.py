"""What an app must feed a file and what it gets back, read from the file itself.

interface(Path("model.tflite"), "tflite").input.shape  # (1, 224, 224, 3)
"""

from __future__ import annotations

from pathlib import Path

from pipeline.formats.coreml.describe import coreml_interface
from pipeline.formats.onnx.describe import onnx_interface
from pipeline.formats.ports import Interface
from pipeline.formats.tflite.file import tflite_interface


def interface(path: Path, form: str) -> Interface:
    """Read a file's interface.

    Args:
        path: of the file.
        form: onnx, tflite or coreml.

    Raises:
        ValueError: the file has not one input and one output.
    """
    return _READERS[form](path)


_READERS = {"onnx": onnx_interface, "tflite": tflite_interface, "coreml": coreml_interface}
