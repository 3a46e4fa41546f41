"""Reports with everything in them, as runs leave them, for tests of what is made of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.base.machine import CodeInfo, HostInfo
from pipeline.compress.quantization.chosen import ChosenForm, Expected, Weights, weights_of
from pipeline.compress.training.epoch import Epoch
from pipeline.formats import formats
from pipeline.formats.scales import ScalesExact
from pipeline.measure.baseline.record import Baseline
from pipeline.measure.downloads import COMPRESSORS, Download
from pipeline.measure.first_use import FirstUse
from pipeline.measure.latency import Latency, latency_of
from pipeline.measure.parity_record import OutputSteps, Parity
from pipeline.networks.layer_width import LayerWidth
from pipeline.networks.model_info import ModelInfo
from pipeline.recipe.recipe import RecipeInfo
from pipeline.recipe.weight_forms import BITS, WeightForm
from pipeline.report.records import (
    DataInfo,
    Report,
    StageRecord,
    TargetResult,
    all_met,
    budget,
)
from pipeline.tasks.accuracy import Accuracy, accuracy_drop_pt, changes_of, confusion_of

DEVICES = ("Pixel 8", "Galaxy S24", "iPhone 15", "Raspberry Pi 5", "Linux PC", "iPad")
FORMATS = ("tflite", "onnx", "coreml")
NO_APPLE = "Core ML runs on Apple systems only; time it on a Mac or an iPhone"
DIGITS = tuple(str(digit) for digit in range(10))
IMAGES = 450


def full(
    targets: int = 6,
    classes: Sequence[str] = DIGITS,
    seed: int = 0,
    *,
    images: int = IMAGES,
    right: float = 0.97,
    **changes: Any,
) -> Report:
    """A combined report of so many targets; every third is one that cannot be timed here.

    Args:
        targets: number of files.
        classes: their names.
        seed: of what is drawn.
        images: of the test set.
        right: share of them that the float model names rightly; a file, a point fewer.
        changes: to the report.
    """
    draw = random.Random(seed)
    labels = [draw.randrange(len(classes)) for _ in range(images)]
    named = _named(draw, labels, len(classes), right)
    accuracy = {"test": _accuracy(labels, named)}
    float_cpu = float_model(accuracy=accuracy)
    baseline = float_model(
        accuracy=accuracy, confusion={"test": confusion_of(labels, named)}, confusion_missing=None
    )
    every = range(len(classes))
    made = [_target(draw, number, labels, named, every, right - 0.01) for number in range(targets)]
    data = DATA.model_copy(update={"classes": tuple(classes), "test_sets": {"test": images}})
    found = report(*made, name="combined", baseline=baseline, float_cpu=float_cpu, data=data)
    model = found.model.model_copy(update={"num_classes": len(classes)})
    return Report(**dict(found) | {"model": model} | changes)


def faster_than_float(latency: Latency | None) -> float | None:
    """How many times as fast as the float model, by the medians."""
    return None if latency is None else FLOAT.median / latency.median


def _named(draw: random.Random, labels: Sequence[int], classes: int, right: float) -> list[int]:
    return [one if draw.random() < right else draw.randrange(classes) for one in labels]


def _accuracy(labels: Sequence[int], named: Sequence[int]) -> Accuracy:
    right = sum(one == two for one, two in zip(labels, named, strict=True)) / len(labels)
    return Accuracy(top1=right, top5=(1 + right) / 2, images=len(labels))


def _target(
    draw: random.Random,
    number: int,
    labels: list[int],
    before: list[int],
    classes: range,
    right: float,
) -> TargetResult:
    form = FORMATS[number % 3]
    named = _named(draw, labels, len(classes), right)
    accuracy = {"test": _accuracy(labels, named)}
    base = {"test": _accuracy(labels, before)}
    samples = [10 + number + draw.random() for _ in range(30)]
    latency = None if form == "coreml" else latency_of(samples, threads=1, batch=1)
    why_not = NO_APPLE if latency is None else None
    drop, faster = accuracy_drop_pt(base, accuracy), faster_than_float(latency)
    size = 6_800_000 + 100_000 * number
    budgets = (
        budget("accuracy_drop_pt", 1.0, drop),
        budget("size_mb", 7.0, size / 1e6),
        budget("speedup", 2.0, faster, why_not),
    )
    return target(
        f"device-{number}",
        device=DEVICES[number % len(DEVICES)],
        format=form,
        path=f"model{formats.FORMATS[form].suffix}",
        size_bytes=size,
        accuracy=accuracy,
        accuracy_drop_pt=drop,
        latency_ms=latency,
        latency_missing=why_not,
        speedup=faster,
        speedup_missing=why_not,
        budgets=budgets,
        passed=all_met(budgets),
        confusion={"test": confusion_of(labels, named)},
        confusion_missing=None,
        changes={"test": changes_of(labels, before, named)},
        layers=tuple(
            LayerWidth(name=f"layer{stage}.{block}.conv{n}", kernel="3x3", before=128, after=64)
            for stage in range(1, 5)
            for block in range(3)
            for n in range(1, 4)
        ),
        stages=_stages(number),
        ops={"CONV_2D": 60, "ADD": 16, "MUL": 16},
        takes="image, float32 1 x 32 x 32 x 3 (NHWC), red, green, blue; a value is "
        "(pixel / 255 - mean) / deviation, mean 0.485, 0.456, 0.406, deviation 0.229, 0.224, 0.225",
        gives="logits, float32 1 x 10: the largest names the class",
        intended_use="Reading single handwritten digits.",
        first_use=None
        if latency is None
        else FirstUse(load_ms=21.0, first_ms=14.0, memory_mb=18.0 + number),
        measured_at="2026-11-29T14:05:00Z",
        outside=("blocks.1 add_1, ADD: XNNPACK does not take it as it is",) * (number == 3),
    )


def _stages(number: int) -> tuple[StageRecord, ...]:
    return (
        StageRecord(name="train", status="reused", seconds=183.0, curve=_curve(8)),
        StageRecord(name="baseline", status="done", seconds=2.2, params=2400, macs=900, top1=0.98),
        StageRecord(
            name="prune", status="done", seconds=88.0, params=9, macs=5, top1=0.9, curve=_curve(6)
        ),
        StageRecord(name="qat", status="done", seconds=140.0 + number, curve=_curve(4 + number)),
        StageRecord(name="export", status="done", seconds=55.5),
        StageRecord(name="measure", status="done", seconds=9.5, top1=0.97),
    )


def _curve(epochs: int) -> tuple[Epoch, ...]:
    return tuple(
        Epoch(epoch=n, loss=2 / n, accuracy=1 - 0.5 / n, learning_rate=0.1 / n)
        for n in range(1, epochs + 1)
    )


DATA = DataInfo(name="digits", sha256="c" * 64, train_images=1167, test_sets={"test": 450})
NO_PHONE = "Core ML runs on Apple systems only."


FLOAT = latency_of([84.0, 85.4, 90.0], threads=1, batch=1)


TOP1 = Accuracy(top1=0.98, top5=1.0, images=450)


EXACT = ScalesExact(same=191, total=192, codes_same=9999, codes_total=10_000)


def few_bits(forms: Sequence[WeightForm] = ("int8", "int4", "palette16")) -> Weights:
    """Weights of three layers, as a limit chose their forms."""
    layers = tuple(
        ChosenForm(
            layer=f"layer{number}.conv",
            form=form,
            weights=1_000_000 * number,
            megabytes=number * BITS[form] / 8,
            loss=0.001 * number,
        )
        for number, form in enumerate(forms, 1)
    )
    known = Expected(size_mb=6.9, download_mb=6.0, loss=0.006, divergence=0.0055)
    return weights_of(layers, known)


def float_model(**changes: Any) -> Baseline:
    whole = {
        "device": "Example CPU",
        "device_kind": "cpu",
        "measured_here": True,
        "accuracy": {"test": TOP1},
        "latency_ms": FLOAT,
        "size_bytes": 102_400_000,
    }
    return Baseline(**(whole | changes))


def parity(**changes: Any) -> Parity:
    whole = {
        "images": 630,
        "agreement": 1.0,
        "steps": OutputSteps(median=0, p99=1, largest=3, differing=0.02),
        "rounding": OutputSteps(median=0, p99=2, largest=4, differing=0.03),
        "difference": None,
        "layers": 80,
        "layers_alike": 80,
        "passed": True,
    }
    return Parity(**(whole | changes))


def target(
    name: str = "android",
    top1: float | None = 0.9755,
    latency: Latency | None = None,
    size_bytes: int = 6_800_000,
    limits: tuple[float, float, float] = (1.0, 7.0, 2.0),
    **changes: Any,
) -> TargetResult:
    """A file that was measured, or with `top1` None one that nothing here can run."""
    runs = top1 is not None
    accuracy = {"test": Accuracy(top1=top1, top5=1.0, images=450)} if top1 is not None else None
    latency = (latency or latency_of([20.0, 21.35, 23.0], threads=1, batch=1)) if runs else None
    missing = None if runs else NO_PHONE
    drop, faster = accuracy_drop_pt({"test": TOP1}, accuracy), faster_than_float(latency)
    budgets = (
        budget("accuracy_drop_pt", limits[0], drop, missing),
        budget("size_mb", limits[1], size_bytes / 1e6),
        budget("speedup", limits[2], faster, missing),
    )
    whole = {
        "name": name,
        "device": "Pixel 8",
        "format": "tflite",
        "precision": "int8",
        "runtime": "LiteRT 2.1.0",
        "input": "normalized",
        "evaluated": "runtime",
        "path": f"{name}.tflite",
        "sha256": "a" * 64,
        "size_bytes": size_bytes,
        "download_bytes": 6_100_000,
        "accuracy": accuracy,
        "accuracy_missing": missing,
        "accuracy_drop_pt": drop,
        "agreement": 0.996 if runs else None,
        "parity": parity(),
        "scales_exact": EXACT if runs else None,
        "scales_missing": missing,
        "int8_coverage": 0.99996 if runs else None,
        "coverage_missing": missing,
        "ops": {"CONV_2D": 60},
        "partitions": 1,
        "latency_ms": latency,
        "latency_missing": missing,
        "speedup": faster,
        "speedup_missing": missing,
        "budgets": budgets,
        "passed": all_met(budgets),
    }
    return TargetResult(**(whole | changes))


def sent(*sizes: int) -> tuple[Download, ...]:
    """A file as each compressor sends it, in so many bytes."""
    return tuple(
        Download(compressor=name, bytes=size) for name, size in zip(COMPRESSORS, sizes, strict=True)
    )


def report(*targets: TargetResult, name: str = "android", **changes: Any) -> Report:
    targets = targets or (target(),)
    whole = {
        "recipe": RecipeInfo(name=name, sha256="b" * 64),
        "code": CodeInfo(version="0.1.0", commit=None),
        "host": HostInfo(cpu="Example CPU", cores=2, gpu=None),
        "tools": {"torch": "2.12.1"},
        "model": ModelInfo(
            name="resnest50",
            block="bottleneck",
            input_shape=(1, 3, 224, 224),
            num_classes=10,
            params=25_600_000,
            macs=5_400_000_000,
        ),
        "data": DATA,
        "baseline": float_model(),
        "float_cpu": float_model(),
        "stages": (
            StageRecord(
                name="baseline",
                status="reused",
                seconds=12.5,
                params=25_600_000,
                macs=5_400_000_000,
                top1=0.98,
            ),
            StageRecord(name="export", status="done", seconds=61.0),
        ),
        "targets": targets,
        "passed": all(item.passed for item in targets),
    }
    return Report(**(whole | changes))


OLDER = Path(__file__).parents[1] / "samples" / "report-2026-11.json"
