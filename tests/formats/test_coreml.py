"""Core ML packages, read from their specification; `test_mil` has what they answer."""

import json
import platform
import shutil
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.models.utils import load_spec
from coremltools.proto import MIL_pb2
from torch import nn

from pipeline.compress.quantization.fold import float_program
from pipeline.formats import as_onnx
from pipeline.formats.coreml import file as coreml_file
from pipeline.formats.coreml import names as coreml_names
from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.coreml.aten import for_coremltools
from pipeline.formats.file_facts import FileFacts, scales_exact
from pipeline.tasks.images.pixels import normalize
from tests.making import networks, programs

pytestmark = pytest.mark.slow

IOS17 = 8
"""Specification version."""


@dataclass(frozen=True, kw_only=True)
class File:
    path: Path
    operations: list[Any]
    facts: FileFacts
    source: programs.Written

    def argument(self, operation: Any, name: str) -> str:
        return str(operation.inputs[name].arguments[0].name)

    def producers(self) -> dict[str, Any]:
        return {value.name: op for op in self.operations for value in op.outputs}

    def readers(self) -> dict[str, set[str]]:
        """Types of the operations that read each tensor."""
        found: dict[str, set[str]] = defaultdict(set)
        for op in self.operations:
            for values in op.inputs.values():
                for value in values.arguments:
                    found[value.name].add(op.type)
        return found


def main_block(spec: Any) -> Any:
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return block


def write(folder: Path, source: programs.Written, *, pixels: bool = False) -> File:
    path = folder / "model.mlpackage"
    coreml_file.write(source.program, path, pixels=pixels)
    return read(path, source)


def read(path: Path, source: programs.Written) -> File:
    return File(
        path=path,
        operations=list(main_block(load_spec(str(path))).operations),
        facts=coreml_file.inspect(path),
        source=source,
    )


@pytest.fixture(scope="module", params=["radix2", "radix4"])
def int8(request: pytest.FixtureRequest) -> File:
    return read(programs.file_of("coreml", request.param), programs.quantized(request.param))


@pytest.fixture(scope="module")
def unquantized(tmp_path_factory: pytest.TempPathFactory) -> File:
    return write(tmp_path_factory.mktemp("coreml"), programs.unquantized("radix2"))


@pytest.fixture(scope="module")
def pixels() -> File:
    return read(programs.file_of("coreml", pixels=True), programs.quantized("radix2", pixels=True))


@pytest.fixture(scope="module")
def float_pixels(tmp_path_factory: pytest.TempPathFactory) -> File:
    source = programs.unquantized("radix1", pixels=True)
    return write(tmp_path_factory.mktemp("coreml"), source, pixels=True)


def assert_is_an_mlprogram(file: File) -> None:
    spec = load_spec(str(file.path))
    assert spec.WhichOneof("Type") == "mlProgram"
    assert spec.specificationVersion == IOS17
    (image,), (logits,) = spec.description.input, spec.description.output
    assert (image.name, logits.name) == (as_onnx.INPUT, as_onnx.OUTPUT)
    assert list(image.type.multiArrayType.shape) == [1, 3, networks.SIDE, networks.SIDE]
    files = {p.relative_to(file.path).as_posix() for p in file.path.rglob("*") if p.is_file()}
    assert files == {
        "Manifest.json",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
    }


def test_is_a_package_for_ios17(int8: File) -> None:
    assert_is_an_mlprogram(int8)


def test_every_convolution_stands_between_dequantize_and_quantize(int8: File) -> None:
    made_by, readers = int8.producers(), int8.readers()
    convolutions = [op for op in int8.operations if op.type in {"conv", "linear"}]
    assert len(convolutions) == int8.facts.ops["conv"] > 10
    for op in convolutions:
        assert made_by[int8.argument(op, "x")].type == "dequantize"
        assert made_by[int8.argument(op, "weight")].type == "constexpr_affine_dequantize"
        assert readers[op.outputs[0].name] == {"quantize"}


def test_runs_in_integers_with_the_learned_scales(int8: File) -> None:
    assert int8.facts.int8_coverage == 1.0
    assert int8.facts.macs > 0
    exact = scales_exact(int8.source.program, int8.facts)
    assert exact is not None
    assert exact.same == exact.total > 300


def test_tensors_are_read_on_the_grid_they_were_written_on(int8: File) -> None:
    """coremltools would divide the two grids of an addition by one another."""
    network = coreml_package.read(int8.path)
    made_by = network.producers()
    for op in network.operations:
        if op.type != "dequantize":
            continue
        source = made_by[op.tensor("input")]
        while source.type != "quantize":  # a reshape of integers
            source = made_by[source.tensor("x")]
        for name in ("scale", "zero_point"):
            assert op.constant(name, made_by) == source.constant(name, made_by)


def test_quantized_tensors_have_the_programs_names(int8: File) -> None:
    nodes = {node.name: node for node in int8.source.program.graph.nodes}
    quantizes = [op for op in int8.operations if op.type == "quantize"]
    assert len(quantizes) > 70
    for op in quantizes:
        node = nodes[op.outputs[0].name]
        assert node.target is torch.ops.quantized_decomposed.quantize_per_tensor.default
        (name,) = op.attributes["name"].immediateValue.tensor.strings.values
        assert name == node.name
        shape = [d.constant.size for d in op.outputs[0].type.tensorType.dimensions]
        assert shape[1:] == list(node.meta["val"].shape[1:])


def test_names_of_another_program_are_refused(int8: File, tmp_path: Path) -> None:
    copied = tmp_path / "model.mlpackage"
    shutil.copytree(int8.path, copied)
    names = coreml_names.quantize_names(int8.source.program)
    coreml_names.stamp_names(copied, names, {})  # a second time changes nothing
    name, producer = next((n, p) for p, n in names.items() if p.startswith("conv2d"))
    without = {p: n for p, n in names.items() if n != name}
    with pytest.raises(RuntimeError, match=f"quantize '{name}' reads '{producer}_cast_fp16'"):
        coreml_names.stamp_names(copied, without, {})
    twice = names | {producer: names[as_onnx.INPUT]}
    with pytest.raises(RuntimeError, match=f"quantize '{name}' .* quantizes once only"):
        coreml_names.stamp_names(copied, twice, {})


def test_an_image_may_be_called_as_something_of_python() -> None:
    """As that of an `nn.Sequential` is: a copy of a graph gives it another name."""
    program = float_program(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), torch.zeros(2, 3, 8, 8))
    assert program.graph_signature.user_inputs == ("input",)
    labelled = for_coremltools(program)
    assert labelled.dialect == "ATEN"
    assert [n.name for n in labelled.graph.nodes] == [n.name for n in program.graph.nodes]


def test_a_change_of_one_scale_shows(int8: File, tmp_path: Path) -> None:
    spec = load_spec(str(int8.path))
    quantize = [op for op in main_block(spec).operations if op.type == "quantize"][5]
    other = [op for op in main_block(spec).operations if op.type == "quantize"][6]
    quantize.inputs["scale"].CopyFrom(other.inputs["scale"])
    changed = tmp_path / "model.mlpackage"
    for file in (p for p in int8.path.rglob("*") if p.is_file()):
        copy = changed / file.relative_to(int8.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes() if file.suffix != ".mlmodel" else spec.SerializeToString()
        copy.write_bytes(content)
    exact = scales_exact(int8.source.program, coreml_file.inspect(changed))
    assert exact is not None
    assert exact.same < exact.total


def test_float_package_has_float16_weights(unquantized: File) -> None:
    assert_is_an_mlprogram(unquantized)
    made_by = unquantized.producers()
    convolutions = [op for op in unquantized.operations if op.type == "conv"]
    for op in convolutions:
        weight = made_by[unquantized.argument(op, "weight")]
        assert weight.type == "const"
        kind = weight.outputs[0].type.tensorType.dataType
        assert MIL_pb2.DataType.Name(kind) == "FLOAT16"
    assert "quantize" not in unquantized.facts.ops
    assert unquantized.facts.int8_coverage == 0.0
    assert unquantized.facts.macs > 0
    assert scales_exact(unquantized.source.program, unquantized.facts) is None


def test_the_evaluator_answers_where_core_ml_does_not_run(
    int8: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert coreml_file.cannot_time() == "Core ML runs on Apple systems only, not on Linux"
    assert coreml_file.evaluated() == "reference"
    runnable = coreml_file.open_file(int8.path)
    assert isinstance(runnable, coreml_file.ReferenceRunnable)
    assert runnable.batch is None
    images = int8.source.images
    found = programs.run(runnable, len(images), images)
    apart = (found - int8.source.logits).abs() / programs.output_scale(int8.source.program)
    assert apart.round().median() <= 1


def test_core_ml_answers_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert coreml_file.cannot_time() is None
    assert coreml_file.evaluated() == "runtime"


def assert_takes_camera_images(file: File) -> None:
    """An RGB image, which nothing but the network's own operations changes."""
    (image,) = load_spec(str(file.path)).description.input
    kind = image.type.imageType
    assert image.type.WhichOneof("Type") == "imageType"
    assert (kind.width, kind.height) == (networks.SIDE, networks.SIDE)
    assert kind.colorSpace == kind.RGB
    steps = [
        op for op in file.operations if op.type not in {"const", "constexpr_affine_dequantize"}
    ]
    assert [op.type for op in steps if as_onnx.INPUT in used_by(op)] == ["cast"]


def used_by(operation: Any) -> set[str]:
    return {a.name for given in operation.inputs.values() for a in given.arguments}


def steps_apart(found: torch.Tensor, file: File) -> torch.Tensor:
    """By how many steps logits, which Core ML gives in float16, differ from the program's."""
    apart = (found - file.source.logits).abs()
    return (apart / programs.output_scale(file.source.program)).round()


def test_pixels_go_in_as_the_camera_gives_them(pixels: File) -> None:
    assert_takes_camera_images(pixels)
    assert (1.0, -128) in pixels.facts.layers.values()
    assert pixels.facts.int8_coverage == 1.0
    exact = scales_exact(pixels.source.program, pixels.facts)
    assert exact is not None
    assert exact.same == exact.total > 300


def test_pixels_give_the_logits_of_the_program(pixels: File) -> None:
    runnable = coreml_file.ReferenceRunnable(pixels.path)
    images = pixels.source.images
    apart = steps_apart(programs.run(runnable, batch=16, fed=images), pixels)
    assert apart.median() <= 1
    assert apart.max() <= 6
    # The gate can fail: the same file, fed blue, green, red.
    assert steps_apart(programs.run(runnable, batch=16, fed=images.flip(1)), pixels).max() > 20
    with pytest.raises(ValueError, match="whole numbers 0 to 255"):
        runnable.set_input(programs.examples().numpy())


def test_float_package_gives_the_logits_of_the_network_for_pixels(float_pixels: File) -> None:
    assert_takes_camera_images(float_pixels)
    images, normalization = float_pixels.source.images, programs.NORMALIZATION
    with torch.no_grad():
        wanted = float_pixels.source.network(
            normalize(images.to(torch.uint8), normalization.mean, normalization.std)
        )
    found = programs.run(coreml_file.ReferenceRunnable(float_pixels.path), batch=16, fed=images)
    assert (found - wanted).abs().max() <= 1e-2 * wanted.abs().max()


def bytes_of(package: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(package)): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file()
    }


def test_a_program_gives_the_same_bytes_again_and_keeps_them(int8: File, tmp_path: Path) -> None:
    written = bytes_of(int8.path)
    again = write(tmp_path, int8.source)
    assert bytes_of(again.path) == written
    coreml_file.open_file(again.path)
    load_spec(str(again.path))  # Core ML's own library, which writes the manifest anew
    assert bytes_of(again.path) == written


@pytest.mark.parametrize("path", ["../../elsewhere", "/etc/hostname", "gone.mlmodel"])
def test_a_package_cannot_lead_elsewhere(int8: File, tmp_path: Path, path: str) -> None:
    package = tmp_path / "model.mlpackage"
    shutil.copytree(int8.path, package)
    (tmp_path / "elsewhere").touch()
    listed = json.loads((package / coreml_package.MANIFEST).read_text())
    listed["itemInfoEntries"][listed["rootModelIdentifier"]]["path"] = path
    (package / coreml_package.MANIFEST).write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"model\.mlpackage: not a Core ML package that can be"):
        coreml_file.inspect(package)


@pytest.mark.parametrize("exact", [True, False])
def test_only_equal_constants_are_stored_once(exact: bool) -> None:
    from coremltools.converters.mil.mil import Builder, types
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    smallest = np.full(200, 2**-24, np.float16)
    other = smallest.copy()
    other[150] = 2**-23

    @Builder.program(input_specs=[Builder.TensorSpec(shape=(200,), dtype=types.fp16)])
    def network(x: Any) -> Any:
        one = Builder.add(x=x, y=Builder.const(val=smallest))
        two = Builder.add(x=one, y=Builder.const(val=smallest.copy()))
        return Builder.add(x=two, y=Builder.const(val=other))

    with coreml_file._only_equal_constants_are_one() if exact else nullcontext():
        PASS_REGISTRY["common::const_deduplication"](network)
    kept = [op for op in network.functions["main"].operations if op.op_type == "const"]
    assert len(kept) == (2 if exact else 1)
