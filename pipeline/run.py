"""The order of the stages, and the runs that go through them."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pipeline import processes
from pipeline.baselines.files import SHIPPED, Kept, any_in, model_sha256, newest_of_gpu
from pipeline.calibration import check_calibration
from pipeline.children import Children
from pipeline.collapse import refuse_collapse
from pipeline.console import tracked
from pipeline.data import Dataset, load_dataset
from pipeline.errors import InputError, MismatchError, printable
from pipeline.evaluation import PREDICTIONS, Predictions, gathered, write_predictions
from pipeline.explain import Explained, explain
from pipeline.finished import STAGES_FILE
from pipeline.formats.description import labels_text
from pipeline.locks import held
from pipeline.passes import Run, Stage, code_hash, passes, run_stages, run_together
from pipeline.plain_files import refuse_link, remove
from pipeline.recipe import Recipe, resolved_yaml
from pipeline.records import BASELINES, COMBINED, Report
from pipeline.report.assemble import assemble
from pipeline.report.write import combine, write_report
from pipeline.stages import files, timing, training
from pipeline.stages.context import Context, float_model
from pipeline.store import IMAGES, LOCKS, MAKING, RUN, STORE, Result, Store, publish, refuse_links

CORE = (
    *("data.py", "evaluation.py", "image_cache.py", "image_files.py", "images.py"),
    *("models", "processes.py", "regularize.py", "small_maps.py", "stages/context.py"),
    *("torch_functions.py", "train.py"),
)
_TRAINING = ("distill.py", "stages/training.py")
_PRUNING = ("prune.py", "pruning")
_GOALS = ("latency.py", "stages/timing.py")
_QUANTIZER = ("deploy.py", "fake_quantize.py", "fold.py", "grid.py", "qat.py", "quantizer.py")
_COMPARING = ("layers.py", "measure.py", "parity.py", "program.py", "rounding.py")
_TIMING = (
    *(*_GOALS, "formats", "layers.py", "measure.py"),
    *("program.py", "records.py", "rounding.py"),
)


def _prunes_to_a_time(recipe: Recipe) -> bool:
    return recipe.prune is not None and recipe.prune.latency is not None


def _pruning_reads(recipe: Recipe) -> tuple[str, ...]:
    """How large a file is depends on what file it is; MACs and parameters do not."""
    if recipe.prune is None or recipe.prune.size_mb is None:
        return ()
    return ("target.format", "target.precision")


def _sparsifies(recipe: Recipe) -> bool:
    return recipe.sparsify is not None


def _quantizes(recipe: Recipe) -> bool:
    return recipe.target.precision == "int8"


STAGES = (
    Stage(
        name="train",
        make=training.train,
        after=(),
        reads=("model", "train", "seed", "threads"),
        code=(*CORE, "stages/training.py"),
        shared=True,
    ),
    Stage(
        name="baseline",
        make=training.baseline,
        after=("train",),
        reads=("measure", "target.threads"),
        code=(*CORE, "measure.py", "records.py", "stages/training.py"),
        on_host=True,
        shared=True,
    ),
    Stage(
        name="times",
        make=timing.times,
        after=(),
        reads=(
            *("model.name", "model.block", "model.layers", "model.radix", "model.cardinality"),
            *("model.base_width", "model.stem", "model.stem_width", "model.avd"),
            *("model.avd_first", "model.width_multiplier", "measure", "prune.round_to"),
            *("target.format", "target.precision", "target.input", "target.threads"),
        ),
        code=(*CORE, *_PRUNING, *_QUANTIZER, *_TIMING),
        on_host=True,
        needed=_prunes_to_a_time,
    ),
    Stage(
        name="prune",
        make=training.prune,
        after=("train", "times"),
        reads=("prune", "seed", "threads"),
        also_reads=_pruning_reads,
        code=(*CORE, *_PRUNING, *_GOALS, *_TRAINING),
        shared=True,
    ),
    Stage(
        name="sparsify",
        make=training.sparsify,
        after=("train", "prune"),
        reads=("sparsify", "seed", "threads"),
        code=(*CORE, *_TRAINING, "prune.py", "sparsify.py"),
        needed=_sparsifies,
        shared=True,
    ),
    Stage(
        name="qat",
        make=training.quantize,
        after=("train", "prune", "sparsify"),
        reads=("qat", "target.input", "seed", "threads"),
        code=(*CORE, *_TRAINING, *_QUANTIZER, "prune.py", "sparsify.py"),
        needed=_quantizes,
        shared=True,
    ),
    Stage(
        name="fold",
        make=files.fold,
        after=("prune", "sparsify", "qat"),
        reads=("target.precision", "target.input", "threads"),
        code=(*CORE, *_QUANTIZER, *_COMPARING, "prune.py", "stages/files.py"),
    ),
    Stage(
        name="export",
        make=files.write,
        after=("fold",),
        reads=(
            *("target.format", "target.input", "target.cpu", "target.precision"),
            *("model.name", "card.intended_use", "card.author", "card.licence"),
        ),
        code=("formats", "grid.py", "program.py", "stages/files.py"),
        in_child=True,
    ),
    Stage(
        name="verify",
        make=files.verify,
        after=("export", "fold"),
        reads=("target.format", "target.input", "threads"),
        code=(*CORE, *_COMPARING, "formats", "stages/files.py"),
    ),
    Stage(
        name="measure",
        make=files.judge,
        after=("export", "verify", "train", "times"),
        reads=("target", "measure", "threads"),
        code=(*CORE, "formats", "measure.py", "records.py", "stages/files.py", "stages/timing.py"),
        on_host=True,
    ),
)
"""The pipeline. Reporting is what is done with the last results."""


_OF_THE_FILE = ("verify", "measure")
"""The stages that judge the exported file."""


def run_recipes(
    recipes: Sequence[Recipe],
    out: Path,
    console: Console,
    *,
    fresh: bool = False,
    allow_mismatch: bool = False,
    until: str | None = None,
) -> list[tuple[Report, Path]]:
    """Run recipes, sharing every stage they have in common.

    All of them go as far as the first stage that works in a child process, take that one together,
    and so on. Nothing else runs beside a stage that times.

    Args:
        recipes: from `load_recipes`.
        out: gets one directory per recipe, and `combined` for several recipes.
        console: where progress and results are shown.
        fresh: compute every stage again.
        allow_mismatch: go on where a file does not answer as its program; the report says so.
        until: name of the last stage to run; its result stays in the store.

    Returns:
        Each report with its directory; the combined one last where there are several recipes
        of one network and dataset. None where `until` ends the runs early.

    Raises:
        InputError: data, checkpoint or a figure of the recipe that turns out impossible.
        MismatchError: a result is not what went into it.
    """
    with _at_work(out):
        return _reports(recipes, out, console, fresh, allow_mismatch, until)


@contextmanager
def _at_work(out: Path) -> Iterator[None]:
    """Say that this process uses the results of the store, so that none is removed."""
    at_work = out / STORE / LOCKS / f"{RUN}-{socket.gethostname()}-{os.getpid()}.json"
    refuse_links(out / STORE)  # before the first lock is written there
    with held(at_work, lambda owner: None):
        yield


@contextmanager
def begun(recipe: Recipe, out: Path, console: Console, until: str) -> Iterator[Run]:
    """The run of one recipe after its first stages, for what is done with them beside a report.

    Args:
        recipe: from `load_recipes`.
        out: as of `run_recipes`.
        console: where progress is shown.
        until: name of the last stage to run, none of which works in a child process.

    Raises:
        InputError: data, checkpoint or a figure of the recipe that turns out impossible.
    """
    with _at_work(out):
        store = Store(directory=out / STORE, tell=partial(console.print, highlight=False))
        (run,) = _prepared([recipe], out / STORE, console, allow_mismatch=False)
        run_stages(stages_until(until), run, store, console)
        yield run


def _reports(
    recipes: Sequence[Recipe],
    out: Path,
    console: Console,
    fresh: bool,
    allow_mismatch: bool,
    until: str | None,
) -> list[tuple[Report, Path]]:
    wanted = stages_until(until)
    for stage in STAGES:
        for name in stage.code:
            code_hash(name)  # kept: a file edited during the run must not enter its keys
    tell = partial(console.print, highlight=False)
    store = Store(directory=out / STORE, tell=tell, fresh=fresh)
    runs = _prepared(recipes, out / STORE, console, allow_mismatch)
    reports: list[tuple[Report, Path]] = []
    for stages in passes(wanted):
        if not processes.is_first() and not any(stage.shared for stage in stages):
            return []
        if stages[0].in_child:
            run_together(stages[0], runs, store, console)
            continue
        for run in runs:
            if len(runs) > 1 or stages[0] is wanted[0]:
                _announce_recipe(console, run.context.recipe)
            run_stages(stages, run, store, console)
            if until is None and stages[-1] is wanted[-1]:
                reports.append(_reported(run, out, tell))
    if len(reports) > 1:
        try:
            whole = combine([report for report, _ in reports])
        except ValueError as error:
            console.print(f"no combined report: {error}", highlight=False)
            return reports
        directory = out / COMBINED
        refuse_link(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_report(whole, directory)
        reports.append((whole, directory))
    return reports


def explain_recipes(
    recipes: Sequence[Recipe], out: Path, console: Console
) -> dict[str, list[Explained]]:
    """What a run would do about every stage of some recipes, by the recipe's name.

    Raises:
        InputError: data or checkpoint cannot be read.
    """
    store = Store(directory=out / STORE, tell=lambda line: None)
    runs = _prepared(recipes, out / STORE, console, allow_mismatch=False)
    return {run.context.recipe.name: explain(STAGES, run.context, store) for run in runs}


def _prepared(
    recipes: Sequence[Recipe], store: Path, console: Console, allow_mismatch: bool
) -> list[Run]:
    """A run of every recipe, with its data."""
    refuse_links(store)
    datasets: dict[tuple[str, int], Dataset] = {}
    children = Children()
    runs = []
    for recipe in recipes:
        if recipe.name == BASELINES:
            raise InputError(
                f"name: got {BASELINES!r}, which is the folder of `pocketnest baseline` beside "
                "those of the runs; give the recipe another name"
            )
        side = recipe.model.input_size
        key = (recipe.data.model_dump_json(), side)
        if key not in datasets:
            with processes.first_before_others():  # who find the images decoded
                datasets[key] = load_dataset(recipe.data, side, cache=store / IMAGES)
            for note in (*datasets[key].notes, *check_calibration(datasets[key])):
                console.print(note, highlight=False)
        context = Context(
            recipe=recipe,
            dataset=datasets[key],
            tracked=partial(tracked, console),
            children=children,
        )
        results: dict[str, Result] = {}
        gate = partial(_judged, recipe, results, allow_mismatch)
        runs.append(Run(context=context, gate=gate, results=results))
    return runs


def _judged(
    recipe: Recipe, results: dict[str, Result], allow_mismatch: bool, result: Result
) -> None:
    """Stop after a result that is not to be gone on from."""
    if allow_mismatch and result.stage in _OF_THE_FILE:
        return  # whoever wants a file that answers otherwise wants one that answers worse
    refuse_mismatch(recipe, result)
    refuse_collapse(recipe, results, result)


def _reported(run: Run, out: Path, tell: Callable[[str], None]) -> tuple[Report, Path]:
    recipe, dataset, results = run.context.recipe, run.context.dataset, run.results
    answers = gathered(dataset, results["baseline"].directory, results["measure"].directory)
    kept = _of_a_gpu_elsewhere(run, out, tell)
    if kept is not None:
        answers = kept.answering(answers)
    elsewhere = None if kept is None else kept.baseline(dataset)
    report = assemble(recipe, dataset, results, answers, elsewhere)
    return report, publish_run(recipe, report, results, answers, out)


def _of_a_gpu_elsewhere(run: Run, out: Path, tell: Callable[[str], None]) -> Kept | None:
    """What another machine's GPU made of the float network; None where there is a GPU here."""
    folders = [out / BASELINES, SHIPPED]
    trained, here = run.results["train"], run.results["baseline"].facts["device_kind"]
    if here == "gpu" or not any_in(folders):
        return None
    model = float_model(run.context, {"train": trained.directory})
    found = model_sha256(model, run.context.recipe.model.input_size)
    kept, notes = newest_of_gpu(folders, found, run.context.dataset)
    for note in notes:
        tell(f"  {escape(printable(note))}")
    if kept is not None:
        said = f"float baseline of {kept.found.device}, measured elsewhere: {kept.path}"
        tell(f"  {escape(printable(said))}")
    return kept


def stages_until(last: str | None) -> tuple[Stage, ...]:
    """The stages up to one of them; all where none is named.

    Raises:
        InputError: there is no such stage.
    """
    names = [stage.name for stage in STAGES]
    if last is None:
        return STAGES
    if last not in names:
        raise InputError(f"--until: got {last!r}; must be one of {', '.join(names)}")
    return STAGES[: names.index(last) + 1]


def refuse_mismatch(recipe: Recipe, result: Result) -> None:
    """Stop where the exported file does not answer as its program.

    Raises:
        MismatchError: names each gate that was missed and the first layer that differs.
    """
    found = result.facts.get("parity")
    if found is None or found["passed"]:
        return
    lines = [
        f"{recipe.name}: the {recipe.target.format} file is not the program that was trained:",
        *(f"  - {miss}" for miss in found["misses"]),
    ]
    if found["first_difference"] is not None:
        lines.append(f"  first layer that differs: {found['first_difference']}")
    lines.append(
        "  do not ship it. With --allow-mismatch the run goes on, the report says so, and "
        "`pocketnest debug` shows every layer"
    )
    raise MismatchError("\n".join(lines))


def _announce_recipe(console: Console, recipe: Recipe) -> None:
    console.print(f"[bold]{recipe.name}[/bold]  {recipe.target.device}", highlight=False)


def publish_run(
    recipe: Recipe,
    report: Report,
    results: dict[str, Result],
    answers: dict[str, Predictions],
    out: Path,
) -> Path:
    """Write the run's directory: model file, resolved recipe, labels, report, stage directories.

    The directory appears whole or not at all; the one of an earlier run stays until then.
    """
    with held(out / STORE / LOCKS / f"publish-{recipe.name}.json", lambda owner: None):
        return _published(recipe, report, results, answers, out)


def _published(
    recipe: Recipe,
    report: Report,
    results: dict[str, Result],
    answers: dict[str, Predictions],
    out: Path,
) -> Path:
    final = out / recipe.name
    scratch = out / f"{MAKING}-{recipe.name}"
    remove(scratch)  # of a process that was killed
    scratch.mkdir(parents=True)
    file = results["export"].directory / str(results["export"].facts["file"])
    if file.is_dir():
        shutil.copytree(file, scratch / file.name)
    else:
        shutil.copy2(file, scratch / file.name)
    (scratch / "recipe.yaml").write_text(resolved_yaml(recipe), encoding="utf-8")
    (scratch / "labels.txt").write_text(labels_text(report.data.classes), encoding="utf-8")
    write_predictions(answers, scratch / PREDICTIONS)
    places = {name: os.path.relpath(r.directory, final) for name, r in results.items()}
    (scratch / STAGES_FILE).write_text(json.dumps(places, indent=1), encoding="utf-8")
    write_report(report, scratch)
    publish(scratch, final)
    return final
