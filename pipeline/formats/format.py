"""A file format: what is known of it without torch, and what its modules must offer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pipeline.compress.pruning.stored import Bytes
from pipeline.formats.limits import Limits
from pipeline.recipe.task import Link
from pipeline.recipe.weight_forms import WeightForm

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.formats.delegates import Delegate
    from pipeline.formats.description import Description
    from pipeline.formats.file_facts import FileFacts
    from pipeline.formats.gemm import Gemm, Product, Work
    from pipeline.formats.ports import Interface

Precision = Literal["int8", "float"]
ComputedBy = Literal["runtime", "reference"]
"""A file's own runtime, or an evaluator of ours that stands for one that does not run here."""
Option = Literal[
    "classifier",
    "float16",
    "opset17",
    "sparse",
    "x86_amx",
    "few_bits",
    "clipped_products",
    "float16_products",
]
"""How files of one network can differ; the last five, int8 files alone.

classifier: the file gives the name of a class and a dictionary of probabilities.
float16: of a float program, the file keeps its weights in float16, for runtimes that compute in it.
opset17: the file says that its operations are those of ONNX opset 17, for older runtimes.

sparse: weights that are smaller so are stored as their nonzero values and a bit per weight.
few_bits: weights that are few different numbers are stored in fewer bits than 8.
x86_amx: weights are stored so that the runtime multiplies them with AMX.
clipped_products: a product of tensors is held to the range of its grid before it is quantized.
float16_products: the same, and its factors are read in float16, without `dequantize`.
"""


class Runnable(Protocol):
    """A file, opened. `batch` is the number of images a run takes; None is any."""

    batch: int | None

    def set_input(self, images: NDArray[np.float32]) -> None:
        """Take images (batch, 3, side, side), normalised or pixel values as the file wants."""

    def invoke(self) -> None:
        """Run the network on the images that were set."""

    def output(self) -> NDArray[np.float32]:
        """What the file gives, logits or probabilities (batch, classes), of the last run."""


class FormatModule(Protocol):
    """What the module of a format offers: files of it are written, read and run."""

    def load_writer(self) -> None:
        """Import the packages that `write` needs, which takes seconds."""

    def write(
        self,
        program: torch.export.ExportedProgram,
        path: Path,
        *,
        pixels: bool = False,
        options: Collection[Option] = (),
    ) -> None:
        """Write `program` (quantized or float) to the file `path`.

        Args:
            program: from the fold stage.
            path: of the file.
            pixels: the program takes pixel values 0..255; the file then takes 8-bit RGB images.
            options: of those that the format has.

        Raises:
            InputError: the program has an operation that the format's writer does not know.
        """

    def describe(self, path: Path, about: Description) -> None:
        """Write what a file says of itself into it, in the format's standard place."""

    def inspect(self, path: Path) -> FileFacts:
        """Read operations, multiply-accumulates, grids and weight scales from a file."""

    def interface(self, path: Path) -> Interface:
        """What an app must feed a file and what it gets back.

        Raises:
            ValueError: the file has not one input and one output.
        """

    def open_file(self, path: Path, threads: int = 1) -> Runnable:
        """Open a file for running."""

    def trace(self, path: Path, images: NDArray[np.float32]) -> Mapping[str, NDArray[np.int8]]:
        """Every quantized tensor inside a file, for images as for `Runnable.set_input`.

        Returns:
            Integers (batch, ...) on the program's grid, by the name of the program's layer.
        """

    def cannot_time(self) -> str | None:
        """Why this host cannot time files of the format; None where it can."""

    def evaluated(self) -> ComputedBy:
        """What computes the answers of an opened file on this host."""


class HeadModule(Protocol):
    """What makes a file give probabilities in the place of logits."""

    def add(self, path: Path, link: Link, labels: Sequence[str] | None) -> None:
        """Put a softmax or sigmoid behind the logits of a file, in place; in float32.

        The rest of the file stays what it is.

        Args:
            path: of a file that the format's `write` made.
            link: what makes probabilities.
            labels: names of the classes, for the file to name one; only where the format has the
                option `classifier`.
        """


class DelegatesModule(Protocol):
    """What says where files of a format run."""

    def checked(self, path: Path) -> tuple[Delegate, ...]:
        """What is known of each accelerator and the operations of a file."""


class LayersModule(Protocol):
    """What cuts files of a format to fewer channels and times their layers."""

    def resized(self, content: bytes, widths: Mapping[str, int]) -> bytes:
        """A file's network with fewer channels, for timing: its answers mean nothing.

        Args:
            content: of a file that the format's `write` made.
            widths: new output channels by layer name.

        Raises:
            ValueError: the file has no such layer or cannot have such a width.
        """

    def layer_times(self, content: bytes, rounds: int, threads: int) -> dict[str, float]:
        """Typical milliseconds of every operation of a file, by the layer that it gives out."""


class GemmModule(Protocol):
    """What makes files of one product of matrices, and says what the layers of any file compute."""

    @property
    def OPERATIONS(self) -> tuple[Product, ...]:
        """That the runtime is to be timed with."""

    def gemm_file(self, gemm: Gemm, precision: str) -> bytes:
        """A file of one product with random weights, in int8 or float."""

    def opened(self, content: bytes, threads: int) -> Callable[[], object]:
        """A run of a file on one image of noise."""

    def layer_work(self, content: bytes) -> dict[str, Work]:
        """What every layer of a file computes, by the name that `layer_times` gives it."""


@dataclass(frozen=True, kw_only=True)
class Tapped:
    """A copy of a file that gives out its quantized tensors.

    Attributes:
        content: of the copy.
        names: of the outputs that follow its answers, as `FormatModule.trace` has them.
    """

    content: bytes
    names: tuple[str, ...]


class ElsewhereModule(Protocol):
    """What makes files ready for their runtime on another machine, which knows nothing of them."""

    def fed(self, path: Path, images: NDArray[np.float32]) -> NDArray[Any]:
        """What the runtime is given for images as of `Runnable.set_input`: (batch, ...)."""

    def tapped(self, path: Path) -> Tapped:
        """A copy of a file for `FormatModule.trace` to be done there."""

    def numbers(self, values: NDArray[Any]) -> NDArray[np.int8]:
        """What such a copy gave out, as `FormatModule.trace` gives it."""

    def answers(self, values: NDArray[Any]) -> NDArray[Any]:
        """What a file gives out, (images, ...): of maps the channels before height and width."""

    def parts(self, content: bytes) -> Iterator[tuple[str, bytes]]:
        """Every operation of a file as a file, with its layer's name; none where it has no such."""


class FaultsModule(Protocol):
    """What simulates known faults of a format's runtimes on some devices."""

    def wrong_answers(
        self, path: Path, images: NDArray[np.float32]
    ) -> Mapping[str, NDArray[np.float32]]:
        """What a file answers with each fault that can befall it, by the fault in words.

        Args:
            path: of the file.
            images: as for `Runnable.set_input`.
        """


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format, an entry of `FORMATS`.

    Attributes:
        suffix: of the file's name.
        title: for people.
        package: of Python, with the runtime; its version says what a file was checked with.
        writers: further packages that have a part in writing, reading or running its files.
        runtime: what runs the files, as records name it.
        runtime_title: the same for people.
        traced_by: what computes the tensors inside a file.
        folder: a file of the format is a folder.
        own_threads: its runtime spreads a run over the machine by itself, whatever threads it is
            given: files are run one after the other there.
        in_process: the writer is small, silent and quick: it works in the process that asks. The
            others have one of their own, which gives their gigabytes back.
        limits: for a file against the program it was written from.
        bytes: what files spend on a network's parts, by precision.
        few_bits: how many bits a file spends on a weight, by the form of a layer's weights; a
            form that is left out takes 8.
        few_bits_pointwise: the same of layers of one pixel, where it differs.
        few_bits_channel: bytes that a form takes for every output channel besides, as tables do.
        few_bits_block: the same for every block of input channels of an output channel.
        few_bits_layer: the same for a layer.
        options: how its files can differ.
        oldest: the oldest version of `package` whose answers to files were those of the pinned
            one; by an option where that moves it. `nox -s runtimes` proves it.
        module: imports what writes, reads and runs the files.
        head: imports what makes files give probabilities; None where nothing does.
        delegates: imports what says where its files run; None where nothing does.
        layers: imports what times their layers; None where nothing does.
        gemm: imports what finds the runtime's peak; None where nothing does.
        elsewhere: imports what makes files ready for another Linux machine; None where the
            runtime does not exist for Linux.
        faults: imports what simulates known faults of devices; None where none is known.
    """

    suffix: str
    title: str
    package: str
    writers: tuple[str, ...] = ()
    runtime: str
    runtime_title: str
    traced_by: ComputedBy
    folder: bool = False
    own_threads: bool = False
    in_process: bool = False
    limits: Limits
    bytes: Mapping[Precision, Bytes]
    few_bits: Mapping[WeightForm, int] = field(default_factory=dict)
    few_bits_pointwise: Mapping[WeightForm, int] = field(default_factory=dict)
    few_bits_channel: Mapping[WeightForm, int] = field(default_factory=dict)
    few_bits_block: Mapping[WeightForm, int] = field(default_factory=dict)
    few_bits_layer: Mapping[WeightForm, int] = field(default_factory=dict)
    options: frozenset[Option] = frozenset()
    oldest: Mapping[Option | None, str] = field(default_factory=dict)
    module: Callable[[], FormatModule]
    head: Callable[[], HeadModule] | None = None
    delegates: Callable[[], DelegatesModule] | None = None
    layers: Callable[[], LayersModule] | None = None
    gemm: Callable[[], GemmModule] | None = None
    elsewhere: Callable[[], ElsewhereModule] | None = None
    faults: Callable[[], FaultsModule] | None = None

    def bits(self, form: WeightForm, pointwise: bool) -> int:
        """Bits that a file spends on a weight of a layer."""
        special = self.few_bits_pointwise.get(form) if pointwise else None
        return self.few_bits.get(form, 8) if special is None else special

    def weight_bytes(
        self, form: WeightForm, weights: int, channels: int, blocks: int, pointwise: bool
    ) -> float:
        """Bytes that a file spends on the weights of a layer: int8 where that is less.

        Args:
            form: of the weights.
            weights: how many.
            channels: output channels.
            blocks: of input channels that each of them has (`block_of`).
            pointwise: whether the layer's image is of one pixel.
        """
        if form == "int4_blocks" and blocks == 1:
            form = "int4"  # its numbers are the same
        around = channels * self.few_bits_channel.get(form, 0) + self.few_bits_layer.get(form, 0)
        around += channels * blocks * self.few_bits_block.get(form, 0)
        return min(float(weights), weights * self.bits(form, pointwise) / 8 + around)
