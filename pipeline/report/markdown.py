"""The report for people: one table to read in a minute, and below it what stands behind it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from pipeline.records import Accuracy, Baseline, Budget, Latency, Report, TargetResult

_NO_FIGURE_OF_STAGE = "This stage does not measure this figure."
_NOT_APPLICABLE = "n/a"
_LEGEND = (
    "MB are 1e6 bytes. Latency is the median (10th to 90th percentile). Each speedup is against "
    "the float model on this CPU, timed in turn with that file. Int8 is the share of "
    "multiply-accumulates in int8 kernels; scales are those equal to the learned ones. A number "
    "after 'not measured' is that of its reason below. Reference: the file was computed by "
    "PocketNest's evaluator of the format, in the file's own types, where its runtime does not "
    "exist."
)
_UNITS: dict[str, tuple[str, str]] = {
    "accuracy_drop_pt": ("top-1 drop", " pt"),
    "size_mb": ("size", " MB"),
    "speedup": ("speedup", "x"),
    "latency_ms": ("latency", " ms"),
    "latency_share": ("latency against the unpruned file", " of its time"),
}
_GOALS = {
    "macs": "MACs, share of the float network's",
    "params": "parameters, share of the float network's",
    "size_mb": "size of the file",
    "latency": "time of the file",
}


def render(report: Report) -> str:
    """Return `report` as Markdown (GitHub's tables; everything else is CommonMark)."""
    notes = _reasons(report)
    sections = [
        f"# PocketNest: {_text(report.recipe.name)}",
        _verdict(report),
        _overview(report, notes),
        _LEGEND,
        "## Budgets missed",
        _missed(report),
        "## Not measured",
        _not_measured(report, notes),
        *_pruning_section(report, notes),
        "## Accuracy",
        _accuracies(report, notes),
        "## The same answers as before export",
        _parities(report, notes),
        "## Stages",
        _stages(report, notes),
        "## Setting",
        _setting(report),
    ]
    return "\n\n".join(sections) + "\n"


def _text(value: str) -> str:
    """Write text that is not ours so that it shows as it is, on one line, anywhere in Markdown."""
    line = " ".join(value.split())
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
    line = re.sub(r"[\\`*_\[\]|~$#]", r"\\\g<0>", line)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # At the start of a list item these would begin a list, a heading or a rule.
    return re.sub(r"^(?=[-+=])|^(\d+)(?=[.)](?: |$))", r"\1\\", line)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _figure(value: float) -> str:
    """Write three significant digits, and never fewer than the whole number has."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _percent(share: float) -> str:
    """Write a share in percent; only exactly 0 and 1 read as 0 and 100."""
    for decimals in range(2, 15):
        text = f"{100 * share:.{decimals}f}"
        if share in (0, 1) or float(text) not in (0, 100):
            break
    return f"{text} %"


def _count(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{_figure(number / size)} {unit}"
    return str(number)


def _plural(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _reasons(report: Report) -> tuple[str, ...]:
    """Return why figures are missing, each reason once; its place is its number."""
    found = [report.baseline.latency_missing, report.float_cpu.latency_missing]
    for target in report.targets:
        found += [
            target.accuracy_missing,
            target.speedup_missing,
            target.latency_missing,
            target.coverage_missing,
            target.scales_missing,
            target.partitions_missing,
            target.pruning.reached_missing if target.pruning else None,
            *(item.missing for item in target.budgets),
        ]
    for stage in report.stages:
        if None in (stage.params, stage.macs, stage.top1):
            found.append(_NO_FIGURE_OF_STAGE)
    return tuple(dict.fromkeys(reason for reason in found if reason is not None))


def _missing(reason: str | None, notes: Sequence[str]) -> str:
    assert reason is not None  # the records refuse a missing figure without one
    return f"not measured ({notes.index(reason) + 1})"


def _verdict(report: Report) -> str:
    wrong = [_text(target.name) for target in report.targets if not target.parity.passed]
    verdict = _budget_verdict(report)
    if not wrong:
        return verdict
    return (
        f"**Do not ship {', '.join(wrong)}**: not the program that was trained; the run went on "
        f"by --allow-mismatch (below).\n\n{verdict}"
    )


def _budget_verdict(report: Report) -> str:
    budgets = [item for target in report.targets for item in target.budgets]
    missed = sum(item.passed is False for item in budgets)
    unmeasured = sum(item.passed is None for item in budgets)
    if not budgets:
        return "**Passed**: the recipe sets no budgets."
    if missed:
        start = f"**Failed**: {missed} of {_plural(len(budgets), 'budget')} missed"
    else:
        met = len(budgets) - unmeasured
        start = f"**Passed**: {met} of {_plural(len(budgets), 'budget')} met"
    return f"{start}, {unmeasured} not measured." if unmeasured else f"{start}."


def _overview(report: Report, notes: Sequence[str]) -> str:
    header = [
        "target",
        "device",
        "format",
        "size MB",
        "download MB",
        "top-1",
        "speedup",
        "latency",
        "int8",
        "scales",
        "budgets",
    ]
    rows = [_float_row("float baseline", report.baseline, report, notes)]
    if report.float_cpu != report.baseline:
        rows.append(_float_row("float on this CPU", report.float_cpu, report, notes))
    rows += [_target_row(target, report.baseline, notes) for target in report.targets]
    return _table(header, rows)


def _float_row(label: str, model: Baseline, report: Report, notes: Sequence[str]) -> list[str]:
    first = next(iter(report.baseline.accuracy))
    accuracy = model.accuracy.get(first)
    where = "here" if model.measured_here else "elsewhere"
    return [
        label,
        f"{_text(model.device)} ({model.device_kind.upper()}, measured {where})",
        "float32 weights",
        _figure(model.size_bytes / 1e6),
        _NOT_APPLICABLE,
        _percent(accuracy.top1) if accuracy else _NOT_APPLICABLE,
        "1x" if model == report.float_cpu else _NOT_APPLICABLE,
        _latency(model.latency_ms, model.latency_missing, notes, model.device_kind),
        *[_NOT_APPLICABLE] * 3,
    ]


def _target_row(target: TargetResult, baseline: Baseline, notes: Sequence[str]) -> list[str]:
    coverage, scales = target.int8_coverage, target.scales_exact
    return [
        _text(target.name),
        _text(target.device),
        f"{target.format} {target.precision}, {_text(target.runtime)}",
        _size(target, baseline),
        _figure(target.download_bytes / 1e6),
        _top1(target, baseline, notes),
        _speedup(target, notes),
        _latency(target.latency_ms, target.latency_missing, notes),
        _missing(target.coverage_missing, notes) if coverage is None else _percent(coverage),
        _missing(target.scales_missing, notes)
        if scales is None
        else f"{scales.same}/{scales.total}",
        _target_verdict(target),
    ]


def _size(target: TargetResult, baseline: Baseline) -> str:
    ratio = baseline.size_bytes / target.size_bytes
    smaller = ratio >= 1
    ratio = ratio if smaller else 1 / ratio
    return f"{_figure(target.size_mb)} ({_figure(ratio)}x {'smaller' if smaller else 'larger'})"


def _top1(target: TargetResult, baseline: Baseline, notes: Sequence[str]) -> str:
    if target.accuracy is None or target.accuracy_drop_pt is None:
        return _missing(target.accuracy_missing, notes)
    found = target.accuracy[next(iter(baseline.accuracy))]
    reference = ", reference" if target.evaluated == "reference" else ""
    return f"{_percent(found.top1)} (drop {_figure(target.accuracy_drop_pt)} pt{reference})"


def _speedup(target: TargetResult, notes: Sequence[str]) -> str:
    if target.speedup is None or target.latency_ms is None:
        return _missing(target.speedup_missing, notes)
    # The very time that was divided by: a combined report has one float model timed several times.
    before = target.speedup * target.latency_ms.median
    return f"{_figure(target.speedup)}x (float {_figure(before)} ms)"


def _latency(
    latency: Latency | None, reason: str | None, notes: Sequence[str], device_kind: str = "cpu"
) -> str:
    if latency is None:
        return _missing(reason, notes)
    text = f"{_figure(latency.median)} ms ({_figure(latency.p10)} to {_figure(latency.p90)})"
    if device_kind == "cpu":
        text += f", {_plural(latency.threads, 'thread')}"
    return text if latency.batch == 1 else f"{text}, batch {latency.batch}"


def _target_verdict(target: TargetResult) -> str:
    if not target.budgets:
        return "none set"
    missed = [_UNITS[item.metric][0] for item in target.budgets if item.passed is False]
    unmeasured = [_UNITS[item.metric][0] for item in target.budgets if item.passed is None]
    parts = []
    if missed:
        parts.append(f"**missed**: {', '.join(missed)}")
    elif len(unmeasured) < len(target.budgets):
        parts.append("met")
    if unmeasured:
        parts.append(f"not measured: {', '.join(unmeasured)}")
    return "; ".join(parts)


def _budgets(report: Report, passed: bool | None) -> list[tuple[TargetResult, Budget]]:
    return [(t, item) for t in report.targets for item in t.budgets if item.passed is passed]


def _limit(item: Budget, digits: int = 6) -> str:
    bound = "at least" if item.metric == "speedup" else "at most"
    return f"allowed {bound} {item.limit:.{digits}g}{_UNITS[item.metric][1]}"


def _missed(report: Report) -> str:
    lines = []
    for target, item in _budgets(report, passed=False):
        assert item.value is not None
        label, unit = _UNITS[item.metric]
        # Enough digits that a value just past its limit does not read as equal to it.
        digits = next(n for n in range(6, 18) if f"{item.value:.{n}g}" != f"{item.limit:.{n}g}")
        value = f"{item.value:.{digits}g}{unit}"
        lines.append(f"- {_text(target.name)}: {label} {value}, {_limit(item, digits)}")
    return "\n".join(lines) or "None."


def _not_measured(report: Report, notes: Sequence[str]) -> str:
    if not notes:
        return "Everything was measured."
    reasons = "\n".join(f"{number}. {_text(note)}" for number, note in enumerate(notes, 1))
    lines = [
        f"- {_text(target.name)}: {_UNITS[item.metric][0]}, {_limit(item)}: "
        f"{_missing(item.missing, notes)}"
        for target, item in _budgets(report, passed=None)
    ]
    if not lines:
        return reasons
    return "\n\n".join([reasons, "Budgets that could not be judged:", "\n".join(lines)])


def _pruning_section(report: Report, notes: Sequence[str]) -> list[str]:
    """What pruning was to reach and what it reached; nothing where nothing was taken out."""
    rows = [
        _pruning_row(target, notes)
        for target in report.targets
        if target.pruning is not None or target.sparsity is not None
    ]
    header = ["target", "goal", "asked", "predicted", "reached", "prediction off by"]
    header += ["before correction, predicted and measured", "weights that are zero"]
    return ["## Pruning", _table(header, rows)] if rows else []


def _pruning_row(target: TargetResult, notes: Sequence[str]) -> list[str]:
    found = target.pruning
    zero = _NOT_APPLICABLE if target.sparsity is None else _percent(target.sparsity)
    if found is None:
        return [_text(target.name), *[_NOT_APPLICABLE] * 6, zero]
    unit = "" if found.unit == "share" else f" {found.unit}"
    if found.reached is None or found.prediction_error is None:
        reached = off = _missing(found.reached_missing, notes)
    else:
        reached, off = f"{_figure(found.reached)}{unit}", f"{100 * found.prediction_error:+.1f} %"
        if found.reached_share is not None and found.unit == "ms":
            reached += f" ({_figure(found.reached_share)} of the unpruned file's time)"
    first = _NOT_APPLICABLE
    if found.first_predicted is not None and found.first_measured is not None:
        first = f"{_figure(found.first_predicted)}, {_figure(found.first_measured)}"
    return [
        _text(target.name),
        _GOALS[found.goal],
        f"{_figure(found.asked)}{unit}",
        f"{_figure(found.predicted)}{unit}",
        reached,
        off,
        first,
        zero,
    ]


def _accuracies(report: Report, notes: Sequence[str]) -> str:
    rows = _accuracy_rows("float baseline", report.baseline.accuracy, _NOT_APPLICABLE)
    if report.float_cpu != report.baseline:
        rows += _accuracy_rows("float on this CPU", report.float_cpu.accuracy, _NOT_APPLICABLE)
    for target in report.targets:
        if target.accuracy is None or target.agreement is None:
            missing = _missing(target.accuracy_missing, notes)
            rows.append([_text(target.name), "all", *[missing] * 4])
        else:
            agreement = _percent(target.agreement)
            rows += _accuracy_rows(_text(target.name), target.accuracy, agreement)
    header = ["target", "test set", "images", "top-1", "top-5", "same top-1 as before export"]
    return _table(header, rows)


def _accuracy_rows(label: str, found: dict[str, Accuracy], agreement: str) -> list[list[str]]:
    return [
        [label, _text(name), str(a.images), _percent(a.top1), _percent(a.top5), agreement]
        for name, a in found.items()
    ]


def _parities(report: Report, notes: Sequence[str]) -> str:
    header = [
        "target",
        "computed by",
        "input",
        "images",
        "same top-1",
        "layers alike",
        "median",
        "99th percentile",
        "largest",
        "XNNPACK partitions",
        "verdict",
    ]
    rows = []
    for target in report.targets:
        parity, steps = target.parity, target.parity.steps
        apart = [_NOT_APPLICABLE] * 3
        if steps is not None:
            apart = [_plural(n, "step") for n in (steps.median, steps.p99, steps.largest)]
        elif parity.difference is not None:
            apart[1] = f"{parity.difference:.1e} of the largest logit"
        rows.append(
            [
                _text(target.name),
                "its runtime" if target.evaluated == "runtime" else "reference evaluator",
                target.input,
                str(parity.images),
                _percent(parity.agreement),
                f"{parity.layers_alike}/{parity.layers}" if parity.layers else _NOT_APPLICABLE,
                *apart,
                _missing(target.partitions_missing, notes)
                if target.partitions is None
                else str(target.partitions),
                "passed" if parity.passed else "**missed**",
            ]
        )
    lines = [_table(header, rows)]
    for target in report.targets:
        lines += [f"- {_text(target.name)}: {_text(miss)}" for miss in target.parity.misses]
        if target.parity.first_difference is not None:
            first = _text(target.parity.first_difference)
            lines.append(f"- {_text(target.name)}: first layer that differs: {first}")
    return "\n".join([lines[0], "", *lines[1:]]).rstrip()


def _stages(report: Report, notes: Sequence[str]) -> str:
    if not report.stages:
        return "None recorded."

    def count(number: int | None) -> str:
        return _missing(_NO_FIGURE_OF_STAGE, notes) if number is None else _count(number)

    rows = [
        [
            _text(stage.name),
            stage.status,
            _figure(stage.seconds),
            count(stage.params),
            count(stage.macs),
            count(None) if stage.top1 is None else _percent(stage.top1),
        ]
        for stage in report.stages
    ]
    return _table(["stage", "status", "seconds", "params", "MACs", "top-1"], rows)


def _setting(report: Report) -> str:
    model, data, host, code = report.model, report.data, report.host, report.code
    shape = " x ".join(map(str, model.input_shape))
    tests = ", ".join(f"{_text(name)} ({count})" for name, count in data.test_sets.items())
    tools = ", ".join(f"{_text(name)} {_text(version)}" for name, version in report.tools.items())
    lines = [
        f"Model: {_text(model.name)} ({model.block} blocks), input {shape}, "
        f"classes: {model.num_classes}, {_count(model.params)} params, {_count(model.macs)} MACs",
        f"Data: {_text(data.name)}, {_plural(data.train_images, 'training image')}; "
        f"test images: {tests}; sha256 {data.sha256[:12]}",
        f"Host: {_text(host.cpu)}, {_plural(host.cores, 'core')}; "
        f"GPU: {_text(host.gpu) if host.gpu else 'none'}",
        f"Recipe: {_text(report.recipe.name)}, sha256 {report.recipe.sha256[:12]}",
        f"PocketNest: {_text(code.version)}, commit {_text(code.commit or 'unknown')}",
        f"Tools: {tools or 'none recorded'}",
    ]
    return "\n".join(f"- {line}" for line in lines)
