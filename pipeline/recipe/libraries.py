"""What a recipe may ask of networks that others wrote: torchvision's, timm's and the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.recipe.model import ModelConfig

TORCHVISION, TIMM, PYTHON = "torchvision:", "timm:", "python:"
"""What `model.name` begins with; a library's or a file's own name follows."""

Scalar = bool | int | float | str
Arguments = dict[
    Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Scalar | list[Scalar] | None
]


class LibraryModel(ModelConfig):
    """The network, built by other code than PocketNest's.

    Attributes:
        arguments: passed on to the function that builds the network, besides the number of
            outputs.
    """

    arguments: Arguments = Field(default_factory=dict)

    @classmethod
    def form(cls) -> str:
        """What every name of this family begins with."""
        raise NotImplementedError

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The form of the names."""
        return (f"{cls.form()}NAME",)

    @classmethod
    def takes(cls, name: object) -> bool:
        """Whether `name` begins as names of this family do."""
        return isinstance(name, str) and name.startswith(cls.form())


class TorchvisionModel(LibraryModel):
    """One of torchvision's classifiers.

    Attributes:
        name: `torchvision:` and the name, such as torchvision:mobilenet_v2.
        input_size: height and width of the images in pixels; one number for a square. Without it,
            that of the published weights.
        channels: of the images; with 1 the first convolution reads one channel.
        checkpoint: weights to start from: a path, or `torchvision:` and the name of weights that
            torchvision publishes, such as torchvision:MobileNet_V2_Weights.IMAGENET1K_V1, which
            torchvision fetches once.
        head: of the checkpoint. keep: it was trained on the classes of `data`, and is used as it
            is. replace: its classifier is left out for a new one, and `train` trains the network
            on the classes of `data` (transfer learning).
        weights: of a checkpoint that holds both averaged weights (an EMA, SWA) and those of the
            last step: ema takes the averages where there are any, raw the others.
        arguments: passed on to torchvision, such as width_mult.
    """

    name: Annotated[
        str,
        Field(pattern=r"^torchvision:[a-z0-9_]+$", description="torchvision:NAME"),
    ]

    @classmethod
    def form(cls) -> str:
        """As in `LibraryModel`."""
        return TORCHVISION


class TimmModel(LibraryModel):
    """One of timm's classifiers.

    Attributes:
        name: `timm:` and the name, such as timm:efficientnet_lite0.
        input_size: height and width of the images in pixels; one number for a square. Without it,
            that of the published weights.
        channels: of the images; with 1 the first convolution reads one channel.
        checkpoint: weights to start from: a path, or `timm:` and the name of one of timm's models,
            which is fetched from the Hugging Face Hub once.
        head: of the checkpoint. keep: it was trained on the classes of `data`, and is used as it
            is. replace: its classifier is left out for a new one, and `train` trains the network
            on the classes of `data` (transfer learning).
        weights: of a checkpoint that holds both averaged weights (an EMA, SWA) and those of the
            last step: ema takes the averages where there are any, raw the others.
        arguments: passed on to timm's create_model.
    """

    name: Annotated[
        str,
        Field(pattern=r"^timm:[A-Za-z0-9][A-Za-z0-9_.-]*$", description="timm:NAME"),
    ]

    @classmethod
    def form(cls) -> str:
        """As in `LibraryModel`."""
        return TIMM


class PythonModel(LibraryModel):
    """A network of the user's own. The code of its file runs, with all that it may do.

    Attributes:
        name: `python:`, a Python file, and a function of it that returns a torch.nn.Module, such as
            python:nets.py:small_net. It is called with num_classes and the arguments.
        input_size: height and width of the images in pixels; one number for a square.
        channels: of the images; with 1 the first convolution reads one channel.
        checkpoint: weights to start from; a path.
        head: of the checkpoint. keep: it was trained on the classes of `data`, and is used as it
            is. replace: its classifier is left out for a new one, and `train` trains the network
            on the classes of `data` (transfer learning).
        weights: of a checkpoint that holds both averaged weights (an EMA, SWA) and those of the
            last step: ema takes the averages where there are any, raw the others.
        arguments: passed on to the function.
    """

    name: Annotated[
        str,
        Field(
            pattern=r"^python:[^\x00:]+\.py:[A-Za-z_][A-Za-z0-9_]*$",
            description="python:FILE.py:FUNCTION",
        ),
    ]

    @classmethod
    def form(cls) -> str:
        """As in `LibraryModel`."""
        return PYTHON

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The form of the names."""
        return ("python:FILE.py:FUNCTION",)

    @property
    def title(self) -> str:
        """The name without the folder of the file, which is this machine's."""
        return f"{PYTHON}{Path(self.file).name}:{self.function}"

    @property
    def file(self) -> str:
        """The file that holds the function."""
        return self.name.removeprefix(PYTHON).rpartition(":")[0]

    @property
    def function(self) -> str:
        """The function that builds the network."""
        return self.name.rpartition(":")[2]


def plain_arguments(config: LibraryModel) -> dict[str, Any]:
    """The arguments of a recipe's network, by name."""
    return dict(config.arguments)
