"""The real emulated machine, where `nox -s arm64-setup` has made it: kernels that phones run."""

from __future__ import annotations

import pytest
import torch

from pipeline.measure.lanes.arm64 import counting, machine
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from tests.making import ROOT, programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine.found() is None, reason="nox -s arm64-setup was not run"),
]
REFERENCE = ROOT / "artifacts" / "reference" / "resnest50-cifar10" / "bottleneck"
KEPT = REFERENCE / "bottleneck-android-litert-int8-small-labels" / "model.tflite"
"""A ResNeSt-50 in int8 that is kept beside the code."""


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_a_shipped_file_answers_there_as_here() -> None:
    file = ModelFile(path=KEPT, format="tflite")
    here = LANES[HOST].answers({"": file}, [noise(4)], 1)[""]
    there = LANES["arm64-max"].answers({"": file}, [noise(4)], 1)[""]
    assert torch.equal(there, here)


def test_an_onnx_file_answers_there_as_here() -> None:
    written = programs.quantized("radix2")
    file = ModelFile(path=programs.file_of("onnx"), format="onnx")
    images = written.images[:4]
    here = LANES[HOST].answers({"": file}, [images], 1)[""]
    there = LANES["arm64-max"].answers({"": file}, [images], 1)[""]
    # A number in the middle between two steps may be rounded either way.
    assert ((there - here).abs() <= 1.001 * programs.output_scale(written.program)).all()


@pytest.mark.skipif(counting.cannot_compile() is not None, reason="there is no gcc")
def test_counts_are_the_same_twice_and_no_less_than_the_least() -> None:
    file = ModelFile(path=KEPT, format="tflite")
    lane = LANES["arm64-cortex-a76"].counting
    assert lane is not None
    first, again = (lane.counts({"": file}, {"": noise(1)})[""] for _ in range(2))
    assert first == again
    assert first.total > first.products > 1_000_000
