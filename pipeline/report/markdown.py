"""The report for people: one table to read in a minute, and below it what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.compress.pruning.kept import by_reason
from pipeline.measure.baseline.record import Baseline
from pipeline.measure.latency import Latency
from pipeline.report import arm64, bits, delegates, device, downloads, labels, words
from pipeline.report.records import Budget, Report, TargetResult
from pipeline.report.words import markdown_text as _text
from pipeline.report.words import table
from pipeline.tasks.accuracy import AnyAccuracy

_LEGEND = (
    "Int8 is the share of "
    "multiply-accumulates in int8 kernels; scales and weights are those equal to the learned ones "
    "(of weights the whole numbers). A number after 'not measured' is that of its reason below. "
    "Reference: the file was computed by PocketNest's evaluator of the format, in the file's own "
    "types, where its runtime does not exist."
)


def render(report: Report) -> str:
    """Return `report` as Markdown (GitHub's tables; everything else is CommonMark)."""
    notes = words.reasons(report)
    sections = [
        f"# PocketNest: {_text(report.recipe.name)}",
        _verdict(report),
        _overview(report, notes),
        f"MB are 1e6 bytes. {_text(words.times(report))} {_LEGEND}",
        *downloads.section(report),
        "## Budgets missed",
        _missed(report),
        "## Not measured",
        _not_measured(report, notes),
        *_pruning_section(report, notes),
        *bits.section(report),
        "## Accuracy",
        _accuracies(report, notes),
        *labels.section(report),
        "## The same answers as before export",
        _parities(report, notes),
        *delegates.section(report),
        *arm64.section(report),
        *device.section(report),
        "## Stages",
        _stages(report, notes),
        "## Setting",
        _setting(report),
    ]
    return "\n\n".join(sections) + "\n"


def _missing(reason: str | None, notes: Sequence[str]) -> str:
    assert reason is not None  # the records refuse a missing figure without one
    return f"not measured ({notes.index(reason) + 1})"


def _verdict(report: Report) -> str:
    wrong = [_text(target.name) for target in report.targets if not target.sound]
    there = [
        f"**{_text(target.name)} not on** {_text(miss)}.\n\n"
        for target in report.targets
        for miss in target.device_misses
    ]
    verdict = "".join([*there, _budget_verdict(report)])
    if not wrong:
        return verdict
    return (
        f"**Do not ship {', '.join(wrong)}**: not the program that was trained; the run went on "
        f"by --allow-mismatch (below).\n\n{verdict}"
    )


def _budget_verdict(report: Report) -> str:
    verdict, why = words.budget_verdict(report.targets)
    return f"**{verdict}**: {why}."


def _overview(report: Report, notes: Sequence[str]) -> str:
    header = [
        "target",
        "device",
        "format",
        "size MB",
        "download MB",
        words.primary(report),
        "speedup",
        "latency",
        "int8",
        "scales",
        "weights",
        "budgets",
    ]
    rows = [_float_row("float baseline", report.baseline, report, notes)]
    if report.float_cpu != report.baseline:
        rows.append(_float_row("float on this CPU", report.float_cpu, report, notes))
    rows += [_target_row(target, report, notes) for target in report.targets]
    return table(header, rows)


def _float_row(label: str, model: Baseline, report: Report, notes: Sequence[str]) -> list[str]:
    first = next(iter(report.baseline.accuracy))
    accuracy = model.accuracy.get(first)
    return [
        label,
        f"{_text(model.device)} ({model.device_kind.upper()}, {words.measured(model)})",
        "float32 weights",
        words.figure(model.size_bytes / 1e6),
        words.NOT_APPLICABLE,
        words.percent(accuracy.figure) if accuracy else words.NOT_APPLICABLE,
        "1x" if model == report.float_cpu else words.NOT_APPLICABLE,
        _latency(model.latency_ms, model.latency_missing, notes, model.device_kind),
        *[words.NOT_APPLICABLE] * 4,
    ]


def _target_row(target: TargetResult, report: Report, notes: Sequence[str]) -> list[str]:
    baseline, coverage, scales = report.baseline, target.int8_coverage, target.scales_exact
    return [
        _text(target.name),
        f"for {_text(target.device)}",
        f"{target.format} {target.precision}, {_text(target.runtime)}",
        _size(target, baseline),
        words.figure(target.download_mb),
        _accuracy_cell(target, baseline, notes),
        _speedup(target, notes),
        _latency(target.latency_ms, target.latency_missing, notes, where=", on this CPU"),
        _missing(target.coverage_missing, notes) if coverage is None else words.percent(coverage),
        _missing(target.scales_missing, notes)
        if scales is None
        else f"{scales.same}/{scales.total}",
        _missing(target.scales_missing, notes) if scales is None else words.weights_same(scales),
        _target_verdict(target, report),
    ]


def _size(target: TargetResult, baseline: Baseline) -> str:
    return f"{words.figure(target.size_mb)} ({words.smaller(target, baseline)})"


def _accuracy_cell(target: TargetResult, baseline: Baseline, notes: Sequence[str]) -> str:
    if target.accuracy is None or target.accuracy_drop_pt is None:
        return _missing(target.accuracy_missing, notes)
    found = target.accuracy[next(iter(baseline.accuracy))]
    reference = ", reference" if target.evaluated == "reference" else ""
    drop = words.figure(target.accuracy_drop_pt)
    return f"{words.percent(found.figure)} (drop {drop} pt{reference})"


def _speedup(target: TargetResult, notes: Sequence[str]) -> str:
    if target.speedup is None or target.latency_ms is None:
        return _missing(target.speedup_missing, notes)
    return words.speedup(target)


def _latency(
    latency: Latency | None,
    reason: str | None,
    notes: Sequence[str],
    device_kind: str = "cpu",
    where: str = "",
) -> str:
    if latency is None:
        return _missing(reason, notes)
    return words.milliseconds(latency, device_kind) + where


def _target_verdict(target: TargetResult, report: Report) -> str:
    if not target.budgets:
        return "none set"
    missed = [words.judged(item, report) for item in target.budgets if item.passed is False]
    unmeasured = [words.judged(item, report) for item in target.budgets if item.passed is None]
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


def _missed(report: Report) -> str:
    lines = []
    for target, item in _budgets(report, passed=False):
        lines.append(f"- {_text(target.name)}: {words.missed(item, report)}")
    return "\n".join(lines) or "None."


def _not_measured(report: Report, notes: Sequence[str]) -> str:
    if not notes:
        return "Everything was measured."
    reasons = "\n".join(f"{number}. {_text(note)}" for number, note in enumerate(notes, 1))
    lines = [
        f"- {_text(target.name)}: {words.judged(item, report)}, {words.limit(item)}: "
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
    kept = [
        f"- {_text(target.name)}: not pruned: {_text(told)}"
        for target in report.targets
        if target.pruning is not None
        for told in by_reason(target.pruning.kept)
    ]
    return ["## Pruning", table(header, rows), *(["\n".join(kept)] if kept else [])] if rows else []


def _pruning_row(target: TargetResult, notes: Sequence[str]) -> list[str]:
    found = target.pruning
    zero = words.NOT_APPLICABLE if target.sparsity is None else words.percent(target.sparsity)
    if found is None:
        return [_text(target.name), *[words.NOT_APPLICABLE] * 6, zero]
    unit = "" if found.unit == "share" else f" {found.unit}"
    if found.reached is None or found.prediction_error is None:
        reached = off = _missing(found.reached_missing, notes)
    else:
        reached = f"{words.figure(found.reached)}{unit}"
        off = f"{100 * found.prediction_error:+.1f} %"
        if found.reached_share is not None and found.unit == "ms":
            reached += f" ({words.figure(found.reached_share)} of the unpruned file's time)"
    first = words.NOT_APPLICABLE
    if found.first_predicted is not None and found.first_measured is not None:
        first = f"{words.figure(found.first_predicted)}, {words.figure(found.first_measured)}"
    return [
        _text(target.name),
        words.GOALS[found.goal],
        f"{words.figure(found.asked)}{unit}",
        f"{words.figure(found.predicted)}{unit}",
        reached,
        off,
        first,
        zero,
    ]


def _accuracies(report: Report, notes: Sequence[str]) -> str:
    rows = _accuracy_rows("float baseline", report.baseline.accuracy, words.NOT_APPLICABLE)
    if report.float_cpu != report.baseline:
        rows += _accuracy_rows("float on this CPU", report.float_cpu.accuracy, words.NOT_APPLICABLE)
    for target in report.targets:
        if target.accuracy is None or target.agreement is None:
            missing = _missing(target.accuracy_missing, notes)
            rows.append([_text(target.name), "all", *[missing] * (2 + len(words.columns(report)))])
        else:
            agreement = words.percent_of(target.agreement, target.agreement_images)
            rows += _accuracy_rows(_text(target.name), target.accuracy, agreement)
    same = f"{words.same(report)} as before export"
    header = ["target", "test set", "images", *words.columns(report), same]
    return table(header, rows)


def _accuracy_rows(label: str, found: dict[str, AnyAccuracy], agreement: str) -> list[list[str]]:
    return [
        [
            label,
            _text(name),
            str(a.images),
            *(words.percent(share) for share in a.columns.values()),
            agreement,
        ]
        for name, a in found.items()
    ]


def _parities(report: Report, notes: Sequence[str]) -> str:
    header = [
        "target",
        "computed by",
        "input",
        "images",
        words.same(report),
        "layers alike",
        "median",
        "99th percentile",
        "largest",
        "own rounding, 99th percentile",
        "XNNPACK partitions",
        "verdict",
    ]
    rows = []
    for target in report.targets:
        parity, steps = target.parity, target.parity.steps
        apart, rounding = [words.NOT_APPLICABLE] * 3, parity.rounding
        if steps is not None:
            apart = [words.plural(n, "step") for n in (steps.median, steps.p99, steps.largest)]
        elif parity.difference is not None:
            apart[1] = f"{parity.difference:.1e} of the largest logit"
        rows.append(
            [
                _text(target.name),
                "its runtime" if target.evaluated == "runtime" else "reference evaluator",
                target.input,
                words.answered(parity),
                words.percent(parity.agreement),
                f"{parity.layers_alike}/{parity.layers}" if parity.layers else words.NOT_APPLICABLE,
                *apart,
                words.plural(rounding.p99, "step") if rounding else words.NOT_APPLICABLE,
                _missing(target.partitions_missing, notes)
                if target.partitions is None
                else str(target.partitions),
                "passed" if parity.passed else "**missed**",
            ]
        )
    lines = [table(header, rows)]
    for target in report.targets:
        if (in_float := words.in_float(target)) is not None:
            lines.append(f"- {_text(target.name)}: {_text(in_float)}")
        if (outside := words.outside(target)) is not None:
            lines.append(f"- {_text(target.name)}: {_text(outside)}")
        lines += [f"- {_text(target.name)}: {_text(miss)}" for miss in target.parity.misses]
        if target.parity.first_difference is not None:
            first = _text(target.parity.first_difference)
            lines.append(f"- {_text(target.name)}: first layer that differs: {first}")
    return "\n".join([lines[0], "", *lines[1:]]).rstrip()


def _stages(report: Report, notes: Sequence[str]) -> str:
    if not report.stages:
        return "None recorded."

    def count(number: int | None) -> str:
        return _missing(words.NO_FIGURE_OF_STAGE, notes) if number is None else words.count(number)

    rows = [
        [
            _text(stage.name),
            stage.status,
            words.figure(stage.seconds),
            count(stage.params),
            count(stage.macs),
            count(None)
            if stage.figure is None
            else words.percent_of(stage.figure, stage.top1_images),
        ]
        for stage in report.stages
    ]
    return table(["stage", "status", "seconds", "params", "MACs", words.primary(report)], rows)


def _origin(report: Report) -> list[str]:
    said = words.origin(report.baseline)
    return [] if said is None else [f"Float baseline: {_text(said)}"]


def _setting(report: Report) -> str:
    model, data, host, code = report.model, report.data, report.host, report.code
    shape = " x ".join(map(str, model.input_shape))
    _, things = next(iter(report.baseline.accuracy.values())).THINGS
    tests = ", ".join(f"{_text(name)} ({count})" for name, count in data.test_sets.items())
    tools = ", ".join(f"{_text(name)} {_text(version)}" for name, version in report.tools.items())
    lines = [
        f"Model: {_text(model.name)}{words.blocks(model.block)}, input {shape}, {things}: "
        f"{model.num_classes}, {words.count(model.params)} params, {words.count(model.macs)} MACs",
        f"Data: {_text(data.name)}, {words.plural(data.train_images, 'training image')}; "
        f"test images: {tests}; sha256 {data.sha256[:12]}",
        *(_text(line[0].upper() + line[1:]) for line in words.left_out(data)),
        *_origin(report),
        f"Host: {_text(host.cpu)}, {words.plural(host.cores, 'core')}; "
        f"GPU: {_text(host.gpu) if host.gpu else 'none'}",
        f"Recipe: {_text(report.recipe.name)}, sha256 {report.recipe.sha256[:12]}",
        f"PocketNest: {_text(code.version)}, commit {_text(code.commit or 'unknown')}",
        f"Tools: {tools or 'none recorded'}",
    ]
    return "\n".join(f"- {line}" for line in lines)
