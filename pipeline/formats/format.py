"""What is known of a file format without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import model_validator

from pipeline.base.record import Count, MeasuredRecord, Positive
from pipeline.compress.pruning.stored import Bytes

FLOAT32_EPSILON, FLOAT16_EPSILON = 2.0**-23, 2.0**-10
"""Of torch.finfo, which takes seconds to import."""
MEDIAN_STEPS, P99_STEPS = 0, 2
"""Most steps of its grid between a tensor of a file and the program's: rounding."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What logits must keep against those they should be.

    Attributes:
        agreement: least share of images with the same first class.
        median: most steps of the output grid at the median.
        p99: most steps at the 99th percentile.
        difference: of a float network, most difference as a share of the largest logit.
        epsilon: of the arithmetic in which the numbers of a layer are made, before they are
            rounded to its grid.
    """

    agreement: float = 0.995
    median: int = MEDIAN_STEPS
    p99: int = P99_STEPS
    difference: float = 1e-3
    epsilon: float = FLOAT32_EPSILON


FILE = {
    "onnx": Limits(median=1),
    "tflite": Limits(median=1),
    "coreml": Limits(median=1, p99=3, difference=1e-2, epsilon=FLOAT16_EPSILON),
}
"""For a file against the program it was written from.

Runtimes round a few numbers of a layer otherwise than torch, by one step, and Core ML, whose
tensors and biases are float16, some more. In a deep network one step here moves others there, until
about half of the logits may be a step off, so that their median is 0 or 1 by chance. How far that
goes depends on the network (`widened`). That each layer alone computes what the program does is a
gate of its own (`layer_misses`).
"""


BYTES = {
    # A channel: scale, bias and the bias's scale; ONNX has a zero point too, and no bias where a
    # convolution stands for a pool. Core ML keeps scale and bias in float16, and describes every
    # operation at length.
    ("tflite", "int8"): Bytes(weight=1, channel=12, pool_channel=12, layer=590),
    ("onnx", "int8"): Bytes(weight=1, channel=13, pool_channel=5, layer=1100),
    ("coreml", "int8"): Bytes(weight=1, channel=5, pool_channel=5, layer=3426),
    ("tflite", "float"): Bytes(weight=4, channel=4, pool_channel=4, layer=527),
    ("onnx", "float"): Bytes(weight=4, channel=4, pool_channel=0, layer=477),
    ("coreml", "float"): Bytes(weight=2, channel=2, pool_channel=0, layer=1709),
}
"""By format and precision."""


class ScalesExact(MeasuredRecord):
    """How many of the file's quantization scales are exactly the learned ones."""

    same: Count
    total: Positive

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.same > self.total:
            raise ValueError(f"same: got {self.same}; must be <= total, which is {self.total}")
        return self
