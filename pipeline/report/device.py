"""Words for what files do on real devices, shared by the report and the command.

Every row begins with the machine: no figure of one stands in another's column.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.measure.device.record import (
    Conditions,
    Device,
    FileOnDevice,
    GoldenCheck,
    OnDevice,
    Timing,
)
from pipeline.report import words
from pipeline.report.records import Report, TargetResult

HEADINGS = ("unit", "threads", "one image", "load", "first inference", "memory", "golden images")
"""Of the cells of a timing."""
HEADER = ("target", "device", *HEADINGS)
TEXT_COLUMNS = 3
"""Of `HEADER`, from the left; the others are figures."""
MEANING = (
    "One image: the median (10th to 90th percentile) over the rounds, where files took turns, or "
    "what the source gives. Golden images: the most by which an answer differed from this "
    "machine's, of what is allowed; they ran on the device before anything was timed. Memory: "
    "what the file adds to the process at most."
)
_KINDS = {"adb": "over adb by {tool}", "apple": "on the Mac by {tool}", "imported": "from {file}"}


def section(report: Report) -> list[str]:
    """The section of report.md; nothing where no file was measured on a device."""
    return words.section("On devices", HEADER, rows(report), MEANING, notes(report))


def rows(report: Report) -> list[list[str]]:
    """A row for each file, device, unit and number of threads, under `HEADER`."""
    return [
        [target.name, machine(found.device), *line]
        for target in report.targets
        for found in target.devices
        for file in found.files
        for line in file_rows(file)
    ]


def notes(report: Report) -> list[str]:
    """What there is to say of the devices and the rows, each line once."""
    lines = [
        line
        for target in report.targets
        for found in target.devices
        for line in (described(found), *lines_of(found))
    ]
    return list(dict.fromkeys(lines))


def in_short(target: TargetResult) -> list[str]:
    """The fastest time of a file on every device, with the machine's name."""
    lines = []
    for found in target.devices:
        timings = [timing for file in found.files for timing in file.timings]
        if timings:
            best = min(timings, key=lambda timing: timing.typical_ms)
            lines.append(f"{time_of(best)}, {unit(best)}, on {machine(found.device)}")
    return lines


def unit(found: Timing) -> str:
    """What computed: `cpu, 2 threads`."""
    if found.threads is None:
        return found.unit
    return f"{found.unit}, {words.plural(found.threads, 'thread')}"


def file_rows(file: FileOnDevice) -> list[list[str]]:
    """The cells of every timing of a file, in the order of `HEADINGS`."""
    checks = {check.unit: golden(check) for check in file.golden}
    found = [_timing(timing, checks.get(timing.unit)) for timing in file.timings]
    timed = {timing.unit for timing in file.timings}
    empty = [words.NOT_APPLICABLE] * 5
    return found + [[u, *empty, checks[u]] for u in checks if u not in timed]


def _timing(found: Timing, check: str | None) -> list[str]:
    def ms(value: float | None) -> str:
        return words.NOT_APPLICABLE if value is None else f"{words.figure(value)} ms"

    return [
        found.unit,
        words.NOT_APPLICABLE if found.threads is None else str(found.threads),
        time_of(found),
        ms(found.load_ms),
        ms(found.first_ms),
        words.NOT_APPLICABLE if found.peak_mb is None else f"{words.figure(found.peak_mb)} MB",
        words.NOT_APPLICABLE if check is None else check,
    ]


def time_of(found: Timing) -> str:
    """Milliseconds of one image, with their spread where it is known."""
    text = f"{words.figure(found.typical_ms)} ms"
    if found.p10_ms is not None and found.p90_ms is not None:
        text += f" ({words.figure(found.p10_ms)} to {words.figure(found.p90_ms)})"
    return text if found.typical == "median" else f"{text}, mean"


def golden(check: GoldenCheck) -> str:
    """What came of the golden images on a unit."""
    if check.passed is None:
        return "not checked"
    verdict = "passed" if check.passed else "missed"
    return f"{verdict}, {check.largest:.3g} of {check.tolerance:.3g}"


def machine(found: Device) -> str:
    """The name of a device: `Google Pixel 8 (Tensor G3, Android 15)`."""
    os = " ".join(filter(None, [found.os, found.os_version]))
    known = ", ".join(filter(None, [found.soc, os]))
    return f"{found.name} ({known})" if known else found.name


def described(found: OnDevice) -> str:
    """A device, how it was measured and when, and in which state it was."""
    device, source = found.device, found.source
    parts = [
        f"model {device.model}" if device.model else None,
        device.abi,
        f"pages of {device.page_size // 1024} KB" if device.page_size else None,
        words.plural(device.cores, "core") if device.cores else None,
        state("before", found.before),
        state("after", found.after),
    ]
    how = _KINDS[source.kind].format(tool=source.tool, file=source.file)
    version = f" {source.version}" if source.version else ""
    by = f" ({source.tool}{version})" if source.kind == "imported" else version
    day = found.measured_at.replace("T", " ").removesuffix("Z")
    known = "; ".join(filter(None, parts))
    return f"{machine(device)}: {how}{by}, {day} UTC" + (f"; {known}" if known else "")


def state(when: str, found: Conditions) -> str | None:
    """How a device was, in words; None where nothing is known of it."""
    parts = []
    if found.thermal is not None:
        parts.append(f"thermal state {found.thermal}")
    if found.battery_percent is not None:
        fed = ", powered" if found.powered else ""
        parts.append(f"battery {found.battery_percent} %{fed}")
    return f"{when}: {', '.join(parts)}" if parts else None


def lines_of(found: OnDevice) -> Iterator[str]:
    """What there is to say of a device's measurements, each with the machine's name."""
    name = machine(found.device)
    for file in found.files:
        for check in file.golden:
            if check.missing is not None:
                yield f"{name}: {file.name}, {check.unit}: not checked: {check.missing}"
        for timing in file.timings:
            if timing.fell_back is not None:
                yield f"{name}: {file.name}, {timing.unit}: {timing.fell_back}"
    for note in found.notes:
        yield f"{name}: {note}"
