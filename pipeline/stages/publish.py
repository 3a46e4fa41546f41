"""A run's folder: its report and what is handed over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from rich.markup import escape

from pipeline.base.errors import printable
from pipeline.base.locks import held
from pipeline.base.profile import span
from pipeline.base.safe_files import remove
from pipeline.base.store import LOCKS, MAKING, STAGES_FILE, STORE, publish
from pipeline.formats.description import labels_text
from pipeline.measure.baseline.files import (
    SHIPPED,
    KeptBaseline,
    any_in,
    model_sha256,
    newest_of_gpu,
)
from pipeline.measure.baseline.record import BASELINES
from pipeline.recipe.recipe import Recipe, resolved_yaml
from pipeline.report.pictures import write_pictures
from pipeline.report.records import Report
from pipeline.report.write import write_report
from pipeline.stages import (
    baseline,
    devices,
    export,
    kept_images,
    measure,
    verify,
)
from pipeline.stages.assemble import assemble
from pipeline.stages.context import float_model
from pipeline.stages.drawn import pictures_of
from pipeline.stages.kept_images import FIRST, GOLDEN, KEPT_IMAGES, KeptSet
from pipeline.stages.kept_layers import LAYERS_FILE
from pipeline.stages.schedule import RecipeRun
from pipeline.stages.stage import Results
from pipeline.tasks.predictions import PREDICTIONS, Predictions, write_predictions


@span("render", "the report")
def reported(run: RecipeRun, out: Path, tell: Callable[[str], None]) -> tuple[Report, Path]:
    """The report of a run whose stages are done, and the folder it was published in."""
    recipe, dataset, results = run.context.recipe, run.context.dataset, run.results
    kept_by = (results["baseline"].directory, results["measure"].directory)
    answers = run.context.task.gathered(dataset, *kept_by)
    kept = _of_a_gpu_elsewhere(run, out, tell)
    if kept is not None:
        answers = kept.answering(answers)
    elsewhere = None if kept is None else kept.baseline(dataset, run.context.task)
    folder = out / recipe.name
    known = devices.of_file(folder, measure.STAGE.found_in(results).sha256)
    report = assemble(
        recipe,
        dataset,
        results,
        answers,
        elsewhere,
        folder=folder,
        devices=() if known is None else known.machines,
    )
    images = _kept_images(run)
    return report, publish_run(recipe, report, results, answers, images, out)


def _kept_images(run: RecipeRun) -> dict[str, KeptSet]:
    """The images that a bundle holds, and the one that is timed."""
    images = next(iter(run.context.dataset.tests.values()))
    chosen = torch.tensor(verify.STAGE.found_in(run.results).golden, dtype=torch.int64)
    first = kept_images.first_rows(len(images), 1)
    return {GOLDEN: kept_images.kept(images, chosen), FIRST: kept_images.kept(images, first)}


def _of_a_gpu_elsewhere(
    run: RecipeRun, out: Path, tell: Callable[[str], None]
) -> KeptBaseline | None:
    """What another machine's GPU made of the float network; None where there is a GPU here."""
    folders = [out / BASELINES, SHIPPED]
    trained, here = run.results["train"], baseline.STAGE.found_in(run.results).device_kind
    if here == "gpu" or not any_in(folders):
        return None
    model = float_model(run.context, {"train": trained.directory})
    shape = run.context.family.shape(model)
    found = model_sha256(model, shape, run.context.recipe.model.input_shape)
    kept, notes = newest_of_gpu(folders, found, run.context.dataset, run.context.task)
    for note in notes:
        tell(f"  {escape(printable(note))}")
    if kept is not None:
        said = f"float baseline of {kept.found.device}, measured elsewhere: {kept.path}"
        tell(f"  {escape(printable(said))}")
    return kept


def publish_run(
    recipe: Recipe,
    report: Report,
    results: Results,
    answers: dict[str, Predictions],
    images: dict[str, KeptSet],
    out: Path,
) -> Path:
    """Write the run's directory: all that its commands need of it, wherever it is moved.

    That are the model file, the resolved recipe, labels, the report, what was named for every test
    image, a few images, the layers, and where the store has the stages' results.

    The directory appears whole or not at all; the one of an earlier run stays until then.
    """
    with held(out / STORE / LOCKS / f"publish-{recipe.name}.json", lambda owner: None):
        return _published(recipe, report, results, answers, images, out)


def _published(
    recipe: Recipe,
    report: Report,
    results: Results,
    answers: dict[str, Predictions],
    images: dict[str, KeptSet],
    out: Path,
) -> Path:
    final = out / recipe.name
    scratch = out / f"{MAKING}-{recipe.name}"
    remove(scratch)  # of a process that was killed
    scratch.mkdir(parents=True)
    file = results["export"].directory / export.STAGE.found_in(results).file
    if file.is_dir():
        shutil.copytree(file, scratch / file.name)
    else:
        shutil.copy2(file, scratch / file.name)
    (scratch / "recipe.yaml").write_text(resolved_yaml(recipe, final), encoding="utf-8")
    (scratch / "labels.txt").write_text(labels_text(report.data.classes), encoding="utf-8")
    write_predictions(answers, scratch / PREDICTIONS)
    kept_images.write(scratch / KEPT_IMAGES, images)
    shutil.copy2(results["fold"].directory / LAYERS_FILE, scratch)
    places = {name: os.path.relpath(r.directory, final) for name, r in results.items()}
    (scratch / STAGES_FILE).write_text(json.dumps(places, indent=1), encoding="utf-8")
    title = "int8" if report.targets[0].precision == "int8" else "file"
    write_pictures(pictures_of(recipe.name, title, answers, report.data.classes), scratch)
    write_report(report, scratch)
    # What was measured on a device stays, where the run made the same file again.
    devices.keep(final, scratch, report.targets[0].sha256)
    publish(scratch, final)
    return final
