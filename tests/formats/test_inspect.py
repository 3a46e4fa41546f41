"""What the formats share: the learned scales, the comparison, writing in a child process."""

import math
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

from pipeline.compress.quantization import program
from pipeline.formats.file_facts import FileFacts, conv_macs, learned_scales, scales_exact
from pipeline.formats.formats import FORMATS
from pipeline.formats.write import export
from tests.making import programs
from tests.making.cli import python_for_writers

pytestmark = pytest.mark.slow


def as_learned(variant: str) -> tuple[torch.export.ExportedProgram, FileFacts]:
    """A program and what a perfect file of it says."""
    source = programs.quantized(variant).program
    layers, weights = learned_scales(source)
    return source, FileFacts(ops={}, int8_macs=3, macs=4, layers=layers, weights=weights)


def same_and_total(source: torch.export.ExportedProgram, facts: FileFacts) -> tuple[int, int]:
    exact = scales_exact(source, facts)
    assert exact is not None
    return exact.same, exact.total


def test_a_perfect_file_has_every_scale_once() -> None:
    source, facts = as_learned("radix2")
    channels = sum(len(w) * n for w, n in facts.weights.items())
    total = len(facts.layers) + channels
    assert same_and_total(source, facts) == (total, total)
    convolutions = [n for n in source.graph.nodes if n.target == torch.ops.aten.conv2d.default]
    assert facts.weights.total() == len(convolutions)


def test_scales_are_float16_numbers() -> None:
    """Core ML stores no others."""
    _, facts = as_learned("radix2")
    scales = torch.tensor(
        [s for s, _ in facts.layers.values()] + [s for w in facts.weights for s in w]
    )
    assert torch.equal(scales.half().float(), scales)


def test_a_wrong_grid_shows_even_if_another_layer_has_it() -> None:
    source, facts = as_learned("radix2")
    same, total = same_and_total(source, facts)
    one, two = [name for name, grid in facts.layers.items() if grid != (1 / 256, -128)][:2]
    scale, zero_point = facts.layers[one]
    facts.layers[one] = (math.nextafter(scale, 1), zero_point)
    assert same_and_total(source, facts) == (same - 1, total)
    facts.layers[one], facts.layers[two] = facts.layers[two], (scale, zero_point)
    assert same_and_total(source, facts) == (same - 2, total)
    del facts.layers[one]
    assert same_and_total(source, facts) == (same - 2, total)


def test_a_tensor_of_the_files_own_needs_a_learned_grid() -> None:
    source, facts = as_learned("radix2")
    same, total = same_and_total(source, facts)
    facts.layers["padded"] = next(iter(facts.layers.values()))
    assert same_and_total(source, facts) == (same, total)
    facts.layers["foreign"] = (0.125, 3)
    assert same_and_total(source, facts) == (same, total + 1)


def test_a_wrong_channel_costs_its_whole_tensor() -> None:
    source, facts = as_learned("radix2")
    same, total = same_and_total(source, facts)
    scales = next(iter(facts.weights))
    facts.weights.subtract([scales])
    facts.weights[(*scales[:-1], 2 * scales[-1])] += 1
    assert same_and_total(source, facts) == (same - len(scales), total)


def test_an_empty_file_has_none_of_the_scales() -> None:
    source, facts = as_learned("radix2")
    _, total = same_and_total(source, facts)
    empty = FileFacts(ops={}, int8_macs=0, macs=0, layers={}, weights=Counter())
    assert same_and_total(source, empty) == (0, total)
    assert empty.int8_coverage == 0.0
    assert facts.int8_coverage == 0.75


def test_macs_of_a_grouped_convolution() -> None:
    assert conv_macs((8, 2, 3, 3), 5 * 4) == 8 * 2 * 9 * 20
    assert conv_macs((10, 7), 1) == 70


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "program.pt2"
    program.save(programs.quantized("radix2").program, path)
    return path


def test_a_saved_program_gives_the_same_logits(saved: Path) -> None:
    with torch.no_grad():
        found = program.load(saved).module(check_guards=False)(programs.examples())
    assert torch.equal(found, programs.quantized("radix2").logits)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers are the server's, which has all imported; one test has a real one."""
    monkeypatch.setattr(sys, "executable", python_for_writers())


def test_export_writes_in_a_child_process(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / f"model{FORMATS['onnx'].suffix}"
    export(saved, "onnx", path)
    onnx.checker.check_model(onnx.load(path))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.usefixtures("soon")
def test_export_passes_on_that_the_file_takes_pixels(tmp_path: Path) -> None:
    source, path = tmp_path / "program.pt2", tmp_path / "model.onnx"
    program.save(programs.unquantized("radix1", pixels=True).program, source)
    export(source, "onnx", path, pixels=True)
    (image,) = onnx.load(path).graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8


@pytest.mark.usefixtures("soon")
def test_a_failed_export_raises(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match=r"writing the tflite file failed \(exit 1\)"):
        export(tmp_path / "missing.pt2", "tflite", tmp_path / "model.tflite")
    assert "missing.pt2" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
