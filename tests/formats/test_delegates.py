"""Where files run: tools that run here, and the vendors' lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.compress.quantization import program as saved
from pipeline.formats.delegates import Delegate, known, listed, unknown
from pipeline.formats.formats import FORMATS
from pipeline.formats.tflite.delegates import xnnpack
from pipeline.formats.write import export
from pipeline.report import delegates as words
from tests.making import programs, reports
from tests.making.markup import MARKDOWN

ADDRESS = "https://example.org/list"


def test_a_list_is_looked_up_by_kinds_of_operations() -> None:
    found = listed("npu", {"CONV": 3, "ODD": 2}, frozenset({"CONV", "ADD"}), "a list", ADDRESS)
    assert (found.verdict, found.taken, found.operations, found.left) == ("some", 3, 5, ("ODD",))
    assert listed("npu", {"CONV": 3}, frozenset({"CONV"}), "a list", ADDRESS).verdict == "all"
    assert listed("npu", {"ODD": 3}, frozenset({"CONV"}), "a list", ADDRESS).verdict == "none"


def test_what_is_not_known_has_no_counts() -> None:
    assert unknown("npu", "no list").taken is None
    with pytest.raises(ValidationError, match="give counts where it is known"):
        Delegate(name="npu", verdict="all", by="somebody says so")
    with pytest.raises(ValidationError, match="got not known"):
        Delegate(name="npu", verdict="not known", taken=1, operations=2, by="a list")


def test_what_xnnpack_leaves_is_counted() -> None:
    found = xnnpack({"CONV_2D": 4, "SOFTMAX": 1}, 2, ["layer1.rsoftmax"], "LiteRT")
    assert (found.verdict, found.taken, found.operations) == ("some", 4, 5)
    assert found.note == "in 2 parts"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_every_file_is_looked_at_where_it_is_written(form: str, tmp_path: Path) -> None:
    source, found = tmp_path / "program.pt2", tmp_path / "delegates.json"
    saved.save(programs.quantized("radix2").program, source)
    export(source, form, tmp_path / f"model{FORMATS[form].suffix}", delegates=found)
    read = [Delegate.model_validate_json(json.dumps(one)) for one in json.loads(found.read_text())]
    by_name = {one.name: one for one in read}
    if form == "coreml":
        assert {one.verdict for one in read} == {"not known"}
        return
    operations = FORMATS[form].module().inspect(tmp_path / f"model{FORMATS[form].suffix}").ops
    if form == "tflite":
        gpu, npu = by_name["GPU delegate"], by_name["MediaTek NeuroPilot in LiteRT"]
        assert gpu.operations == npu.operations == sum(operations.values())
        assert (gpu.verdict, gpu.left) == ("all", ())
        assert by_name["Google Tensor in LiteRT"].verdict == "not known"
    else:
        checked = by_name["NNAPI in ONNX Runtime"]
        assert checked.verdict == "some" or not checked.left
        assert by_name["Core ML in ONNX Runtime"].left == ("DequantizeLinear", "QuantizeLinear")
        assert by_name["Qualcomm QNN in ONNX Runtime"].verdict == "all"


def test_the_report_says_where_files_run_and_who_says_so() -> None:
    every = (
        known("GPU | one", 3, 5, {"ODD", "OTHER"}, "a tool, run here", ADDRESS, "in 2 parts"),
        unknown("NPU", "no list was found"),
    )
    report = reports.report(reports.target("x", delegates=every))
    assert words.rows(report) == [
        ["x", "GPU | one", "some, 3 of 5", "ODD, OTHER", "a tool, run here; in 2 parts"],
        ["x", "NPU", "not known", "n/a", "no list was found"],
    ]
    section = "\n\n".join(words.section(report))
    assert section.startswith("## Where it runs")
    assert f"<{ADDRESS}>" in section
    cells = [token.content for token in MARKDOWN.parse(section) if token.type == "inline"]
    assert "some, 3 of 5" in cells
    assert words.section(reports.report(reports.target("x"))) == []
