"""What the stages share: their context, and the networks that earlier stages left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, fx, nn

from pipeline.base.children import Children
from pipeline.base.console import Advance
from pipeline.base.errors import reading
from pipeline.networks.checkpoints import WEIGHTS, load_checkpoint, read_checkpoint
from pipeline.networks.families import family_of
from pipeline.networks.family import AnyFamily
from pipeline.networks.lowering.places import FloatPlaces
from pipeline.networks.rewrites import Normalization
from pipeline.recipe.recipe import Recipe
from pipeline.tasks.accuracy import AnyAccuracy
from pipeline.tasks.evaluation import evaluation_batch, network_logits
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset, pixel_values
from pipeline.tasks.task import TaskModule
from pipeline.tasks.tasks import task_of

PROGRAM, TWIN, LOGITS = "program.pt2", "float.pt2", "logits.pt"
CORRECTIONS = "corrections.safetensors"
"""What `qat` added to biases, for the float twin to be without it."""
CALIBRATION_BATCH = 32

Inputs = dict[str, Path]
"""Directory of every earlier stage's result, by the stage's name."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every stage is given besides its inputs.

    Attributes:
        recipe: of the run.
        dataset: of the recipe.
        tracked: makes a progress bar of a title and a number of steps.
        children: processes that are ended with this one.
        partial: directory of what the stage keeps to go on from when it was stopped; None keeps
            nothing.
    """

    recipe: Recipe
    dataset: Dataset
    tracked: Callable[[str, int], AbstractContextManager[Advance]]
    children: Children = field(default_factory=Children)
    partial: Path | None = None

    @property
    def family(self) -> AnyFamily:
        """Of the recipe's network."""
        return family_of(self.recipe.model)

    @property
    def task(self) -> TaskModule:
        """What the recipe's network learns."""
        return task_of(self.recipe)

    @property
    def outputs(self) -> int:
        """Numbers that the network gives for an image, or for a place of its map."""
        return len(self.task.outputs(self.dataset.classes))


def first_figure(accuracy: dict[str, AnyAccuracy]) -> float:
    """The primary figure on the first test set."""
    return next(iter(accuracy.values())).figure


def accuracy_of(context: Context, model: nn.Module, stage: str) -> dict[str, AnyAccuracy]:
    """The metric of a network on every test set; as `network_logits`."""
    answers = network_logits(model, context.dataset, stage)
    return context.task.accuracies(answers, context.dataset)


def write_json(path: Path, content: object) -> None:
    """Write plain JSON."""
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def new_model(context: Context) -> nn.Module:
    """A network of the recipe's shape, its weights random."""
    model: nn.Module = context.family.build(context.recipe.model, context.outputs)
    return model


def float_model(context: Context, inputs: Inputs) -> nn.Module:
    """The float network, as it was trained or read."""
    model = new_model(context)
    load_checkpoint(model, inputs["train"] / WEIGHTS, context.family.checkpoint(model))
    return model.eval()


def branched_model(context: Context) -> nn.Module:
    """A network of the recipe's shape in prunable form, its weights random."""
    model: nn.Module = context.family.prunable(new_model(context).eval())
    return model


def small_model(context: Context, inputs: Inputs) -> nn.Module:
    """The network in prunable form as pruning and sparsifying left it."""
    last = "prune" if context.recipe.sparsify is None else "sparsify"
    return pruned_model(context, inputs, last)


def pruned_model(context: Context, inputs: Inputs, stage: str) -> nn.Module:
    """The network in prunable form as `stage` left it."""
    from pipeline.compress.pruning.prune import take_shapes

    model = branched_model(context)
    weights = inputs[stage] / WEIGHTS
    with reading(weights):
        take_shapes(model, read_checkpoint(weights))
    return model


def fed(context: Context) -> Context:
    """The context with the dataset as the program and the file take it."""
    if not context.recipe.target.takes_pixels:
        return context
    return replace(context, dataset=pixel_values(context.dataset))


def normalization(context: Context) -> Normalization | None:
    """What the network does to pixels itself; None where it is given normalised images."""
    if not context.recipe.target.takes_pixels:
        return None
    return Normalization(mean=context.dataset.mean, std=context.dataset.std)


def deployed(context: Context, model: nn.Module) -> nn.Module:
    """A network in prunable form as the target's file takes it."""
    made: nn.Module = context.family.deploy(model, normalization(context))
    return made


def float_places(recipe: Recipe) -> FloatPlaces:
    """The modules that stay in float, of a recipe whose others do not."""
    return FloatPlaces(recipe.qat.float if recipe.target.precision == "int8" else ())


def quantized_graph(context: Context, model: nn.Module) -> fx.GraphModule:
    """A network in prunable form, ready for quantization-aware training."""
    from pipeline.compress.quantization import qat

    recipe = context.recipe
    deploy = deployed(context, model)
    pixels = recipe.target.takes_pixels
    shape, floats = recipe.model.input_shape, float_places(recipe)
    return qat.prepare(deploy, shape, pixels=pixels, floats=floats)


def calibration_batches(context: Context) -> Iterator[Tensor]:
    """The calibration images as the program takes them, some at a time."""
    dataset = fed(context).dataset
    size = evaluation_batch(dataset.calibration.shape)
    return (x for x, _ in batches(dataset.calibration, min(size, CALIBRATION_BATCH), dataset))
