"""What any network may hold and a writer might write otherwise: exact in the file, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.compress.quantization.fold import float_program
from pipeline.formats.coreml import file as coreml_file
from pipeline.formats.onnx import file as onnx_file
from pipeline.formats.tflite import file as tflite_file

SIDE = 13
"""Odd, so that windows with a stride of 2 do not all fit."""


class Through(nn.Module):
    """A convolution with answers of both signs, an operation, and the mean of what comes out."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.body = nn.Sequential(operation)

    def forward(self, x: Tensor) -> Tensor:
        # Below 0 for the most part: a zero around them would be the largest.
        found = self.body(self.conv(x) - 3)
        return found.mean((2, 3), keepdim=True).flatten(1) if found.dim() == 4 else found


class Mean(nn.Module):
    def __init__(self, axes: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self._axes, self._keepdim = axes, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self._axes, keepdim=self._keepdim)


def programmed(operation: nn.Module) -> torch.export.ExportedProgram:
    return float_program(Through(operation).eval(), torch.zeros(2, 3, SIDE, SIDE))


def images() -> Tensor:
    return torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def off_by(module: object, source: torch.export.ExportedProgram, path: Path) -> float:
    """The largest difference between what a file and its program answer."""
    module.write(source, path)  # type: ignore[attr-defined]
    runnable = module.open_file(path)  # type: ignore[attr-defined]
    runnable.set_input(images().numpy())
    runnable.invoke()
    with torch.no_grad():
        wanted = source.module(check_guards=False)(images())
    return float(np.abs(runnable.output() - wanted.numpy()).max())


POOLS: dict[str, Callable[[], nn.Module]] = {
    "max, padded": lambda: nn.MaxPool2d(3, 2, padding=1),
    "max, ceil_mode": lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    "max, padded and ceil_mode": lambda: nn.MaxPool2d(4, 3, padding=1, ceil_mode=True),
    "average, padding counts": lambda: nn.AvgPool2d(3, 2, padding=1),
    "average, padding does not": lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average, ceil_mode": lambda: nn.AvgPool2d(2, 2, ceil_mode=True),
    "mean of channels": lambda: Mean((1,), True),
    "mean of height": lambda: Mean((2,), True),
    "mean without its axes": lambda: Mean((2, 3), False),
    "mean, from the last": lambda: Mean((-1, -2), True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", POOLS)
def test_onnx_files_hold_every_pool_and_mean_as_it_is(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert off_by(onnx_file, programmed(POOLS[name]()), path) < 1e-5
    ops = [node.op_type for node in onnx.load(path).graph.node]
    others = name in {"mean of channels", "mean of height", "mean without its axes"}
    assert ("ReduceMean" in ops) == others


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "padding that does not count": (
        lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        r"^avg_pool2d in body\.0: an average pool with padding .* does not count; in a TFLite",
    ),
    "windows over the edge": (
        lambda: nn.AvgPool2d(2, 2, ceil_mode=True),
        r"^avg_pool2d in body\.0: an average pool whose ceil_mode adds windows",
    ),
    "dilation": (
        lambda: nn.MaxPool2d(3, 2, dilation=2),
        r"^max_pool2d in body\.0: a max pool with dilation .*; in a TFLite file it may be 1 only",
    ),
    "mean of channels": (
        lambda: Mean((1,), True),
        r"^mean in body\.0: a mean over axes \[1\] of 4, keepdim True; in a TFLite file it may be "
        "over height and width",
    ),
    "mean without its axes": (
        lambda: Mean((2, 3), False),
        r"^mean in body\.0: a mean over axes \[2, 3\] of 4, keepdim False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tflite_refuses_by_name(name: str, tmp_path: Path) -> None:
    operation, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        tflite_file.write(programmed(operation()), tmp_path / "model.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("module", [onnx_file, tflite_file, coreml_file])
def test_no_format_divides_by_another_number(module: object, tmp_path: Path) -> None:
    source = programmed(nn.AvgPool2d(2, 2, divisor_override=3))
    with pytest.raises(InputError, match=r"^avg_pool2d in body\.0: .* divisor_override 3, which"):
        module.write(source, tmp_path / "model")  # type: ignore[attr-defined]


@pytest.mark.slow
def test_tflite_pads_max_pools_of_any_sign(tmp_path: Path) -> None:
    source = programmed(POOLS["max, padded and ceil_mode"]())
    assert off_by(tflite_file, source, tmp_path / "model.tflite") < 1e-5


def test_a_weight_that_no_convolution_reads_stays() -> None:
    weight = [numpy_helper.from_array(np.ones((4, 3), np.int8), "stored")]
    weight.append(numpy_helper.from_array(np.float32(0.5), "scale"))
    nodes = [
        helper.make_node("DequantizeLinear", ["stored", "scale"], ["weight"]),
        helper.make_node("MatMul", ["weight", "x"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "", ports[:1], ports[1:], weight))
    onnx_file.own_weights(model)
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "MatMul"]
