"""How the times of a file on real devices changed: each device with its own earlier times."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.commands.compare.change import Allowances, Change, Verdict
from pipeline.measure.device.record import OnDevice, Timing
from pipeline.report import device
from pipeline.report.records import TargetResult

_NOT_IN_BOTH = "not measured"
_Key = tuple[str, str, str, str, int | None]


def on_devices(one: TargetResult, two: TargetResult, allowed: Allowances) -> Iterator[Change]:
    """A change for each device, unit and number of threads that either run was timed on.

    Args:
        one: before.
        two: after.
        allowed: how much more time is no regression.
    """
    before, after = _timings(one), _timings(two)
    for key in dict.fromkeys((*before, *after)):
        first, second = before.get(key), after.get(key)
        note, verdict = _judged(first, second, allowed)
        known = first or second
        assert known is not None  # the key is of one of them
        yield Change(
            target=two.name,
            what=f"latency on {key[0]}, {device.unit(known)}",
            before=_NOT_IN_BOTH if first is None else device.time_of(first),
            after=_NOT_IN_BOTH if second is None else device.time_of(second),
            note=note,
            verdict=verdict,
        )


def _timings(target: TargetResult) -> dict[_Key, Timing]:
    """By the device, how it was measured, the unit and the threads; the newest counts."""
    return {
        (*_machine(found), timing.unit, timing.threads): timing
        for found in target.devices
        for file in found.files
        for timing in file.timings
    }


def _machine(found: OnDevice) -> tuple[str, str, str]:
    """What must be alike so that two times can be compared."""
    return device.machine(found.device), found.source.kind, found.source.tool


def _judged(
    first: Timing | None, second: Timing | None, allowed: Allowances
) -> tuple[str, Verdict]:
    if first is None or second is None:
        return "not measured in both", "unknown"
    if first.typical != second.typical:
        return f"a {first.typical} and a {second.typical}", "unknown"
    if first.fell_back is None and second.fell_back is not None:
        return second.fell_back, "regression"
    growth = second.typical_ms / first.typical_ms - 1
    note = f"{100 * growth:+.1f} %"
    if not _apart(first, second):
        return f"{note}, within the spread of the rounds", "same"
    if growth < 0:
        return note, "better"
    return note, "regression" if growth > allowed.latency_growth else "worse"


def _apart(first: Timing, second: Timing) -> bool:
    """Whether their spreads do not overlap; without a spread, whether they differ at all."""
    (low, high), (lower, higher) = _spread(first), _spread(second)
    return high < lower or higher < low


def _spread(found: Timing) -> tuple[float, float]:
    if found.p10_ms is None or found.p90_ms is None:
        return found.typical_ms, found.typical_ms
    return found.p10_ms, found.p90_ms
