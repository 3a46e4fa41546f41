"""Ratios that say when they say nothing, bars that can be missed, and a whole benchmark."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.commands.bench.bars import Bar, Measured, judge, load_bars
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


MEASURED = Measured(
    latencies={
        "eager": taken(100, 100, 110),
        "peer": taken(20, 20, 22),
        "slow peer": taken(40, 40, 44),
        "ours": taken(10, 10, 11),
        "unsteady": taken(1, 30, 10),
    },
    accuracies={"eager": top1(0.9), "peer": top1(0.8), "ours": top1(0.8)},
    shares={"ours": 0.5},
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
        (Bar(fast=("unsteady",), slow=("peer",), at_least=1), "no difference is shown"),
        (Bar(fast=("gone",), slow=("peer",), at_least=1), "gone was not measured"),
        (Bar(fast=("ours",), share_of_peak=0.5), None),
        (Bar(fast=("ours",), share_of_peak=0.51), "it is at 50%"),
        (Bar(fast=("peer",), share_of_peak=0.1), "peer was not measured"),
    ],
)
def test_a_bar_is_met_or_says_why_not(bar: Bar, why: str | None) -> None:
    (outcome,) = judge([bar], MEASURED)
    assert outcome.passed == (why is None)
    assert (outcome.why is None) if why is None else why in str(outcome.why)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {fast: [a]}", "give fast with slow and at_least, or fast with share_of_peak"),
        ("- {fast: [a], slow: [b], at_least: 0}", "0.at_least"),
        ("- {fast: [a], slow: [b], at_least: 2, share_of_peak: 0.5}", "give fast with"),
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
    from pipeline.commands.bench.contestants import EAGER
    from pipeline.commands.bench.peers.plans import PLANS

    known = {path.stem for path in RECIPES.glob("*.yaml")} - {"base"}
    known |= {EAGER} | {plan.name for plan in PLANS}
    bars = load_bars(RECIPES / "bars.yml")
    assert len(bars) >= 8
    assert {name for bar in bars for name in bar.fast + bar.slow} <= known
