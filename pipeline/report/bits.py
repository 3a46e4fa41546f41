"""Words for the bits of weights: which forms there are, and what was expected of them."""

from __future__ import annotations

from pipeline.compress.quantization.chosen import ChosenForm
from pipeline.recipe.weight_forms import BITS
from pipeline.report import words
from pipeline.report.records import Report, TargetResult

HEADER = ("target", "form", "bits", "layers", "weights", "share", "MB in the file")
LAYERS = ("layer", "form", "weights", "MB in the file", "nats an image")
"""Headings of the table of a target's layers."""
MEANING = (
    "MB in the file: what the format is predicted to spend on these weights, whose form it may "
    "store in 8 bits all the same. Nats an image: how far rounding moves the network's answers to "
    "the calibration images from the float network's (Kullback-Leibler divergence), with the "
    "weights rounded and nothing else."
)


def section(report: Report) -> list[str]:
    """The section of report.md; nothing where all weights have 8 bits."""
    return words.section("Bits of the weights", HEADER, rows(report), MEANING, notes(report))


def rows(report: Report) -> list[list[str]]:
    """A row for each file and form, under `HEADER`; none where all weights have 8 bits."""
    return [row for target in report.targets for row in _rows(target)]


def _rows(target: TargetResult) -> list[list[str]]:
    if target.weights is None:
        return []
    whole = sum(found.weights for found in target.weights.forms.values())
    return [
        [
            target.name,
            form,
            str(BITS[form]),
            str(found.layers),
            words.count(found.weights),
            words.percent(found.weights / whole),
            words.figure(found.megabytes),
        ]
        for form, found in target.weights.forms.items()
    ]


def layer_row(layer: ChosenForm) -> list[str]:
    """The cells of a layer, under `LAYERS`."""
    loss = words.NOT_APPLICABLE if layer.loss is None else f"{layer.loss:.2g}"
    megabytes = f"{layer.megabytes:.4f}"
    return [layer.layer, layer.form, words.count(layer.weights), megabytes, loss]


def notes(report: Report) -> list[str]:
    """What was expected of each file, and what came out."""
    return [
        f"{target.name}: {'; '.join(_expected(target))}"
        for target in report.targets
        if target.weights is not None
    ]


def _expected(target: TargetResult) -> list[str]:
    assert target.weights is not None
    found = target.weights.expected
    told = [_beside("size", found.size_mb, target.size_mb)]
    if found.download_mb is not None:
        told.append(_beside("download", found.download_mb, target.download_bytes / 1e6))
    if found.loss is not None and found.divergence is not None:
        told.append(
            f"before any training, rounding moves the answers by {found.divergence:.3g} nats an "
            f"image, where {found.loss:.3g} was predicted"
        )
    return told


def _beside(what: str, predicted: float, found: float) -> str:
    return (
        f"{what} {words.figure(found)} MB, where {words.figure(predicted)} was predicted "
        f"({100 * (predicted / found - 1):+.1f} %)"
    )
