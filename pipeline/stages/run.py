"""The order of the stages, and the runs that go through them."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline.base import torchrun
from pipeline.base.children import Children
from pipeline.base.console import tracked
from pipeline.base.errors import printable
from pipeline.base.locks import held
from pipeline.base.profile import span
from pipeline.base.store import IMAGES, LOCKS, RUN, STORE, Result, Store, refuse_links
from pipeline.formats.write import early_writers
from pipeline.measure.lanes.arm64 import machine
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.recipe import Recipe
from pipeline.report.records import COMBINED, Report
from pipeline.stages import export
from pipeline.stages.combined import refuse_other_folder, withdraw, write_combined
from pipeline.stages.context import Context
from pipeline.stages.explain import Explained, explain
from pipeline.stages.floats import refuse_bad_floats
from pipeline.stages.graph import STAGES, stages_until
from pipeline.stages.guard import judged
from pipeline.stages.latest import Record
from pipeline.stages.names import refuse_reserved
from pipeline.stages.presets import with_preset
from pipeline.stages.publish import reported
from pipeline.stages.schedule import RecipeRun, code_hash, passes, run_stages, run_together
from pipeline.tasks.images.calibration import check_calibration
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.tasks import task_of


def run_recipes(
    recipes: Sequence[Recipe],
    out: Path,
    console: Console,
    *,
    fresh: bool = False,
    allow_mismatch: bool = False,
    until: str | None = None,
    files: Sequence[Path] = (),
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
        files: that the recipes were read from: what is made of them stays as long as they do.

    Returns:
        Each report with its directory; the combined one last where there are several recipes
        of one network and dataset. None where `until` ends the runs early.

    Raises:
        InputError: data, checkpoint or a figure of the recipe that turns out impossible.
        MismatchError: a result is not what went into it.
    """
    with _at_work(out):
        store = Store(
            directory=out / STORE, tell=partial(console.print, highlight=False), fresh=fresh
        )
        return _reports(recipes, files, out, console, store, allow_mismatch, until)


@contextmanager
def _at_work(out: Path) -> Iterator[None]:
    """Say that this process uses the results of the store, so that none is removed."""
    # Containers can share a name and a number: this lock is to be nobody else's.
    mine = f"{RUN}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    at_work = out / STORE / LOCKS / f"{mine}.json"
    refuse_links(out / STORE)  # before the first lock is written there
    with held(at_work, lambda owner: None):
        yield


@contextmanager
def begun(
    recipe: Recipe, file: Path, out: Path, console: Console, until: str
) -> Iterator[RecipeRun]:
    """The run of one recipe after its first stages, for what is done with them beside a report.

    Args:
        recipe: from `load_recipes`.
        file: that it was read from.
        out: as of `run_recipes`.
        console: where progress is shown.
        until: name of the last stage to run, none of which works in a child process.

    Raises:
        InputError: data, checkpoint or a figure of the recipe that turns out impossible.
    """
    with _at_work(out):
        store = Store(directory=out / STORE, tell=partial(console.print, highlight=False))
        (run,) = _prepared([recipe], [file], out / STORE, console, allow_mismatch=False)
        run_stages(stages_until(until), run, store, console)
        yield run


def _reports(
    recipes: Sequence[Recipe],
    files: Sequence[Path],
    out: Path,
    console: Console,
    store: Store,
    allow_mismatch: bool,
    until: str | None,
) -> list[tuple[Report, Path]]:
    wanted = stages_until(until)
    for stage in STAGES:
        for name in stage.code:
            code_hash(name)  # kept: a file edited during the run must not enter its keys
    tell = store.tell
    runs = _prepared(recipes, files, out / STORE, console, allow_mismatch)
    if any(recipe.verify.arm64 for recipe in recipes):
        machine.set_up(tell)  # what cannot be had is not to be missed after hours
    refuse_bad_floats(run.context for run in runs)
    if len(recipes) > 1:
        refuse_other_folder(out)
    if export.STAGE in wanted:
        formats = {recipe.target.format for recipe in recipes}
        runs[0].context.children.early = early_writers(formats, export.STAGE.name)
    outdated, reports = False, list[tuple[Report, Path]]()
    with runs[0].context.children:
        for stages in passes(wanted):
            if not torchrun.is_first() and not any(stage.shared for stage in stages):
                return []
            if stages[0].in_child:
                run_together(stages[0], runs, store, console)
                continue
            for run in runs:
                if len(runs) > 1 or stages[0] is wanted[0]:
                    _announce_recipe(console, run.context.recipe)
                run_stages(stages, run, store, console)
                if until is None and stages[-1] is wanted[-1]:
                    reports.append(reported(run, out, tell))
                    outdated |= withdraw(out, run.context.recipe.name, reports[-1][0])
    if len(reports) > 1 and (whole := write_combined([one for one, _ in reports], out, tell)):
        return [*reports, whole]
    if outdated:
        tell(f"{out / COMBINED}: removed, it was of earlier runs; run its recipes together again")
    return reports


def explain_recipes(
    recipes: Sequence[Recipe], out: Path, console: Console
) -> dict[str, list[Explained]]:
    """What a run would do about every stage of some recipes, by the recipe's name.

    Raises:
        InputError: data or checkpoint cannot be read.
    """
    store = Store(directory=out / STORE, tell=lambda line: None)
    runs = _prepared(recipes, (), out / STORE, console, allow_mismatch=False)
    return {run.context.recipe.name: explain(STAGES, run.context, store) for run in runs}


def _prepared(
    recipes: Sequence[Recipe],
    files: Sequence[Path],
    store: Path,
    console: Console,
    allow_mismatch: bool,
) -> list[RecipeRun]:
    """A run of every recipe, with its data; those that were read from `files` are remembered."""
    refuse_links(store)
    datasets: dict[tuple[str, str, InputShape], Dataset] = {}
    children = Children()
    runs = []
    for given, file in zip_longest(recipes, files):
        refuse_reserved(given)
        recipe, taken = with_preset(given)
        if taken is not None:
            console.print(escape(printable(taken)), highlight=False)
        shape = recipe.model.input_shape
        key = (recipe.task.kind, recipe.data.model_dump_json(), shape)
        if key not in datasets:
            # The first process before others, who find the images decoded.
            with torchrun.first_before_others(), span("decode", "images"):
                datasets[key] = task_of(recipe).load(recipe.data, shape, cache=store / IMAGES)
            for note in (*datasets[key].notes, *check_calibration(datasets[key])):
                console.print(escape(printable(note)), highlight=False)
        context = Context(
            recipe=recipe,
            dataset=datasets[key],
            tracked=partial(tracked, console),
            children=children,
        )
        results: dict[str, Result[Any]] = {}
        gate = partial(judged, recipe, results, allow_mismatch)
        run = RecipeRun(context=context, gate=gate, results=results)
        if file is not None and torchrun.is_first():
            run = replace(run, remember=Record(store=store, recipe=recipe, file=file).add)
        runs.append(run)
    return runs


def _announce_recipe(console: Console, recipe: Recipe) -> None:
    console.print(f"[bold]{recipe.name}[/bold]  {recipe.target.device}", highlight=False)
