"""Core ML packages, read from their specification; only Apple systems can run them."""

import platform
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from coremltools.models.utils import load_spec
from coremltools.proto import MIL_pb2

from pipeline.formats import coreml, qdq
from pipeline.formats.facts import FileFacts, scales_exact
from tests import programs

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


def write(folder: Path, source: programs.Written) -> File:
    path = folder / "model.mlpackage"
    coreml.write(source.program, path)
    return File(
        path=path,
        operations=list(main_block(load_spec(str(path))).operations),
        facts=coreml.inspect(path),
        source=source,
    )


@pytest.fixture(scope="module", params=["radix2", "radix4"])
def int8(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> File:
    return write(tmp_path_factory.mktemp("coreml"), programs.quantized(request.param))


@pytest.fixture(scope="module")
def unquantized(tmp_path_factory: pytest.TempPathFactory) -> File:
    return write(tmp_path_factory.mktemp("coreml"), programs.unquantized("radix2"))


def assert_is_an_mlprogram(file: File) -> None:
    spec = load_spec(str(file.path))
    assert spec.WhichOneof("Type") == "mlProgram"
    assert spec.specificationVersion == IOS17
    (image,), (logits,) = spec.description.input, spec.description.output
    assert (image.name, logits.name) == (qdq.INPUT, qdq.OUTPUT)
    assert list(image.type.multiArrayType.shape) == [1, 3, programs.SIDE, programs.SIDE]
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
    made_by, read = int8.producers(), coreml._blob_reader(int8.path)
    for op in int8.operations:
        if op.type != "dequantize":
            continue
        source = made_by[int8.argument(op, "input")]
        while source.type != "quantize":  # a reshape of integers
            source = made_by[int8.argument(source, "x")]
        for name in ("scale", "zero_point"):
            found, wanted = (coreml._value(made_by, o, name, read) for o in (op, source))
            assert found == wanted


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
    exact = scales_exact(int8.source.program, coreml.inspect(changed))
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


@pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML runs here")
def test_says_where_it_cannot_run() -> None:
    assert coreml.cannot_run() == f"Core ML runs on Apple systems only, not on {platform.system()}"
