"""The script for a Mac, run here by a stand-in for ssh, with the reference evaluator as Core ML."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import InputError
from pipeline.formats.coreml import head
from pipeline.formats.coreml.imports import import_coremltools
from pipeline.formats.pixels import camera_pixels
from pipeline.measure.device.mac import Plan, Wanted, archive
from pipeline.measure.lanes.apple import on_mac, session
from pipeline.measure.lanes.apple.session import Mac, opened
from tests.making import programs
from tests.making.mac import Mac as StandIn
from tests.making.mac import mac
from tests.making.mac_plans import THERE, answers, plan, run, wanted

pytestmark = pytest.mark.slow

FAULT = "both factors are given the product's scale"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: names of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="mac") as name:
        yield Path(name)


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with mac(folder, monkeypatch) as found:
        yield found


def test_packages_are_checked_then_timed_in_turn(there: StandIn) -> None:
    record = run(plan(rounds=4))
    assert there.left() == []
    int8, beside = record.files
    assert (record.source.kind, record.device.cores) == ("apple", os.cpu_count())
    assert int8.sha256 == beside.sha256
    assert [(check.unit, check.passed, check.images) for check in int8.golden] == [
        ("cpu", True, 3),
        ("cpu+gpu", True, 3),
        ("cpu+ne", True, 3),
    ]
    assert all(check.largest == 0 for check in int8.golden)
    assert [(timing.unit, timing.runs) for timing in int8.timings] == [
        ("cpu", 4),
        ("cpu+gpu", 4),
        ("cpu+ne", 4),
    ]
    ne = int8.timings[-1]
    assert (ne.delegate, ne.delegated) == ("Neural Engine", "part")
    assert ne.fell_back is not None
    assert ne.fell_back.startswith("Core ML plans 46 of ")
    assert ne.load_ms is not None
    assert {layer.unit for layer in int8.layers} == {"cpu", "ne"}
    assert {layer.operation for layer in int8.layers if layer.unit == "ne"} == {"ios17.conv"}
    assert any(note.startswith("int8, float16, in turn with the others, on cpu+ne: ") for note in
               record.notes)  # fmt: skip
    # Every check came before the first timed inference, and then the packages took turns.
    predicted = [Path(q["path"]).name for q in there.asked if q["what"] == "predict"]
    checks, timed = predicted[:18], predicted[18:]
    assert checks == (["0.mlpackage"] * 3 + ["1.mlpackage"] * 3) * 3
    assert timed == ["0.mlpackage", "1.mlpackage"] * (len(timed) // 2)
    assert {"machine", "checked ne int8", "timed ne"} <= {raw.name for raw in record.raw}


def test_a_wrong_unit_is_named_and_nothing_is_timed(there: StandIn) -> None:
    there.faults["ne"] = FAULT
    asked = Plan(files=plan().files[:1], units=("cpu", "ne"), rounds=2)
    record = run(asked)
    (file,) = record.files
    assert [(check.unit, check.passed) for check in file.golden] == [
        ("cpu", True),
        ("cpu+ne", False),
    ]
    assert file.timings == ()
    assert not record.sound
    (note,) = (note for note in record.notes if "known fault" in note)
    assert note == (
        f"int8 on cpu+ne: the answers are those of a known fault, in which {FAULT}; write the file "
        "with target.products: clipped or float16"
    )
    assert there.left() == []


def test_a_crash_in_core_ml_is_a_line_and_the_others_are_timed(there: StandIn) -> None:
    def before(question: dict[str, Any]) -> dict[str, Any] | None:
        crash = question["unit"] == "gpu" and question["what"] == "predict"
        return {"signal": int(signal.SIGABRT)} if crash else None

    there.before = before
    record = run(plan())
    for file in record.files:
        cpu, gpu, ne = file.golden
        assert (cpu.passed, gpu.passed, ne.passed) == (True, None, True)
        assert gpu.missing == "ended by SIGABRT: Assertion failed: in the compiler"
        assert [timing.unit for timing in file.timings] == ["cpu", "cpu+ne"]
    assert there.left() == []


def test_answers_that_are_no_numbers_are_wrong(there: StandIn) -> None:
    asked = plan("cpu")
    wide = len(asked.files[0].answers[0])
    there.before = lambda q: {"logits": [[float("nan")] * wide]} if q["what"] == "predict" else None
    record = run(asked)
    assert [check.passed for check in record.files[0].golden] == [False]
    assert record.files[0].timings == ()


def test_images_are_given_as_images(there: StandIn) -> None:
    path = programs.file_of("coreml", pixels=True)
    pixels = programs.pixel_noise(2, seed=5).numpy()
    file = Wanted(
        **{**vars(wanted("pixels", programs.file_of("coreml", "radix2"))), "path": path}
        | {"kind": "image", "inputs": camera_pixels(pixels), "wrong": {}}
        | {"answers": answers(path, pixels)}
    )
    record = run(Plan(files=(file,), units=("cpu",), rounds=1))
    assert record.files[0].golden[0].largest == 0
    assert {q["dtype"] for q in there.asked if q["what"] == "predict"} == {"uint8"}


def test_a_classifier_is_read_by_its_labels(there: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "model.mlpackage"
    shutil.copytree(programs.file_of("coreml", "radix2"), path)
    plain = wanted("classifier", path, count=2)
    labels = tuple(f"class {number}" for number in range(len(plain.answers[0])))
    head.add(path, "softmax", labels)
    file = replace(
        plain,
        output=head.DICTIONARY,
        labels=labels,
        answers=answers(path, plain.inputs),
        tolerance=1e-3,
        wrong={},
    )
    assert file.answers.sum(1) == pytest.approx(1, abs=1e-3)
    record = run(Plan(files=(file,), units=("ne",), rounds=1))
    (check,) = record.files[0].golden
    assert check.largest == pytest.approx(0, abs=1e-6)


def test_a_system_without_compute_plans_says_so(there: StandIn) -> None:
    there.before = lambda q: {"operations": "none"} if q["what"] == "plan" else None
    record = run(plan("ne", rounds=1))
    assert any("no compute plan (" in note for note in record.notes)
    assert record.files[0].layers == ()
    assert record.files[0].timings[0].delegated is None


def test_ssh_is_asked_for_no_password_and_no_terminal(there: StandIn) -> None:
    run(plan("cpu", rounds=1, count=1))
    (said,) = (there.folder / "ssh.txt").read_text().splitlines()
    assert said.startswith("-T -o BatchMode=yes ")
    assert " -- me@mac " in said


def test_this_machine_is_asked_without_ssh(there: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(there.tmp))
    monkeypatch.setenv("PYTHONPATH", str(there.folder / "stub"))
    monkeypatch.setenv("POCKETNEST_TEST_MAC", str(there.folder / "s"))
    record = run(plan("cpu", rounds=1, count=1), Mac(host=None, python=sys.executable))
    assert record.sound
    assert not (there.folder / "ssh.txt").exists()
    assert there.left() == []


def test_what_a_shell_prints_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mac(folder, monkeypatch, noise='echo "Welcome, you have mail"; echo 7') as there:
        assert run(plan("cpu", rounds=1, count=1)).sound
        assert there.left() == []


def test_other_bytes_than_were_sent_are_refused(there: StandIn) -> None:
    asked = plan("cpu", rounds=1, count=1)
    with opened(THERE) as found:
        events = list(found.run(archive(asked)))
    from pipeline.measure.device import mac as lane

    for event in events:
        if event["pocketnest"] == "files":
            event["sha256"] = dict.fromkeys(event["sha256"], "0" * 64)
    with pytest.raises(InputError, match="other bytes arrived on the Mac"):
        lane._record(events, asked)


def test_what_the_script_asks_of_coremltools_is_there() -> None:
    """The stand-in has what the script asks for; the real one must have it under the same names."""
    import_coremltools()
    import coremltools
    from coremltools.models import compute_device, compute_plan

    for unit in on_mac.UNITS.values():
        assert hasattr(coremltools.ComputeUnit, unit)
    for device in on_mac.DEVICES:
        assert issubclass(getattr(compute_device, device), compute_device.MLComputeDevice)
    asked = {
        "MLModelStructure": {"program"},
        "MLModelStructureProgram": {"functions"},
        "MLModelStructureProgramFunction": {"block"},
        "MLModelStructureProgramBlock": {"operations"},
        "MLModelStructureProgramOperation": {"operator_name", "outputs"},
        "MLModelStructureProgramNamedValueType": {"name"},
        "MLComputePlanDeviceUsage": {"preferred_compute_device"},
        "MLComputePlanCost": {"weight"},
    }
    for name, fields in asked.items():
        assert fields <= {field.name for field in dataclasses.fields(getattr(compute_plan, name))}
    plan = compute_plan.MLComputePlan
    assert {"path", "compute_units"} <= inspect.signature(plan.load_from_path).parameters.keys()
    assert hasattr(plan, "model_structure")
    for method in (
        "get_compute_device_usage_for_mlprogram_operation",
        "get_estimated_cost_for_mlprogram_operation",
    ):
        assert method in session.SCRIPT.read_text()
        assert hasattr(plan, method)
    model = coremltools.models.MLModel
    assert hasattr(model, "get_compiled_model_path")
    assert "compute_units" in inspect.signature(model).parameters


def test_the_script_knows_nothing_of_this_package() -> None:
    text = session.SCRIPT.read_text()
    assert "pipeline" not in text.replace("pipelines", "")
    ast.parse(text, feature_version=(3, 9))
