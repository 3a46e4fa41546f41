"""What a family of networks says of itself: all that the rest of the pipeline knows of a network.

A network has up to three forms, each a plain module whose layers keep the paths they have in the
float network:

    float (as its checkpoints are) -> prunable (what torch-pruning can follow) -> deploy (what
    phones run fast)

A family that leaves a form out has the network itself in its place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from pipeline.networks.codes import PAPER
from pipeline.networks.rewrites import Normalization, with_normalization
from pipeline.recipe.data import Interpolation
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.training import TrainConfig

ConfigT = TypeVar("ConfigT", bound=ModelConfig)
NetworkT = TypeVar("NetworkT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Where in a network is what, by module paths.

    Attributes:
        classifier: the linear layer, or convolution, whose outputs are the logits of the classes.
        answers: further layers whose outputs the network answers with, such as boxes.
        head: names of all tensors whose size is that of the classes, weights and biases first;
            without any the weights and biases of `classifier`.
        stages: modules whose outputs are those of the network's stages, in order; distillation
            compares there, and pruning may keep a share of each. What stands in none is the stem.
        dense: modules whose weights sparsifying leaves alone, and all that they hold.
    """

    classifier: str
    answers: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()

    @property
    def last(self) -> tuple[str, ...]:
        """The layers whose outputs the network answers with: all of them stay."""
        return (self.classifier, *self.answers)


@dataclass(frozen=True, kw_only=True)
class Depthwise:
    """A depthwise convolution that only the deploy form has.

    Attributes:
        layer: of the prunable form, whose channels it is of.
        reads: whether of those that `layer` reads; otherwise of those that it makes.
        area: weights of a channel.
        pools: whether it stands for a pool, whose descriptions files hold otherwise.
    """

    layer: str
    reads: bool = False
    area: int
    pools: bool


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """How the layers of the deploy form differ from those of the prunable form.

    Attributes:
        gone: layers that it lacks.
        added: layers that it has besides.
    """

    gone: frozenset[str] = frozenset()
    added: tuple[Depthwise, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How the images were prepared that published weights were trained for.

    Attributes:
        source: whose weights.
        input_size: as of a recipe's `model`.
        crop_pct: as of a recipe's `data`, and so the rest; None where it is not known.
        interpolation: of the scaling.
        mean: of red, green and blue, pixels as shares 0..1.
        std: likewise.
    """

    source: str
    input_size: int | tuple[int, int]
    crop_pct: float
    interpolation: Interpolation | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None


@dataclass(frozen=True, kw_only=True)
class Trunks(Generic[NetworkT]):
    """A family's networks without their classifiers, as the backbones of others.

    Attributes:
        build: of a name, as `model.backbone` of a recipe has it, the channels of an image, and
            arguments: a module that gives four images (batch, channels, height, width), at a 4th,
            8th, 16th and 32nd of the image's sides, its weights random. Raises InputError where
            there is no such network, or it has no such images.
        example: names that `build` takes, for people.
        dense: as of `Structure`, by paths in the module.
        start: as of `Family`, and so the rest.
        prunable: see there.
        deploy: see there; without a normalisation.
        rewritten: see there, by paths in the module.
        decided_by: see there.
    """

    build: Callable[[str, int, Mapping[str, object]], NetworkT]
    example: str
    dense: Callable[[NetworkT], tuple[str, ...]]
    start: Callable[[NetworkT], None] = lambda trunk: None
    prunable: Callable[[NetworkT], NetworkT] = copy.deepcopy
    deploy: Callable[[NetworkT], nn.Module] = copy.deepcopy
    rewritten: Callable[[NetworkT], Rewritten] = lambda trunk: Rewritten()
    decided_by: Callable[[], dict[str, str]] = dict


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What is known of a network's checkpoints.

    Attributes:
        head: names of the classifier's tensors, first its weights and its biases.
        hints: lines that say what network a checkpoint is of that does not fit, of its tensors and
            those that were wanted.
    """

    head: tuple[str, ...]
    hints: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], list[str]]


def _no_hints(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    return []


def _nothing_changes(model: nn.Module) -> Rewritten:
    return Rewritten()


@dataclass(frozen=True, kw_only=True)
class Family(Generic[ConfigT, NetworkT]):
    """One family of networks.

    Attributes:
        build: a network with random weights, of a recipe's `model` and a number of classes. Raises
            InputError where the recipe asks for what cannot be.
        structure: of the float network or its prunable form.
        shape: plain JSON, all that two networks of equal tensors may still differ by.
        block: the kind of the network's blocks, as a report names it; None has no kinds.
        hints: see `Checkpoint`.
        start: sets the random weights that a training begins with, in place.
        loaded: turns what a recipe's checkpoint has otherwise than the network, in place.
        drop: has the network drop features while it is trained, as a recipe's `train` says; None
            cannot.
        prunable: a copy in prunable form, of equal outputs and in the same mode.
        deploy: a copy in deploy form of a network in prunable form, of equal outputs and in the
            same mode. With a normalisation it takes pixel values 0..255 in place of normalised
            images.
        rewritten: what `deploy` will do to the layers of a network in prunable form.
        decided_by: plain JSON, all that decides a network beside its recipe, such as the version of
            a library; keys are made of it.
        preset: how images are prepared for the weights that are published of a network; what a
            recipe does not say is taken from there. None has none.
        published: copies in evaluation mode that compute as other code does, by the name of that
            code: what other tools are given to start from. Without any they get the network.
        begin: reads the weights that a part of a network begins its training with, as keys of the
            family's own say, in place; a phrase for people of each thing that was chosen.
        trunks: the networks as backbones of others; None has none.
    """

    build: Callable[[ConfigT, int], NetworkT]
    structure: Callable[[NetworkT], Structure]
    shape: Callable[[NetworkT], dict[str, object]] = lambda model: {}
    block: Callable[[ConfigT], str | None] = lambda config: None
    hints: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], list[str]] = _no_hints
    start: Callable[[NetworkT], None] = lambda model: None
    loaded: Callable[[ConfigT, NetworkT], None] = lambda config, model: None
    drop: Callable[[NetworkT, TrainConfig], None] | None = None
    prunable: Callable[[NetworkT], NetworkT] = copy.deepcopy
    deploy: Callable[[NetworkT, Normalization | None], nn.Module] = with_normalization
    rewritten: Callable[[NetworkT], Rewritten] = _nothing_changes
    decided_by: Callable[[ConfigT], dict[str, str]] = lambda config: {}
    preset: Callable[[ConfigT], Preset | None] = lambda config: None
    published: Mapping[str, Callable[[NetworkT], nn.Module]] = field(default_factory=dict)
    begin: Callable[[ConfigT, NetworkT], tuple[str, ...]] = lambda config, model: ()
    trunks: Trunks[Any] | None = None

    def checkpoint(self, model: NetworkT) -> Checkpoint:
        """What is known of the checkpoints of a network."""
        found = self.structure(model)
        head = found.head or (f"{found.classifier}.weight", f"{found.classifier}.bias")
        return Checkpoint(head=head, hints=self.hints)

    def given_to_others(self, model: NetworkT) -> dict[str, nn.Module]:
        """The network as other code publishes it, by the name of that code."""
        if not self.published:
            return {PAPER: copy.deepcopy(model).eval()}
        return {code: form(model) for code, form in self.published.items()}


AnyFamily = Family[Any, Any]
