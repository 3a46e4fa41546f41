"""Reports that contradict themselves are refused; those that do not combine, and read back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipeline.base.machine import HostInfo
from pipeline.measure.latency import latency_of
from pipeline.recipe.recipe import RecipeInfo
from pipeline.report import write
from pipeline.report.markdown import render
from pipeline.report.records import (
    Report,
    StageRecord,
    budget,
)
from pipeline.report.write import combine, json_schema, write_report
from tests.making.reports import NO_PHONE, TOP1, float_model, report, sent, target

SCHEMA = Path(write.__file__).parent / "report.schema.json"


def test_the_report_refuses_to_contradict_itself() -> None:
    whole = report()
    for change, message in [
        ({"passed": False}, "passed: got False"),
        ({"float_cpu": float_model(device_kind="gpu")}, "device_kind must be cpu"),
        ({"targets": (target(), target())}, "names must differ"),
        ({"baseline": float_model(accuracy={"other": TOP1})}, "tested on {'other': 450}"),
        (
            {"baseline": float_model(accuracy={"test": TOP1.model_copy(update={"top1": 0.99})})},
            "accuracy_drop_pt must be 1.45",
        ),
        ({"targets": ()}, "at least 1 item"),
    ]:
        with pytest.raises(ValueError, match=message):
            Report(**(dict(whole) | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passed": False}, "passed: got False, against the budgets"),
        ({"speedup": 3.0}, "speedup judges 4.0, not 3.0"),
        ({"budgets": (budget("size_mb", 7.0, 6.9),)}, "size_mb judges 6.9, not 6.8"),
        ({"agreement": None}, "give agreement or accuracy_missing"),
        ({"coverage_missing": "no profile"}, "give int8_coverage or coverage_missing"),
        ({"latency_ms": None}, "give latency_ms or latency_missing"),
        ({"budgets": (budget("download_mb", 7.0, 6.0),)}, "download_mb judges 6.0, not 6.1"),
        ({"downloads": sent(6_000_000, 1, 1)}, "download_bytes must be deflate's"),
        ({"name": " "}, "name"),
        ({"sha256": "A" * 64}, "sha256"),
    ],
)
def test_a_target_refuses_to_contradict_itself(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target(**change)


def test_combined_report_joins_targets_and_stages() -> None:
    reused = StageRecord(name="baseline", status="reused", seconds=0.1)
    done = StageRecord(name="baseline", status="done", seconds=40.0)
    again = StageRecord(name="baseline", status="done", seconds=50.0)
    qat = StageRecord(name="qat", status="reused", seconds=0.2)
    slower = float_model(latency_ms=latency_of([170.8], threads=1, batch=1))
    one = report(target("a"), name="a", stages=(reused,))
    two = report(
        target("b", limits=(1.0, 1.0, 1.0)), name="b", stages=(qat, done), tools={"onnx": "1.19.1"}
    )
    three = report(target("c"), name="c", stages=(again,), float_cpu=slower, baseline=slower)
    both = combine([one, two, three])
    assert [item.name for item in both.targets] == ["a", "b", "c"]
    assert both.stages == (done, qat)
    assert both.recipe.name == "combined"
    assert both.tools == {"torch": "2.12.1", "onnx": "1.19.1"}
    assert both.float_cpu == one.float_cpu
    assert not both.passed
    other_recipe = one.model_copy(update={"recipe": RecipeInfo(name="a", sha256="d" * 64)})
    assert combine([other_recipe, two]).recipe.sha256 != combine([one, two]).recipe.sha256
    assert combine([one]) == one


def test_reports_of_different_float_models_do_not_combine() -> None:
    one, whole = report(target("a"), name="a"), report(target("b"), name="b")
    data = whole.data.model_copy(update={"sha256": "e" * 64})
    model = whole.model.model_copy(update={"macs": 7})
    other = whole.model_copy(update={"data": data, "model": model})
    with pytest.raises(ValueError, match="'a' and 'b'") as caught:
        combine([one, other])
    assert "model.macs is 5400000000 and 7" in str(caught.value)
    assert f"data.sha256 is '{'c' * 64}' and '{'e' * 64}'" in str(caught.value)
    for change, message in [
        ({"baseline": float_model(size_bytes=5)}, "baseline.size_bytes is 102400000 and 5"),
        ({"tools": {"torch": "2.11.0"}}, "tools.torch is '2.12.1' and '2.11.0'"),
        ({"host": HostInfo(cpu="Other", cores=2, gpu=None)}, "host.cpu is 'Example CPU'"),
    ]:
        with pytest.raises(ValueError, match=message):
            combine([one, whole.model_copy(update=change)])
    with pytest.raises(ValueError, match="at least 1"):
        combine([])
    with pytest.raises(ValueError, match="names must differ"):
        combine([one, report(target("a"), name="b")])


def test_written_report_reads_back_and_fits_its_schema(tmp_path: Path) -> None:
    written = report(target(), target("iphone", top1=None, device="Größe | 8"))
    paths = write_report(written, tmp_path / "deep" / "run")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)
    content = paths[0].read_bytes()
    assert Report.model_validate_json(content) == written
    assert paths[1].read_text(encoding="utf-8") == render(written)
    tree = json.loads(content)
    jsonschema.validate(tree, json_schema())
    assert tree["schema_version"] == 1
    assert tree["targets"][1]["latency_ms"] is None
    assert tree["targets"][1]["latency_missing"] == NO_PHONE
    assert "Größe" in content.decode()


def test_the_contract_names_are_in_report_json(tmp_path: Path) -> None:
    tree = json.loads(write_report(report(), tmp_path)[0].read_text())
    assert set(tree) == {
        "schema_version", "recipe", "code", "host", "tools", "model", "data", "baseline",
        "float_cpu", "stages", "targets", "passed",
    }  # fmt: skip
    assert set(tree["baseline"]["latency_ms"]) >= {"median", "p10", "p90", "runs", "threads"}
    assert set(tree["targets"][0]) == {
        "name", "device", "format", "precision", "runtime", "path", "sha256", "size_bytes",
        "input", "evaluated", "parity", "partitions", "partitions_missing", "outside",
        "takes", "gives", "intended_use", "first_use", "measured_at",
        "download_bytes", "downloads", "accuracy", "accuracy_missing", "accuracy_drop_pt",
        "agreement",
        "agreement_images",
        "scales_exact", "scales_missing", "int8_coverage", "coverage_missing", "ops",
        "left_in_float", "arm64", "devices", "delegates",
        "latency_ms", "latency_missing", "latency_by_threads", "speedup", "speedup_p10",
        "speedup_p90",
        "speedup_missing", "pruning", "sparsity", "weights", "budgets", "passed",
        "confusion", "confusion_missing", "changes", "layers", "stages",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [("schema_version", 2), ("passed", None), ("extra", 1), ("targets", []), ("tools", {"a": 1})],
)
def test_the_schema_marks_what_is_no_report(key: str, value: object) -> None:
    tree = report().model_dump(mode="json") | {key: value}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, json_schema())


def test_a_failed_write_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_report(report(), tmp_path)
    before = [path.read_bytes() for path in paths]

    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_report(report(target(size_bytes=1_000_000)), tmp_path)
    assert [path.read_bytes() for path in paths] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_the_shipped_schema_is_current() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), (
        "run: python -c 'import json; from pipeline.report.write import json_schema; "
        f"print(json.dumps(json_schema(), indent=2))' > {SCHEMA}"
    )
