"""What a benchmark must show, read from a file: who keeps recipes keeps bars as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipeline.base.errors import InputError
from pipeline.base.safe_files import content_of
from pipeline.commands.bench.within import Within
from pipeline.formats.formats import FORMATS, FormatName
from pipeline.measure.latency import Latency
from pipeline.measure.ratios import Ratio, ratio_of
from pipeline.tasks.accuracy import AnyAccuracy

NOISY = 0.2
"""A ratio whose 90th percentile over the rounds is more than this share above its 10th was measured
on a machine that did something else; on a quiet one these ratios spread by a tenth. It leaves a bar
undecided, unless the bar lies below the 10th percentile, or as many times above the 90th as that is
the 10th."""
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
        within_pt: points of float that a file may lose. In place of `fast` and `slow`, the
            fastest of our files and the fastest of the other tools' that lose no more.
        format: of these files.
        bytes_at_most: how large ours may be, as a share of the other.
        cpu: what the CPU can do, in Linux' words; where it can do none of it, the bar is not asked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fast: tuple[_Name, ...] = ()
    slow: tuple[_Name, ...] = ()
    at_least: _Above0 | None = None
    not_less_accurate: bool = False
    within_pt: _Above0 | None = None
    format: FormatName | None = None
    bytes_at_most: _Above0 | None = None
    cpu: tuple[_Name, ...] = ()

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        asked = (self.at_least is not None) + (self.bytes_at_most is not None)
        named = bool(self.fast and self.slow) and self.at_least is not None
        alike = self.within_pt is not None and self.format is not None
        mixed = (self.within_pt or self.format) if named else (self.fast or self.slow)
        if asked != 1 or mixed or not (named or alike):
            raise ValueError(
                "give fast with slow and at_least, or within_pt with format and either at_least "
                "or bytes_at_most"
            )
        return self


Verdict = Literal["met", "missed", "undecided", "not asked"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A bar and what was measured.

    Attributes:
        bar: in words.
        limit: the least that was asked, or the most.
        found: what was measured; None where it could not be.
        verdict: undecided where the rounds spread too much to say that it was missed; not asked
            where it is of other CPUs.
        why: it is not met.
    """

    bar: str
    limit: float
    found: float | None
    verdict: Verdict
    why: str | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the bars are held against, by name of the contestant, on one thread.

    Attributes:
        latencies: timed in turn.
        accuracies: on the first test set.
        within: the best files of every runtime within some points of float.
        cpu: what the CPU can do, in Linux' words; None where that is not known.
    """

    latencies: Mapping[str, Latency]
    accuracies: Mapping[str, AnyAccuracy]
    within: Sequence[Within]
    cpu: frozenset[str] | None = None


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
    found = (
        _judge_within(bar, measured) if bar.within_pt is not None else _judge_named(bar, measured)
    )
    if not bar.cpu or measured.cpu is None or not measured.cpu.isdisjoint(bar.cpu):
        return found
    return replace(found, verdict="not asked", why=f"this CPU has no {_words(bar.cpu)}")


def _judge_named(bar: Bar, measured: Measured) -> Outcome:
    assert bar.at_least is not None
    words = f"{_words(bar.fast)} at least {bar.at_least:g} times as fast as {_words(bar.slow)}"
    if bar.not_less_accurate:
        words += ", no less accurate"
    fast, slow = (_fastest(names, measured.latencies) for names in (bar.fast, bar.slow))
    if fast is None or slow is None:
        missing = bar.fast if fast is None else bar.slow
        return _unmeasured(words, bar.at_least, f"{_words(missing)} was not measured")
    ratio = ratio_of(measured.latencies[slow], measured.latencies[fast])
    less = _less_accurate(fast, slow, measured) if bar.not_less_accurate else None
    return _of_ratio(words, bar.at_least, ratio, fast, slow, less)


def _judge_within(bar: Bar, measured: Measured) -> Outcome:
    """The best file of ours against the best of the others, of those that lose no more points."""
    limit = bar.at_least or bar.bytes_at_most
    assert limit is not None
    assert bar.format is not None
    what = f"{FORMATS[bar.format].title} within {bar.within_pt:g} points of float"
    if bar.at_least is not None:
        words = f"{what}: at least {limit:g} times as fast as the best of other tools"
    else:
        words = f"{what}: at most {limit:g} of the bytes of the best of other tools"
    found = next(
        (w for w in measured.within if (w.bound_pt, w.format) == (bar.within_pt, bar.format)), None
    )
    if found is None or found.ours is None or not found.others:
        whose = "of ours" if found is None or found.ours is None else "of another tool"
        return _unmeasured(words, limit, f"no file {whose} that was timed is within it")
    ours, other = found.ours, found.others[0]
    if bar.at_least is not None:
        assert found.ratio is not None
        return _of_ratio(words, limit, found.ratio, ours.name, other.name, None)
    share = ours.size_bytes / other.size_bytes
    why = None if share <= limit else f"{ours.name} has {share:.2f} of the bytes of {other.name}"
    return Outcome(
        bar=words, limit=limit, found=share, verdict="met" if why is None else "missed", why=why
    )


def _of_ratio(
    words: str, limit: float, ratio: Ratio, fast: str, slow: str, less: str | None
) -> Outcome:
    """A bar of speed; `less` says how much less accurate the faster one is, where that matters."""
    told = f"{fast} is {ratio.median:.2f} times as fast as {slow}"
    spread = f"{told}; the rounds spread from {ratio.p10:.2f} to {ratio.p90:.2f}"
    noisy = ratio.p90 > (1 + NOISY) * ratio.p10 or ratio.verdict == "not told apart"
    verdict: Verdict = "met"
    why = less
    if less is not None:
        verdict = "missed"
    elif noisy and ratio.p10 < limit <= ratio.p90 * ratio.p90 / ratio.p10:
        verdict, why = "undecided", f"{spread}: take a quieter machine"
    elif ratio.median < limit:
        verdict, why = "missed", told
    return Outcome(bar=words, limit=limit, found=ratio.median, verdict=verdict, why=why)


def _less_accurate(fast: str, slow: str, measured: Measured) -> str | None:
    own, other = (measured.accuracies.get(name) for name in (fast, slow))
    if own is None or other is None:
        return f"the accuracy of {fast if own is None else slow} was not measured"
    if own.figure >= other.figure:
        return None
    return f"{own.FIGURE} of {fast} is {own.figure:.2%}, that of {slow} {other.figure:.2%}"


def _unmeasured(words: str, limit: float, why: str) -> Outcome:
    return Outcome(bar=words, limit=limit, found=None, verdict="missed", why=why)


def _fastest(names: Sequence[str], latencies: Mapping[str, Latency]) -> str | None:
    there = [name for name in names if name in latencies]
    return min(there, key=lambda name: latencies[name].median, default=None)


def _words(names: Sequence[str]) -> str:
    return " or ".join(names)
