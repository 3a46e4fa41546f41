"""A working directory for onnx2tf, which writes files where it stands and looks there for images.

Without torch, so that a process that only converts need not hold it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_SAMPLE_IMAGES = "calibration_image_sample_data_20x128x128x3_float32.npy"
"""onnx2tf downloads this file unless it lies in the working directory."""


@contextmanager
def scratch_directory() -> Iterator[None]:
    """A working directory that holds the sample images onnx2tf would download."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch, _SAMPLE_IMAGES), np.zeros((20, 128, 128, 3), np.float32))
        os.chdir(scratch)
        try:
            yield
        finally:
            os.chdir(before)
