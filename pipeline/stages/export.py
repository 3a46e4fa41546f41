"""The stage that writes the file."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.record import Text
from pipeline.formats.description import Description
from pipeline.formats.formats import FORMATS
from pipeline.formats.write import export
from pipeline.stages.context import PROGRAM, Context, Inputs
from pipeline.stages.stage import QUANTIZER, Stage, StageFacts

DESCRIPTION = "description.json"


class ExportFacts(StageFacts):
    """The name of the file, in the stage's directory."""

    file: Text


def write(context: Context, inputs: Inputs, out: Path) -> ExportFacts:
    """Write the target's file from the program."""
    name = context.recipe.target.format
    file = f"model{FORMATS[name].suffix}"
    description(context).write(out / DESCRIPTION)
    export(
        inputs["fold"] / PROGRAM,
        name,
        out / file,
        pixels=context.recipe.target.takes_pixels,
        sparse=context.recipe.sparsify is not None,
        amx=context.recipe.target.cpu == "x86_amx",
        opset17=context.recipe.target.opset == 17,
        products=context.recipe.target.products,
        description=out / DESCRIPTION,
        children=context.children,
    )
    return ExportFacts(file=file)


def description(context: Context) -> Description:
    """What the target's file is to say of itself."""
    recipe, dataset = context.recipe, context.dataset
    shape = recipe.model.input_shape
    meaning = context.task.meaning()
    classes = f"{len(dataset.classes)} {meaning.things} of {dataset.name}"
    return Description(
        name=recipe.model.title,
        text=recipe.card.intended_use
        or f"{recipe.model.title}, {recipe.target.precision}: {shape} images, {classes}",
        classes=context.task.outputs(dataset.classes),
        pixels=recipe.target.takes_pixels,
        mean=dataset.mean,
        std=dataset.std,
        meaning=meaning.brief,
        author=recipe.card.author,
        licence=recipe.card.licence,
    )


STAGE = Stage(
    name="export",
    make=write,
    facts=ExportFacts,
    after=("fold",),
    reads=(
        *("target.format", "target.input", "target.cpu", "target.precision"),
        *("target.opset", "target.products"),
        *("model.name", "card.intended_use", "card.author", "card.licence"),
    ),
    code=("formats", *QUANTIZER, "stages/export.py"),
    packages=("torch", "torchao", "numpy"),
    of_format=True,
    in_child=True,
)
