"""The report as a page: self-contained, true to the report, and safe with any names."""

from __future__ import annotations

import functools
import json
import re
import time
from collections import Counter

import jsonschema
import pytest

from pipeline.report import charts, html, words
from pipeline.report.charts import Point, pareto
from pipeline.report.records import Report
from pipeline.report.write import json_schema
from tests.making import reports
from tests.making.markup import ODD_NAMES, Page
from tests.making.reports import OLDER


def page(report: Report) -> Page:
    return Page(html.render(report))


@functools.cache
def whole(targets: int) -> tuple[Report, Page]:
    report = reports.full(targets)
    return report, page(report)


def test_the_page_needs_nothing_else() -> None:
    content = html.render(reports.full())
    found = Page(content)
    assert found.elements["script"] == 0
    assert found.elements["link"] == 1, "the empty icon, so that no browser asks for one"
    assert all(url.startswith(("#", "data:,")) for url in found.all_of("href"))
    assert found.all_of("src") == []
    assert re.findall(r"url\((?!#)", content) == []
    assert "@import" not in content
    assert len(content.encode()) < 3_000_000


def test_ids_differ_and_every_link_leads_somewhere() -> None:
    _, found = whole(6)
    ids = Counter(found.all_of("id"))
    assert [name for name, count in ids.items() if count > 1] == []
    assert {url[1:] for url in found.all_of("href") if url.startswith("#")} <= set(ids)


def test_ids_differ_where_pictures_are_alike() -> None:
    report = reports.full(2)
    one, two = report.targets
    alike = Report(
        **dict(report) | {"targets": (one, two.model_copy(update={"stages": one.stages}))}
    )
    ids = Counter(page(alike).all_of("id"))
    assert [name for name, count in ids.items() if count > 1] == []


def test_six_targets_take_seconds() -> None:
    report = reports.full(6)
    html.render(report)  # what it imports is loaded
    for drawn in (charts.trade_off, charts.bars, charts.spread, charts.curves, charts.timeline):
        drawn.cache_clear()
    started = time.process_time()
    html.render(report)
    assert time.process_time() - started < 5


def test_every_chart_is_there_and_said_in_words() -> None:
    _, found = whole(6)
    labels = found.all_of("aria-label")
    for start in ("Top-1 against time", "Sizes.", "Every timed run", "Training in stage qat"):
        assert [label for label in labels if label.startswith(start)], start
    assert len([label for label in labels if label.startswith("Stages of ")]) == 6
    drawn = found.elements["svg"]
    assert drawn == found.all_of("role").count("img")
    assert drawn >= 3 + 6 + 3


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_class_name_is_shown_as_text(name: str) -> None:
    classes = [name, *reports.DIGITS[1:]]
    found = page(reports.full(2, classes))
    assert " ".join(name.split()) in found.text
    assert (found.elements["script"], found.elements["b"]) == (0, 0)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_text_in_pictures_too(name: str) -> None:
    svg = charts.bars(((name, (("file", 1.0),), 0),), "MB")
    assert "<b>" not in svg
    assert "<script" not in svg
    Page(svg)


def test_what_is_missing_has_its_reason_and_is_never_0() -> None:
    _, found = whole(3)
    assert found.text.count("not measured (reason 1)") >= 3
    assert reports.NO_APPLE in found.text
    gone = page(reports.report(reports.target("iphone", top1=None)))
    assert reports.NO_PHONE in gone.text
    cells = re.findall(r"Top-1 (.{12})", gone.text)
    assert cells == ["not measured"]
    assert "None" not in found.text
    assert "None" not in gone.text


def changed(tree: dict[str, object], path: str, value: object) -> dict[str, object]:
    """A copy with one value changed; a number in the path is a place in a list."""
    copy = json.loads(json.dumps(tree))
    *way, last = path.split(".")
    at = copy
    for key in way:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("targets.0.device", "Fairphone 6", "Fairphone 6"),
        ("targets.0.runtime", "LiteRT 9.9", "LiteRT 9.9"),
        ("targets.0.path", "other.tflite", "other.tflite"),
        ("targets.0.download_bytes", 4_321_000, "4.32 MB"),
        ("targets.0.sha256", "c" * 64, "c" * 64),
        ("targets.0.int8_coverage", 0.4567, "45.67 %"),
        ("targets.0.scales_exact", {"same": 77, "total": 88}, "77/88"),
        ("targets.0.ops", {"CONV_2D": 4711}, "4711"),
        ("targets.2.latency_missing", "no such phone", "no such phone"),
        ("targets.0.parity.agreement", 0.8765, "87.65 %"),
        ("targets.0.parity.images", 98765, "98765"),
        ("host.cpu", "Another CPU", "Another CPU"),
        ("data.name", "birds", "birds"),
        ("model.params", 12_300_000, "12.3 M"),
        ("code.commit", "abcdef", "abcdef"),
        ("tools", {"torch": "77.1"}, "torch 77.1"),
        ("recipe.name", "another", "another"),
    ],
)
def test_what_the_page_says_is_what_the_report_says(path: str, value: object, shown: str) -> None:
    report, before = whole(3)
    assert shown not in before.text
    tree = changed(report.model_dump(mode="json"), path, value)
    other = Report.model_validate_json(json.dumps(tree))
    assert shown in page(other).text


def test_the_card_says_what_other_compressors_make() -> None:
    sizes = reports.sent(6_100_000, 5_900_000, 6_050_000)
    found = page(reports.report(reports.target(downloads=sizes)))
    assert "download 6.10 MB (5.90 by LZMA, 6.05 by zstd)" in found.text


def test_every_figure_of_a_target_is_on_the_page() -> None:
    report, found = whole(1)
    (target,) = report.targets
    assert target.latency_ms is not None
    assert target.speedup is not None
    assert target.changes is not None
    text = found.text
    accuracy, changes = target.accuracy, target.changes["test"]
    assert accuracy is not None
    for shown in (
        words.percent(accuracy["test"].top1),
        words.percent(accuracy["test"].top5),
        words.milliseconds(target.latency_ms),
        f"{words.figure(target.speedup)}x",
        f"test {changes.kept} {changes.lost} {changes.gained} {changes.neither}",
    ):
        assert shown in text


def test_a_file_that_answers_otherwise_is_not_to_be_shipped() -> None:
    wrong = reports.parity(passed=False, misses=("99 % agree",), first_difference="conv1")
    text = page(reports.report(reports.target(parity=wrong))).text
    assert "Do not ship" in text
    assert "99 % agree" in text


def test_many_classes_are_listed_and_not_shown_as_a_matrix() -> None:
    classes = [f"class {number}" for number in range(1000)]
    report = reports.full(6, classes)
    content = html.render(report)
    assert len(content.encode()) < 3_000_000
    found = Page(content)
    assert "classes most often taken for another" in found.text
    assert "class 999" in found.text


def test_a_matrix_holds_every_image() -> None:
    report = reports.full(1)
    confusion = report.baseline.confusion
    assert confusion is not None
    cells = html.matrix(confusion["test"], 10)
    assert sum(cell.number for row in cells for cell in row) == reports.IMAGES
    assert sum(cells[n][n].number for n in range(10)) == confusion["test"].right
    for cell in html.changed(confusion["test"], confusion["test"]):
        pytest.fail(f"nothing changed, but {cell}")


def test_an_older_report_is_shown_and_fits_the_schema() -> None:
    text = OLDER.read_text(encoding="utf-8")
    jsonschema.validate(json.loads(text), json_schema())
    report = Report.model_validate_json(text)
    found = page(report)
    assert "of a PocketNest that did not record it" in found.text
    for target in report.targets:
        assert target.name in found.text


def test_what_pruning_left_is_shown_beside_the_file() -> None:
    report = reports.full(1)
    (target,) = report.targets
    whole = report.model.model_copy(update={"params": 25_000_000})
    for left, shown in ((5_000_000, True), (25_000_000, False)):
        stages = tuple(
            stage.model_copy(update={"params": left}) if stage.name == "prune" else stage
            for stage in target.stages
        )
        page = html.render(
            report.model_copy(
                update={"model": whole, "targets": (target.model_copy(update={"stages": stages}),)}
            )
        )
        assert ("pruned, float: 20.0 MB" in page) is shown
        assert ("for every parameter that pruning left" in page) is shown


def test_a_page_of_several_recipes_says_what_they_are_of() -> None:
    assert "<h1>resnest50 for 6 targets</h1>" in html.render(reports.full(6))
    single = reports.report(reports.target("my-phone"), name="my-phone")
    assert "<h1>my-phone</h1>" in html.render(single)


def test_no_share_past_100_stands_at_an_axis() -> None:
    def point(name: str, top1: float) -> Point:
        return Point(name=name, cost=2.0, figure=top1, title="top-1", megabytes=13.0, colour=None)

    alike = [point("a", 0.9978), point("b", 0.9978)]
    for points in (alike, [*alike, point("float", 1.0)]):
        drawn = re.findall(r">(\d+(?:\.\d+)?)<", charts.trade_off(tuple(points), "milliseconds"))
        shares = [float(text) for text in drawn if float(text) > 50]
        assert shares
        assert max(shares) <= 100
        assert min(shares) >= 98


def test_the_pareto_front() -> None:
    def point(name: str, ms: float, top1: float) -> Point:
        return Point(name=name, cost=ms, figure=top1, title="top-1", megabytes=1.0, colour=0)

    points = [
        point("slow and right", 9, 0.9),
        point("beaten", 9.5, 0.9),
        point("fast", 1, 0.5),
        point("beaten too", 2, 0.4),
        point("even", 1, 0.4),
    ]
    assert [p.name for p in pareto(points)] == ["fast", "slow and right"]
