"""What an app may rely on: how an image becomes the file's input, and its output an answer."""

from __future__ import annotations

import math
from typing import Literal

from pipeline.base.record import Above0, Positive, Record, Sha256, Share, Text
from pipeline.commands.bundle import photos
from pipeline.commands.bundle.float16 import Float16
from pipeline.commands.bundle.golden import Vectors
from pipeline.formats.coreml.head import CLASS
from pipeline.formats.format import Format
from pipeline.formats.formats import FORMATS, FormatName
from pipeline.formats.ports import Interface, Port
from pipeline.recipe.data import Interpolation, Level
from pipeline.recipe.recipe import Recipe
from pipeline.report.records import Report
from pipeline.stages.export import options_of
from pipeline.stages.finished_run import Finished
from pipeline.tasks.images.preparation import LONGEST, Preparation
from pipeline.tasks.tasks import TASKS, meaning_of

CONTRACT = "contract.json"

_DECODED = (
    "decode, first frame alone, and apply no colour profile; of 16 bits a channel take the upper "
    "8; make grey and palettes red, green and blue; turn upright as EXIF says; lay what is "
    "transparent on `background`: (alpha * channel + (255 - alpha) * background + 127) / 255, "
    "rounded down"
)
_SHORTENED = (
    f"of a photo of more than n = {LONGEST} * ceil(rows * cover_width / cover_height) columns "
    "leave floor((columns - n) / 2) away on both sides, likewise of rows"
)
_SCALED = (
    "where columns * cover_height <= rows * cover_width: cover_width columns, "
    "floor(rows * cover_width / columns) rows; else cover_height rows, "
    "floor(columns * cover_height / rows) columns"
)
_RESAMPLED = (
    "columns first, then rows, whole numbers 0 to 255 between them; of n pixels m: "
    "scale = n / m, stretch = max(scale, 1), center = (output + 0.5) * scale; inputs from "
    "max(0, trunc(center - reach * stretch + 0.5)) to before "
    "min(n, trunc(center + reach * stretch + 0.5)), each with the weight "
    "f((input - center + 0.5) * (1 / stretch)), divided by the sum of the weights and rounded to "
    "2^-22, halves away from 0; the sum of weight * input, plus one half, rounded down and clipped "
    "to 0 to 255; in double precision; "
)
_FILTERS: dict[Interpolation, str] = {
    "bilinear": "reach = 1, f(x) = 1 - |x|, 0 from 1 on",
    "bicubic": "reach = 2, f(x) = (1.5|x| - 2.5)|x||x| + 1 to 1, "
    "-0.5(((|x| - 5)|x| + 8)|x| - 4) to 2, 0 from 2 on",
}
_CUT = (
    "the middle: from column (columns - width) / 2 and row (rows - height) / 2, halves rounded to "
    "the even number"
)
_GREY = "of the pixels cut out: (19595 red + 38470 green + 7471 blue + 32768) / 65536, rounded down"
_NORMALIZED = "value = (pixel / 255 - mean) / std, per channel, pixel 0..255"
_PIXELS = "value = pixel, 0..255; the file normalises"


class IntegerGrid(Record):
    """Of integers: real = scale * (integer - zero_point)."""

    scale: Above0
    zero_point: int


class PhotoWords(Record):
    """How a photo becomes the pixels of an image: in this order, to the bit.

    Attributes:
        decoded: from the file to red, green and blue.
        background: red, green and blue, 0 to 255, under what is transparent.
        cover_height: in pixels, with `cover_width` what a photo is scaled to cover.
        cover_width: in pixels.
        shortened: what is cut of very long photos.
        scaled: how many rows and columns it becomes.
        interpolation: the filter.
        resampled: how a row of n pixels becomes one of m.
        cut: what the network sees of it.
        grey: how grey is made; null for three channels.
    """

    decoded: Text = _DECODED
    background: tuple[Level, Level, Level]
    cover_height: Positive
    cover_width: Positive
    shortened: Text = _SHORTENED
    scaled: Text = _SCALED
    interpolation: Interpolation
    resampled: Text
    cut: Text = _CUT
    grey: Text | None


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
        photo: how a photo becomes such an image.
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
    photo: PhotoWords
    value: Text
    mean: tuple[Share, ...] | None
    std: tuple[Above0, ...] | None
    grid: IntegerGrid | None = None


class Maps(Record):
    """Maps of numbers, one for every class, over the prepared image.

    Attributes:
        layout: NCHW, a map after the other; or NHWC, the numbers of all classes of a place side by
            side.
        height: of a map.
        width: of a map.
        stride: side of the square of pixels that a number is for.
    """

    layout: Literal["NCHW", "NHWC"]
    height: Positive
    width: Positive
    stride: Positive


class Output(Record):
    """What the file gives.

    There is a number for every class, or one number where there are two classes, or a map of
    numbers for every class.

    Attributes:
        name: in the file.
        kind: a tensor, or a dictionary of numbers by the names of the classes, as Core ML's
            classifiers give it.
        class_name: in the file, of the output that names the class; null of a tensor.
        shape: null stands for any number of images.
        dtype: of the elements.
        gives: logits, of which `link` makes probabilities; or probabilities already, of which
            nothing more is to be made.
        link: what makes probabilities, of all numbers or of each.
        meaning: what they say.
        labels: file of the names of the classes.
        classes: number of them.
        threshold: probability above which a label is named; null where one class is named.
        above: the number above which a label is named, the nearest float32 to `threshold` or its
            logit; null likewise.
        grid: of integer elements; null where they are real numbers already.
        maps: where there is a map for every class; else null.
    """

    name: Text
    kind: Literal["tensor", "dictionary"] = "tensor"
    class_name: Text | None = None
    shape: tuple[Positive | None, ...]
    dtype: Literal["float64", "float32", "float16", "uint8", "int8"]
    gives: Literal["logits", "probabilities"]
    link: Literal["softmax", "sigmoid"]
    meaning: Text
    labels: Text = "labels.txt"
    classes: Positive
    threshold: Share | None = None
    above: float | None = None
    grid: IntegerGrid | None = None
    maps: Maps | None = None


class Golden(Record):
    """Images whose answers are known.

    Attributes:
        folder: with NN.png, the same pixels as NN.rgb (rows from the top, a byte a channel), and
            the answers to every image in expected.csv; of maps in NN.f32 (float32, little-endian,
            a map after the other), and in expected.csv what they come to.
        images: number of them.
        photos: number of photos in its folder `photos`, with the pixels that they become, which
            are to be the same: photos.csv names NAME.* as it is taken, NAME.ppm, decoded, and
            NAME.rgb, prepared.
        tolerance: most that a number may be off.
        why: where the tolerance comes from.
        computed_by: the runtime and its version, or the reference evaluator.
    """

    folder: Text = "golden"
    images: Positive
    photos: Positive
    tolerance: Above0
    why: Text
    computed_by: Text


class Contract(Record):
    """contract.json, version 3.

    Attributes:
        runtime: the package that runs the file, and the version it was checked with.
        oldest_runtime: the oldest one whose answers to such files are the same; None where none
            is known.
        oldest_ios: the oldest iOS that a Core ML package says it runs on; macOS is three behind.
            None for other formats.
        float16: a file of the same weights for GPUs; None where none was asked for.
    """

    schema_version: Literal[3] = 3
    name: Text
    file: Text
    sha256: Sha256
    format: FormatName
    runtime: Text
    oldest_runtime: Text | None = None
    oldest_ios: Positive | None = None
    precision: Literal["int8", "float"]
    network: Text
    input: Input
    output: Output
    golden: Golden
    float16: Float16 | None = None


def contract_of(
    run: Finished,
    report: Report,
    found: Interface,
    vectors: Vectors,
    float16: Float16 | None = None,
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
        oldest_runtime=oldest_runtime(run.format, run.recipe),
        oldest_ios=found.ios,
        precision=target.precision,
        network=report.model.name,
        input=_input(found.input, run),
        output=_output(found.output, len(run.classes), run.recipe),
        golden=Golden(
            images=len(vectors.labels),
            photos=len(photos.KINDS),
            tolerance=_rounded_up(vectors.tolerance),
            why=vectors.why,
            computed_by=by,
        ),
        float16=float16,
    )


def oldest_runtime(form: Format, recipe: Recipe) -> str | None:
    """The oldest runtime that files like a recipe's were proven with; None where none was tried."""
    asked = options_of(recipe)
    moved = next((option for option in form.oldest if option in asked), None)
    version = form.oldest.get(moved)
    return None if version is None else f"{form.package} {version}"


def _input(port: Port, run: Finished) -> Input:
    """What a run's file with such a port takes."""
    normalizes, (mean, std) = run.recipe.target.takes_pixels, run.mean_and_std
    # pydantic checks what the types of a file's own words cannot.
    return Input(
        name=port.name,
        kind=port.kind,  # type: ignore[arg-type]
        shape=port.shape,
        layout=port.layout,  # type: ignore[arg-type]
        dtype=port.dtype,  # type: ignore[arg-type]
        color_order="RGB" if port.channels == 3 else "grey",
        channels=port.channels,  # type: ignore[arg-type]
        side=port.height if port.height == port.width else None,
        height=port.height,
        width=port.width,
        photo=photo_words(run.preparation),
        value=_PIXELS if normalizes else _NORMALIZED,
        mean=None if normalizes else mean,
        std=None if normalizes else std,
        grid=_grid(port),
    )


def photo_words(preparation: Preparation) -> PhotoWords:
    """How photos are prepared, in the words and figures of a contract."""
    by = preparation.interpolation
    return PhotoWords(
        background=preparation.background,
        cover_height=preparation.whole.height,
        cover_width=preparation.whole.width,
        interpolation=by,
        resampled=_RESAMPLED + _FILTERS[by],
        grey=_GREY if preparation.shape.channels == 1 else None,
    )


def _output(port: Port, classes: int, recipe: Recipe) -> Output:
    meaning, by_name = meaning_of(recipe), port.kind == "dictionary"
    return Output(
        name=port.name,
        kind="dictionary" if by_name else "tensor",
        class_name=CLASS if by_name else None,
        shape=port.shape,
        dtype=port.dtype,  # type: ignore[arg-type]
        gives=recipe.target.output,
        link=TASKS[recipe.task.kind].link,
        meaning=meaning.rule,
        classes=classes,
        threshold=meaning.threshold,
        above=meaning.above,
        grid=_grid(port),
        maps=_maps(port, recipe),
    )


def _maps(port: Port, recipe: Recipe) -> Maps | None:
    """Of a file that gives a class to every place."""
    if not TASKS[recipe.task.kind].maps:
        return None
    return Maps(
        layout=port.layout,  # type: ignore[arg-type]
        height=port.height,
        width=port.width,
        stride=recipe.model.input_shape.height // port.height,
    )


def _grid(port: Port) -> IntegerGrid | None:
    if port.scale is None or port.zero_point is None:
        return None
    return IntegerGrid(scale=port.scale, zero_point=port.zero_point)


def _rounded_up(value: float) -> float:
    """The next number of four digits."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{math.ceil(value / digit) * digit:.4g}")
