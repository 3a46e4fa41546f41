"""Write what a file says of itself into it, in each format's standard place."""

from __future__ import annotations

from pipeline.formats.coreml.describe import describe_coreml
from pipeline.formats.onnx.describe import describe_onnx
from pipeline.formats.tflite.metadata import describe_tflite

WRITERS = {"onnx": describe_onnx, "tflite": describe_tflite, "coreml": describe_coreml}
"""By format."""
