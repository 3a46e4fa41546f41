"""Sparse storage in Core ML packages: fewer bytes, the same numbers."""

import copy
import io
import runpy
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.models.utils import load_spec

from pipeline.base.children import Children
from pipeline.formats import as_onnx, write
from pipeline.formats.coreml import file as coreml_file
from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.coreml import sparse as coreml_sparse
from pipeline.formats.coreml.evaluator import Evaluator
from pipeline.formats.coreml.weights import int8_weight
from pipeline.formats.file_facts import FileFacts, scales_exact
from tests.making import programs
from tests.making.packages import Array, normal, saved_ios18

pytestmark = pytest.mark.slow

IOS18 = 9
"""Specification version."""
SPARSE = ("constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense")


def half_zero(source: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A program with every second of its weights zero, in every layer but 1 x 1 reductions."""
    changed = copy.deepcopy(source)
    generator = torch.Generator().manual_seed(0)
    for tensor in {**changed.state_dict, **changed.constants}.values():
        wanted = isinstance(tensor, torch.Tensor) and tensor.dtype == torch.int8
        if wanted and tensor.dim() == 4 and tensor.shape[0] >= tensor.shape[1] > 1:
            tensor[torch.rand(tensor.shape, generator=generator) < 0.5] = 0
    return changed


@dataclass(frozen=True, kw_only=True)
class Package:
    path: Path
    network: coreml_package.Network
    facts: FileFacts

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files())

    @property
    def zipped(self) -> int:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in self.files():
                archive.write(file)
        return len(buffer.getvalue())

    def files(self) -> list[Path]:
        return [file for file in self.path.rglob("*") if file.is_file()]

    def weights(self) -> dict[str, Array]:
        """The int8 weights of every convolution, zeros included, by its output."""
        made_by = self.network.producers()
        found = {}
        for op in self.network.operations:
            if op.type == "conv":
                weight = made_by[op.tensor("weight")]
                if weight.type == SPARSE[1]:
                    weight = made_by[weight.tensor("nonzero_data")]
                    mask, values = (
                        np.asarray(weight.constant(n, made_by))
                        for n in ("data_mask", "nonzero_data")
                    )
                    dense = np.zeros(mask.shape, np.int8)
                    dense[mask] = values
                elif weight.type == "constexpr_affine_dequantize":
                    dense = np.asarray(weight.attributes["quantized_data"])
                else:
                    dense = np.asarray(weight.constant("data", made_by))
                found[op.outputs[0].name] = dense
        return found


def opened(path: Path) -> Package:
    return Package(path=path, network=coreml_package.read(path), facts=coreml_file.inspect(path))


@pytest.fixture(scope="module")
def source() -> torch.export.ExportedProgram:
    return half_zero(programs.quantized("radix2").program)


@pytest.fixture(scope="module")
def dense(
    source: torch.export.ExportedProgram, tmp_path_factory: pytest.TempPathFactory
) -> Package:
    path = tmp_path_factory.mktemp("dense") / "model.mlpackage"
    coreml_file.write(source, path)
    return opened(path)


@pytest.fixture(scope="module")
def sparse(
    source: torch.export.ExportedProgram, tmp_path_factory: pytest.TempPathFactory
) -> Package:
    path = tmp_path_factory.mktemp("sparse") / "model.mlpackage"
    coreml_file.write(source, path, options={"sparse"})
    return opened(path)


def test_is_a_package_for_ios18(dense: Package, sparse: Package) -> None:
    assert load_spec(str(sparse.path)).specificationVersion == IOS18
    names = [{f.relative_to(p.path).as_posix() for f in p.files()} for p in (dense, sparse)]
    assert names[0] == names[1]


def test_what_is_stored_sparsely_is_smaller(dense: Package, sparse: Package) -> None:
    made_by = sparse.network.producers()
    stored = Counter[tuple[str, bool]]()
    for op in sparse.network.operations:
        if op.type == "conv":
            weight = made_by[op.tensor("weight")]
            data = sparse.weights()[op.outputs[0].name]
            stored[weight.type, coreml_sparse.is_smaller(data)] += 1
    assert stored.keys() == {(SPARSE[1], True), ("constexpr_blockwise_shift_scale", False)}
    assert min(stored.values()) > 10
    assert sparse.facts.ops[SPARSE[0]] == sparse.facts.ops[SPARSE[1]]


def test_bytes_are_saved(dense: Package, sparse: Package) -> None:
    """Measured: 710,884 to 536,343 bytes, zipped 409,644 to 368,110."""
    assert sparse.bytes < 0.8 * dense.bytes
    assert sparse.zipped < 0.95 * dense.zipped


def test_the_weights_are_the_same(dense: Package, sparse: Package) -> None:
    one, two = dense.weights(), sparse.weights()
    assert one.keys() == two.keys()
    assert len(one) > 40
    for name, weight in one.items():
        np.testing.assert_array_equal(weight, two[name])
    assert max((weight == 0).mean() for weight in one.values()) > 0.45


def test_facts_are_the_same(
    source: torch.export.ExportedProgram, dense: Package, sparse: Package
) -> None:
    assert sparse.facts.layers == dense.facts.layers
    assert sparse.facts.weights == dense.facts.weights
    assert (sparse.facts.macs, sparse.facts.int8_macs) == (dense.facts.macs, dense.facts.int8_macs)
    assert sparse.facts.int8_coverage == 1.0
    exact = scales_exact(source, sparse.facts)
    assert exact is not None
    assert exact.same == exact.total > 300
    differing = {
        n
        for n, count in (sparse.facts.ops | dense.facts.ops).items()
        if sparse.facts.ops.get(n) != count or dense.facts.ops.get(n) != count
    }
    assert differing == {*SPARSE, "constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"}


def logits(net: coreml_package.Network) -> Array:
    images = programs.examples().numpy()[:, None]
    return Evaluator(net).run({as_onnx.INPUT: images}, [as_onnx.OUTPUT])[as_onnx.OUTPUT]


def test_logits_and_every_layer_are_the_same_bit_for_bit(dense: Package, sparse: Package) -> None:
    np.testing.assert_array_equal(logits(sparse.network), logits(dense.network))
    one, two = (coreml_file.trace(p.path, programs.examples().numpy()) for p in (dense, sparse))
    assert one.keys() == two.keys()
    for name, integers in one.items():
        np.testing.assert_array_equal(integers, two[name])


def test_a_value_in_the_wrong_place_shows(dense: Package, sparse: Package) -> None:
    operations = list(sparse.network.operations)
    index, op = next((i, op) for i, op in enumerate(operations) if op.type == SPARSE[0])
    values = np.asarray(op.constant("nonzero_data", sparse.network.producers()))
    operations[index] = replace(op, inputs={**op.inputs, "nonzero_data": np.roll(values, 1)})
    wrong = replace(sparse.network, operations=tuple(operations))
    assert not np.array_equal(logits(wrong), logits(dense.network))


def test_smaller_is_with_overhead() -> None:
    def halves(size: int, share: float) -> Array:
        weight = np.ones(size, np.int8)
        weight[: round(size * share)] = 0
        return weight

    assert coreml_sparse.is_smaller(halves(2048, 0.5))
    assert not coreml_sparse.is_smaller(halves(1024, 0.5))
    assert not coreml_sparse.is_smaller(halves(100_000, 0.125))
    assert coreml_sparse.is_smaller(halves(100_000, 0.14))


def test_a_float_program_has_nothing_to_store_sparsely(tmp_path: Path) -> None:
    coreml_file.write(
        programs.unquantized("basic").program, tmp_path / "model.mlpackage", options={"sparse"}
    )
    facts = coreml_file.inspect(tmp_path / "model.mlpackage")
    assert not facts.ops.keys() & {*SPARSE, "constexpr_blockwise_shift_scale"}
    assert facts.weights == Counter()
    assert facts.macs > facts.int8_macs == 0


@pytest.mark.parametrize("shape", [(1, 3), (5, 37)])  # in the specification, in the weight file
def test_masks_are_read_bit_by_bit(shape: tuple[int, int]) -> None:
    wanted = normal(*shape)
    mask = normal(*shape, seed=1) > 0
    mask.flat[0] = True

    def build(x: Any) -> Any:
        weight = mb.constexpr_sparse_to_dense(
            nonzero_data=wanted[mask], mask=mask.astype(types.np_uint1_dtype), name="dense"
        )
        return mb.add(x=x, y=weight)

    net = saved_ios18(build, shape)
    found = np.asarray(net.producers()["dense"].constant("mask", net.producers()))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, mask)
    x = normal(2, *shape, seed=2)
    (result,) = Evaluator(net).run({"x": x}, net.outputs).values()
    np.testing.assert_array_equal(result, x + wanted * mask)


def test_weights_that_are_not_int8_have_no_scales() -> None:
    scale = np.ones((6, 1, 1, 1), np.float32)
    weight = normal(6, 4, 1, 1)
    mask = np.ones(weight.shape, types.np_uint1_dtype)

    def build(x: Any) -> Any:
        floats = mb.constexpr_sparse_to_dense(nonzero_data=weight.ravel(), mask=mask)
        scaled = mb.constexpr_blockwise_shift_scale(data=weight, scale=scale)
        return [mb.conv(x=x, weight=w, name=n) for n, w in (("a", floats), ("b", scaled))]

    net = saved_ios18(build, (1, 4, 5, 5))
    made_by = net.producers()
    for name in ("a", "b"):
        weights = made_by[made_by[name].tensor("weight")]
        assert int8_weight(weights, made_by) is None


def test_only_core_ml_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []

    def run(
        children: Children, command: list[str], environment: object, early: tuple[str, list[str]]
    ) -> int:
        told.append(command[command.index("program.pt2") + 3 :])
        return 0

    monkeypatch.setattr(Children, "run", run)
    # ONNX files have no child.
    monkeypatch.setattr(write, "_write", lambda asked: told.append(list(asked.flags)))
    for name in ("onnx", "tflite", "coreml"):
        for pixels in (False, True):
            write.export(
                Path("program.pt2"), name, Path("model"), pixels=pixels, options={"sparse"}
            )
    assert told == [[], ["pixels"], [], ["pixels"], ["sparse"], ["pixels", "sparse"]]


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("flags", [[], ["pixels"], ["sparse"], ["pixels", "sparse"]])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_child_process_does_as_told(
    flags: list[str], early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[dict[str, object]] = []
    monkeypatch.setattr("pipeline.compress.quantization.program.load", lambda path: None)
    # This process is no child: where its input is closed, it would end.
    monkeypatch.setattr("pipeline.base.children.end_with_parent", lambda: None)
    monkeypatch.setattr(coreml_file, "write", lambda program, path, **given: written.append(given))
    words = ["program.pt2", "coreml", "model", *flags]
    monkeypatch.setattr("pipeline.base.children.told_work", lambda: words)
    monkeypatch.setattr(sys, "argv", ["export", *(["--early", "coreml"] if early else words)])
    runpy.run_module("pipeline.formats.write", run_name="__main__")
    assert written == [{"pixels": "pixels" in flags, "options": set(flags) - {"pixels"}}]
