"""How stages are run: those of one recipe in order, those of child processes side by side."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from pipeline.base import torchrun
from pipeline.base.checksums import hash_of
from pipeline.base.children import at_once
from pipeline.base.errors import InputError, printable
from pipeline.base.machine import host_info
from pipeline.base.memory import keep_freed_memory
from pipeline.base.profile import span
from pipeline.base.store import Place, Result, Store, key_of
from pipeline.base.torchrun import device, has_bfloat16
from pipeline.formats.formats import FORMATS
from pipeline.networks.checkpoint_files import files_of
from pipeline.networks.hub import local_file
from pipeline.recipe.recipe import Recipe
from pipeline.stages.context import Context
from pipeline.stages.stage import F, Stage
from pipeline.tasks.tasks import TASKS

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class RecipeRun:
    """One recipe on its way through the stages.

    Attributes:
        context: what its stages are given.
        gate: sees every result, and raises to stop.
        remember: is given the name of each stage and of its result, before it is made as well.
        results: of the stages so far, by name.
    """

    context: Context
    gate: Callable[[Result[Any]], None]
    remember: Callable[[str, str], None] = lambda stage, result: None
    results: dict[str, Result[Any]] = field(default_factory=dict)

    @property
    def keys(self) -> dict[str, str]:
        """Of the results so far, by stage."""
        return {name: result.key for name, result in self.results.items()}


def passes(stages: Sequence[Stage[Any]]) -> list[tuple[Stage[Any], ...]]:
    """The stages in order, each that works in a child process by itself."""
    parts: list[tuple[Stage[Any], ...]] = []
    for stage in stages:
        if parts and not stage.in_child and not parts[-1][0].in_child:
            parts[-1] += (stage,)
        else:
            parts.append((stage,))
    return parts


def run_stages(
    stages: Sequence[Stage[Any]], run: RecipeRun, store: Store, console: Console
) -> None:
    """Obtain the result of every stage that the recipe needs, in order."""
    keep_freed_memory()
    torch.set_num_threads(max(1, run.context.recipe.threads // torchrun.on_this_machine()))
    for stage in [stage for stage in stages if stage.needed(run.context.recipe)]:
        _announce_wait(console, stage)
        if any(stage.shared for stage in stages):
            result = _obtained_together(stage, run, store)
        else:
            result = _obtained(stage, run, store)
        _announce(console, f"{stage.name:<9}", result, run.context.recipe)
        run.results[stage.name] = result
        run.gate(result)


def run_together(
    stage: Stage[Any], runs: Sequence[RecipeRun], store: Store, console: Console
) -> None:
    """Obtain the result of one stage of every recipe, several at a time, equal ones once.

    Where one fails no more are started, those beside it are finished and kept, and then its error
    is raised. Where the program is interrupted they are ended.
    """
    equal = _equal_runs(stage, runs)
    together = at_once(len(equal))
    labels = {run.context.recipe.name: f"{stage.name:<9}" for run in runs}
    if len(runs) > 1:
        labels = {name: f"{name:<{max(map(len, labels))}}" for name in labels}
        console.print(f"[bold]{stage.name}[/bold]  {together} at a time", highlight=False)
    failures: list[BaseException] = []

    def attempt(run: RecipeRun) -> Result[Any] | None:
        if failures:
            return None
        try:
            return _obtained(stage, run, store)
        except BaseException as error:
            if not failures:
                console.print(f"  {labels[run.context.recipe.name]} failed", highlight=False)
            failures.append(error)
            return None

    with span("wait", stage.name), ThreadPoolExecutor(together) as pool:
        futures = {pool.submit(attempt, same[0]): same for same in equal}
        try:
            _announce_wait(console, stage)
            for future in as_completed(futures):
                if (result := future.result()) is None:
                    continue
                same = futures[future]
                rest = [_obtained(stage, run, store) for run in same[1:]]
                for run, found in zip(same, [result, *rest], strict=True):
                    _announce(console, labels[run.context.recipe.name], found, run.context.recipe)
                    run.results[stage.name] = found
                    run.gate(found)
        except BaseException as error:
            failures.append(error)
            for run in runs:
                run.context.children.end()
            raise
    if failures:
        raise failures[0]


def _equal_runs(stage: Stage[Any], runs: Sequence[RecipeRun]) -> list[list[RecipeRun]]:
    """The runs that need a stage; those to which it gives the same result stand together."""
    by_key: dict[str, list[RecipeRun]] = {}
    for run in [run for run in runs if stage.needed(run.context.recipe)]:
        key = key_of(stage_ingredients(stage, run.context, run.keys))
        by_key.setdefault(key, []).append(run)
    return list(by_key.values())


def _obtained(
    stage: Stage[F],
    run: RecipeRun,
    store: Store,
    begun: Callable[[Place], None] = lambda place: None,
) -> Result[F]:
    """The result of a stage; `begun` is told where it is made, if it is."""

    def make(place: Place) -> F:
        begun(place)
        run.remember(stage.name, place.partial.name)
        facts = _made(stage, run, place)
        assert facts is not None, f"{stage.name}: the first process has no facts"
        return facts

    with span("stage", stage.name):
        ingredients = stage_ingredients(stage, run.context, run.keys)
        result = store.obtain(stage.name, ingredients, make, stage.facts)
        run.remember(stage.name, result.directory.name)
        return result


def _made(stage: Stage[F], run: RecipeRun, place: Place) -> F | None:
    # Here and not before: it loads torch's compiler, two seconds that a run which makes nothing
    # does without.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid, and slow.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    inputs = {name: result.directory for name, result in run.results.items()}
    with torchrun.together() if stage.shared else nullcontext():
        return stage.make(replace(run.context, partial=place.partial), inputs, place.result)


def _obtained_together(stage: Stage[F], run: RecipeRun, store: Store) -> Result[F]:
    """The result of a stage that the first process obtains; the others help to make it.

    They see the same files: the store lies on a disk that all machines share.
    """
    if torchrun.is_first():
        result = _obtained(stage, run, store, torchrun.tell_others)
        torchrun.tell_others(result)
        return result
    while not isinstance(word := torchrun.told(), Result):
        assert isinstance(word, Place)
        if stage.shared:
            with tempfile.TemporaryDirectory() as scratch:
                _made(stage, run, replace(word, result=Path(scratch)))
    return word


@span("hash", "the key")
def stage_ingredients(
    stage: Stage[Any], context: Context, keys: Mapping[str, str]
) -> dict[str, object]:
    """Everything that decides the result of a stage, as plain JSON for its key.

    Args:
        stage: to be made.
        context: of the recipe.
        keys: of the stages before it, by name.
    """
    reads: dict[str, object] = {}
    data = context.dataset
    # What lies in a file is hashed; where it lies decides nothing, so that projects can be moved.
    recipe = context.recipe.model_dump(mode="json") | {"model": context.recipe.model.decided}
    of_format = _packages_of(context.recipe.target.format) if stage.of_format else ()
    for dotted in stage.reads + stage.also_reads(context.recipe):
        value: object = recipe
        for part in dotted.split("."):
            value = value[part] if isinstance(value, dict) else value
        reads[dotted] = value
    return {
        "stage": stage.name,
        "recipe": reads,
        "checkpoint": _checkpoint_hash(context.recipe) if stage.name == "train" else None,
        "network": _decided_by(context) if stage.name == "train" else None,
        "inputs": {name: keys[name] for name in stage.after if name in keys},
        "data": data.training_sha256,
        "tests": data.sha256 if stage.sees_tests else None,
        "normalization": {"mean": list(data.mean), "std": list(data.std)},
        "preparation": data.train.preparation.ingredients(),
        "code": {name: code_hash(name) for name in stage.code},
        "tools": {name: _version_of(name) for name in {*stage.packages, *of_format}},
        "host": host_info().model_dump() if stage.on_host else None,
        "device": device().type if stage.on_device else None,
        "bfloat16": has_bfloat16() if stage.in_bfloat16(context.recipe) else None,
    }


_version_of = functools.cache(version)


def _packages_of(form: str) -> tuple[str, ...]:
    """Packages that write, read and run the files of a format."""
    return (FORMATS[form].package, *FORMATS[form].writers)


def _decided_by(context: Context) -> dict[str, str]:
    """What decides the network beside the recipe: the version of a library, the user's code."""
    found: dict[str, str] = context.family.decided_by(context.recipe.model)
    return found


def _checkpoint_hash(recipe: Recipe) -> str | None:
    if recipe.model.checkpoint is None:
        return None
    try:
        return "".join(map(hash_of, files_of(local_file(recipe.model.checkpoint))))
    except (OSError, InputError):
        return "unreadable"  # the train stage says so, with its cause


@functools.cache
def code_hash(name: str) -> str:
    """Hash of a module of the package, or of every module of a subpackage."""
    path = PACKAGE / name
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _announce_wait(console: Console, stage: Stage[Any]) -> None:
    """Show what is under way; the next line takes its place."""
    if console.is_terminal:
        console.print(f"  {stage.name} ...", end="\r", highlight=False)


def _announce(console: Console, label: str, result: Result[Any], recipe: Recipe) -> None:
    """Print one line about a finished stage."""
    primary = TASKS[recipe.task.kind].figure
    parts = ["reused" if result.reused else f"{result.seconds:.1f} s", *result.facts.told(primary)]
    console.print(f"  {label} {escape(printable(', '.join(parts)))}", highlight=False)
