"""Which files there are to make, and what the processes that make them are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.formats.formats import FormatName
from pipeline.networks.codes import PAPER, TIMM

NETWORK = "{code}.pt"
"""The trained float network as a code publishes it, in the folder of inputs."""

KEPT = "peers.json"
"""In the folder of the files: what they are and what they were made from."""

CALIBRATION = "calibration.npy"
"""Normalised images, float32 (N, 3, S, S), in the folder of inputs."""


@dataclass(frozen=True, kw_only=True)
class PeerPlan:
    """A file to make.

    Attributes:
        name: of the peer.
        tool: that makes it.
        format: of the file.
        precision: that most of the network is computed in.
        file: its name.
        code: that publishes the network the file is made from; a family may lack some.
        start: place in the order of starting. The slowest goes first, so that the others are made
            beside it.
        source: name of the peer whose file it is made from; None where that is the network.
    """

    name: str
    tool: str
    format: FormatName
    precision: Literal["float", "int8"]
    file: str
    start: int
    source: str | None = None
    code: str = PAPER


NAIVE = "onnx float, naive export"
"""The paper's own code, exported: where every other tool but coremltools starts from."""

NAIVE_TIMM = "onnx float, naive export of timm's"
"""timm's code computes the same with tensors of five axes, which runtimes are slower with."""

PLANS = (
    PeerPlan(
        name=NAIVE,
        tool="torch",
        format="onnx",
        precision="float",
        file="onnx-float-naive.onnx",
        start=0,
    ),
    PeerPlan(
        name="onnx int8, onnxruntime quantize_static",
        tool="ONNX Runtime",
        format="onnx",
        precision="int8",
        file="onnx-int8-quantize-static.onnx",
        start=5,
        source=NAIVE,
    ),
    PeerPlan(
        name="onnx int8, neural-compressor",
        tool="neural-compressor",
        format="onnx",
        precision="int8",
        file="onnx-int8-neural-compressor.onnx",
        start=4,
        source=NAIVE,
    ),
    PeerPlan(
        name="tflite float, onnx2tf",
        tool="onnx2tf",
        format="tflite",
        precision="float",
        file="tflite-float-onnx2tf.tflite",
        start=3,
        source=NAIVE,
    ),
    PeerPlan(
        name="tflite int8, onnx2tf -oiqt",
        tool="onnx2tf",
        format="tflite",
        precision="int8",
        file="tflite-int8-onnx2tf.tflite",
        start=2,
        source=NAIVE,
    ),
    PeerPlan(
        name=NAIVE_TIMM,
        tool="torch",
        format="onnx",
        precision="float",
        file="onnx-float-naive-timm.onnx",
        start=0,
        code=TIMM,
    ),
    PeerPlan(
        name="onnx int8, quantize_static of timm's",
        tool="ONNX Runtime",
        format="onnx",
        precision="int8",
        file="onnx-int8-quantize-static-timm.onnx",
        start=5,
        source=NAIVE_TIMM,
        code=TIMM,
    ),
    PeerPlan(
        name="tflite int8, onnx2tf -oiqt of timm's",
        tool="onnx2tf",
        format="tflite",
        precision="int8",
        file="tflite-int8-onnx2tf-timm.tflite",
        start=2,
        source=NAIVE_TIMM,
        code=TIMM,
    ),
    PeerPlan(
        name="coreml float16, coremltools",
        tool="coremltools",
        format="coreml",
        precision="float",
        file="coreml-float16.mlpackage",
        start=1,
    ),
)
"""In the order of reports."""


def report_of(plan: PeerPlan, inputs: Path) -> Path:
    """Where the process that makes a file says how it went: JSON, `peak_bytes` and `error`."""
    return inputs / f"{plan.file}.json"
