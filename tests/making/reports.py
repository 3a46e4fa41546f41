"""Reports with everything in them, as runs leave them, for tests of what is made of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from pipeline.compress.training.epoch import Epoch
from pipeline.measure.latency import latency_of, speedup
from pipeline.networks.layer_width import LayerWidth
from pipeline.report.records import Report, StageRecord, TargetResult, all_met, budget
from pipeline.tasks.accuracy import Accuracy, accuracy_drop_pt, changes_of, confusion_of
from tests.report import test_report

DEVICES = ("Pixel 8", "Galaxy S24", "iPhone 15", "Raspberry Pi 5", "Linux PC", "iPad")
FORMATS = ("tflite", "onnx", "coreml")
SUFFIXES = {"tflite": "tflite", "onnx": "onnx", "coreml": "mlpackage"}
NO_APPLE = "Core ML runs on Apple systems only; time it on a Mac or an iPhone"
DIGITS = tuple(str(digit) for digit in range(10))
IMAGES = 450


def full(
    targets: int = 6, classes: Sequence[str] = DIGITS, seed: int = 0, **changes: Any
) -> Report:
    """A combined report of so many targets; every third is one that cannot be timed here."""
    draw = random.Random(seed)
    labels = [draw.randrange(len(classes)) for _ in range(IMAGES)]
    named = _named(draw, labels, len(classes), 0.97)
    accuracy = {"test": _accuracy(labels, named)}
    float_cpu = test_report.float_model(accuracy=accuracy)
    baseline = test_report.float_model(
        accuracy=accuracy, confusion={"test": confusion_of(labels, named)}, confusion_missing=None
    )
    made = [_target(draw, number, labels, named, len(classes)) for number in range(targets)]
    found = test_report.report(*made, name="combined", baseline=baseline, float_cpu=float_cpu)
    data = found.data.model_copy(update={"classes": tuple(classes)})
    model = found.model.model_copy(update={"num_classes": len(classes)})
    return Report(**dict(found) | {"data": data, "model": model} | changes)


def _named(draw: random.Random, labels: Sequence[int], classes: int, right: float) -> list[int]:
    return [one if draw.random() < right else draw.randrange(classes) for one in labels]


def _accuracy(labels: Sequence[int], named: Sequence[int]) -> Accuracy:
    right = sum(one == two for one, two in zip(labels, named, strict=True)) / len(labels)
    return Accuracy(top1=right, top5=(1 + right) / 2, images=len(labels))


def _target(
    draw: random.Random, number: int, labels: list[int], before: list[int], classes: int
) -> TargetResult:
    form = FORMATS[number % 3]
    named = _named(draw, labels, classes, 0.96)
    accuracy = {"test": _accuracy(labels, named)}
    base = {"test": _accuracy(labels, before)}
    samples = [10 + number + draw.random() for _ in range(30)]
    latency = None if form == "coreml" else latency_of(samples, threads=1, batch=1)
    why_not = NO_APPLE if latency is None else None
    drop, faster = accuracy_drop_pt(base, accuracy), speedup(test_report.FLOAT, latency)
    size = 6_800_000 + 100_000 * number
    budgets = (
        budget("accuracy_drop_pt", 1.0, drop),
        budget("size_mb", 7.0, size / 1e6),
        budget("speedup", 2.0, faster, why_not),
    )
    return test_report.target(
        f"device-{number}",
        device=DEVICES[number % len(DEVICES)],
        format=form,
        path=f"model.{SUFFIXES[form]}",
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
