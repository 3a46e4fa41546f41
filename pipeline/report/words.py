"""Words and figures that every form of the report shares."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from pipeline.formats.formats import FORMATS
from pipeline.formats.scales import ScalesExact
from pipeline.measure.baseline.record import Baseline
from pipeline.measure.latency import Latency
from pipeline.measure.parity_record import Parity
from pipeline.report.records import Budget, DataInfo, Report, TargetResult

NOT_APPLICABLE = "n/a"
NO_FIGURE_OF_STAGE = "This stage does not measure this figure."
UNITS: dict[str, tuple[str, str]] = {
    "accuracy_drop_pt": ("{figure} drop", " pt"),
    "size_mb": ("size", " MB"),
    "download_mb": ("download", " MB"),
    "speedup": ("speedup", "x"),
    "latency_ms": ("latency", " ms"),
    "device_latency_ms": ("latency on the device", " ms"),
    "latency_share": ("latency against the unpruned file", " of its time"),
}
GOALS = {
    "macs": "MACs, share of the float network's",
    "params": "parameters, share of the float network's",
    "size_mb": "size of the file",
    "latency": "time of the file",
}


def figure(value: float) -> str:
    """Write three significant digits, and never fewer than the whole number has."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def percent(share: float) -> str:
    """Write a share in percent; only exactly 0 and 1 read as 0 and 100."""
    for decimals in range(2, 15):
        text = f"{100 * share:.{decimals}f}"
        if share in (0, 1) or float(text) not in (0, 100):
            break
    return f"{text} %"


def percent_of(share: float, images: int | None) -> str:
    """Write a share of some images in percent; None of all that there are."""
    return percent(share) if images is None else f"{percent(share)} (of {images})"


def answered(parity: Parity) -> str:
    """Write how many images the gates are taken on, and of how many those were drawn."""
    return f"{parity.images} of {parity.available}" if parity.sampled else str(parity.images)


def count(number: int) -> str:
    """Write a large number with its unit: k, M or G."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{figure(number / size)} {unit}"
    return str(number)


def weights_same(exact: ScalesExact) -> str:
    """Write how many of a file's weights are the learned ones; older reports do not say it."""
    if not exact.codes_total:
        return NOT_APPLICABLE
    return f"{exact.codes_same}/{exact.codes_total}"


def plural(number: int, thing: str) -> str:
    """Write how many of something there are."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def left_out(data: DataInfo) -> list[str]:
    """Write which files of the folders are not among the images, a line for each reason."""
    lines = []
    if data.damaged:
        sets = ", ".join(f"{name} ({count})" for name, count in data.damaged.items())
        lines.append(f"damaged image files, left out: {sets}")
    if data.passed_over:
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in data.passed_over.items())
        lines.append(f"files passed over: {kinds}")
    return lines


def file_kind(target: TargetResult) -> str:
    """Format and precision: `TFLite, int8`."""
    return f"{FORMATS[target.format].title}, {target.precision}"


def runs_in(target: TargetResult) -> str:
    """The runtime's name; as the report has it where another version of ours wrote it so."""
    known = FORMATS[target.format]
    return known.runtime_title if target.runtime == known.runtime else target.runtime


def outside(target: TargetResult, most: int = 3) -> str | None:
    """Write which operations XNNPACK leaves to slower kernels, and why; None where it has all."""
    if not target.outside:
        return None
    left = len(target.outside) - most
    listed = "; ".join(target.outside[:most]) + (f"; and {left} more" if left > 0 else "")
    parts = plural(target.partitions or 0, "partition")
    return (
        f"XNNPACK leaves {plural(len(target.outside), 'operation')} to slower kernels, which cuts "
        f"the network into {parts}: {listed}"
    )


def in_float(target: TargetResult, most: int = 5) -> str | None:
    """Write what of an int8 file stays in float, and its share of the work; None where nothing."""
    if not target.left_in_float:
        return None
    named = [layer.module for layer in target.left_in_float]
    left = len(named) - most
    listed = ", ".join(named[:most]) + (f" and {left} more" if left > 0 else "")
    if target.int8_coverage is None:
        return f"left in float by the recipe: {listed}"
    share = percent(1 - target.int8_coverage)
    return f"left in float by the recipe: {listed}; {share} of the MACs are outside int8"


def blocks(kind: str | None) -> str:
    """Write, behind a network's name, what kind of blocks it has, if its family has kinds."""
    return "" if kind is None else f" ({kind} blocks)"


def primary(report: Report) -> str:
    """Name of the primary figure."""
    return next(iter(report.baseline.accuracy.values())).FIGURE


def title(name: str) -> str:
    """Write the name of a figure as the first word of a sentence."""
    return name.capitalize() if name.islower() else name


def columns(report: Report) -> list[str]:
    """Names of all figures of the metric, the primary one first."""
    return list(next(iter(report.baseline.accuracy.values())).columns)


def class_names(report: Report) -> tuple[str, ...]:
    """Names of the classes; of a report that does not give them, their numbers."""
    return report.data.classes or tuple(str(n) for n in range(report.model.num_classes))


def things(report: Report) -> str:
    """Write how many classes, or labels, there are."""
    one, several = next(iter(report.baseline.accuracy.values())).THINGS
    number = report.model.num_classes
    return f"{number} {one if number == 1 else several}"


def same(report: Report) -> str:
    """Name of what a file and its program have in common where they agree."""
    return next(iter(report.baseline.accuracy.values())).SAME


def judged(item: Budget, report: Report) -> str:
    """Name of what a budget judges."""
    return UNITS[item.metric][0].format(figure=primary(report))


def smaller(target: TargetResult, baseline: Baseline) -> str:
    """Write how many times smaller a file is than the float weights."""
    ratio = baseline.size_bytes / target.size_bytes
    return f"{figure(ratio)}x smaller" if ratio >= 1 else f"{figure(1 / ratio)}x larger"


def milliseconds(latency: Latency, device_kind: str = "cpu") -> str:
    """Write a latency with its spread, and what it was taken with."""
    text = f"{figure(latency.median)} ms ({figure(latency.p10)} to {figure(latency.p90)})"
    if device_kind == "cpu":
        text += f", {plural(latency.threads, 'thread')}"
    return text if latency.batch == 1 else f"{text}, batch {latency.batch}"


def measured(model: Baseline) -> str:
    """Write where the float model was measured, and when if that was elsewhere."""
    if model.measured_here:
        return "measured here"
    if model.origin is None:
        return "measured elsewhere"
    return f"measured elsewhere on {model.origin.measured_at[:10]}"


def origin(model: Baseline) -> str | None:
    """Write where figures of another machine are from; None where they are from here."""
    found = model.origin
    if found is None:
        return None
    time = found.measured_at.replace("T", " ").removesuffix("Z")
    graph = ", replayed as a CUDA graph" if found.cuda_graph else ""
    return (
        f"not measured here, but on a machine with {model.device} and {found.cpu}, at {time} UTC, "
        f"in float32 with torch {found.torch}{graph}, by PocketNest {found.code.version}, commit "
        f"{found.code.commit or 'unknown'}; its file is {found.file}, sha256 {found.sha256[:12]}"
    )


def speedup(target: TargetResult) -> str:
    """Write how many times as fast as the float model a file is, with the spread of the rounds."""
    assert target.speedup is not None
    text = f"{figure(target.speedup)}x"
    if target.speedup_p10 is None or target.speedup_p90 is None:
        return text
    return f"{text} ({figure(target.speedup_p10)} to {figure(target.speedup_p90)})"


def times(report: Report) -> str:
    """Write on which machine times and speedups were taken, how, and what they do not say."""
    text = (
        "Times are medians (10th to 90th percentile) on this machine's CPU, "
        f"{report.host.cpu}, not on the devices the files are made for: they say how the files "
        "compare, not how fast a phone is. A speedup is the median over rounds in which the file "
        "and the float model took turns; where the rounds leave it open which is faster, there is "
        "none."
    )
    base = report.float_cpu.latency_ms
    return text if base is None else f"{text} The float model takes {milliseconds(base)} there."


def reasons(report: Report) -> tuple[str, ...]:
    """Return why figures are missing, each reason once; its place is its number."""
    return tuple(missing_by_reason(report))


def missing_by_reason(report: Report) -> dict[str, list[str]]:
    """What each reason is the reason for: figures, and whose."""
    found: dict[str, dict[str, None]] = {}

    def note(reason: str | None, what: str) -> None:
        if reason is not None:
            found.setdefault(reason, {})[what] = None

    note(report.baseline.latency_missing, "time of the float baseline")
    note(report.float_cpu.latency_missing, "time of the float model on this CPU")
    for target in report.targets:
        note(target.accuracy_missing, f"accuracy of {target.name}")
        note(target.speedup_missing, f"speedup of {target.name}")
        note(target.latency_missing, f"time of {target.name}")
        note(target.coverage_missing, f"int8 share of {target.name}")
        note(target.scales_missing, f"scales of {target.name}")
        note(target.partitions_missing, f"partitions of {target.name}")
        if target.pruning is not None:
            note(target.pruning.reached_missing, f"what pruning of {target.name} reached")
        for item in target.budgets:
            note(item.missing, f"budget of {target.name}: {judged(item, report)}")
    for stage in report.stages:
        if None in (stage.params, stage.macs, stage.figure):
            note(NO_FIGURE_OF_STAGE, f"stage {stage.name}")
    return {reason: list(what) for reason, what in found.items()}


def which_file(report: Report) -> str:
    """Write in a sentence which file to take for which device, and which not yet."""
    fit = [t for t in report.targets if t.passed and t.sound]
    other = [t for t in report.targets if t not in fit]
    parts = []
    if fit:
        taken = "; ".join(f"{t.name}/{t.path} for {t.device}" for t in fit)
        parts.append(f"Take {taken}.")
    if other:
        left = ", ".join(t.name for t in other)
        parts.append(f"Not yet: {left}, whose cards say why.")
    return " ".join(parts)


def first_use(target: TargetResult) -> str | None:
    """Write what a file costs before its second answer; None where that was not measured."""
    found = target.first_use
    if found is None:
        return None
    memory = "under 1 MB" if found.memory_mb is None else f"{figure(found.memory_mb)} MB"
    return (
        f"loading {figure(found.load_ms)} ms, first call {figure(found.first_ms)} ms, "
        f"{memory} of memory"
    )


def budget_verdict(targets: Sequence[TargetResult]) -> tuple[str, str]:
    """Passed or Failed, and why, over all budgets of some targets."""
    budgets = [item for target in targets for item in target.budgets]
    missed = sum(item.passed is False for item in budgets)
    unmeasured = sum(item.passed is None for item in budgets)
    if not budgets:
        return "Passed", "the recipe sets no budgets"
    if missed:
        verdict, why = "Failed", f"{missed} of {plural(len(budgets), 'budget')} missed"
    else:
        met = len(budgets) - unmeasured
        verdict, why = "Passed", f"{met} of {plural(len(budgets), 'budget')} met"
    return verdict, f"{why}, {unmeasured} not measured" if unmeasured else why


def limit(item: Budget, digits: int = 6) -> str:
    """Write what a budget allows."""
    bound = "at least" if item.metric == "speedup" else "at most"
    return f"allowed {bound} {item.limit:.{digits}g}{UNITS[item.metric][1]}"


def missed(item: Budget, report: Report) -> str:
    """Write the value of a budget that was not kept, and what was allowed."""
    return f"{judged(item, report)} {missed_value(item)}, {limit(item, _digits(item))}"


def missed_value(item: Budget) -> str:
    """Write the value of a budget that was not kept."""
    return f"{item.value:.{_digits(item)}g}{UNITS[item.metric][1]}"


def _digits(item: Budget) -> int:
    """Enough that a value just past its limit does not read as equal to it."""
    assert item.value is not None
    return next(n for n in range(6, 18) if f"{item.value:.{n}g}" != f"{item.limit:.{n}g}")


def markdown_text(value: str) -> str:
    """Write text that is not ours so that it shows as it is, on one line, anywhere in Markdown."""
    line = " ".join(value.split())
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
    line = re.sub(r"[\\`*_\[\]|~$#]", r"\\\g<0>", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # At the start of a list item these would begin a list, a heading or a rule.
    return re.sub(r"^(?=[-+=])|^(\d+)(?=[.)](?: |$))", r"\1\\", line)


def section(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    meaning: str,
    notes: Iterable[str],
) -> list[str]:
    """The parts of a section of report.md with one table, of plain text; none without a row."""
    if not rows:
        return []
    cells = [[markdown_text(cell) for cell in row] for row in rows]
    said = "\n".join(f"- {markdown_text(line)}" for line in notes)
    return [f"## {title}", *filter(None, [table(header, cells), meaning, said])]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table of Markdown; the cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
