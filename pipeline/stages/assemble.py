"""From stage results to one report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base.machine import code_info, host_info, tool_versions
from pipeline.compress.quantization.chosen import Weights
from pipeline.compress.training.epoch import Epoch
from pipeline.compress.training.loop import CURVE
from pipeline.formats.delegates import Delegate
from pipeline.formats.formats import FORMATS
from pipeline.formats.tflite.delegates import xnnpack
from pipeline.measure.baseline.record import Baseline
from pipeline.measure.device.record import OnDevice
from pipeline.measure.ratios import ratio_of
from pipeline.networks.families import model_info
from pipeline.recipe.recipe import Recipe, recipe_info
from pipeline.report.records import (
    Budget,
    DataInfo,
    Metric,
    Pruning,
    Report,
    StageRecord,
    TargetResult,
    all_met,
    budget,
)
from pipeline.stages import arm64, baseline, export, fold, measure, prune, qat, sparsify, verify
from pipeline.stages.baseline import BaselineFacts
from pipeline.stages.export import ExportFacts
from pipeline.stages.judge import JUDGES
from pipeline.stages.stage import Results
from pipeline.stages.verify import VerifyFacts
from pipeline.stages.weight_sizes import weights_in
from pipeline.stages.weights import kept_forms
from pipeline.tasks.accuracy import accuracy_drop_pt
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.predictions import Predictions
from pipeline.tasks.task import Counted
from pipeline.tasks.tasks import task_of

_OF_THE_BASELINE = "it answers as the baseline does, whose classes are given"
_ON_ANOTHER_MACHINE = "the classes given are those that the baseline named, on another machine"
_NO_PARTITIONS = "this format's runtime does not split the graph between delegates on a CPU"


def assemble(
    recipe: Recipe,
    dataset: Dataset,
    results: Results,
    answers: dict[str, Predictions],
    elsewhere: Baseline | None = None,
    *,
    folder: Path | None = None,
    devices: Sequence[OnDevice] = (),
) -> Report:
    """The report of one recipe, from the facts of its stages.

    Args:
        recipe: of the run.
        dataset: of the recipe.
        results: of all stages, by name.
        answers: of the float model on its baseline's device, and of the file.
        elsewhere: the baseline, if it was not measured here.
        folder: of the run, from which its recipe names files.
        devices: what files did on real devices; those of other files are left out.
    """
    judges = {stage.name for stage in JUDGES.values()}
    stages = tuple(_stage(results, name) for name in results if name not in judges)
    here = baseline.STAGE.found_in(results)
    counted = task_of(recipe).counted(answers)
    of_float = elsewhere or _baseline(here, counted)
    behind = {
        "confusion": counted.file,
        "confusion_missing": counted.missing,
        "changes": counted.changes,
        "layers": prune.STAGE.found_in(results).layers,
        "stages": stages,
    }
    target = with_devices(recipe, _target(recipe, results, of_float, behind), devices)
    return Report(
        recipe=recipe_info(recipe, folder),
        code=code_info(),
        host=host_info(),
        tools=tool_versions(),
        model=model_info(recipe, len(dataset.classes), here.params, here.macs),
        data=_data(dataset),
        baseline=of_float,
        float_cpu=_float_cpu(recipe, results, of_float),
        stages=stages,
        targets=(target,),
        passed=target.passed,
    )


def _data(dataset: Dataset) -> DataInfo:
    return DataInfo(
        name=dataset.name,
        sha256=dataset.sha256,
        train_images=len(dataset.train),
        test_sets={name: len(images) for name, images in dataset.tests.items()},
        classes=dataset.classes,
        damaged=dict(dataset.damaged),
        passed_over=dict(dataset.passed_over),
    )


def _baseline(here: BaselineFacts, counted: Counted) -> Baseline:
    host = host_info()
    gpu = here.device_kind == "gpu"
    return Baseline(
        device=host.gpu if gpu and host.gpu else host.cpu,
        device_kind=here.device_kind,
        measured_here=True,
        accuracy=here.accuracy,
        latency_ms=here.latency_ms,
        size_bytes=here.size_bytes,
        confusion=counted.float_model,
        confusion_missing=counted.missing,
    )


def _float_cpu(recipe: Recipe, results: Results, of_float: Baseline) -> Baseline:
    """The float model on this CPU, timed in turn with the target where the target runs."""
    timed = measure.STAGE.found_in(results).latency
    by_threads = {threads: both.float_model for threads, both in timed.items()}
    latency = by_threads.get(str(recipe.target.threads))
    here = baseline.STAGE.found_in(results)
    if latency is None and here.device_kind == "cpu":
        latency = here.latency_ms
    reason = None if latency else "not timed on the CPU: the target does not run on this host"
    return Baseline(
        device=host_info().cpu,
        device_kind="cpu",
        measured_here=True,
        accuracy=here.accuracy,
        latency_ms=latency,
        latency_missing=reason,
        latency_by_threads=by_threads,
        size_bytes=here.size_bytes,
        confusion_missing=_OF_THE_BASELINE if of_float.measured_here else _ON_ANOTHER_MACHINE,
    )


def _stage(results: Results, name: str) -> StageRecord:
    """One stage, with what the one that judges its network found."""
    result = results[name]
    judge = results.get(JUDGES[name].name) if name in JUDGES else None
    facts = (judge or result).facts
    figure, images = facts.figure, facts.figure_images
    if name in JUDGES and judge is None:  # it left the network as it was
        figure = baseline.STAGE.found_in(results).figure
    curve = result.directory / CURVE
    epochs = json.loads(curve.read_text(encoding="utf-8")) if curve.exists() else []
    return StageRecord(
        name=result.stage,
        status="reused" if result.reused else "done",
        seconds=result.seconds + (judge.seconds if judge else 0.0),
        params=result.facts.params,
        macs=result.facts.macs,
        top1=figure,
        top1_images=images,
        curve=tuple(Epoch(**epoch) for epoch in epochs),
    )


def _target(
    recipe: Recipe, results: Results, of_float: Baseline, behind: dict[str, Any]
) -> TargetResult:
    """The file of one recipe, from the facts of export, verify and measure, and what is behind."""
    verified, measured = verify.STAGE.found_in(results), measure.STAGE.found_in(results)
    why_not = measured.cannot_time
    both = None if why_not else measured.latency[str(recipe.target.threads)]
    drop = accuracy_drop_pt(of_float.accuracy, measured.accuracy)
    ratio = None if both is None else ratio_of(both.float_model, both.target)
    doubt = why_not if ratio is None else ratio.doubt
    faster = None if ratio is None or doubt else ratio
    pruning = _pruning(recipe, results)
    values: dict[Metric, float | None] = {
        "accuracy_drop_pt": drop,
        "size_mb": measured.size_bytes / 1e6,
        "download_mb": measured.downloads[0].bytes / 1e6,
        "speedup": faster.median if faster else None,
        "latency_ms": None if both is None else both.target.median,
        "latency_share": None if pruning is None else pruning.reached_share,
    }
    missing: dict[Metric, str | None] = dict.fromkeys(values, why_not)
    budgets = _budgets(recipe, values, {**missing, "speedup": doubt})
    return TargetResult(
        name=recipe.name,
        device=recipe.target.device,
        format=recipe.target.format,
        precision=recipe.target.precision,
        input=recipe.target.input,
        path=export.STAGE.found_in(results).file,
        sha256=measured.sha256,
        size_bytes=measured.size_bytes,
        download_bytes=measured.downloads[0].bytes,
        downloads=measured.downloads,
        accuracy=measured.accuracy,
        accuracy_drop_pt=drop,
        latency_ms=None if both is None else both.target,
        latency_missing=why_not,
        first_use=measured.first_use,
        measured_at=measured.measured_at,
        intended_use=recipe.card.intended_use,
        latency_by_threads={n: timed.target for n, timed in measured.latency.items()},
        speedup=faster.median if faster else None,
        speedup_p10=faster.p10 if faster else None,
        speedup_p90=faster.p90 if faster else None,
        speedup_missing=doubt,
        pruning=pruning,
        sparsity=sparsify.STAGE.found_in(results).sparsity if "sparsify" in results else None,
        weights=_weights(recipe, results),
        budgets=budgets,
        passed=all_met(budgets),
        left_in_float=fold.STAGE.found_in(results).left_in_float,
        arm64=arm64.STAGE.found_in(results).cpus if "arm64" in results else (),
        delegates=_delegates(verified, export.STAGE.found_in(results)),
        **_verified(verified),
        **behind,
    )


def _verified(facts: VerifyFacts) -> dict[str, Any]:
    """What the report takes from `verify` as it is, and the reasons for what a file has not."""
    return {
        "runtime": facts.runtime,
        "evaluated": facts.evaluated,
        "agreement": facts.agreement,
        "agreement_images": facts.agreement_images if facts.parity.sampled else None,
        "parity": facts.parity,
        "scales_exact": facts.scales_exact,
        "scales_missing": None if facts.scales_exact else "a float file has no scales",
        "int8_coverage": facts.int8_coverage,
        "ops": facts.ops,
        "partitions": facts.partitions,
        "outside": facts.outside,
        "takes": facts.takes,
        "gives": facts.gives,
        "partitions_missing": _NO_PARTITIONS if facts.partitions is None else None,
    }


def _delegates(verified: VerifyFacts, exported: ExportFacts) -> tuple[Delegate, ...]:
    """Where the file runs: what `export` found, behind what LiteRT did with it here."""
    if verified.partitions is None:
        return exported.delegates
    left = [words.rpartition(", ")[0] or words for words in verified.outside]
    first = xnnpack(verified.ops, verified.partitions, left, "LiteRT")
    return (first, *exported.delegates)


def _pruning(recipe: Recipe, results: Results) -> Pruning | None:
    """What was asked of channel pruning, and what the exported file shows of it."""
    before, after = baseline.STAGE.found_in(results), prune.STAGE.found_in(results)
    if recipe.prune is None or after.goal is None:
        return None
    goal, measured = after.goal, measure.STAGE.found_in(results)
    share = goal.key != "size_mb" and recipe.prune.milliseconds is None
    first = goal.attempts[0] if goal.attempts else None
    times = measured.beside_unpruned
    taken = times.share if times else None
    reached = {
        "macs": after.macs / before.macs,
        "params": after.params / before.params,
        "size_mb": measured.size_bytes / 1e6,
        "latency": taken if share else times.target.median if times else None,
    }[goal.key]
    return Pruning(
        goal=goal.key,
        asked=goal.asked,
        unit="share" if share else "MB" if goal.key == "size_mb" else "ms",
        predicted=goal.predicted / goal.whole if share else goal.predicted,
        reached=reached,
        reached_missing=measured.cannot_time if reached is None else None,
        reached_share=taken,
        first_predicted=first.predicted if first else None,
        first_measured=first.measured if first else None,
        kept=goal.kept,
    )


def _weights(recipe: Recipe, results: Results) -> Weights | None:
    """The forms of the layers' weights; None where all are int8, or float."""
    forms = kept_forms(results["qat"].directory) if "qat" in results else ()
    if not forms:
        return None
    divergence = qat.STAGE.found_in(results).divergence
    return weights_in(forms, FORMATS[recipe.target.format], divergence)


_NO_SHARE = "prune.latency is not given: there is no unpruned file to compare with"


_NO_DEVICE = "not measured on a device: `pocketnest device` does that"


def _budgets(
    recipe: Recipe, values: dict[Metric, float | None], why_not: dict[Metric, str | None]
) -> tuple[Budget, ...]:
    limits = recipe.budgets.limits
    found = []
    for metric, value in values.items():
        missing = (why_not[metric] or _NO_SHARE) if value is None else None
        if (limit := limits[metric]) is not None:
            found.append(budget(metric, limit, value, missing))
    return tuple(found)


def with_devices(recipe: Recipe, target: TargetResult, devices: Sequence[OnDevice]) -> TargetResult:
    """A target with what its file did on devices, its budgets judged by that.

    Args:
        recipe: of the target.
        target: measured on this machine.
        devices: what files did on real devices; those of other files are left out.
    """
    own = [found.only(target.sha256) for found in devices]
    kept = tuple(found.bare for found in own if found is not None)
    others = tuple(one for one in target.budgets if one.metric != "device_latency_ms")
    found = target.model_copy(update={"devices": kept, "budgets": others})
    limit, value = recipe.budgets.limits["device_latency_ms"], found.device_latency_ms
    if limit is not None:
        missing = _NO_DEVICE if value is None else None
        others = (*others, budget("device_latency_ms", limit, value, missing))
    return found.model_copy(update={"budgets": others, "passed": all_met(others)})
