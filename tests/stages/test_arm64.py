"""The gate `verify.arm64`: what it runs, what stops a run, and what a report says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.base.errors import InputError, MismatchError
from pipeline.base.store import Result, key_of
from pipeline.compress.quantization import program
from pipeline.measure.arm64.record import Counted, OnCpu
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.parity_record import OutputSteps
from pipeline.measure.timing import program_logits
from pipeline.recipe.recipe import load_recipes
from pipeline.report import html, markdown
from pipeline.report.arm64 import rows
from pipeline.report.records import Report
from pipeline.stages import arm64
from pipeline.stages.arm64 import Arm64Facts
from pipeline.stages.context import LOGITS, PROGRAM
from pipeline.stages.exported import with_calibration
from pipeline.stages.graph import STAGES
from pipeline.stages.guard import judged
from pipeline.stages.known import KNOWN
from pipeline.stages.schedule import stage_ingredients
from tests.making import programs, reports
from tests.making.arm64 import INSTRUCTIONS, native_machine
from tests.making.recipes import DEVICE_RECIPES
from tests.making.runs import context

ASKED = "verify.arm64=true"


def on_cpu(cpu: str, **changes: Any) -> OnCpu:
    steps = OutputSteps(median=0, p99=1, largest=1, differing=0.01)
    values: dict[str, Any] = {"cpu": cpu, "images": 50, "same": 43, "steps": steps}
    values |= {"difference": None, "program": steps, "traced": 8, "layers": 20, "layers_alike": 20}
    return OnCpu(**values | changes)


def test_it_is_off_where_nobody_asks() -> None:
    (recipe,) = load_recipes([DEVICE_RECIPES["onnx"]], known=KNOWN)
    assert not recipe.verify.arm64
    assert not arm64.STAGE.needed(recipe)


def test_core_ml_cannot_have_it() -> None:
    words = "arm64: must be false: only ONNX and TFLite have a runtime for ARM64 Linux"
    with pytest.raises(InputError, match=words):
        load_recipes([DEVICE_RECIPES["coreml"]], [ASKED], KNOWN)


def test_it_makes_no_other_stage_anew() -> None:
    found = []
    for overrides in ([], [ASKED]):
        (recipe,) = load_recipes([DEVICE_RECIPES["tflite"]], overrides, KNOWN)
        keys: dict[str, str] = {}
        for stage in STAGES:
            if stage.needed(recipe):
                keys[stage.name] = key_of(stage_ingredients(stage, context(recipe), keys))
        found.append(keys)
    without, asked = found
    assert asked.pop("arm64")
    assert asked == without


def result(*cpus: OnCpu) -> Result[Arm64Facts]:
    facts = Arm64Facts(emulator="QEMU 7.2", cpus=cpus)
    return Result(
        stage="arm64", key="0", directory=Path("x"), facts=facts, seconds=1.0, reused=False
    )


def test_a_miss_stops_a_run_unless_it_is_allowed() -> None:
    (recipe,) = load_recipes([DEVICE_RECIPES["onnx"]], [ASKED], KNOWN)
    judged(recipe, {}, False, result(on_cpu("max"), on_cpu("cortex-a53")))
    bad = result(on_cpu("max", misses=("2 of 20 layers compute otherwise",)), on_cpu("cortex-a53"))
    judged(recipe, {}, True, bad)
    with pytest.raises(MismatchError) as caught:
        judged(recipe, {}, False, bad)
    assert str(caught.value).splitlines() == [
        "linux-arm-onnxruntime-int8: the onnx file is another on ARM64 processors:",
        "  - max: 2 of 20 layers compute otherwise",
        "  do not ship it. With --allow-mismatch the run goes on, and the report says so",
    ]


def test_what_is_told_of_it_is_the_worst_processor() -> None:
    facts = result(on_cpu("max"), on_cpu("cortex-a53", same=40)).facts
    assert facts.told("top-1") == ["40 of 50 images answered as here on cortex-a53"]


def with_cpus(*cpus: OnCpu) -> Report:
    report = reports.report()
    (target, *others) = report.targets
    changed = target.model_copy(update={"arm64": cpus})
    return report.model_copy(update={"targets": (changed, *others)})


def test_a_report_has_a_row_for_each_processor() -> None:
    counted = Counted(total=6_000_000, products=1, macs=3, least=3_000_000)
    report = with_cpus(
        on_cpu("cortex-a53", instructions=counted),
        on_cpu("max", program=None, program_missing="gone"),
    )
    name = report.targets[0].name
    assert rows(report) == [
        [name, "cortex-a53", "43/50", "1", "1", "20/20", "6.000 M", "50 %", "passed"],
        [name, "max", "43/50", "1", "n/a", "20/20", "n/a", "n/a", "passed"],
    ]
    text, page = markdown.render(report), html.render(report)
    assert "## On ARM64, emulated" in text
    assert "not compared with the program: gone" in text
    assert "emulated; not a time" in text
    assert "emulated; not a time" in page
    for row in rows(report):
        assert f">{row[1]}</td>" in page
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert "On ARM64" not in markdown.render(with_cpus())
    assert "ARM64" not in html.render(with_cpus())


def test_a_file_that_is_another_there_is_not_to_be_shipped() -> None:
    report = with_cpus(on_cpu("max", misses=("an answer is NaN",)))
    assert not report.targets[0].sound
    assert report.targets[0].misses[-1] == "max: an answer is NaN"
    assert "Do not ship" in markdown.render(report)
    assert "Do not ship" in html.render(report)
    assert "an answer is NaN" in markdown.render(report)


@pytest.mark.slow
def test_the_stage_judges_the_file_on_every_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native_machine(tmp_path / "cache")
    (recipe,) = load_recipes([DEVICE_RECIPES["onnx"]], [ASKED], KNOWN)
    about = context(recipe)
    written = programs.quantized("radix2").program
    inputs = {name: tmp_path / name for name in ("export", "fold", "judge_fold")}
    for place in inputs.values():
        place.mkdir()
    (inputs["export"] / "model.onnx").write_bytes(programs.file_of("onnx").read_bytes())
    program.save(written, inputs["fold"] / PROGRAM)
    logits = program_logits(written, with_calibration(about.dataset))
    torch.save(logits, inputs["judge_fold"] / LOGITS)

    def wrong(files: dict[str, ModelFile], *given: Any) -> dict[str, torch.Tensor]:
        return {name: -of for name, of in LANES[HOST].answers(files, *given).items()}

    assert tuple(arm64.CPUS) == ("cortex-a53", "cortex-a76", "max")
    monkeypatch.setattr(arm64, "CPUS", ("cortex-a53", "max"))
    monkeypatch.setitem(LANES, "arm64-max", replace(LANES["arm64-max"], answers=wrong))
    right, bad = arm64.emulate(about, inputs, tmp_path).cpus
    assert (right.cpu, bad.cpu) == ("cortex-a53", "max")
    assert right.same == right.images == len(next(iter(about.dataset.tests.values())))
    assert (right.misses, right.at_fault) == ((), 0)
    assert right.instructions is not None
    assert right.instructions.total == INSTRUCTIONS
    assert any("logits" in miss for miss in bad.misses)
