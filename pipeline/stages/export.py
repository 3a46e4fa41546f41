"""The stage that writes the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from pipeline.base.errors import InputError
from pipeline.base.record import Text
from pipeline.formats.delegates import Delegate
from pipeline.formats.description import Description, label
from pipeline.formats.format import Option
from pipeline.formats.formats import FORMATS
from pipeline.formats.write import export
from pipeline.recipe.recipe import Recipe
from pipeline.stages.context import PROGRAM, Context, Inputs
from pipeline.stages.stage import QUANTIZER, Stage, StageFacts
from pipeline.tasks.tasks import link_of, meaning_of

_FOUND = TypeAdapter(tuple[Delegate, ...])
DESCRIPTION, DELEGATES = "description.json", "delegates.json"


class ExportFacts(StageFacts):
    """The name of the file, in the stage's directory, and what is known of where it runs."""

    file: Text
    delegates: tuple[Delegate, ...] = ()


def write(context: Context, inputs: Inputs, out: Path) -> ExportFacts:
    """Write the target's file from the program."""
    name = context.recipe.target.format
    if context.recipe.target.classifier:
        refuse_same_labels(context.dataset.classes)
    file = f"model{FORMATS[name].suffix}"
    description(context).write(out / DESCRIPTION)
    export(
        inputs["fold"] / PROGRAM,
        name,
        out / file,
        pixels=context.recipe.target.takes_pixels,
        options=options_of(context.recipe),
        link=link_of(context.recipe),
        description=out / DESCRIPTION,
        delegates=out / DELEGATES,
        children=context.children,
    )
    return ExportFacts(file=file, delegates=_FOUND.validate_json((out / DELEGATES).read_bytes()))


def options_of(recipe: Recipe) -> set[Option]:
    """How a recipe wants its file to differ from others of its network."""
    target = recipe.target
    asked: dict[Option, bool] = {
        "classifier": target.classifier,
        "opset17": target.opset == 17,
        "sparse": recipe.sparsify is not None,
        "few_bits": recipe.qat.weights.few_bits,
        "x86_amx": target.cpu == "x86_amx",
        "clipped_products": target.products == "clipped",
        "float16_products": target.products == "float16",
    }
    return {option for option, given in asked.items() if given}


def refuse_same_labels(classes: Sequence[str]) -> None:
    """Stop where a classifier could not tell two classes apart by their names.

    Raises:
        InputError: names the two.
    """
    seen: dict[str, str] = {}
    for name in classes:
        if (other := seen.setdefault(label(name), name)) is not name:
            raise InputError(
                f"target.classifier: classes {other!r} and {name!r} have the same name in the "
                "file, which gives probabilities by name; rename one, or set it to false"
            )


def description(context: Context) -> Description:
    """What the target's file is to say of itself."""
    recipe, dataset = context.recipe, context.dataset
    shape = recipe.model.input_shape
    meaning = meaning_of(recipe)
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
        output=recipe.target.output,
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
        *("target.opset", "target.products", "target.output", "target.classifier"),
        *("qat.weights", "model.name", "card.intended_use", "card.author", "card.licence"),
    ),
    code=("formats", *QUANTIZER, "stages/export.py"),
    packages=("torch", "torchao", "numpy"),
    of_format=True,
    in_child=True,
)
