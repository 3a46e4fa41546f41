"""What a recipe can name that lies in packages above this one.

A file format, say, is one entry of `pipeline.formats.formats.FORMATS`, which lies above since its
writers need a network. Imports go one way, so that a recipe cannot look there: whoever loads one
hands the tables in (`pipeline.stages.known.KNOWN`), and here stands what a recipe asks of an entry.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationInfo
from pydantic_core import PydanticCustomError

from pipeline.recipe.model import ModelConfig


class KnownFormat(Protocol):
    """What a recipe must know of a file format."""

    @property
    def title(self) -> str:
        """For people."""

    @property
    def options(self) -> Collection[str]:
        """How its int8 files can differ, such as a `target.cpu` other than any."""

    @property
    def head(self) -> object | None:
        """None where its files can give logits only."""

    @property
    def elsewhere(self) -> object | None:
        """None where its runtime does not exist for Linux on other processors."""


class KnownFamily(Protocol):
    """What a recipe must know of a family of networks."""

    @property
    def options(self) -> type[ModelConfig]:
        """The keys of `model`, and the names of the networks."""


class KnownTask(Protocol):
    """What a recipe must know of a task."""

    @property
    def options(self) -> Collection[str]:
        """The keys of `task` that it has besides `kind`."""

    @property
    def link(self) -> str:
        """What makes probabilities of the network's numbers: softmax or sigmoid."""

    @property
    def table(self) -> bool:
        """Whether a table says what an image is, and not the folder that it lies in."""

    @property
    def data(self) -> Collection[str]:
        """The kinds of data that it takes, where these are no images with classes."""

    @property
    def mixes(self) -> bool:
        """Whether images can be mixed with each other, and changed by a policy."""

    @property
    def turns(self) -> bool:
        """Whether what it learns follows an image that is turned or cut."""

    @property
    def probabilities(self) -> bool:
        """Whether a file can give probabilities in place of logits."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """The names that recipes may hold, with what stands behind them.

    Attributes:
        families: of networks, for `model`.
        formats: of files, for `target.format`.
        tasks: for `task.kind`.
    """

    families: Mapping[str, KnownFamily]
    formats: Mapping[str, KnownFormat]
    tasks: Mapping[str, KnownTask]


def known_format(name: str, info: ValidationInfo) -> str:
    """Refuse the name of a format that is none of those that validation was given."""
    if isinstance(info.context, Known) and name not in info.context.formats:
        # The words of it come from the schema (`with_names`), as for every other key.
        raise PydanticCustomError("unknown_name", "no such format")
    return name


def known_task(name: str, info: ValidationInfo) -> str:
    """Refuse the name of a task that is none of those that validation was given."""
    if isinstance(info.context, Known) and name not in info.context.tasks:
        raise PydanticCustomError("unknown_name", "no such task")
    return name


def with_names(schema: dict[str, Any], known: Known | None) -> dict[str, Any]:
    """The JSON Schema of a recipe, with the names that its keys may hold; changed in place."""
    if known is not None:
        schema["$defs"]["TargetConfig"]["properties"]["format"]["enum"] = list(known.formats)
        schema["$defs"]["TaskConfig"]["properties"]["kind"]["enum"] = list(known.tasks)
    return schema
