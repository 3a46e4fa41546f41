"""The report's tables say what was measured, and why something was not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compress.pruning.kept import Kept
from pipeline.formats.scales import ScalesExact
from pipeline.measure.latency import latency_of
from pipeline.report.markdown import render
from pipeline.report.records import (
    Pruning,
    TargetResult,
    budget,
)
from pipeline.report.words import markdown_text, percent
from pipeline.tasks.accuracy import Accuracy
from tests.making.markup import MARKDOWN, rows
from tests.making.reports import NO_PHONE, TOP1, float_model, parity, report, sent, target

ON_THIS_CPU = "42.7 ms (42.7 to 42.7), 1 thread, on this CPU"


def test_the_table_says_it_in_a_minute() -> None:
    text = render(report())
    table = rows(text)
    assert list(table) == ["float baseline", "android"]
    assert table["float baseline"]["size MB"] == "102"
    assert table["float baseline"]["top-1"] == "98.00 %"
    assert table["float baseline"]["latency"] == "85.4 ms (84.3 to 89.1), 1 thread"
    assert table["android"] == {
        "target": "android",
        "device": "for Pixel 8",
        "format": "tflite int8, LiteRT 2.1.0",
        "size MB": "6.80 (15.1x smaller)",
        "download MB": "6.10",
        "top-1": "97.55 % (drop 0.450 pt)",
        "speedup": "4.00x",
        "latency": "21.4 ms (20.3 to 22.7), 1 thread, on this CPU",
        "int8": "99.996 %",
        "scales": "191/192",
        "weights": "9999/10000",
        "budgets": "met",
    }
    assert "**Passed**: 3 of 3 budgets met." in text
    assert "- Tools: torch 2.12.1" in text
    assert "1 x 3 x 224 x 224, classes: 10, 25.6 M params, 5.40 G MACs" in text


def test_what_each_compressor_makes_has_a_table_of_its_own() -> None:
    sizes = sent(6_100_000, 5_900_000, 6_050_000)
    text = render(report(target(downloads=sizes), target("older")))
    found = rows(text, table=1)
    assert list(found) == ["android"], "an older report has one figure"
    assert found["android"] == {
        "target": "android",
        "deflate MB": "6.10",
        "LZMA MB": "5.90",
        "zstd MB": "6.05",
    }
    assert "## Downloads" not in render(report())


def test_a_download_past_its_budget_is_missed() -> None:
    missed = budget("download_mb", 6.0, 6.1)
    text = render(report(target(budgets=(missed,), passed=False)))
    assert "- android: download 6.1 MB, allowed at most 6 MB" in text


def pruning_row(found: Pruning | None, **changes: Any) -> dict[str, str]:
    text = render(report(target(pruning=found, **changes)))
    return rows(text, table=1)["android"]


def test_what_pruning_was_to_reach_and_reached() -> None:
    macs = Pruning(goal="macs", asked=0.5, unit="share", predicted=0.499, reached=0.499)
    row = pruning_row(macs, sparsity=0.5)
    assert list(row.values())[1:] == [
        *("MACs, share of the float network's", "0.500", "0.499", "0.499", "+0.0 %", "n/a"),
        "50.00 %",
    ]
    time = Pruning(
        goal="latency", asked=0.5, unit="share", predicted=0.48, reached=0.5, reached_share=0.5,
        first_predicted=0.5, first_measured=0.53,
    )  # fmt: skip
    row = pruning_row(time)
    assert list(row.values())[1:6] == ["time of the file", "0.500", "0.480", "0.500", "-4.0 %"]
    assert row["before correction, predicted and measured"] == "0.500, 0.530"
    milliseconds = Pruning(
        goal="latency", asked=30, unit="ms", predicted=30, reached=33, reached_share=0.6
    )
    assert pruning_row(milliseconds)["reached"] == "33.0 ms (0.600 of the unpruned file's time)"
    nowhere = Pruning(
        goal="latency", asked=30, unit="ms", predicted=30, reached=None, reached_missing=NO_PHONE
    )
    assert pruning_row(nowhere)["reached"] == "not measured (1)"
    assert pruning_row(None, sparsity=0.5)["goal"] == "n/a"
    assert "## Pruning" not in render(report())


def test_layers_that_pruning_left_whole_are_named_with_the_reason() -> None:
    kept = tuple(
        Kept(layer=f"stage{i}.conv", channels=8, reason=f"tied to {i} others") for i in range(4)
    )
    found = Pruning(goal="macs", asked=0.5, unit="share", predicted=0.5, reached=0.5, kept=kept)
    text = render(report(target(pruning=found)))
    line = (
        "- android: not pruned: stage0.conv, stage1.conv, stage2.conv and 1 more: tied to 0 others"
    )
    assert line in text.splitlines()
    whole = Pruning.model_validate_json(found.model_dump_json())
    assert whole == found
    assert "not pruned" not in render(report(target(pruning=found.model_copy(update={"kept": ()}))))


def test_budgets_of_time_judge_the_file() -> None:
    found = Pruning(
        goal="latency", asked=0.5, unit="share", predicted=0.5, reached=0.54, reached_share=0.54
    )
    budgets = (budget("latency_ms", 20.0, 21.35), budget("latency_share", 0.55, 0.54))
    judged = report(target(pruning=found, budgets=budgets, passed=False))
    text = render(judged)
    assert "android: latency 21.35 ms, allowed at most 20 ms" in text
    assert "**Failed**: 1 of 2 budgets missed" in text
    with pytest.raises(ValueError, match=r"latency_share judges 0\.5, not 0\.54"):
        target(pruning=found, budgets=(budget("latency_share", 0.55, 0.5),), passed=True)


def test_a_gpu_baseline_and_the_float_model_here_stand_apart() -> None:
    gpu = float_model(
        device="H200", device_kind="gpu", measured_here=False, latency_ms=latency_of([3.1], 8, 1)
    )
    table = rows(render(report(baseline=gpu)))
    assert list(table) == ["float baseline", "float on this CPU", "android"]
    assert table["float baseline"]["device"] == "H200 (GPU, measured elsewhere)"
    assert table["float baseline"]["latency"] == "3.10 ms (3.10 to 3.10)"
    assert table["float baseline"]["speedup"] == "n/a"
    assert table["float on this CPU"]["speedup"] == "1x"


@pytest.mark.parametrize(
    ("changed", "column", "cell"),
    [
        (target(size_bytes=3_400_000), "size MB", "3.40 (30.1x smaller)"),
        (target(size_bytes=204_800_000), "size MB", "205 (2.00x larger)"),
        (target(top1=0.95), "top-1", "95.00 % (drop 3.00 pt)"),
        (target(top1=0.99), "top-1", "99.00 % (drop -1.00 pt)"),
        (target(latency=latency_of([42.7], 1, 1)), "speedup", "2.00x"),
        (
            target(latency=latency_of([42.7], 1, 1)),
            "latency",
            "42.7 ms (42.7 to 42.7), 1 thread, on this CPU",
        ),
        (target(download_bytes=5_000_000), "download MB", "5.00"),
        (target(int8_coverage=1.0), "int8", "100.00 %"),
        (target(int8_coverage=0.0), "int8", "0.00 %"),
        (target(scales_exact=ScalesExact(same=3, total=9)), "scales", "3/9"),
        (target(scales_exact=ScalesExact(same=3, total=9)), "weights", "n/a"),
        (target(limits=(0.1, 7.0, 9.0)), "budgets", "missed: top-1 drop, speedup"),
        (target(budgets=()), "budgets", "none set"),
    ],
)
def test_a_changed_figure_changes_the_table(changed: TargetResult, column: str, cell: str) -> None:
    assert rows(render(report(changed)))["android"][column] == cell
    assert rows(render(report()))["android"][column] != cell


def test_missed_budgets_are_listed_with_value_and_limit() -> None:
    text = render(report(target(limits=(0.2, 6.5, 9.0)), target("other")))
    assert "**Failed**: 3 of 6 budgets missed." in text
    listed = text.split("## Budgets missed\n\n")[1].split("\n\n")[0].splitlines()
    assert listed == [
        "- android: top-1 drop 0.45 pt, allowed at most 0.2 pt",
        "- android: size 6.8 MB, allowed at most 6.5 MB",
        "- android: speedup 4x, allowed at least 9x",
    ]


def test_a_value_just_past_its_limit_does_not_read_as_equal() -> None:
    text = render(report(target(size_bytes=7_000_001)))
    assert "size 7.000001 MB, allowed at most 7 MB" in text
    assert "None." in render(report(target(size_bytes=7_000_000)))


def test_missing_figures_say_so_and_why() -> None:
    unrun = target("iphone", top1=None, scales_missing="The file holds no scales: a float file.")
    unjudged = float_model(latency_ms=None, latency_missing="No GPU here.", device="H200")
    text = render(report(unrun, baseline=unjudged))
    table = rows(text)
    assert table["float baseline"]["latency"] == "not measured (1)"
    assert table["iphone"] == table["iphone"] | {
        "top-1": "not measured (2)",
        "speedup": "not measured (2)",
        "latency": "not measured (2)",
        "int8": "not measured (2)",
        "scales": "not measured (3)",
        "weights": "not measured (3)",
        "budgets": "met; not measured: top-1 drop, speedup",
    }
    assert rows(text, 1)["iphone"]["top-1"] == "not measured (2)"
    assert rows(text, 3)["export"]["MACs"] == "not measured (4)"
    reasons = text.split("## Not measured\n\n")[1].split("\n\n")[0].splitlines()
    assert reasons == [
        "1. No GPU here.",
        f"2. {NO_PHONE}",
        "3. The file holds no scales: a float file.",
        "4. This stage does not measure this figure.",
    ]
    assert "**Passed**: 1 of 3 budgets met, 2 not measured." in text
    assert "- iphone: speedup, allowed at least 2x: not measured (2)" in text


def test_every_test_set_has_its_row() -> None:
    found = {"real": TOP1, "drawn": Accuracy(top1=0.5, top5=0.75, images=8)}
    text = render(
        report(
            target(accuracy={"real": TOP1, "drawn": found["drawn"]}, accuracy_drop_pt=0.0,
                   budgets=()),
            data=report().data.model_copy(update={"test_sets": {"real": 450, "drawn": 8}}),
            baseline=float_model(accuracy=found),
            float_cpu=float_model(accuracy=found),
        )
    )  # fmt: skip
    section = text.split("## Accuracy")[1].split("##")[0]
    assert section.count("| android |") == 2
    assert "| android | drawn | 8 | 50.00 % | 75.00 % | 99.60 % |" in section


def test_parity_has_a_table_of_its_own() -> None:
    table = rows(render(report()), 2)
    assert table["android"] == {
        "target": "android",
        "computed by": "its runtime",
        "input": "normalized",
        "images": "630",
        "same top-1": "100.00 %",
        "layers alike": "80/80",
        "median": "0 steps",
        "99th percentile": "1 step",
        "largest": "3 steps",
        "own rounding, 99th percentile": "2 steps",
        "XNNPACK partitions": "1",
        "verdict": "passed",
    }
    float_file = target(
        parity=parity(steps=None, rounding=None, difference=2e-6),
        partitions=None,
        partitions_missing="No delegate.",
    )
    found = rows(render(report(float_file)), 2)["android"]
    assert found["99th percentile"] == "2.0e-06 of the largest logit"
    assert found["median"] == found["own rounding, 99th percentile"] == "n/a"
    assert found["XNNPACK partitions"] == "not measured (1)"


def test_what_the_evaluator_computed_says_so() -> None:
    text = render(report(target("iphone", evaluated="reference")))
    assert rows(text)["iphone"]["top-1"] == "97.55 % (drop 0.450 pt, reference)"
    assert rows(text, 2)["iphone"]["computed by"] == "reference evaluator"


def test_an_allowed_mismatch_stands_at_the_top() -> None:
    wrong = parity(
        agreement=0.9, misses=("90 % only",), first_difference="conv1.0 conv2d", passed=False
    )
    text = render(report(target(parity=wrong), target("other")))
    first, verdict = text.split("\n\n")[1:3]
    assert first.startswith("**Do not ship android**")
    assert verdict.startswith("**Passed**")
    assert "- android: 90 % only" in text
    assert "- android: first layer that differs: conv1.0 conv2d" in text
    assert rows(text, 2)["android"]["verdict"] == "missed"
    assert rows(text, 2)["other"]["verdict"] == "passed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passed": False}, "passed: got False, with 0 misses"),
        ({"misses": ("a",)}, "passed: got True, with 1 misses"),
        ({"steps": None}, "give steps"),
        ({"difference": 0.5}, "give steps"),
        ({"steps": None, "difference": 0.5}, "rounding: a float file has no grid"),
    ],
)
def test_parity_refuses_to_contradict_itself(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parity(**changes)


@given(st.floats(min_value=0, max_value=1))
def test_only_nothing_reads_as_0_and_only_all_as_100percent(share: float) -> None:
    number = float(percent(share).removesuffix(" %"))
    assert number == pytest.approx(100 * share, abs=0.005)
    if 1e-12 < share < 1 - 1e-12:
        assert 0 < number < 100


SPECIAL = st.sampled_from("|\\`*_[]()<>&~#+-=.!:$1a \n\t\r\u2028\0\x1b")
TRICKY = st.text(SPECIAL | st.characters())


def shown(text: str) -> str:
    """What a reader must see: one line, control characters replaced."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else "\ufffd" for char in line)


@given(TRICKY)
def test_any_text_shows_as_it_is_in_cells_and_lists(text: str) -> None:
    cells = MARKDOWN.parse(f"| a | b |\n| --- | --- |\n| {markdown_text(text)} | end |\n")
    found = [token for token in cells if token.type == "inline"][2:]
    assert len(found) == 2
    listed = MARKDOWN.parse(f"- {markdown_text(text)}\n")
    found += [token for token in listed if token.type == "inline"]
    blocks = {token.type for token in listed if token.nesting == 1}
    assert blocks <= {"bullet_list_open", "list_item_open", "paragraph_open"}
    for inline in (token for token in found if token.content != "end"):
        kinds = {child.type for child in inline.children or ()}
        assert kinds <= {"text", "text_special"}
        assert "".join(child.content for child in inline.children or ()) == shown(text)


NAMES = st.text(SPECIAL, min_size=1).filter(str.strip)


@given(NAMES, NAMES)
def test_names_from_outside_cannot_break_the_report(name: str, device: str) -> None:
    text = render(report(target(name, device=device), name=name))
    tokens = MARKDOWN.parse(text)
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == 4
    assert kinds.count("heading_open") == 7
    assert not {"html_block", "fence", "code_block", "hr"} & set(kinds)
    assert rows(text)[shown(name)]["device"] == f"for {shown(device)}"
