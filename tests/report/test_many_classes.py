"""Reports of a thousand classes or labels: what is shown of them, and that all go with the page."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import html, markdown
from pipeline.report.classes import MOST_ROWS, ClassRow, by_class, csv_link, worst
from pipeline.report.labels import LabelRow, by_label
from pipeline.report.records import Report
from pipeline.report.write import write_report
from pipeline.tasks.label_accuracy import LabelAccuracy, mean_of
from tests.making import reports
from tests.making.markup import Page
from tests.scale import report as at_scale
from tests.scale.__main__ import main as scale

MANY = tuple(f"class {number}" for number in range(1000))
_ROW = re.compile(r'<tr role="row">')


def linked(content: str) -> list[list[list[str]]]:
    """Every table that a page holds for a spreadsheet."""
    found = re.findall(r'href="data:text/csv;charset=utf-8;base64,([^"]+)"', content)
    tables = [base64.b64decode(one).decode("utf-8-sig") for one in found]
    return [list(csv.reader(io.StringIO(table))) for table in tables]


def of_labels(labels: int, targets: int = 1) -> Report:
    """A report where an image may have several of so many labels, the last of which none has."""

    def accuracy(worse: float) -> dict[str, Any]:
        ap = [round(0.9 - worse * (n % 7) / 10, 6) for n in range(labels - 1)]
        found = LabelAccuracy(
            mean_ap=mean_of(ap) or 0.0,
            micro_f1=0.8,
            images=450,
            ap=(*ap, None),
            positives=(*range(1, labels), 0),
        )
        return {"test": found}

    base = reports.float_model(accuracy=accuracy(0.0), confusion_missing="several labels")
    after = accuracy(0.1)
    drop = round(100 * (base.accuracy["test"].figure - after["test"].figure), 9)
    changes = {"confusion_missing": "several labels", "budgets": (), "passed": True}
    made = [
        reports.target(f"device-{n}", accuracy=after, accuracy_drop_pt=drop, **changes)
        for n in range(targets)
    ]
    data = reports.DATA.model_copy(update={"classes": tuple(f"label {n}" for n in range(labels))})
    whole = reports.report(*made, baseline=base, float_cpu=base, data=data)
    return whole.model_copy(
        update={"model": whole.model.model_copy(update={"num_classes": labels})}
    )


def test_up_to_a_hundred_classes_have_a_row_each() -> None:
    report = reports.full(2, MANY[:MOST_ROWS])
    content = html.render(report)
    assert linked(content) == []
    text = Page(content).text
    table = text[text.index("Images named rightly, of all images") :]
    assert [name for name in MANY[:MOST_ROWS] if f"{name} " not in table] == []


def test_of_more_the_worst_are_shown_and_all_go_with_the_page() -> None:
    report = reports.full(2, MANY, images=5000, right=0.7)
    content = html.render(report)
    (rows,) = by_class(report).values()
    shown = worst(rows)
    assert len(shown) == MOST_ROWS
    assert [one.loss for one in shown] == sorted((row.loss for row in rows), reverse=True)[
        :MOST_ROWS
    ]
    assert f"The {MOST_ROWS} classes of which a file loses most images" in Page(content).text
    ((header, *table),) = linked(content)
    assert header == ["class", "images", "float", "device-0", "device-1"]
    assert [row[0] for row in table] == list(MANY)
    confusion = report.targets[1].confusion
    assert confusion is not None
    assert sum(int(row[4]) for row in table) == confusion["test"].right
    assert sum(int(row[1]) for row in table) == 5000


def test_a_class_loses_what_its_worst_file_loses() -> None:
    row = ClassRow(name="a", columns=((8, 10), None, (9, 10), (5, 10)))
    assert row.loss == 3
    assert ClassRow(name="a", columns=(None, (6, 10))).loss == 4, "without a float model, of all"
    assert ClassRow(name="a", columns=((8, 10), None)).loss == 0
    label = LabelRow(name="a", images=3, float_model=0.75, files=(0.5, None, 0.875))
    assert label.loss == 0.25
    assert LabelRow(name="a", images=0, float_model=None, files=(None,)).loss == 0.0


def test_many_labels_are_told_as_many_classes_are() -> None:
    report = of_labels(1000, targets=2)
    content, text = html.render(report), markdown.render(report)
    ((header, *table),) = linked(content)
    assert header == ["label", "images", "float", "device-0", "device-1"]
    assert len(table) == 1000
    assert table[-1] == ["label 999", "0", "", "", ""], "no image has it"
    assert text.count("| label ") == MOST_ROWS + 1
    assert f"The {MOST_ROWS} of 1000 labels that lose most" in text
    (rows,) = by_label(report).values()
    losses = {row.loss for row in worst(rows)}
    assert losses == {max(row.loss for row in rows)}


def test_few_labels_are_all_told() -> None:
    report = of_labels(10)
    assert linked(html.render(report)) == []
    assert markdown.render(report).count("| label ") == 10 + 1
    assert "lose most" not in markdown.render(report)


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2", "@a", 'a, "b"\nc', "größe"])
def test_a_name_stays_a_name_in_a_spreadsheet(name: str) -> None:
    ((_, (found,)),) = linked(f'href="{csv_link(["class"], [[name]])}"')
    assert found.lstrip("'") == name
    assert not found.startswith(("=", "+", "-", "@"))


def test_the_page_grows_with_neither_images_nor_classes_times_files() -> None:
    rows, sizes = {}, {}
    for classes, images, targets in ((1000, 5000, 2), (1000, 50_000, 2), (2000, 5000, 2)):
        content = html.render(reports.full(targets, MANY * (classes // 1000), images=images))
        rows[classes, images] = len(_ROW.findall(content))
        sizes[classes, images] = len(content)
    assert len(set(rows.values())) == 1, "as many rows whatever there is"
    assert sizes[1000, 50_000] < 1.1 * sizes[1000, 5000]
    # A name in the list of labels and a line in the table for spreadsheets.
    assert sizes[2000, 5000] - sizes[1000, 5000] < 1000 * 100


def test_lists_of_numbers_are_on_one_line_of_report_json(tmp_path: Path) -> None:
    names = ("[\n1, 2\n]", "[ 1,  2 ]", "c")
    report = reports.full(1, names)
    content = write_report(report, tmp_path)[0].read_text(encoding="utf-8")
    assert Report.model_validate_json(content) == report
    assert json.loads(content)["data"]["classes"] == list(names)
    cells = json.loads(content)["baseline"]["confusion"]["test"]["cells"]
    assert cells
    assert all(f"{cell}" in content for cell in cells)
    assert len(content.splitlines()) < 1000


def test_the_part_at_scale_measures_and_can_miss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`nox -s scale -- report`, small: without a browser, and with a bar that nothing keeps."""
    monkeypatch.delenv("POCKETNEST_CHROMIUM", raising=False)
    monkeypatch.setattr(at_scale, "CLASSES", 150)
    monkeypatch.setattr(at_scale, "NAMES", MANY[:150])
    monkeypatch.setattr(at_scale, "IMAGES", 2000)
    monkeypatch.setattr(at_scale, "SECONDS", 1000.0)
    assert scale(["report"]) == 0
    said = capsys.readouterr().out
    assert said.count("report made") == 2
    assert "POCKETNEST_CHROMIUM names none" in said
    monkeypatch.setattr(at_scale, "MEGABYTES", 0.001)
    assert scale(["report"]) == 1
    assert "MISSED" in capsys.readouterr().out
    assert scale([]) == scale(["nothing"]) == 2
