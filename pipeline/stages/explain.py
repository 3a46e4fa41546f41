"""Which stages a run would reuse, and what has changed where it would not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.base.store import Store, key_of
from pipeline.stages.context import Context
from pipeline.stages.schedule import stage_ingredients
from pipeline.stages.stage import Stage

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Explained:
    """What a run would do about one stage.

    Attributes:
        stage: its name.
        reused: whether a stored result would be taken.
        why: in words; for a result that would be made, what differs from the nearest one there is.
    """

    stage: str
    reused: bool
    why: str


def explain(stages: Sequence[Stage[Any]], context: Context, store: Store) -> list[Explained]:
    """Say for every stage that a recipe needs whether its result is there.

    Args:
        stages: of the pipeline, in order.
        context: of one recipe.
        store: of earlier results; nothing is changed there.
    """
    keys: dict[str, str] = {}
    found = []
    for stage in [stage for stage in stages if stage.needed(context.recipe)]:
        ingredients = stage_ingredients(stage, context, keys)
        keys[stage.name] = key_of(ingredients)
        found.append(_explained(stage.name, keys[stage.name], ingredients, store))
    return found


def _explained(name: str, key: str, ingredients: Mapping[str, Any], store: Store) -> Explained:
    stored = store.ingredients(name)
    if key in stored:
        return Explained(stage=name, reused=True, why="unchanged")
    if not stored:
        return Explained(stage=name, reused=False, why="no result yet")
    wanted = _flat(ingredients)
    differences = [_differences(_flat(other), wanted) for other in stored.values()]
    nearest = min(differences, key=len)
    own = [line for line in nearest if not line.startswith("inputs.")]
    if not own:  # a key says nothing: what changed stands where that stage is explained
        stages = sorted({line.split(":")[0].removeprefix("inputs.") for line in nearest})
        return Explained(stage=name, reused=False, why=f"made from {' and '.join(stages)} anew")
    rest = len(own) - _SHOWN
    more = [f"and {rest} more"] if rest > 0 else []
    return Explained(stage=name, reused=False, why="; ".join(own[:_SHOWN] + more))


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """Every leaf of nested mappings, by the names that lead to it."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    leaves: dict[str, object] = {}
    for name, inner in value.items():
        # A part of the recipe is read under its dotted name.
        leaves |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return leaves


def _differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name.startswith(("code.", "data", "tests", "checkpoint")):
            lines.append(f"{name}: changed")
        else:
            # Parts of the recipe are called what they are called there.
            shown = name.removeprefix("recipe.")
            lines.append(f"{shown}: {before} before, {after} now")
    return lines
