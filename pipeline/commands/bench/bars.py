"""What a benchmark must show, read from a file: who keeps recipes keeps bars as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipeline.base.errors import InputError
from pipeline.base.safe_files import content_of
from pipeline.measure.latency import Latency
from pipeline.measure.ratios import Ratio, ratio_of
from pipeline.tasks.accuracy import AnyAccuracy

_MOST_BYTES = 2**20
_Name = Annotated[str, Field(min_length=1)]
_Above0 = Annotated[float, Field(gt=0)]


class Bar(BaseModel):
    """One thing that must hold, for one image and one thread.

    Attributes:
        fast: the name of a contestant; of several, the fastest counts.
        slow: what it is compared with; of several, the fastest counts.
        at_least: how many times as fast it must be.
        not_less_accurate: whether its top-1 must not be lower than that of `slow` either.
        share_of_peak: of the runtime's own matrix products; in place of `slow` and `at_least`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fast: tuple[_Name, ...]
    slow: tuple[_Name, ...] = ()
    at_least: _Above0 | None = None
    not_less_accurate: bool = False
    share_of_peak: _Above0 | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        compares = bool(self.slow) and self.at_least is not None
        if compares == (self.share_of_peak is not None) or not self.fast:
            raise ValueError("give fast with slow and at_least, or fast with share_of_peak")
        return self


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A bar and what was measured.

    Attributes:
        bar: in words.
        limit: the least that was asked.
        found: what was measured; None where it could not be.
        told_apart: whether the spread of the rounds leaves no doubt which is faster.
        passed: found, told apart, and no less than the limit.
        why: why it did not pass.
    """

    bar: str
    limit: float
    found: float | None
    told_apart: bool
    passed: bool
    why: str | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the bars are held against, by name of the contestant, on one thread.

    Attributes:
        latencies: timed in turn.
        accuracies: on the first test set.
        shares: of the peak, of files whose roofline was taken.
    """

    latencies: Mapping[str, Latency]
    accuracies: Mapping[str, AnyAccuracy]
    shares: Mapping[str, float]


def load_bars(path: Path) -> tuple[Bar, ...]:
    """Read a YAML list of bars.

    Raises:
        InputError: the file cannot be read or holds something else; names the place.
    """
    try:
        content = yaml.safe_load(content_of(path, _MOST_BYTES).decode("utf-8"))
        return TypeAdapter(tuple[Bar, ...]).validate_python(content)
    except ValidationError as error:
        problems = [
            f"{path}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}"
            for e in error.errors()
        ]
        raise InputError("\n".join(problems)) from error
    # Beside its own errors PyYAML lets through those of dates and numbers that are none.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}; give a YAML list") from error


def judge(bars: Sequence[Bar], measured: Measured) -> list[Outcome]:
    """Hold every bar against what was measured."""
    return [_judge(bar, measured) for bar in bars]


def _judge(bar: Bar, measured: Measured) -> Outcome:
    if bar.share_of_peak is not None:
        return _judge_share(bar, measured, bar.share_of_peak)
    assert bar.at_least is not None
    words = f"{_words(bar.fast)} at least {bar.at_least:g} times as fast as {_words(bar.slow)}"
    if bar.not_less_accurate:
        words += ", no less accurate"
    fast, slow = (_fastest(names, measured.latencies) for names in (bar.fast, bar.slow))
    if fast is None or slow is None:
        missing = bar.fast if fast is None else bar.slow
        return _unmeasured(words, bar.at_least, missing)
    ratio = ratio_of(measured.latencies[slow], measured.latencies[fast])
    why = _why_not(bar, ratio, fast, slow, measured)
    return Outcome(
        bar=words,
        limit=bar.at_least,
        found=ratio.median,
        told_apart=ratio.verdict != "not told apart",
        passed=why is None,
        why=why,
    )


def _why_not(bar: Bar, ratio: Ratio, fast: str, slow: str, measured: Measured) -> str | None:
    assert bar.at_least is not None
    if ratio.median < bar.at_least:
        return f"{fast} is {ratio.median:.2f} times as fast as {slow}"
    if ratio.verdict == "not told apart":
        return f"the rounds spread from {ratio.p10:.2f} to {ratio.p90:.2f}: no difference is shown"
    if bar.not_less_accurate:
        own, other = (measured.accuracies.get(name) for name in (fast, slow))
        if own is None or other is None:
            return f"the accuracy of {fast if own is None else slow} was not measured"
        if own.figure < other.figure:
            told = f"{own.figure:.2%}, that of {slow} {other.figure:.2%}"
            return f"{own.FIGURE} of {fast} is {told}"
    return None


def _judge_share(bar: Bar, measured: Measured, limit: float) -> Outcome:
    words = f"{_words(bar.fast)} at {limit:.0%} of the runtime's own matrix products or more"
    found = [measured.shares[name] for name in bar.fast if name in measured.shares]
    if not found:
        return _unmeasured(words, limit, bar.fast)
    best = max(found)
    why = None if best >= limit else f"it is at {best:.0%}"
    return Outcome(bar=words, limit=limit, found=best, told_apart=True, passed=why is None, why=why)


def _unmeasured(words: str, limit: float, names: Sequence[str]) -> Outcome:
    why = f"{_words(names)} was not measured"
    return Outcome(bar=words, limit=limit, found=None, told_apart=False, passed=False, why=why)


def _fastest(names: Sequence[str], latencies: Mapping[str, Latency]) -> str | None:
    there = [name for name in names if name in latencies]
    return min(there, key=lambda name: latencies[name].median, default=None)


def _words(names: Sequence[str]) -> str:
    return " or ".join(names)
