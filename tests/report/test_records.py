"""Records: what they refuse, and the figures that follow from others."""

from __future__ import annotations

import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.measure.baseline.record import Baseline
from pipeline.measure.latency import Latency, latency_of
from pipeline.report.records import Budget, StageRecord, all_met, budget
from pipeline.tasks.accuracy import Accuracy, accuracy_drop_pt

TIMES = st.floats(min_value=1e-6, max_value=1e9)
SAMPLES = st.lists(TIMES, min_size=1, max_size=50)


def accuracy(top1: float, images: int = 450) -> Accuracy:
    return Accuracy(top1=top1, top5=1.0, images=images)


@given(SAMPLES)
def test_latency_sums_up_its_samples(samples: list[float]) -> None:
    latency = latency_of(samples, threads=2, batch=4)
    assert latency.samples_ms == tuple(samples)
    assert (latency.runs, latency.threads, latency.batch) == (len(samples), 2, 4)
    assert min(samples) <= latency.p10 <= latency.median <= latency.p90 <= max(samples)
    assert latency.median == pytest.approx(statistics.median(samples))
    assert [latency.p10, latency.p90] == pytest.approx(list(np.percentile(samples, [10, 90])))


@given(SAMPLES)
def test_latency_does_not_depend_on_the_order_and_survives_json(samples: list[float]) -> None:
    latency = latency_of(samples, threads=1, batch=1)
    turned = latency_of(samples[::-1], threads=1, batch=1)
    assert (turned.median, turned.p10, turned.p90) == (latency.median, latency.p10, latency.p90)
    assert Latency.model_validate_json(latency.model_dump_json()) == latency


@pytest.mark.parametrize("samples", [[], [1.0, 0.0], [-1.0], [float("nan")], [float("inf")]])
def test_latency_refuses_what_no_clock_gives(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 1, each finite and above 0"):
        latency_of(samples, threads=1, batch=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": 2}, "runs: got 2, but there are 3 samples"),
        ({"median": 2.5}, "median: is not that of samples_ms"),
        ({"p90": 3.0}, "p90: is not that of samples_ms"),
        ({"samples_ms": (1.0, 2.0, "3")}, "valid number"),
        ({"medain": 2.0}, "Extra inputs are not permitted"),
    ],
)
def test_latency_that_contradicts_itself_is_refused(
    change: dict[str, object], message: str
) -> None:
    whole = latency_of([1.0, 2.0, 3.0], threads=1, batch=1).model_dump()
    with pytest.raises(ValueError, match=message):
        Latency.model_validate(whole | change)


def test_records_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        accuracy(0.5).top1 = 0.6  # type: ignore[misc]


@pytest.mark.parametrize(
    "figures",
    [
        {"top1": 0.9, "top5": 0.8, "images": 10},
        {"top1": 97.3, "top5": 99.0, "images": 10},
        {"top1": 0.9, "top5": float("nan"), "images": 10},
        {"top1": 0.9, "top5": 1.0, "images": 0},
    ],
)
def test_accuracy_refuses_what_is_no_share(figures: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"top|images"):
        Accuracy.model_validate(figures)


@pytest.mark.parametrize("both", [True, False])
def test_a_figure_and_its_reason_exclude_each_other(both: bool) -> None:
    with pytest.raises(ValueError, match="give latency_ms or latency_missing"):
        Baseline(
            device="x",
            device_kind="cpu",
            measured_here=True,
            accuracy={"test": accuracy(0.9)},
            latency_ms=latency_of([1.0], 1, 1) if both else None,
            latency_missing="no clock" if both else None,
            size_bytes=1,
        )


def test_drop_is_in_points_on_the_first_test_set() -> None:
    before = {"real": accuracy(0.98), "drawn": accuracy(0.5)}
    after = {"drawn": accuracy(0.9), "real": accuracy(0.97)}
    assert accuracy_drop_pt(before, after) == 1.0
    assert accuracy_drop_pt({"drawn": accuracy(0.5)}, after) == -40.0
    assert accuracy_drop_pt(before, None) is None


@pytest.mark.parametrize("after", [{"other": accuracy(0.9)}, {"test": accuracy(0.9, images=20)}])
def test_drop_needs_the_same_images(after: dict[str, Accuracy]) -> None:
    with pytest.raises(ValueError, match=r"test set 'test': .*test the 450 images"):
        accuracy_drop_pt({"test": accuracy(0.9)}, after)


@pytest.mark.parametrize(
    ("metric", "below", "at", "above"),
    [
        ("accuracy_drop_pt", True, True, False),
        ("size_mb", True, True, False),
        ("speedup", False, True, True),
    ],
)
def test_budget_holds_at_its_limit(metric: str, below: bool, at: bool, above: bool) -> None:
    verdicts = [budget(metric, 2.0, value).passed for value in (1.9, 2.0, 2.1)]  # type: ignore[arg-type]
    assert verdicts == [below, at, above]


def test_budget_without_value_is_not_judged() -> None:
    unjudged = budget("speedup", 2.0, None, "no phone here")
    assert unjudged.passed is None
    assert all_met([unjudged, budget("size_mb", 2.0, 1.0)])
    assert not all_met([unjudged, budget("size_mb", 2.0, 3.0)])
    with pytest.raises(ValueError, match="give value or missing"):
        budget("speedup", 2.0, None)
    with pytest.raises(ValueError, match="give value or missing"):
        budget("speedup", 2.0, 1.0, "no phone here")


@pytest.mark.parametrize("passed", [True, None])
def test_budget_cannot_be_talked_into_passing(passed: bool | None) -> None:
    with pytest.raises(ValueError, match="these figures give False"):
        Budget(metric="size_mb", limit=1.0, value=2.0, passed=passed)


def test_stage_refuses_an_unknown_status() -> None:
    with pytest.raises(ValueError, match="'done' or 'reused'"):
        StageRecord(name="qat", status="skipped", seconds=1.0)  # type: ignore[arg-type]


def test_records_load_without_the_heavy_packages() -> None:
    code = (
        "import sys, pipeline.report.records, pipeline.report.write; "
        "print([m for m in ('torch', 'numpy', 'tensorflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
