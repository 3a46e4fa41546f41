"""The stage that gives the float network."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pipeline.compress.training.hooks import Hooks
from pipeline.compress.training.loop import CURVE
from pipeline.compress.training.regularize import drop_while_training
from pipeline.networks.checkpoints import WEIGHTS, load_checkpoint, save_checkpoint
from pipeline.networks.hub import local_file
from pipeline.networks.lowering.check import lowered
from pipeline.networks.rewrites import with_normalization
from pipeline.networks.sanity import refuse_dead
from pipeline.stages.context import Context, Inputs, float_places, new_model, write_json
from pipeline.stages.fitting import trained
from pipeline.stages.stage import CORE, IMAGES, Stage, StageFacts


class TrainFacts(StageFacts):
    """What was made of the checkpoint; what the float network is worth, `baseline` says.

    Attributes:
        checkpoint: what was chosen in it, taken off and passed over, a phrase each.
    """

    checkpoint: tuple[str, ...] = ()

    def details(self) -> list[str]:
        """What was made of the checkpoint."""
        return list(self.checkpoint)


def train(context: Context, inputs: Inputs, out: Path) -> TrainFacts:
    """The float network: read from the recipe's checkpoint, trained here, or both.

    A checkpoint whose classifier is replaced gives the rest, and training goes on from there.
    """
    recipe = context.recipe
    torch.manual_seed(recipe.seed)
    family, model = context.family, new_model(context)
    if family.deploy is with_normalization:  # otherwise its deploy form is known to be writable
        lowered(model, recipe.model.input_shape, float_places(recipe))
    replaces_head = recipe.model.head == "replace"
    notes: tuple[str, ...] = ()
    if recipe.model.checkpoint is None:
        family.start(model)
        notes = family.begin(recipe.model, model)
    else:
        given = local_file(recipe.model.checkpoint)
        known = family.checkpoint(model)
        notes = load_checkpoint(
            *(model, given, known, context.dataset.classes),
            head=not replaces_head,
            weights=recipe.model.weights,
        )
        family.loaded(recipe.model, model)
        refuse_dead("model.checkpoint", model, given)
    if recipe.model.checkpoint is None or replaces_head:
        drop_while_training(family, model, recipe.train)
        write_json(out / CURVE, trained(context, model, "train", recipe.train, Hooks()))
    save_checkpoint(model.cpu(), out / WEIGHTS, {"classes": json.dumps(context.dataset.classes)})
    return TrainFacts(checkpoint=notes)


STAGE = Stage(
    name="train",
    make=train,
    facts=TrainFacts,
    after=(),
    reads=("task.kind", "task.stride", "task.loss", "model", "train", "seed", "threads"),
    code=(*CORE, "stages/fitting.py", "stages/train.py"),
    packages=IMAGES,
    in_bfloat16=lambda recipe: recipe.train.precision == "auto",
    on_device=True,
    shared=True,
)
