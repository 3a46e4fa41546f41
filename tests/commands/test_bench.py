"""Ratios that say when they say nothing, bars that can be missed, and a whole benchmark."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.commands.bench.bars import Bar, Measured, judge, load_bars
from pipeline.commands.bench.contestants import EAGER, OURS, Contestant
from pipeline.commands.bench.within import BOUNDS_PT, Best, Within, drops, within
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.latency import latency_of
from pipeline.measure.ratios import ratio_of
from pipeline.tasks.accuracy import Accuracy

RECIPES = Path(__file__).parents[2] / "recipes" / "bench"


def taken(*samples: float, threads: int = 1) -> Any:
    return latency_of(samples, threads, 1)


def top1(value: float) -> Accuracy:
    return Accuracy(top1=value, top5=1.0, images=100)


@given(samples=st.lists(st.floats(0.1, 100), min_size=1, max_size=30), factor=st.floats(1.1, 20))
def test_a_machine_that_changes_speed_does_not_change_a_ratio(
    samples: list[float], factor: float
) -> None:
    found = ratio_of(taken(*(factor * s for s in samples)), taken(*samples))
    assert found.median == pytest.approx(factor)
    assert found.p10 == pytest.approx(factor)
    assert found.verdict == "faster"


def test_a_spread_over_one_shows_no_difference() -> None:
    one, other = taken(10, 10, 10, 10), taken(9, 11, 8, 12)
    assert ratio_of(one, other).verdict == "not told apart"
    assert ratio_of(one, taken(11, 12, 11, 13)).verdict == "slower"
    assert ratio_of(one, taken(5, 9.9, 5, 5)).verdict == "faster"


@pytest.mark.parametrize("other", [taken(1, 2), taken(1, 2, 3, threads=2)])
def test_what_was_not_timed_in_turn_is_not_compared(other: Any) -> None:
    with pytest.raises(ValueError, match="timed in turn"):
        ratio_of(taken(1, 2, 3), other)


def best(name: str, tool: str, milliseconds: float, size_bytes: int) -> Best:
    return Best(name=name, tool=tool, drop_pt=0.0, milliseconds=milliseconds, size_bytes=size_bytes)


MEASURED = Measured(
    latencies={
        "eager": taken(100, 100, 110),
        "peer": taken(20, 20, 22),
        "slow peer": taken(40, 40, 44),
        "ours": taken(10, 10, 11),
        "unsteady": taken(1, 30, 10),
    },
    accuracies={"eager": top1(0.9), "peer": top1(0.8), "ours": top1(0.8)},
    within=(
        Within(
            bound_pt=0.5,
            format="tflite",
            runtime="LiteRT",
            ours=best("ours", OURS, 10, 50),
            others=(best("peer", "onnx2tf", 20, 100), best("slow peer", "torch", 40, 400)),
            ratio=ratio_of(taken(20, 20, 22), taken(10, 10, 11)),
        ),
        Within(bound_pt=0.5, format="onnx", runtime="ORT", ours=None, others=(), ratio=None),
    ),
)
NOISY = Measured(
    latencies={"fast": taken(10, 10, 10), "slow": taken(15, 20, 30)}, accuracies={}, within=()
)


@pytest.mark.parametrize(
    ("bar", "why"),
    [
        (Bar(fast=("ours",), slow=("eager",), at_least=10), None),
        (Bar(fast=("ours",), slow=("eager",), at_least=10.1), "10.00 times as fast as eager"),
        # The best peer counts, and the better of two files.
        (Bar(fast=("ours",), slow=("slow peer", "peer"), at_least=2.1), "2.00 times as fast"),
        (Bar(fast=("peer", "ours"), slow=("eager",), at_least=10), None),
        (Bar(fast=("ours",), slow=("peer",), at_least=2, not_less_accurate=True), None),
        (
            Bar(fast=("ours",), slow=("eager",), at_least=2, not_less_accurate=True),
            "top-1 of ours is 80.00%, that of eager 90.00%",
        ),
        (
            Bar(fast=("ours",), slow=("slow peer",), at_least=2, not_less_accurate=True),
            "accuracy of slow peer was not measured",
        ),
        (Bar(fast=("gone",), slow=("peer",), at_least=1), "gone was not measured"),
        (Bar(within_pt=0.5, format="tflite", at_least=2), None),
        (Bar(within_pt=0.5, format="tflite", at_least=2.1), "ours is 2.00 times as fast as peer"),
        (Bar(within_pt=0.5, format="tflite", bytes_at_most=0.5), None),
        (Bar(within_pt=0.5, format="tflite", bytes_at_most=0.49), "0.50 of the bytes of peer"),
        (Bar(within_pt=0.5, format="onnx", at_least=1), "no file of ours that was timed"),
        (Bar(within_pt=1.0, format="tflite", at_least=1), "no file of ours that was timed"),
    ],
)
def test_a_bar_is_met_or_says_why_not(bar: Bar, why: str | None) -> None:
    (outcome,) = judge([bar], MEASURED)
    assert outcome.verdict == ("met" if why is None else "missed")
    assert (outcome.why is None) if why is None else why in str(outcome.why)


@pytest.mark.parametrize(
    ("flags", "verdict"),
    [({"avx2"}, "not asked"), ({"avx2", "avx_vnni"}, "missed"), (None, "missed")],
)
def test_a_bar_of_other_cpus_is_not_asked(flags: set[str] | None, verdict: str) -> None:
    cpu = ("avx512_vnni", "avx_vnni")
    here = replace(MEASURED, cpu=None if flags is None else frozenset(flags))
    named = Bar(fast=("ours",), slow=("eager",), at_least=10.1, cpu=cpu)
    alike = Bar(within_pt=0.5, format="tflite", at_least=2.1, cpu=cpu)
    for outcome in judge([named, alike], here):
        assert outcome.verdict == verdict
        assert outcome.found == pytest.approx(10 if outcome.limit > 3 else 2)
        said = "this CPU has no avx512_vnni or avx_vnni"
        assert (outcome.why == said) == (verdict == "not asked")


@pytest.mark.parametrize(
    ("at_least", "verdict"),
    [
        (1.2, "met"),  # nine rounds of ten are above it
        (1.9, "undecided"),  # though the median is above it, and
        (2.5, "undecided"),  # though it is below
        (3.9, "undecided"),  # as far above the 90th percentile as that is above the 10th
        (5.0, "missed"),  # and farther
    ],
)
def test_a_noisy_ratio_misses_only_what_is_far_off(at_least: float, verdict: str) -> None:
    (outcome,) = judge([Bar(fast=("fast",), slow=("slow",), at_least=at_least)], NOISY)
    assert outcome.verdict == verdict
    assert (outcome.why is None) == (verdict == "met")
    (unsteady,) = judge([Bar(fast=("unsteady",), slow=("peer",), at_least=1)], MEASURED)
    assert unsteady.verdict == "undecided"
    assert "the rounds spread from" in str(unsteady.why)


def contestant(name: str, tool: str, accuracy: float | None, **changes: Any) -> Contestant:
    whole = {
        "name": name,
        "tool": tool,
        "runtime": "LiteRT",
        "precision": "int8",
        "path": Path(f"{name}.tflite"),
        "size_bytes": 100,
        "made_in_s": None,
        "accuracy": None if accuracy is None else top1(accuracy),
        "file": ModelFile(path=Path(f"{name}.tflite"), format="tflite"),
    }
    return Contestant(**(whole | changes))


def test_only_files_about_as_right_as_float_are_compared() -> None:
    eager = contestant(EAGER, "torch", 0.9, file=None, path=None, size_bytes=None)
    every = [
        eager,
        contestant("ours, wrong", OURS, 0.88),
        contestant("ours", OURS, 0.897, size_bytes=40),
        contestant("ours, better", OURS, 0.91),
        contestant("theirs", "onnx2tf", 0.895, size_bytes=80),
        contestant("theirs, of timm's", "onnx2tf", 0.9),
        contestant("theirs, wrong", "another", 0.89),
        contestant("theirs in a newer one", "onnx2tf", None, same_as="theirs"),
        contestant("not timed", "another", 0.9),
    ]
    milliseconds = {
        "ours, wrong": 1, "ours": 4, "ours, better": 5, "theirs": 8, "theirs, of timm's": 9,
        "theirs, wrong": 2, "theirs in a newer one": 1, EAGER: 90,
    }  # fmt: skip
    latencies = {name: taken(each, each) for name, each in milliseconds.items()}
    half, whole = within(every, latencies)
    assert (half.bound_pt, whole.bound_pt) == BOUNDS_PT
    assert half.ours is not None
    assert (half.ours.name, half.ours.drop_pt) == ("ours", 0.3)
    assert [one.name for one in half.others] == ["theirs"], "the fastest of each tool"
    assert half.ratio is not None
    assert (half.ratio.median, half.bytes_share) == (2.0, 0.5)
    assert [one.name for one in whole.others] == ["theirs, wrong", "theirs"]
    assert drops(every)["ours, better"] == -1.0
    assert within(every[1:], latencies) == [], "without the float network nothing is within"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {fast: [a]}", "give fast with slow and at_least, or within_pt with format"),
        ("- {fast: [a], slow: [b], at_least: 0}", "0.at_least"),
        ("- {fast: [a], slow: [b], at_least: 2, bytes_at_most: 0.5}", "give fast with"),
        ("- {fast: [a], slow: [b], at_least: 2, within_pt: 0.5}", "give fast with"),
        ("- {fast: [a], within_pt: 0.5, format: onnx, at_least: 2}", "give fast with"),
        ("- {within_pt: 0.5, format: onnx}", "give fast with"),
        ("- {within_pt: 0.5, at_least: 2}", "give fast with"),
        ("- {within_pt: 0.5, format: gguf, at_least: 2}", "0.format"),
        ("- {fast: [a], slow: [b], at_leats: 2}", "at_leats"),
        ("fast: a", "the file"),
        ("- [", "give a YAML list"),
        ("[" * 5000, "give a YAML list"),
        ("- 2026-13-45", "give a YAML list"),
    ],
)
def test_bars_that_mean_nothing_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bars.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        load_bars(path)
    assert str(path) in str(raised.value)


def test_the_shipped_bars_speak_of_the_shipped_recipes() -> None:
    from pipeline.commands.bench.peers.plans import PLANS

    known = {path.stem for path in RECIPES.glob("*.yaml")} - {"base"}
    known |= {EAGER} | {plan.name for plan in PLANS}
    bars = load_bars(RECIPES / "bars.yml")
    assert len(bars) >= 8
    assert {name for bar in bars for name in bar.fast + bar.slow} <= known
    formats = {bar.format for bar in bars if bar.within_pt is not None}
    assert formats == {"tflite", "onnx"}
