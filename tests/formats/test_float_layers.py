"""Layers that stay in float, in the files of every format, run by their runtimes."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from pipeline.formats import as_onnx
from pipeline.formats.coreml import package
from pipeline.formats.file_facts import FileFacts, learned_scales, program_macs, scales_exact
from pipeline.formats.formats import FORMATS
from pipeline.formats.onnx.file import inspect as inspect_onnx
from pipeline.measure.layers import compare_layers, layers_of
from pipeline.measure.left_in_float import left_in_float
from pipeline.measure.parity import file_misses, layer_misses
from tests.making import floats
from tests.making.programs import run
from tests.networks.test_float_rules import OPERATIONS
from tests.networks.test_lowering import SIDE

pytestmark = pytest.mark.slow

EPSILON = {"onnx": 2.0**-22, "tflite": 2.0**-22, "coreml": 2.0**-9}
"""Of the arithmetic that a float layer's numbers are summed up in, as a share of the largest."""
ROW = sorted(OPERATIONS, key=lambda name: name == "average pool")
"""Every operation; the one that makes images smaller is the last."""


@cache
def one_in_float() -> torch.export.ExportedProgram:
    """A block's convolution, and the classifier, whose float numbers are the answers."""
    return floats.program("blocks.0.conv1", "fc")


@pytest.fixture(scope="module", params=FORMATS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def written(form: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(form) / f"model{FORMATS[form].suffix}"
    FORMATS[form].module().write(one_in_float(), path)
    return path


def all_misses(
    form: str, program: torch.export.ExportedProgram, path: Path, side: int = floats.SIDE
) -> list[str]:
    """The gates of a run on a file."""
    module = FORMATS[form].module()
    facts = module.inspect(path)
    images = floats.noise(4, seed=2, side=side)
    compared = compare_layers(program, None, partial(module.trace, path), images)
    return [
        *file_misses(facts, scales_exact(program, facts), program_macs(program)),
        *layer_misses(compared, learned_scales(program)[0]),
    ]


def test_every_gate_is_passed(form: str, written: Path) -> None:
    assert all_misses(form, one_in_float(), written) == []


def test_the_share_of_macs_is_that_of_the_program(form: str, written: Path) -> None:
    facts = FORMATS[form].module().inspect(written)
    int8, whole = program_macs(one_in_float())
    assert (facts.int8_macs, facts.macs) == (int8, whole)
    assert whole - int8 == 16 * 16 * 9 * 16 + 160
    other = FileFacts(ops={}, int8_macs=int8 - 1, macs=whole, layers={}, weights=facts.weights)
    exact = scales_exact(one_in_float(), facts)
    (miss,) = file_misses(other, exact, (int8, whole))
    assert miss.endswith(f"of the MACs run in int8 (exactly {int8 / whole:.2%} must)")


def weights_of(conv: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a float convolution of the program."""
    program = one_in_float()
    stored = program.state_dict | program.constants
    names = {s.arg.name: s.target for s in program.graph_signature.input_specs if s.target}
    weight, bias = (stored[names[one.name]] for one in conv.args[1:3])
    return weight.detach(), bias.detach()


def test_a_float_layer_computes_torchs_convolution_of_dequantized_numbers(
    form: str, written: Path
) -> None:
    """The classifier's answers are what torch makes of the int8 numbers before it."""
    module = FORMATS[form].module()
    images = floats.noise(8, seed=3)
    (answers,) = (n for n in one_in_float().graph.nodes if n.name == "conv2d_5")
    before = answers.args[0].args[0]
    traced = torch.from_numpy(np.array(module.trace(written, images.numpy())[before.name]))
    scale, zero_point = before.args[1:3]
    given = (traced.float() - zero_point) * scale
    expected = torch.conv2d(given, *weights_of(answers)).flatten(1)
    found = run(module.open_file(written), fed=images, batch=1)
    assert float((found - expected).abs().max()) < EPSILON[form] * float(expected.abs().max())


def test_the_layer_behind_a_float_one_rounds_torchs_convolution(form: str, written: Path) -> None:
    """No integer differs, but where torch's number lies next to the middle of two steps."""
    images = floats.noise(8, seed=3)
    (conv,) = (n for n in one_in_float().graph.nodes if n.name == "conv2d_1")
    before = conv.args[0].args[0]
    (after,) = conv.users
    traced = FORMATS[form].module().trace(written, images.numpy())
    source, found = (torch.from_numpy(np.array(traced[n.name])) for n in (before, after))
    given = (source.float() - before.args[2]) * before.args[1]
    exact = torch.conv2d(given, *weights_of(conv), padding=1) / after.args[1] + after.args[2]
    apart = (found.float() - exact.clamp(-128, 127)).abs()
    assert float(apart.max()) < 0.5 + 300 * EPSILON[form]


def test_float_weights_are_stored_as_they_are(form: str, written: Path) -> None:
    weight, bias = weights_of(next(n for n in one_in_float().graph.nodes if n.name == "conv2d_1"))
    assert any(same(weight, one, form) for one in stored_in(form, written))
    assert any(same(bias, one, form) for one in stored_in(form, written))


def same(wanted: Tensor, found: Any, form: str) -> bool:
    if isinstance(found, str):
        return False
    precision = torch.float16 if form == "coreml" else torch.float32
    wanted = wanted.permute(0, 2, 3, 1) if form == "tflite" and wanted.dim() == 4 else wanted
    given = torch.from_numpy(np.array(found)).to(precision)
    return given.shape == wanted.shape and torch.equal(given, wanted.to(precision))


def stored_in(form: str, path: Path) -> list[Any]:
    """Every constant of a file."""
    if form == "onnx":
        return list(as_onnx.constants(onnx.load(path)).values())
    if form == "coreml":
        return [op.attributes["val"] for op in package.read(path).operations if op.type == "const"]
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    tensors = [t for t in model.subgraphs[0].tensors if t.type == schema.TensorType.FLOAT32]
    kept = [(t, model.buffers[t.buffer].data) for t in tensors]
    return [
        np.frombuffer(bytes(data), np.float32).reshape(t.shape)
        for t, data in kept
        if data is not None and len(data)
    ]


def test_onnx_runtime_would_round_the_weights_by_itself(tmp_path: Path) -> None:
    """Why the file has a sum of one tensor; the day it is not needed, this fails."""
    path = tmp_path / "model.onnx"
    FORMATS["onnx"].module().write(one_in_float(), path)
    model = onnx.load(path)
    copies = [node for node in model.graph.node if node.op_type == "Sum"]
    assert len(copies) == 1, "the classifier's numbers are not rounded next"
    before = inspect_onnx(path)
    for node in model.graph.node:
        node.input[:] = [copies[0].input[0] if i == copies[0].output[0] else i for i in node.input]
    model.graph.node.remove(copies[0])
    onnx.save(model, path)
    after = inspect_onnx(path)
    assert after.int8_macs > before.int8_macs


def test_tensorflow_would_quantize_a_float_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why float layers are marked; without, all is int8."""
    monkeypatch.setattr("pipeline.formats.tflite.file.mark", lambda model: None)
    path = tmp_path / "model.tflite"
    program = floats.program("blocks.0.conv1")
    FORMATS["tflite"].module().write(program, path)
    facts = FORMATS["tflite"].module().inspect(path)
    assert facts.int8_macs == facts.macs
    assert "FLOOR" not in facts.ops


def test_tensors_that_int8_and_float_layers_both_read(form: str, tmp_path: Path) -> None:
    """The image, what is concatenated, the factors of a product, the parts of a sum."""
    program = floats.program("a", "gate", model=floats.mixed())
    path = tmp_path / f"model{FORMATS[form].suffix}"
    FORMATS[form].module().write(program, path)
    assert all_misses(form, program, path) == []
    assert [layer.module for layer in left_in_float(program)] == ["a", "gate"]


def test_operations_known_in_float_alone_are_in_every_format(form: str, tmp_path: Path) -> None:
    """All of them in one file, each between int8 convolutions."""
    in_a_row = floats.in_a_row([OPERATIONS[name] for name in ROW])
    program = floats.program("operations", model=in_a_row, side=SIDE)
    path = tmp_path / f"model{FORMATS[form].suffix}"
    FORMATS[form].module().write(program, path)
    assert all_misses(form, program, path, SIDE) == []
    convolved = [layer for layer in layers_of(program) if layer.operation.startswith("conv2d")]
    assert len(convolved) > len(ROW)
    left = {layer.module.rpartition(".")[2] for layer in left_in_float(program)}
    assert {str(number) for number in range(len(ROW))} <= left
