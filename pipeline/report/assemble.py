"""From stage results to one report."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from pipeline.base.machine import code_info, host_info, tool_versions
from pipeline.base.store import Result
from pipeline.compress.training.epoch import Epoch
from pipeline.compress.training.loop import CURVE
from pipeline.formats.format import ScalesExact
from pipeline.measure.baseline.record import Baseline
from pipeline.measure.latency import Latency, speedup
from pipeline.measure.parity_record import OutputSteps, Parity
from pipeline.networks.family import model_info
from pipeline.networks.layer_width import LayerWidth
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
from pipeline.tasks.accuracy import Accuracy, Confusion, accuracy_drop_pt, changes_of, confusion_of
from pipeline.tasks.classification import Predictions
from pipeline.tasks.images.dataset import Dataset

_OF_THE_BASELINE = "it answers as the baseline does, whose classes are given"
_ON_ANOTHER_MACHINE = "the classes given are those that the baseline named, on another machine"
_NO_PARTITIONS = "this format's runtime does not split the graph between delegates on a CPU"


def assemble(
    recipe: Recipe,
    dataset: Dataset,
    results: dict[str, Result],
    answers: dict[str, Predictions],
    elsewhere: Baseline | None = None,
) -> Report:
    """The report of one recipe, from the facts of its stages.

    Args:
        recipe: of the run.
        dataset: of the recipe.
        results: of all stages, by name.
        answers: of the float model on its baseline's device, and of the file.
        elsewhere: the baseline, if it was not measured here.
    """
    facts = {name: result.facts for name, result in results.items()}
    stages = tuple(_stage(result) for result in results.values())
    baseline = elsewhere or _baseline(
        facts["baseline"], {n: confusion_of(a.labels, a.float_model) for n, a in answers.items()}
    )
    behind = {
        "confusion": {n: confusion_of(a.labels, a.file) for n, a in answers.items()},
        "confusion_missing": None,
        "changes": {n: changes_of(a.labels, a.float_model, a.file) for n, a in answers.items()},
        "layers": tuple(LayerWidth(**layer) for layer in facts["prune"]["layers"]),
        "stages": stages,
    }
    target = _target(recipe, facts, baseline, behind)
    model = facts["baseline"]
    return Report(
        recipe=recipe_info(recipe),
        code=code_info(),
        host=host_info(),
        tools=tool_versions(),
        model=model_info(recipe, len(dataset.classes), model["params"], model["macs"]),
        data=DataInfo(
            name=dataset.name,
            sha256=dataset.sha256,
            train_images=len(dataset.train),
            test_sets={name: len(images) for name, images in dataset.tests.items()},
            classes=dataset.classes,
        ),
        baseline=baseline,
        float_cpu=_float_cpu(recipe, facts, baseline),
        stages=stages,
        targets=(target,),
        passed=target.passed,
    )


def _latency(facts: dict[str, Any]) -> Latency:
    return Latency(**{**facts, "samples_ms": tuple(facts["samples_ms"])})


def _accuracy(facts: dict[str, Any]) -> dict[str, Accuracy]:
    return {name: Accuracy(**figures) for name, figures in facts.items()}


def _baseline(facts: dict[str, Any], confusion: dict[str, Confusion]) -> Baseline:
    host = host_info()
    gpu = facts["device_kind"] == "gpu"
    return Baseline(
        device=host.gpu if gpu and host.gpu else host.cpu,
        device_kind="gpu" if gpu else "cpu",
        measured_here=True,
        accuracy=_accuracy(facts["accuracy"]),
        latency_ms=_latency(facts["latency_ms"]),
        size_bytes=facts["size_bytes"],
        confusion=confusion,
        confusion_missing=None,
    )


def _float_cpu(recipe: Recipe, facts: dict[str, Any], baseline: Baseline) -> Baseline:
    """The float model on this CPU, timed in turn with the target where the target runs."""
    timed = facts["measure"]["latency"]
    by_threads = {threads: _latency(both["float"]) for threads, both in timed.items()}
    latency = by_threads.get(str(recipe.target.threads))
    here = facts["baseline"]
    if latency is None and here["device_kind"] == "cpu":
        latency = _latency(here["latency_ms"])
    reason = None if latency else "not timed on the CPU: the target does not run on this host"
    return Baseline(
        device=host_info().cpu,
        device_kind="cpu",
        measured_here=True,
        accuracy=_accuracy(here["accuracy"]),
        latency_ms=latency,
        latency_missing=reason,
        latency_by_threads=by_threads,
        size_bytes=here["size_bytes"],
        confusion_missing=_OF_THE_BASELINE if baseline.measured_here else _ON_ANOTHER_MACHINE,
    )


def _stage(result: Result) -> StageRecord:
    curve = result.directory / CURVE
    epochs = json.loads(curve.read_text(encoding="utf-8")) if curve.exists() else []
    return StageRecord(
        name=result.stage,
        status="reused" if result.reused else "done",
        seconds=result.seconds,
        params=result.facts.get("params"),
        macs=result.facts.get("macs"),
        top1=result.facts.get("top1"),
        curve=tuple(Epoch(**epoch) for epoch in epochs),
    )


def _target(
    recipe: Recipe, facts: dict[str, Any], baseline: Baseline, behind: dict[str, Any]
) -> TargetResult:
    """The file of one recipe, from the facts of export, verify and measure, and what is behind."""
    verified, measured = facts["verify"], facts["measure"]
    why_not, timed = measured["cannot_time"], measured["latency"]
    threads = str(recipe.target.threads)
    accuracy = _accuracy(measured["accuracy"])
    ours = None if why_not else _latency(timed[threads]["target"])
    theirs = None if why_not else _latency(timed[threads]["float"])
    drop = accuracy_drop_pt(baseline.accuracy, accuracy)
    ratio = speedup(theirs, ours)
    pruning = _pruning(recipe, facts)
    values: dict[Metric, float | None] = {
        "accuracy_drop_pt": drop,
        "size_mb": measured["size_bytes"] / 1e6,
        "speedup": ratio,
        "latency_ms": None if ours is None else ours.median,
        "latency_share": None if pruning is None else pruning.reached_share,
    }
    budgets = _budgets(recipe, values, why_not)
    exact, partitions = verified["scales_exact"], verified["partitions"]
    return TargetResult(
        name=recipe.name,
        device=recipe.target.device,
        format=recipe.target.format,
        precision=recipe.target.precision,
        runtime=verified["runtime"],
        input=recipe.target.input,
        evaluated=verified["evaluated"],
        path=str(facts["export"]["file"]),
        sha256=measured["sha256"],
        size_bytes=measured["size_bytes"],
        download_bytes=measured["download_bytes"],
        accuracy=accuracy,
        accuracy_drop_pt=drop,
        agreement=verified["agreement"],
        parity=_parity(verified["parity"]),
        scales_exact=ScalesExact(**exact) if exact else None,
        scales_missing=None if exact else "a float file has no scales",
        int8_coverage=verified["int8_coverage"],
        ops=verified["ops"],
        partitions=partitions,
        partitions_missing=_NO_PARTITIONS if partitions is None else None,
        latency_ms=ours,
        latency_missing=why_not,
        latency_by_threads={n: _latency(both["target"]) for n, both in timed.items()},
        speedup=ratio,
        speedup_missing=why_not,
        pruning=pruning,
        sparsity=facts["sparsify"]["sparsity"] if "sparsify" in facts else None,
        budgets=budgets,
        passed=all_met(budgets),
        **behind,
    )


def _parity(facts: dict[str, Any]) -> Parity:
    steps = {
        name: OutputSteps(**found) if (found := facts[name]) else None
        for name in ("steps", "rounding")
    }
    return Parity(**{**facts, **steps, "misses": tuple(facts["misses"])})


def _pruning(recipe: Recipe, facts: dict[str, Any]) -> Pruning | None:
    """What was asked of channel pruning, and what the exported file shows of it."""
    if recipe.prune is None:
        return None
    found, measured = facts["prune"]["pruning"], facts["measure"]
    goal, whole = found["goal"], found["whole"]
    share = goal != "size_mb" and recipe.prune.milliseconds is None
    attempts = found["attempts"]
    times = measured["beside_unpruned"]
    taken = _share_of_time(times) if times else None
    reached = {
        "macs": facts["prune"]["macs"] / facts["baseline"]["macs"],
        "params": facts["prune"]["params"] / facts["baseline"]["params"],
        "size_mb": measured["size_bytes"] / 1e6,
        "latency": taken if share else times["target"]["median"] if times else None,
    }[goal]
    return Pruning(
        goal=goal,
        asked=found["asked"],
        unit="share" if share else "MB" if goal == "size_mb" else "ms",
        predicted=found["predicted"] / whole if share else found["predicted"],
        reached=reached,
        reached_missing=measured["cannot_time"] if reached is None else None,
        reached_share=taken,
        first_predicted=attempts[0]["predicted"] if attempts else None,
        first_measured=attempts[0]["measured"] if attempts else None,
    )


def _share_of_time(times: dict[str, Any]) -> float:
    """Median over paired runs of the file's time to the unpruned one's."""
    pairs = zip(times["target"]["samples_ms"], times["unpruned"]["samples_ms"], strict=True)
    return float(median(ours / whole for ours, whole in pairs))


_NO_SHARE = "prune.latency is not given: there is no unpruned file to compare with"


def _budgets(
    recipe: Recipe, values: dict[Metric, float | None], why_not: str | None
) -> tuple[Budget, ...]:
    limits = {metric: getattr(recipe.budgets, metric) for metric in values}
    return tuple(
        budget(metric, limits[metric], value, (why_not or _NO_SHARE) if value is None else None)
        for metric, value in values.items()
        if limits[metric] is not None
    )
