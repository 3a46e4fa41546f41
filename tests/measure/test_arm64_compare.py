"""What is said of answers and layers that differ on an emulated processor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from pipeline.formats.formats import FORMATS
from pipeline.measure.arm64 import compare, record
from pipeline.measure.arm64.compare import Asked, Ran, compared, first_layers
from pipeline.measure.arm64.record import Counted, OnCpu
from pipeline.measure.lanes.arm64 import lane as arm64
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.parity_record import OutputSteps
from pipeline.report.arm64 import cells, lines
from tests.making import networks, programs

Trace = dict[str, NDArray[np.int8]]


def trace(*rows: list[int]) -> NDArray[np.int8]:
    return np.array(rows, np.int8)


def test_each_image_counts_at_the_first_layer_that_differs() -> None:
    here = {name: trace([1, 2], [3, 4], [5, 6]) for name in ("a", "b", "c")}
    there = {
        "a": trace([1, 2], [3, 4], [5, 6]),
        "b": trace([1, 3], [3, 4], [5, 6]),
        "c": trace([9, 9], [1, 5], [5, 6]),
    }
    found = first_layers(there, here, {"b": "layer1.0", "c": ""})
    assert [(one.name, one.module, one.images, one.values, one.steps) for one in found] == [
        ("b", "layer1.0", 1, 1, 1),
        ("c", None, 1, 2, 2),
    ]
    assert first_layers(here, here, {}) == ()


def asked(form: str = "onnx") -> Asked:
    written = programs.quantized("radix2")
    return Asked(
        file=ModelFile(path=programs.file_of(form), format=form),
        images=networks.images(6),
        step=programs.output_scale(written.program),
        program=written.program,
        no_program=None,
        modules={"quantize_per_tensor_3": "layer1"},
    )


def emulate(
    monkeypatch: pytest.MonkeyPatch, of: Asked, *, answers: Tensor, layers: dict[str, int]
) -> None:
    """Have a processor answer as here plus `answers`, and add to numbers of some layers."""

    def answered(files: Any, inputs: Any, threads: int, advance: Any) -> dict[str, Tensor]:
        advance(len(of.images))
        return {n: f + answers for n, f in LANES[HOST].answers(files, inputs, 1).items()}

    def traced(cpu: str, file: ModelFile, images: NDArray[np.float32]) -> Trace:
        found = dict(FORMATS[file.format].module().trace(file.path, images))
        for name, more in layers.items():
            found[name] = found[name].copy()
            found[name].flat[0] += more
        return found

    monkeypatch.setitem(LANES, "arm64-max", replace(LANES["arm64-max"], answers=answered))
    monkeypatch.setattr(arm64, "traced", traced)
    counts = Counted(total=3, products=1, macs=16, least=1)
    monkeypatch.setattr(compare, "counted", lambda cpu, file, image, modules: counts)


def one(of: Asked) -> OnCpu:
    done: list[tuple[int, str]] = []
    (found,) = compared(of, ["max"], lambda count, cpu: done.append((count, cpu)))
    assert isinstance(found, Ran)
    assert done[-1] == (len(of.images), "max")
    return found.record


@pytest.mark.slow
def test_what_answers_alike_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    of = asked()
    emulate(monkeypatch, of, answers=torch.zeros(6, 1), layers={})
    found = one(of)
    assert found.alike
    assert (found.same, found.images, found.traced) == (6, 6, 6)
    assert found.layers == found.layers_alike > 10
    assert (found.first, found.misses) == ((), ())
    assert found.program is not None
    assert lines([found]) == []
    assert found.instructions is not None
    assert cells(found)[:2] == ["6/6", "0"]


@pytest.mark.slow
def test_without_a_compiler_nothing_is_counted_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = asked()
    emulate(monkeypatch, of, answers=torch.zeros(6, 1), layers={})
    monkeypatch.setenv("PATH", "")
    found = one(of)
    assert found.instructions is None
    assert lines([found])[0].startswith("max: instructions not counted: there is no gcc")


@pytest.mark.slow
def test_what_differs_is_counted_in_steps_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    of = asked()
    assert of.step is not None
    apart = torch.zeros(6, 1)
    apart[4] = 2 * of.step
    emulate(monkeypatch, of, answers=apart, layers={"quantize_per_tensor_3": 9})
    found = one(of)
    assert not found.alike
    assert (found.same, found.steps and found.steps.largest) == (5, 2)
    assert found.layers_alike == found.layers - 1
    (first,) = found.first
    assert (first.name, first.module, first.steps) == ("quantize_per_tensor_3", "layer1", 9)
    assert found.otherwise, "the layer alone, or what reads it, is not what the program makes"
    said = lines([found, found.model_copy(update={"cpu": "cortex-a53"})])
    assert said[0].startswith("max, cortex-a53: the first layer that differs, on 6 images that ")
    assert "layer1 (quantize_per_tensor_3), 1 value of 1 image by 9 steps at most" in said[0]
    assert "alone make other numbers than the program's" in said[1]


@pytest.mark.slow
def test_images_whose_answers_differ_are_traced_first(monkeypatch: pytest.MonkeyPatch) -> None:
    of = asked()
    assert of.step is not None
    apart = torch.zeros(6, 1)
    apart[3] = of.step
    emulate(monkeypatch, of, answers=apart, layers={})
    monkeypatch.setattr(compare, "TRACED", 2)
    seen: list[Tensor] = []
    before = arm64.traced

    def watched(cpu: str, file: ModelFile, images: NDArray[np.float32]) -> Trace:
        seen.append(torch.from_numpy(images))
        return before(cpu, file, images)

    monkeypatch.setattr(arm64, "traced", watched)
    assert one(of).traced == 2
    assert torch.equal(seen[0], of.images[[3, 0]])


@pytest.mark.slow
def test_without_its_program_a_file_is_compared_with_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = replace(asked(), program=None, no_program="it is gone")
    emulate(monkeypatch, of, answers=torch.zeros(6, 1), layers={})
    found = one(of)
    assert found.alike
    assert (found.program, found.program_missing, found.otherwise) == (None, "it is gone", None)
    assert lines([found]) == ["max: not compared with the program: it is gone"]


@pytest.mark.slow
def test_a_float_file_is_judged_by_its_format_s_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    of = replace(asked(), step=None, program=None, no_program="none")
    largest = float(LANES[HOST].answers({"": of.file}, [of.images], 1)[""].abs().max())
    for share, alike in ((1e-7, True), (0.5, False)):
        emulate(monkeypatch, of, answers=torch.full((6, 1), share * largest), layers={})
        found = one(of)
        assert found.alike is alike
        assert (found.layers, found.steps) == (0, None)
        assert found.program_missing == compare.FLOAT
    assert "of the largest apart (at most " in lines([found])[0]


def on_cpu(**changes: Any) -> OnCpu:
    steps = OutputSteps(median=0, p99=0, largest=0, differing=0.0)
    values: dict[str, Any] = {"cpu": "max", "images": 2, "same": 2, "steps": steps}
    values |= {"difference": None, "program": steps, "traced": 2, "layers": 3, "layers_alike": 3}
    return OnCpu(**values | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"same": 3},
        {"layers_alike": 4},
        {"difference": 0.0},
        {"program": None},
        {"program_missing": "gone"},
    ],
)
def test_a_record_that_contradicts_itself_cannot_be_made(changes: dict[str, Any]) -> None:
    assert on_cpu().alike
    with pytest.raises(ValidationError):
        on_cpu(**changes)


def test_the_shipped_schema_is_current() -> None:
    schema = Path(record.__file__).parent / "arm64.schema.json"
    assert json.loads(schema.read_text()) == record.json_schema(), (
        "run: python -c 'import json; from pipeline.measure.arm64.record import json_schema; "
        f"print(json.dumps(json_schema(), indent=2))' > {schema}"
    )
