"""What a stage is: its function, what it says of its result, and all that decides the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.base.record import Count, Positive, Share
from pipeline.base.store import Facts, Result
from pipeline.recipe.recipe import Recipe
from pipeline.stages.context import Context, Inputs

CORE = (
    "tasks",
    "networks",
    "compress/training",
    "base/torchrun.py",
    "base/replacing.py",
    "stages/context.py",
)
"""Code that decides the result of every stage that has the network in its hands."""
PRUNING, QUANTIZER = ("compress/pruning",), ("compress/quantization",)
GOALS = (
    "measure/attempt.py",
    "measure/file_layers.py",
    "measure/width_times.py",
    "stages/exported.py",
    "stages/times.py",
)
LANE = ("measure/lanes/host.py", "measure/lanes/lane.py", "measure/lanes/sets.py")
"""That of this machine; what others are decides nothing of what is found here."""
FORMING = ("stages/weights.py", "stages/weight_sizes.py")
"""Code that decides the forms of weights."""
KEEPING = ("stages/kept_images.py", "stages/kept_layers.py")
"""Code that decides what is kept of a result for commands."""
COMPARING = (
    *("measure/layers.py", "measure/timing.py", "measure/parity.py"),
    "measure/probabilities.py",
)

IMAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn")
"""Packages that decide the result of every stage that sees images: they decode and augment them."""
CUTTING, QUANTIZING = ("torch-pruning",), ("torchao",)


class StageFacts(Facts):
    """What a stage says of its result. Each stage has a type of its own, beside its function.

    Attributes:
        params: of the network, where the stage counts them.
        macs: multiply-accumulates of the network for one image, where the stage counts them.
        figure: the task's primary figure on the first test set, a share, where the stage tests.
        figure_images: how many images of that set it is of; None where it is of all.
    """

    params: Count | None = None
    macs: Count | None = None
    figure: Share | None = None
    figure_images: Positive | None = None

    def told(self, primary: str) -> list[str]:
        """What is shown of the result at the terminal; `primary` is the name of the figure."""
        parts = []
        if self.macs:
            parts.append(f"{self.macs / 1e6:.1f} M MACs")
        if self.params:
            parts.append(f"{self.params / 1e6:.2f} M parameters")
        parts += self.details()
        if self.figure is not None:
            of = "" if self.figure_images is None else f" (of {self.figure_images} images)"
            parts.append(f"{primary} {self.figure:.2%}{of}")
        return parts

    def details(self) -> list[str]:
        """What is shown of this stage alone."""
        return []


F = TypeVar("F", bound=StageFacts)
Results = Mapping[str, Result[Any]]
"""Of the stages so far, by the stage's name."""


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[F]):
    """One step of the pipeline.

    Attributes:
        name: in the report and the store.
        make: the function; writes its files and returns its facts. Where several processes work
            on it, only those of the first are taken, and the others may return None.
        facts: their type.
        after: the stages whose results it reads, those that are needed.
        reads: the parts of the recipe that decide its result, as dotted names.
        code: the modules that decide its result.
        also_reads: parts that decide the result of some recipes only.
        needed: whether a recipe has this stage at all.
        packages: of Python, whose versions decide its result.
        of_format: whether those that write, read and run the target's format do, too.
        sees_tests: whether the test sets decide its result, and not the images for training and
            calibration alone.
        in_bfloat16: whether a recipe trains in bfloat16 where the machine multiplies it.
        on_device: whether it computes on the GPU where there is one.
        on_host: whether the result belongs to the machine that made it: it times, or the kernels
            of its CPU decide what it finds.
        in_child: whether a child process does the work, so that those of several recipes can be
            made at the same time. `make` then runs in a thread, and no other stage beside it.
        shared: whether all processes that torchrun started work on it. What the first one makes
            is the result.
    """

    name: str
    make: Callable[[Context, Inputs, Path], F | None]
    facts: type[F]
    after: tuple[str, ...]
    reads: tuple[str, ...]
    code: tuple[str, ...]
    packages: tuple[str, ...]
    also_reads: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()
    needed: Callable[[Recipe], bool] = lambda recipe: True
    of_format: bool = False
    sees_tests: bool = False
    in_bfloat16: Callable[[Recipe], bool] = lambda recipe: False
    on_device: bool = False
    on_host: bool = False
    in_child: bool = False
    shared: bool = False

    def found_in(self, results: Results) -> F:
        """What the stage said of its result in a run.

        Raises:
            KeyError: the run did not come to this stage, or does not need it.
        """
        found = results[self.name].facts
        assert isinstance(found, self.facts)
        return found
