"""Files that other tools make of the same network, calibrated on the same images."""

import dataclasses
import errno
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pipeline.base import safe_files
from pipeline.commands.bench.peer_files import _kept
from pipeline.commands.bench.peers import onnx_int8
from pipeline.commands.bench.peers.make import Peer, make
from pipeline.commands.bench.peers.plans import (
    KEPT,
    NAIVE,
    NAIVE_TIMM,
    PLANS,
)
from pipeline.formats import as_onnx
from pipeline.formats.formats import FORMATS
from pipeline.formats.onnx.file import needs_exact_kernels
from pipeline.formats.tflite.onnx2tf_folder import scratch_directory
from pipeline.networks.resnest.published import ResearchAttention, TimmAttention, research_form
from tests.making import programs
from tests.making.cli import python_for_writers
from tests.making.networks import CLASSES, images
from tests.making.peers import (
    COMPRESSOR,
    COREML,
    INT8,
    NO_TOOL,
    OIQT,
    STATIC,
    TFLITE_FLOAT,
    file_of,
    networks,
    planned,
    wanted,
    with_plans,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Peer]:
    """Every peer of a small network, calibrated on 16 images, by processes of the server's."""
    with pytest.MonkeyPatch.context() as patch:
        beside = str(Path(sys.executable).parent)
        patch.setenv("PATH", os.pathsep.join([beside, os.environ.get("PATH", "")]))
        patch.setattr(sys, "executable", python_for_writers())
        return {peer.name: peer for peer in make(networks(), images(16), folder)}


def logits_of(peer: Peer) -> torch.Tensor:
    runnable = FORMATS[peer.format].module().open_file(file_of(peer))
    return programs.run(runnable, fed=images(8, seed=5))


def test_every_peer_is_made(made: dict[str, Peer], folder: Path) -> None:
    assert [peer.missing for peer in made.values()] == [None] * len(PLANS)
    assert list(made) == [plan.name for plan in PLANS]
    files = {plan.file for plan in PLANS}
    assert {file_of(peer).name for peer in made.values()} == files
    assert {path.name for path in folder.iterdir()} == files | {f"{file}.log" for file in files}
    for peer in made.values():
        assert peer.seconds > 0
        assert peer.peak_bytes is not None
        assert 50e6 < peer.peak_bytes < 4e9


@pytest.mark.parametrize(
    ("name", "tolerance"), [(NAIVE, 1e-5), (NAIVE_TIMM, 1e-5), (TFLITE_FLOAT, 1e-5), (COREML, 5e-3)]
)
def test_float_files_answer_as_the_network(
    made: dict[str, Peer], name: str, tolerance: float
) -> None:
    torch.testing.assert_close(logits_of(made[name]), wanted(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", INT8)
def test_int8_files_answer_nearly_as_the_network(made: dict[str, Peer], name: str) -> None:
    found, right = logits_of(made[name]), wanted()
    assert found.shape == (8, CLASSES)
    for one, other in zip(found, right, strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.99
    assert (found - right).abs().max() > 1e-4


def input_grid(path: Path) -> tuple[float, int]:
    """Scale and int8 zero point that a file quantizes its image with."""
    if path.suffix == ".onnx":
        model = onnx.load(path)
        values = as_onnx.constants(model)
        (node,) = [n for n in model.graph.node if n.input[0] == "image"]
        return float(values[node.input[1]]), int(values[node.input[2]]) - 128
    graph = tflite_graph(path.read_bytes()).subgraphs[0]
    grid = graph.tensors[graph.operators[0].outputs[0]].quantization
    return float(grid.scale[0]), int(grid.zeroPoint[0])


@pytest.mark.parametrize("name", INT8)
def test_the_calibration_images_set_the_ranges(made: dict[str, Peer], name: str) -> None:
    """As they are: neither normalised again nor with channels mistaken for rows.

    Where fast kernels would saturate, neural-compressor leaves a bit out.
    """
    steps = 127 if name == COMPRESSOR and needs_exact_kernels() else 255
    low, high = images(16).min().item(), images(16).max().item()
    scale, zero_point = input_grid(file_of(made[name]))
    assert scale == pytest.approx((high - low) / steps, rel=1e-5)
    assert zero_point == pytest.approx(-128 - low / scale, abs=0.6)


def test_int8_files_are_int8(made: dict[str, Peer]) -> None:
    operations = {
        name: Counter(node.op_type for node in onnx.load(file_of(made[name])).graph.node)
        for name in (STATIC, COMPRESSOR)
    }
    (weights,) = {
        len(as_onnx.constants(onnx.load(file_of(made[STATIC])))[node.input[1]].reshape(-1))
        for node in onnx.load(file_of(made[STATIC])).graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].startswith("conv1.0.weight")
    }
    assert weights == 8, "not one scale per channel"
    assert operations[STATIC]["QuantizeLinear"] > operations[STATIC]["Conv"] > 0
    convolutions = operations[STATIC]["Conv"]
    assert operations[COMPRESSOR]["QLinearConv"] == convolutions
    assert operations[COMPRESSOR]["Conv"] == 0
    described = Counter(line[:2] for line in content(file_of(made[OIQT]).read_bytes()).elements())
    assert sum(n for (op, types), n in described.items() if op == "CONV_2D") == convolutions
    assert all(types == "int8" for op, types in described if op == "CONV_2D")


def tflite_graph(file: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(file, 0)


def content(file: bytes) -> Counter[tuple[object, ...]]:
    """Every operation of a TFLite file, its tensors' shapes, types, grids and constants.

    What the same thing can be said with in several ways is left out: the shape that a reshape is
    given (-1 is as good as a number) and the order of the axes of a mean.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    types = {number: name for name, number in vars(schema.TensorType).items()}
    model = tflite_graph(file)
    graph = model.subgraphs[0]

    def described(index: int) -> tuple[object, ...]:
        tensor = graph.tensors[index]
        data, grid = model.buffers[tensor.buffer].data, tensor.quantization
        scale = () if grid is None or grid.scale is None else (*grid.scale, *grid.zeroPoint)
        constant = None if data is None else bytes(data)
        return (tuple(tensor.shape), types[tensor.type], scale, constant)

    loose = {"RESHAPE": 1, "MEAN": 1}

    found: Counter[tuple[object, ...]] = Counter()
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        inputs = op.inputs[: loose.get(name)]
        options = sorted(vars(op.builtinOptions).items()) if op.builtinOptions else []
        found[
            name,
            types[graph.tensors[op.outputs[0]].type].lower(),
            tuple(described(index) for index in (*inputs, *op.outputs)),
            str(options) if name != "RESHAPE" else "",
        ] += 1
    return found


@pytest.mark.parametrize("name", [TFLITE_FLOAT, OIQT])
def test_a_tflite_file_is_what_onnx2tf_itself_writes(
    made: dict[str, Peer], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx2tf

    programs_beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", programs_beside)
    calibration = images(16).permute(0, 2, 3, 1).contiguous().numpy()
    options: dict[str, Any] = {}
    if name == OIQT:
        options["output_integer_quantized_tflite"] = True
        options["custom_input_op_name_np_data_path"] = [["image", "images.npy", 0.0, 1.0]]
    with scratch_directory():
        np.save("images.npy", calibration)
        shutil.copy(file_of(made[NAIVE]), "model.onnx")
        onnx2tf.convert(input_onnx_file_path="model.onnx", output_folder_path="out", **options)
        suffix = "integer_quant" if name == OIQT else "float32"
        own = Path(f"out/model_{suffix}.tflite").read_bytes()
    assert content(file_of(made[name]).read_bytes()) == content(own)


@pytest.mark.parametrize("variant", programs.SHAPES)
@pytest.mark.parametrize("attention", [ResearchAttention, TimmAttention])
def test_research_form_computes_the_same(variant: str, attention: type[ResearchAttention]) -> None:
    ours = programs.network(variant)
    research = research_form(ours, attention)
    assert any(isinstance(module, ResearchAttention) for module in research.modules())
    assert not any(isinstance(module, ResearchAttention) for module in ours.modules())
    with torch.no_grad():
        found, right = research(programs.examples()), ours(programs.examples())
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


def test_the_naive_export_has_the_research_codes_operations(made: dict[str, Peer]) -> None:
    model = onnx.load(file_of(made[NAIVE]))
    operations = Counter(node.op_type for node in model.graph.node)
    assert operations["Softmax"] == operations["Transpose"] == 1
    assert operations["Split"] == 2
    assert operations["Reshape"] == 3
    assert operations["GatherND"] == operations["BatchNormalization"] == 0
    assert [i.name for i in model.graph.input] == [as_onnx.INPUT]
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 32, 32]
    assert [o.name for o in model.graph.output] == [as_onnx.OUTPUT]
    assert all(node.op_type != "Conv" or len(node.input) == 3 for node in model.graph.node)


def test_kept_files_that_cannot_be_read_now_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Peer(
        name="x",
        tool="a tool",
        format="onnx",
        precision="float",
        path=None,
        seconds=1.0,
        peak_bytes=None,
        missing="it failed",
    )
    wanted: dict[str, object] = {"data": "1"}
    (tmp_path / KEPT).write_text(
        json.dumps({"made_of": wanted, "peers": [dataclasses.asdict(peer)]})
    )
    (found,) = _kept(tmp_path, wanted) or []
    assert found.name == "x"
    assert _kept(tmp_path, {"data": "2"}) is None
    assert _kept(tmp_path / "nowhere", wanted) is None

    def fails(path: Path) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(safe_files, "open_file", fails)
    with pytest.raises(OSError, match="Input/output error"):
        _kept(tmp_path, wanted)


def test_a_tool_that_fails_leaves_the_others(
    made: dict[str, Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = dataclasses.replace(
        planned(STATIC), name="after it", file="after.onnx", source=NO_TOOL.name
    )
    with_plans(monkeypatch, NO_TOOL, after, dataclasses.replace(planned(STATIC), source=None))
    shutil.copy(file_of(made[NAIVE]), tmp_path)
    (tmp_path / NO_TOOL.file).write_text("of an earlier run")
    told: list[str] = []
    failed, unmade, static = make(networks(), images(2), tmp_path, 1, told.append)
    assert failed.missing == "KeyError: 'no such tool' (more in no.onnx.log)"
    assert unmade.missing == "it is made from 'no such tool', which is missing"
    assert (failed.path, unmade.path, unmade.seconds) == (None, None, 0.0)
    assert file_of(static).is_file()
    assert len(told) == 3
    assert told[0] == f"no such tool: {failed.missing}"
    assert {path.name for path in tmp_path.iterdir()} == {
        *(NO_TOOL.file + ".log", planned(NAIVE).file),
        *(planned(STATIC).file, planned(STATIC).file + ".log"),
    }


def test_neural_compressors_own_reason_is_kept(
    made: dict[str, Peer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It logs an exception and returns nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx, "mapping", onnx_int8._types(), raising=False)
    reason = r"Unexpected exception InvalidArgument\(.*Got invalid dimensions for input: image"
    too_small = images(2)[..., :16].numpy()
    with pytest.raises(RuntimeError, match=reason):
        onnx_int8.neural_compressor(file_of(made[NAIVE]), too_small, tmp_path / "none.onnx")
