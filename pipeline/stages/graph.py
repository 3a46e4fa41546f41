"""The stages, in the order of the work."""

from __future__ import annotations

from pipeline.base.errors import InputError
from pipeline.recipe.recipe import Recipe
from pipeline.stages import (
    baseline,
    export,
    fold,
    measure,
    prune,
    qat,
    sparsify,
    times,
    train,
    verify,
)
from pipeline.stages.schedule import Stage

CORE = (
    "tasks",
    "networks",
    "compress/training",
    "base/torchrun.py",
    "base/replacing.py",
    "stages/context.py",
)
_TRAINING = ("stages/fitting.py",)
_PRUNING = ("compress/pruning",)
_GOALS = ("measure/width_times.py", "stages/times.py")
_QUANTIZER = ("compress/quantization",)
_COMPARING = ("measure/layers.py", "measure/timing.py", "measure/parity.py")
_TIMING = (*_GOALS, "formats", "measure/layers.py", "measure/timing.py", "measure/latency.py")


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
        make=train.train,
        after=(),
        reads=("model", "train", "seed", "threads"),
        code=(*CORE, *_TRAINING, "stages/train.py"),
        shared=True,
    ),
    Stage(
        name="baseline",
        make=baseline.baseline,
        after=("train",),
        reads=("measure", "target.threads"),
        code=(*CORE, "measure/timing.py", "measure/latency.py", "stages/baseline.py"),
        on_host=True,
        shared=True,
    ),
    Stage(
        name="times",
        make=times.times,
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
        make=prune.prune,
        after=("train", "times"),
        reads=("prune", "seed", "threads"),
        also_reads=_pruning_reads,
        code=(*CORE, *_PRUNING, *_GOALS, *_TRAINING, "stages/prune.py"),
        shared=True,
    ),
    Stage(
        name="sparsify",
        make=sparsify.sparsify,
        after=("train", "prune"),
        reads=("sparsify", "seed", "threads"),
        code=(*CORE, *_TRAINING, "compress/pruning", "stages/sparsify.py"),
        needed=_sparsifies,
        shared=True,
    ),
    Stage(
        name="qat",
        make=qat.quantize,
        after=("train", "prune", "sparsify"),
        reads=("qat", "target.input", "seed", "threads"),
        code=(*CORE, *_TRAINING, *_QUANTIZER, "compress/pruning", "stages/qat.py"),
        needed=_quantizes,
        shared=True,
    ),
    Stage(
        name="fold",
        make=fold.fold,
        after=("prune", "sparsify", "qat"),
        reads=("target.precision", "target.input", "threads"),
        code=(
            *(*CORE, *_QUANTIZER, *_COMPARING, "compress/pruning"),
            *("stages/exported.py", "stages/fold.py"),
        ),
    ),
    Stage(
        name="export",
        make=export.write,
        after=("fold",),
        reads=(
            *("target.format", "target.input", "target.cpu", "target.precision"),
            *("model.name", "card.intended_use", "card.author", "card.licence"),
        ),
        code=("formats", "compress/quantization", "stages/export.py"),
        in_child=True,
    ),
    Stage(
        name="verify",
        make=verify.verify,
        after=("export", "fold"),
        reads=("target.format", "target.input", "threads"),
        code=(*CORE, *_COMPARING, "formats", "stages/exported.py", "stages/verify.py"),
    ),
    Stage(
        name="measure",
        make=measure.measure,
        after=("export", "verify", "train", "times"),
        reads=("target", "measure", "threads"),
        code=(
            *CORE,
            "formats",
            "measure/timing.py",
            "measure/latency.py",
            "stages/exported.py",
            "stages/measure.py",
            "stages/times.py",
        ),
        on_host=True,
    ),
)
"""The pipeline. Reporting is what is done with the last results."""


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
