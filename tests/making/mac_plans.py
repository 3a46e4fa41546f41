"""What tests ask of the Mac that stands in: plans, and one call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.formats.coreml import faults
from pipeline.formats.coreml.file import ReferenceRunnable
from pipeline.measure.device.mac import Plan, Wanted, measured
from pipeline.measure.device.record import OnDevice
from pipeline.measure.lanes.apple.session import Mac, opened
from tests.making import programs

THERE = Mac(host="me@mac", python="python3")


def answers(path: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    runnable = ReferenceRunnable(path)
    runnable.set_input(images)
    runnable.invoke()
    return runnable.output()


def wanted(name: str, path: Path, *, count: int = 3) -> Wanted:
    images = programs.examples().numpy()[:count]
    return Wanted(
        name=name,
        path=path,
        precision="int8",
        kind="array",
        input="image",
        output="logits",
        inputs=images,
        answers=answers(path, images),
        tolerance=0.03,
        wrong=faults.wrong_answers(path, images),
    )


def plan(*units: str, rounds: int = 2, count: int = 3) -> Plan:
    int8 = wanted("int8", programs.file_of("coreml", "radix2"), count=count)
    beside = replace(int8, name="int8, float16", beside=True, wrong={})
    return Plan(files=(int8, beside), units=units or ("cpu", "gpu", "ne"), rounds=rounds)


def run(asked: Plan, there: Mac = THERE) -> OnDevice:
    steps: list[int] = []
    with opened(there) as found:
        record = measured(found, asked, lambda done, text: steps.append(done))
    assert found.left is None
    assert steps == list(range(1, len(steps) + 1))
    return record
