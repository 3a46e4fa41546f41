"""What an app may rely on: how an image becomes the file's input, and its output an answer."""

from __future__ import annotations

import math
from typing import Literal

from pipeline.base.record import Above0, Positive, Record, Sha256, Share, Text
from pipeline.commands.bundle.golden import Vectors
from pipeline.formats.formats import FORMATS, FormatName
from pipeline.formats.ports import Interface, Port
from pipeline.report.records import Report
from pipeline.stages.finished_run import Finished
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images

CONTRACT = "contract.json"

_FIT = (
    "turn upright (EXIF), cut from the middle the largest part with the proportions of the image, "
    "`kept` of it along each side, resize to height and width, bilinear with antialias"
)
_NORMALIZED = "value = (pixel / 255 - mean) / std, per channel, pixel 0..255"
_PIXELS = "value = pixel, 0..255; the file normalises"
_LOGITS = (
    "one number per class, in the order of labels.txt; the largest names the class, the first of "
    "equal ones; softmax makes probabilities of them"
)


class IntegerGrid(Record):
    """Of integers: real = scale * (integer - zero_point)."""

    scale: Above0
    zero_point: int


class Input(Record):
    """What the file takes.

    Attributes:
        name: in the file.
        kind: a tensor, or an image of the platform's own type.
        shape: null stands for any number of images.
        layout: of the shape: N images, C channels, H rows from the top, W columns.
        dtype: of the elements.
        color_order: of the channels; grey is the luma of ITU-R 601 of the resized image.
        channels: of the image.
        side: of a square image, in pixels; null where height and width differ.
        height: of the image, in pixels.
        width: of the image, in pixels.
        fit: how a photo becomes such an image.
        kept: of the largest part of a photo with these proportions, along each side.
        value: how a pixel becomes an element.
        mean: of `value`, per channel; null where the file normalises.
        std: likewise.
        grid: of integer elements; null where they are plain numbers.
    """

    name: Text
    kind: Literal["tensor", "image"]
    shape: tuple[Positive | None, ...]
    layout: Literal["NCHW", "NHWC"]
    dtype: Literal["float32", "float16", "uint8", "int8"]
    color_order: Literal["RGB", "grey"]
    channels: Literal[1, 3]
    side: Positive | None
    height: Positive
    width: Positive
    fit: Text = _FIT
    kept: Share = 1.0
    value: Text
    mean: tuple[Share, ...] | None
    std: tuple[Above0, ...] | None
    grid: IntegerGrid | None = None


class Output(Record):
    """What the file gives: `grid` is null where the elements are real numbers already."""

    name: Text
    shape: tuple[Positive | None, ...]
    dtype: Literal["float32", "float16", "uint8", "int8"]
    meaning: Text = _LOGITS
    labels: Text = "labels.txt"
    classes: Positive
    grid: IntegerGrid | None = None


class Golden(Record):
    """Images whose answers are known.

    Attributes:
        folder: with NN.png, the same pixels as NN.rgb (rows from the top, a byte a channel), and
            the logits of every image in expected.csv.
        images: number of them.
        tolerance: most that a logit may be off.
        why: where the tolerance comes from.
        computed_by: the runtime and its version, or the reference evaluator.
    """

    folder: Text = "golden"
    images: Positive
    tolerance: Above0
    why: Text
    computed_by: Text


class Contract(Record):
    """contract.json, version 1."""

    schema_version: Literal[1] = 1
    name: Text
    file: Text
    sha256: Sha256
    format: FormatName
    runtime: Text
    precision: Literal["int8", "float"]
    network: Text
    input: Input
    output: Output
    golden: Golden


def contract_of(
    run: Finished, report: Report, found: Interface, vectors: Vectors, dataset: Dataset
) -> Contract:
    """The contract of a run's file, whose interface is `found`."""
    (target,) = report.targets
    package = FORMATS[target.format].package
    runtime = f"{package} {report.tools.get(package, '(version unknown)')}"
    by = runtime if target.evaluated == "runtime" else "PocketNest's reference evaluator"
    return Contract(
        name=run.recipe.name,
        file=run.file.name,
        sha256=target.sha256,
        format=target.format,
        runtime=runtime,
        precision=target.precision,
        network=report.model.name,
        input=_input(found.input, dataset, normalizes=run.recipe.target.takes_pixels),
        output=_output(found.output, len(run.classes)),
        golden=Golden(
            images=len(vectors.labels),
            tolerance=_rounded_up(vectors.tolerance),
            why=vectors.why,
            computed_by=by,
        ),
    )


def _input(port: Port, dataset: Dataset, *, normalizes: bool) -> Input:
    """What a file with such a port takes; `normalizes` says whether the file does that itself."""
    # pydantic checks what the types of a file's own words cannot.
    return Input(
        name=port.name,
        kind=port.kind,
        shape=port.shape,
        layout=port.layout,  # type: ignore[arg-type]
        dtype=port.dtype,  # type: ignore[arg-type]
        color_order="RGB" if port.channels == 3 else "grey",
        channels=port.channels,  # type: ignore[arg-type]
        side=port.height if port.height == port.width else None,
        height=port.height,
        width=port.width,
        kept=_kept(dataset.train),
        value=_PIXELS if normalizes else _NORMALIZED,
        mean=None if normalizes else dataset.mean,
        std=None if normalizes else dataset.std,
        grid=_grid(port),
    )


def _kept(images: Images) -> float:
    """By the shorter side; along the other it is the same to half a pixel."""
    whole = images.shape.within(images.margin)
    return images.shape.shorter / whole.shorter


def _output(port: Port, classes: int) -> Output:
    return Output(
        name=port.name,
        shape=port.shape,
        dtype=port.dtype,  # type: ignore[arg-type]
        classes=classes,
        grid=_grid(port),
    )


def _grid(port: Port) -> IntegerGrid | None:
    if port.scale is None or port.zero_point is None:
        return None
    return IntegerGrid(scale=port.scale, zero_point=port.zero_point)


def _rounded_up(value: float) -> float:
    """The next number of four digits."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{math.ceil(value / digit) * digit:.4g}")
