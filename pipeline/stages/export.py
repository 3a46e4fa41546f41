"""The stage that writes the file."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.store import Facts
from pipeline.formats.description import Description
from pipeline.formats.write import SUFFIXES, export
from pipeline.stages.context import PROGRAM, Context, Inputs

DESCRIPTION = "description.json"


def write(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Write the target's file from the program."""
    name = context.recipe.target.format
    file = f"model{SUFFIXES[name]}"
    description(context).write(out / DESCRIPTION)
    export(
        inputs["fold"] / PROGRAM,
        name,
        out / file,
        pixels=context.recipe.target.takes_pixels,
        sparse=context.recipe.sparsify is not None,
        amx=context.recipe.target.cpu == "x86_amx",
        description=out / DESCRIPTION,
        children=context.children,
    )
    return {"file": file}


def description(context: Context) -> Description:
    """What the target's file is to say of itself."""
    recipe, dataset = context.recipe, context.dataset
    side = recipe.model.input_size
    classes = f"{len(dataset.classes)} classes of {dataset.name}"
    return Description(
        name=recipe.model.name,
        text=recipe.card.intended_use
        or f"{recipe.model.name}, {recipe.target.precision}: {side} x {side} images, {classes}",
        classes=dataset.classes,
        pixels=recipe.target.takes_pixels,
        mean=dataset.mean,
        std=dataset.std,
        author=recipe.card.author,
        licence=recipe.card.licence,
    )
