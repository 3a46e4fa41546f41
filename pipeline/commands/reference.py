"""The reference result: what full runs found out, small enough to be kept beside the code.

    python -m pipeline.commands.reference artifacts/reference/resnest50-cifar10 RUN_DIR ...

One folder for every kind of block, with the report of all its runs, their resolved recipes, the
learning curves, and the smallest int8 file that answers as trained; above them README.md, with
the tables. Float weights stay where they are.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.safe_files import refuse_outputs, remove
from pipeline.base.store import MAKING, publish
from pipeline.formats.formats import FORMATS
from pipeline.recipe.recipe import resolved_yaml
from pipeline.report import words
from pipeline.report.records import Report, TargetResult
from pipeline.report.words import table
from pipeline.report.write import combine, write_report
from pipeline.stages.finished_run import Finished, open_runs
from pipeline.tasks.predictions import PREDICTIONS

CURVES = "curves.csv"
"""The learning curves of a kind of block: a line for every epoch of every stage that trains."""
MOST_FILE_BYTES, MOST_BYTES = 8_000_000, 25_000_000
"""Of a model file, and of everything."""

_STUDY = ("ResNeSt deployment study", "128 → 115 MB, 1.11x", "1.8x", "1.11")
_STUDY_TOP1 = {"bottleneck": 0.8765, "basic": 0.8923}
"""Figures of the study that this repeats: CIFAR-10, ONNX to Caffe2."""


def keep(runs: Sequence[Finished], place: Path) -> None:
    """Write what is kept of some runs to `place`, which appears whole or not at all.

    Args:
        runs: of the same images; those of one kind of block also of one float network.
        place: a folder; what it held is replaced.

    Raises:
        InputError: the runs do not fit together, or what is to be kept is too large.
    """
    refuse_outputs(folders=[place])
    scratch = place.with_name(f"{MAKING}-{place.name}")
    remove(scratch)
    scratch.mkdir(parents=True)
    try:
        reports = [_block(own, scratch / block) for block, own in _by_block(runs).items()]
        (scratch / "README.md").write_text(readme(place.name, reports), encoding="utf-8")
        size = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise InputError(
                f"{place}: {size / 1e6:.1f} MB are to be kept, at most {MOST_BYTES / 1e6:g} may "
                "be; give fewer runs"
            )
        publish(scratch, place)
    finally:
        remove(scratch)


def _block_of(report: Report) -> str:
    """The kind of the network's blocks; empty where its family has no kinds."""
    return report.model.block or ""


def _by_block(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    found: dict[str, list[Finished]] = {}
    for run in runs:
        found.setdefault(_block_of(run.report()), []).append(run)
    return {block: found[block] for block in _STUDY_TOP1 if block in found}


def _block(runs: Sequence[Finished], place: Path) -> Report:
    """Write what is kept of the runs of one kind of block, and return their report."""
    try:
        report = combine([run.report() for run in runs])
    except ValueError as error:
        raise InputError(f"{error}; give runs of one float network for every block") from error
    write_report(report, place)
    (place / CURVES).write_text(curves(report), encoding="utf-8")
    for run in runs:
        own = place / run.recipe.name
        own.mkdir()
        # Written anew: its paths are relative to the folder that it lies in.
        (own / "recipe.yaml").write_text(resolved_yaml(run.recipe, own), encoding="utf-8")
    smallest = smallest_of(report)
    if smallest is not None:
        (run,) = (run for run in runs if run.recipe.name == smallest.name)
        for name in (run.file.name, "labels.txt", PREDICTIONS):
            shutil.copy2(run.directory / name, place / smallest.name)
    return report


def smallest_of(report: Report) -> TargetResult | None:
    """The smallest int8 target whose file may be kept; None where all are too large.

    Those that are folders, as Core ML packages are, are passed over.
    """
    fitting = [
        target
        for target in report.targets
        if target.precision == "int8"
        and not FORMATS[target.format].folder
        and target.parity.passed
        and target.size_bytes <= MOST_FILE_BYTES
    ]
    return min(fitting, key=lambda target: target.size_bytes, default=None)


def curves(report: Report) -> str:
    """The learning curves of all stages that train, as CSV.

    Targets that share a stage are named together.
    """
    found: dict[tuple[object, ...], list[str]] = {}
    for target in report.targets:
        for stage in target.stages:
            if stage.curve:
                found.setdefault((stage.name, stage.curve), []).append(target.name)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["stage", "epoch", "loss", "accuracy", "learning_rate", "targets"])
    for (stage_name, curve), names in found.items():
        assert isinstance(curve, tuple)
        for epoch in curve:
            figures = (epoch.epoch, epoch.loss, epoch.accuracy, epoch.learning_rate)
            lines.writerow([stage_name, *figures, " ".join(names)])
    return text.getvalue()


def readme(name: str, reports: Sequence[Report]) -> str:
    """README.md: the tables of all reports, one for every kind of block."""
    sections = [
        f"# Reference result: {name}",
        "Made by `python -m pipeline.commands.reference`; every figure is one of the `report.json` "
        "beside it. Each folder holds the report of one kind of block, the resolved recipe of "
        f"every file, the learning curves (`{CURVES}`), and the smallest int8 file of those that "
        f"answer as trained and have at most {MOST_FILE_BYTES / 1e6:g} MB, if one does.",
        *(_setting(report) for report in reports),
        "## Beside the study",
        table(
            ("", "block", "float top-1", "size", "speed", "points lost"),
            [*_study(reports), *_ours(reports)],
        ),
        "The study's figures are of its ONNX file and the Caffe2 one made of it (CIFAR-10). "
        "Ours: the file against the float weights, against torch float on the same CPU (batch 1, "
        "timed in turn), and against the float network's top-1.",
        "## Block, precision, format",
        table(
            (
                *("block", "precision", "format", *_test_sets(reports)),
                *("MB", "ms", "torch float / it", "accuracy by", "timed on"),
                "as trained",
            ),
            (_row(report, target) for report in reports for target in report.targets),
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _setting(report: Report) -> str:
    top1 = ", ".join(
        f"{words.percent(found.figure)} of {found.images} images ({key})"
        for key, found in report.baseline.accuracy.items()
    )
    device = f"{report.baseline.device}, {words.measured(report.baseline)}"
    return (
        f"**{report.model.block}**: `{report.model.name}`, {words.count(report.model.params)} "
        f"parameters, {words.count(report.model.macs)} multiply-accumulates, float "
        f"{report.baseline.size_bytes / 1e6:.1f} MB, top-1 {top1} on {device}. Compressed "
        f"and timed on {report.host.cpu}, {words.plural(report.host.cores, 'core')}, "
        f"{report.host.gpu or 'no GPU'}; commit {report.code.commit}."
    )


def _study(reports: Sequence[Report]) -> Iterator[tuple[str, ...]]:
    name, *figures = _STUDY
    for block in dict.fromkeys(map(_block_of, reports)):
        yield name, block, words.percent(_STUDY_TOP1[block]), *figures


def _ours(reports: Sequence[Report]) -> Iterator[tuple[str, ...]]:
    for report in reports:
        for target in report.targets:
            if target.precision != "int8":
                continue
            whole, size = report.baseline.size_bytes / 1e6, target.size_mb
            drop = target.accuracy_drop_pt
            yield (
                f"`{target.name}`",
                _block_of(report),
                words.percent(next(iter(report.baseline.accuracy.values())).figure),
                f"{whole:.1f} → {size:.1f} MB, {whole / size:.2f}x",
                _or_not(target.speedup, "{:.2f}x"),
                _or_not(drop, "{:.2f}"),
            )


def _test_sets(reports: Sequence[Report]) -> tuple[str, ...]:
    return tuple(f"{words.primary(reports[0])}, {name}" for name in reports[0].data.test_sets)


def _row(report: Report, target: TargetResult) -> tuple[str, ...]:
    accuracy = target.accuracy or {}
    runtime = target.evaluated == "runtime"
    latency = target.latency_ms
    return (
        _block_of(report),
        precision_of(report, target),
        target.format,
        *(
            words.percent(accuracy[name].figure) if name in accuracy else "not measured"
            for name in report.data.test_sets
        ),
        f"{target.size_mb:.2f}",
        "not measured" if latency is None else words.milliseconds(latency),
        _or_not(target.speedup, "{:.2f}"),
        target.runtime if runtime else "reference evaluator",
        report.host.cpu if latency is not None else "not timed",
        "yes" if target.parity.passed else "; ".join(("no", *target.parity.misses)),
    )


def precision_of(report: Report, target: TargetResult) -> str:
    """In words: int8 or float, and what pruning left of the multiply-accumulates."""
    left = [stage.macs for stage in target.stages if stage.name == "prune" and stage.macs]
    if target.pruning is None or not left:
        return target.precision
    return f"{target.precision}, {words.percent(left[0] / report.model.macs)} of the MACs"


def _or_not(value: float | None, form: str) -> str:
    return "not measured" if value is None else form.format(value)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m pipeline.commands.reference FOLDER RUN_DIR ...")
    try:
        keep([run for given in sys.argv[2:] for run in open_runs(Path(given))], Path(sys.argv[1]))
    except InputError as error:
        sys.exit(f"error: {error}")
