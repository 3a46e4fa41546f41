"""Uneven padding in ONNX files: the convolution's own, with every number as before."""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.formats.file_facts import learned_scales, program_macs, scales_exact
from pipeline.formats.onnx import file as onnx_file
from pipeline.formats.onnx.pads import pad_in_convolutions
from pipeline.measure.layers import compare_layers
from pipeline.measure.parity import file_misses, layer_misses
from tests.making import floats
from tests.making.networks import randomise
from tests.making.programs import run

pytestmark = pytest.mark.slow


class Padded(nn.Module):
    """As networks of TensorFlow's are padded; one padding is read by something else as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.even = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 2, padding="same")
        self.depthwise = nn.Conv2d(8, 8, 5, 2, padding=1, groups=8)
        self.beside, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.first(F.pad(x, (0, 1, 0, 1))))
        y = self.even(y)
        y = F.relu6(self.depthwise(F.pad(y, (1, 2, 1, 2))))
        around = F.pad(y, (1, 1, 1, 1))
        y = self.beside(around) + F.max_pool2d(around, 3, 1)
        return self.fc(y.mean((2, 3)))  # type: ignore[no-any-return]


@functools.cache
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    model = Padded().eval()
    randomise(model)
    return floats.program(model=model)


def test_every_gate_is_passed_and_only_what_others_read_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx_file.write(program(), path)
    found = onnx_file.inspect(path)
    assert found.ops["Pad"] == 1, "the one that the pool reads"
    trace = partial(onnx_file.trace, path)
    compared = compare_layers(program(), None, trace, floats.noise(8, seed=2))
    assert file_misses(found, scales_exact(program(), found), program_macs(program())) == []
    assert layer_misses(compared, learned_scales(program())[0]) == []
    assert all(int(layer.steps[1:].sum()) == 0 for layer in compared)


def test_answers_are_those_of_the_file_with_pads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = floats.noise(8, seed=3)
    onnx_file.write(program(), tmp_path / "without.onnx")
    monkeypatch.setattr(onnx_file, "pad_in_convolutions", lambda model: None)
    onnx_file.write(program(), tmp_path / "with.onnx")
    found = [
        run(onnx_file.open_file(tmp_path / name), fed=images)
        for name in ("with.onnx", "without.onnx")
    ]
    assert torch.equal(*found)
    models = [onnx.load(tmp_path / name).graph for name in ("with.onnx", "without.onnx")]
    pads = [sum(node.op_type == "Pad" for node in graph.node) for graph in models]
    assert pads == [4, 1]


@pytest.mark.parametrize(
    ("pads", "value", "scale"),
    [
        ([0, 1, 1, 1, 0, 0, 1, 1], 0.0, 0.5),
        ([0, 0, -1, 1, 0, 0, 1, 1], 0.0, 0.5),
        ([0, 0, 1, 1, 0, 0, 1, 1], 1.0, 0.5),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, 0.25),
    ],
    ids=["channels", "taken away", "of ones", "another grid"],
)
def test_another_padding_stays(pads: list[int], value: float, scale: float) -> None:
    assert padded(pads, value, scale) == (1, [0, 0, 0, 0])


def test_this_one_goes() -> None:
    assert padded([0, 0, 1, 2, 0, 0, 3, 4], 0.0, 0.5) == (0, [1, 2, 3, 4])


def padded(pads: list[int], value: float, scale: float) -> tuple[int, list[int]]:
    """How many paddings are left before a convolution, and the convolution's own ends."""
    node = onnx.helper.make_node
    grids = {"grid": 0.5, "other": scale}
    nodes = [
        node("QuantizeLinear", ["image", "grid", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "grid", "zero"], ["x"]),
        node("Pad", ["x", "pads", "value"], ["around"]),
        node("QuantizeLinear", ["around", "other", "zero"], ["r"]),
        node("DequantizeLinear", ["r", "other", "zero"], ["y"]),
        node("Conv", ["y", "weight"], ["logits"], kernel_shape=[3, 3], pads=[0, 0, 0, 0]),
    ]
    constants = {
        **{name: np.float32(size) for name, size in grids.items()},
        "zero": np.int8(3),
        "pads": np.array(pads),
        "value": np.float32(value),
        "weight": np.ones((2, 3 + sum(pads[1::4]), 3, 3), np.float32),
    }
    image, logits = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in ("image", "logits")
    )
    stored = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [image], [logits], stored))
    pad_in_convolutions(model)
    (conv,) = (one for one in model.graph.node if one.op_type == "Conv")
    (own,) = (list(given.ints) for given in conv.attribute if given.name == "pads")
    return sum(one.op_type == "Pad" for one in model.graph.node), own
