"""The order of the stages, and the loop that runs them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from pipeline.console import tracked
from pipeline.data import Dataset, load_dataset
from pipeline.errors import InputError, MismatchError
from pipeline.finished import COMBINED, STAGES_FILE
from pipeline.provenance import TOOLS, host_info
from pipeline.recipe import Recipe, resolved_yaml
from pipeline.records import Report
from pipeline.report.assemble import assemble
from pipeline.report.write import combine, write_report
from pipeline.stages import files, timing, training
from pipeline.stages.context import Context, Inputs
from pipeline.store import Facts, Result, obtain, publish
from pipeline.train import device

PACKAGE = Path(__file__).parent
STORE = ".store"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: in the report and the store.
        make: the function; writes its files and returns its facts.
        after: the stages whose results it reads, those that are needed.
        reads: the parts of the recipe that decide its result, as dotted names.
        code: the modules that decide its result.
        also_reads: parts that decide the result of some recipes only.
        needed: whether a recipe has this stage at all.
        on_host: whether the result belongs to the machine that made it.
    """

    name: str
    make: Callable[[Context, Inputs, Path], Facts]
    after: tuple[str, ...]
    reads: tuple[str, ...]
    code: tuple[str, ...]
    also_reads: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()
    needed: Callable[[Recipe], bool] = lambda recipe: True
    on_host: bool = False


CORE = ("data.py", "image_files.py", "images.py", "models", "stages/context.py", "train.py")
_TRAINING = ("distill.py", "stages/training.py")
_PRUNING = ("prune.py", "pruning")
_QUANTIZER = ("deploy.py", "fake_quantize.py", "fold.py", "grid.py", "qat.py", "quantizer.py")
_COMPARING = ("layers.py", "measure.py", "parity.py", "program.py")
_TIMING = ("formats", "latency.py", "layers.py", "measure.py", "program.py", "stages/timing.py")


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
    ),
    Stage(
        name="baseline",
        make=training.baseline,
        after=("train",),
        reads=("measure", "target.threads"),
        code=(*CORE, "measure.py", "stages/training.py"),
        on_host=True,
    ),
    Stage(
        name="times",
        make=timing.times,
        after=(),
        reads=(
            *("model.name", "model.block", "model.layers", "model.radix", "model.cardinality"),
            *("model.base_width", "model.stem_width", "model.avd", "model.avd_first"),
            *("model.width_multiplier", "measure", "prune.round_to"),
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
        code=(*CORE, *_PRUNING, *_TRAINING),
    ),
    Stage(
        name="sparsify",
        make=training.sparsify,
        after=("train", "prune"),
        reads=("sparsify", "seed", "threads"),
        code=(*CORE, *_TRAINING, "sparsify.py"),
        needed=_sparsifies,
    ),
    Stage(
        name="qat",
        make=training.quantize,
        after=("train", "prune", "sparsify"),
        reads=("qat", "target.input", "seed", "threads"),
        code=(*CORE, *_TRAINING, *_QUANTIZER, "prune.py", "sparsify.py"),
        needed=_quantizes,
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
        reads=("target.format", "target.input"),
        code=("formats", "program.py", "stages/files.py"),
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
        code=(*CORE, "formats", "measure.py", "stages/files.py"),
        on_host=True,
    ),
)
"""The pipeline. Reporting is what is done with the last results."""


def run_recipes(
    recipes: Sequence[Recipe],
    out: Path,
    console: Console,
    *,
    fresh: bool = False,
    allow_mismatch: bool = False,
    until: str | None = None,
) -> list[tuple[Report, Path]]:
    """Run recipes one after the other, sharing every stage they have in common.

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
    wanted = stages_until(until)
    for stage in STAGES:
        for name in stage.code:
            code_hash(name)  # kept: a file edited during the run must not enter its keys
    datasets: dict[tuple[str, int], Dataset] = {}
    made: set[str] = set()
    reports: list[tuple[Report, Path]] = []
    for recipe in recipes:
        console.print(f"[bold]{recipe.name}[/bold]  {recipe.target.device}", highlight=False)
        key = (recipe.data.model_dump_json(), recipe.model.input_size)
        if key not in datasets:
            datasets[key] = load_dataset(recipe.data, recipe.model.input_size)
        context = Context(recipe=recipe, dataset=datasets[key], tracked=partial(tracked, console))
        gate = None if allow_mismatch else partial(refuse_mismatch, recipe)
        results = run_stages(wanted, context, out / STORE, console, made if fresh else None, gate)
        if until is not None:
            continue
        report = assemble(recipe, context.dataset, results)
        reports.append((report, publish_run(recipe, report, results, context.dataset, out)))
    if len(reports) > 1:
        try:
            whole = combine([report for report, _ in reports])
        except ValueError as error:
            console.print(f"no combined report: {error}", highlight=False)
            return reports
        directory = out / COMBINED
        directory.mkdir(parents=True, exist_ok=True)
        write_report(whole, directory)
        reports.append((whole, directory))
    return reports


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


def run_stages(
    stages: Sequence[Stage],
    context: Context,
    store: Path,
    console: Console,
    made: set[str] | None,
    gate: Callable[[Result], None] | None,
) -> dict[str, Result]:
    """Obtain the result of every stage that the recipe needs, in order.

    `made`, where given, holds the keys computed in this call: everything else is made anew.
    `gate`, where given, sees every result and raises to stop.
    """
    torch.set_num_threads(context.recipe.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid, and slow.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    results: dict[str, Result] = {}
    for stage in [stage for stage in stages if stage.needed(context.recipe)]:
        ingredients = stage_ingredients(stage, context, results)
        inputs = {name: results[name].directory for name in results}
        if console.is_terminal:
            console.print(f"  {stage.name} ...", end="\r", highlight=False)
        result = obtain(
            store,
            stage.name,
            ingredients,
            partial(stage.make, context, inputs),
            made=made,
        )
        _announce(console, result)
        results[stage.name] = result
        if gate is not None:
            gate(result)
    return results


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


def stage_ingredients(
    stage: Stage, context: Context, results: dict[str, Result]
) -> dict[str, object]:
    """Everything that decides the result of a stage, as plain JSON for its key."""
    recipe = context.recipe.model_dump(mode="json")
    reads: dict[str, object] = {}
    for dotted in stage.reads + stage.also_reads(context.recipe):
        value: object = recipe
        for part in dotted.split("."):
            value = value[part] if isinstance(value, dict) else value
        reads[dotted] = value
    return {
        "stage": stage.name,
        "recipe": reads,
        "checkpoint": _checkpoint_hash(context.recipe) if stage.name == "train" else None,
        "inputs": {name: results[name].key for name in stage.after if name in results},
        "data": context.dataset.sha256,
        "side": context.recipe.model.input_size,
        "code": {name: code_hash(name) for name in stage.code},
        "tools": {name: version(name) for name in TOOLS},
        "host": host_info().model_dump() if stage.on_host else None,
        "device": device().type,
    }


def _checkpoint_hash(recipe: Recipe) -> str | None:
    if recipe.model.checkpoint is None:
        return None
    try:
        return hashlib.sha256(Path(recipe.model.checkpoint).read_bytes()).hexdigest()
    except OSError:
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


def _announce(console: Console, result: Result) -> None:
    """Print one line about a finished stage."""
    facts = result.facts
    parts = ["reused" if result.reused else f"{result.seconds:.1f} s"]
    if facts.get("macs"):
        parts.append(f"{facts['macs'] / 1e6:.1f} M MACs")
    if facts.get("params"):
        parts.append(f"{facts['params'] / 1e6:.2f} M parameters")
    if facts.get("sparsity") is not None:
        parts.append(f"{facts['sparsity']:.1%} of the weights zero")
    if attempts := facts.get("pruning", {}).get("attempts"):
        parts.append(f"time of a file {attempts[-1]['measured']:.3f} of the unpruned one's")
    if facts.get("top1") is not None:
        parts.append(f"top-1 {facts['top1']:.2%}")
    console.print(f"  {result.stage:<9} {', '.join(parts)}", highlight=False)


def publish_run(
    recipe: Recipe, report: Report, results: dict[str, Result], dataset: Dataset, out: Path
) -> Path:
    """Write the run's directory: model file, resolved recipe, labels, report, stage directories.

    The directory appears whole or not at all; the one of an earlier run stays until then.
    """
    final = out / recipe.name
    scratch = out / f".{recipe.name}.new"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    file = results["export"].directory / str(results["export"].facts["file"])
    if file.is_dir():
        shutil.copytree(file, scratch / file.name)
    else:
        shutil.copy2(file, scratch / file.name)
    (scratch / "recipe.yaml").write_text(resolved_yaml(recipe), encoding="utf-8")
    (scratch / "labels.txt").write_text(
        "".join(f"{' '.join(name.split())}\n" for name in dataset.classes), encoding="utf-8"
    )
    places = {name: os.path.relpath(r.directory, final) for name, r in results.items()}
    (scratch / STAGES_FILE).write_text(json.dumps(places, indent=1), encoding="utf-8")
    write_report(report, scratch)
    publish(scratch, final)
    return final
