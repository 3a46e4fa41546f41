"""A stage after which the network answers far worse than before ends the run."""

from __future__ import annotations

from typing import Any

from pipeline.base.errors import InputError, MismatchError
from pipeline.base.store import Result
from pipeline.recipe.recipe import Recipe
from pipeline.report import arm64
from pipeline.stages.arm64 import Arm64Facts
from pipeline.stages.judge import JUDGES
from pipeline.stages.stage import Results
from pipeline.stages.verify import VerifyFacts
from pipeline.tasks.tasks import TASKS

_FIXES = {
    "prune": "remove less, or raise prune.finetune.epochs",
    "sparsify": "lower sparsify.sparsity, or raise sparsify.train.epochs",
    "fold": "raise qat.train.epochs, or lower qat.train.learning_rate",
}
"""What to change, by the stage whose accuracy is the first to show it."""

_SHOWN = {stage.name: name for name, stage in JUDGES.items()}
"""What the stages that judge another one's network are called: as that one."""

_NETWORKS = {"baseline": "train", "verify": "export", "measure": "export", **_SHOWN}
"""The stages that keep the network of those that only judge it."""


def refuse_collapse(recipe: Recipe, results: Results, result: Result[Any]) -> None:
    """Stop where the accuracy of a stage is far below that of the best stage before it.

    The result stays in the store: with another limit the next run goes on from it.

    Args:
        recipe: gives the limit.
        results: of the stages so far, in their order; may hold `result`.
        result: of the stage that is judged.

    Raises:
        InputError: names the stage, both accuracies, the limit, what to change, and the directory
            of the last network that was good.
    """
    allowed = recipe.guard.accuracy_drop_pt
    found = result.facts.figure
    before = [r for r in results.values() if r.stage != result.stage and r.facts.figure is not None]
    if allowed is None or found is None or not before:
        return
    best = max(before, key=lambda r: r.facts.figure)
    highest = best.facts.figure
    drop = round(100 * (highest - found), 6)  # 0.9 - 0.6 is a little more than 0.3
    if drop <= allowed:
        return
    last = before[-1].stage
    good = results[_NETWORKS.get(last, last)]
    stage, best_stage = (_SHOWN.get(r.stage, r.stage) for r in (result, best))
    primary = TASKS[recipe.task.kind].figure
    fix = _FIXES.get(stage, "try target.precision float")
    raise InputError(
        f"{recipe.name}: {primary} is {found:.2%} after {stage}, {drop:.2f} points below "
        f"the {highest:.2%} of {best_stage}; guard.accuracy_drop_pt allows {allowed:g}; {fix}; or "
        "raise that (null: no limit), and the next run goes on from here; the last good network, "
        f"that of {good.stage}, lies in {good.directory}"
    )


_OF_THE_FILE = ("verify", "arm64", "measure")
"""The stages that judge the exported file."""


def judged(recipe: Recipe, results: Results, allow_mismatch: bool, result: Result[Any]) -> None:
    """Stop after a result that is not to be gone on from."""
    if allow_mismatch and result.stage in _OF_THE_FILE:
        return  # whoever wants a file that answers otherwise wants one that answers worse
    refuse_mismatch(recipe, result)
    refuse_mismatch_on_arm64(recipe, result)
    refuse_collapse(recipe, results, result)


def refuse_mismatch(recipe: Recipe, result: Result[Any]) -> None:
    """Stop where the exported file does not answer as its program.

    Raises:
        MismatchError: names each gate that was missed and the first layer that differs.
    """
    if not isinstance(result.facts, VerifyFacts) or result.facts.parity.passed:
        return
    found = result.facts.parity
    lines = [
        f"{recipe.name}: the {recipe.target.format} file is not the program that was trained:",
        *(f"  - {miss}" for miss in found.misses),
    ]
    if found.first_difference is not None:
        lines.append(f"  first layer that differs: {found.first_difference}")
    lines.append(
        "  do not ship it. With --allow-mismatch the run goes on, the report says so, and "
        "`pocketnest debug` shows every layer"
    )
    raise MismatchError("\n".join(lines))


def refuse_mismatch_on_arm64(recipe: Recipe, result: Result[Any]) -> None:
    """Stop where the exported file computes otherwise on emulated ARM64 processors.

    Raises:
        MismatchError: names the processors, each gate that was missed, and where layers differ.
    """
    if not isinstance(result.facts, Arm64Facts):
        return
    if not any(cpu.misses for cpu in result.facts.cpus):
        return
    raise MismatchError(
        "\n".join(
            [
                f"{recipe.name}: the {recipe.target.format} file is another on ARM64 processors:",
                *(f"  - {line}" for line in arm64.lines(result.facts.cpus)),
                "  do not ship it. With --allow-mismatch the run goes on, and the report says so",
            ]
        )
    )
