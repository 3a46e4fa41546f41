"""Reports of 1,000 classes and 50,000 test images: how long they take, how big they are.

    python -m tests.scale report

Times are of the processor, so that other work on the machine does not count; the browser's is of
the clock. A tenth of the images beside them shows what grows with them, and how.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.commands.compare.change import Allowances
from pipeline.commands.compare.changes import changes_between
from pipeline.report.records import Report
from pipeline.report.write import write_report
from pipeline.stages.finished_run import open_runs
from pipeline.tasks import classification
from pipeline.tasks.multilabel import Multilabel
from pipeline.tasks.predictions import (
    PREDICTIONS,
    Predictions,
    read_predictions,
    write_predictions,
)
from pipeline.tasks.task import Counted
from tests.making import reports
from tests.making.recipes import device_recipe
from tests.making.runs import left_behind

CLASSES, IMAGES, TARGETS = 1000, 50_000, 6
SECONDS, MEGABYTES, OPENED = 10.0, 3.0, 2.0
"""Bars: to make a report, its page, and to open that."""
NAMES = tuple(f"class {number}, of a longer name" for number in range(CLASSES))
_TASKS: dict[str, Any] = {"classes": classification, "labels": Multilabel(threshold=0.5)}


@dataclass(frozen=True, kw_only=True)
class Found:
    """One measurement; `limit` is the most that is allowed, None where nothing is."""

    what: str
    value: float
    unit: str
    limit: float | None = None

    def line(self) -> str:
        """As it is printed."""
        verdict = ""
        if self.limit is not None:
            held = "held" if self.value <= self.limit else "MISSED"
            verdict = f" (at most {self.limit:g}: {held})"
        return f"{self.what}: {self.value:.2f} {self.unit}{verdict}"


def predictions(kind: str, images: int, seed: int) -> Predictions:
    """What two models name, each wrongly about every fourth image or one of a thousand labels."""
    draw = torch.Generator().manual_seed(seed)

    def other(right: Tensor) -> Tensor:
        if kind == "labels":
            flipped = torch.rand(right.shape, generator=draw) < 1 / CLASSES
            return (right.bool() ^ flipped).to(torch.uint8)
        wrong = torch.rand(images, generator=draw) < 0.25
        drawn = torch.randint(CLASSES, (images,), generator=draw)
        return torch.where(wrong, drawn, right)

    if kind == "labels":
        right = (torch.rand(images, CLASSES, generator=draw) < 3 / CLASSES).to(torch.uint8)
    else:
        right = torch.randint(CLASSES, (images,), generator=draw)
    return Predictions(labels=right, float_model=other(right), file=other(right))


def run(folder: Path, kind: str, images: int, seed: int) -> Path:
    """A folder as a run of one target leaves it, but for the network."""
    report = reports.full(1, NAMES, seed, images=images, right=0.76)
    write_report(report, folder)
    write_predictions({"test": predictions(kind, images, seed)}, folder / PREDICTIONS)
    return left_behind(folder, device_recipe(form="tflite"), classes=NAMES)


def timed(work: Callable[[], object]) -> float:
    """Seconds of the processor."""
    started = time.process_time()
    work()
    return time.process_time() - started


def made(folder: Path, images: int) -> list[Found]:
    """What a report of as many images takes, from what was named for each to its three files."""
    kept = folder / PREDICTIONS
    seconds = 0.0
    found = []
    for kind, task in _TASKS.items():
        write_predictions({"test": predictions(kind, images, 0)}, kept)

        def counted(task: Any = task) -> Counted:
            return task.counted(read_predictions(kept))  # type: ignore[no-any-return]

        taken = timed(counted)
        seconds += taken * TARGETS if kind == "classes" else 0.0
        found.append(Found(what=f"{kind} counted for one target", value=taken, unit="s"))
    report = reports.full(TARGETS, NAMES, images=images, right=0.76)
    taken = timed(lambda: write_report(report, folder))
    found += [
        Found(what="report.json, report.md and report.html written", value=taken, unit="s"),
        Found(what="report made", value=seconds + taken, unit="s", limit=SECONDS),
        _size(folder / "report.html", limit=MEGABYTES),
        _size(folder / "report.json"),
        _size(folder / "report.md"),
    ]
    content = (folder / "report.json").read_bytes()
    taken = timed(lambda: Report.model_validate_json(content))
    return [*found, Found(what="report.json read", value=taken, unit="s")]


def _size(file: Path, limit: float | None = None) -> Found:
    return Found(what=file.name, value=file.stat().st_size / 1e6, unit="MB", limit=limit)


def compared(folder: Path, images: int) -> Found:
    """What `pocketnest compare` takes for two runs."""
    old, new = (run(folder / name, "classes", images, n) for n, name in enumerate(("old", "new")))
    taken = timed(lambda: changes_between(open_runs(old), open_runs(new), Allowances()))
    return Found(what="two runs compared", value=taken, unit="s")


def opened(page: Path, browser: Any) -> float:
    """Seconds of the clock until a page is loaded, laid out and drawn."""
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    started = time.perf_counter()
    tab.goto(page.resolve().as_uri())
    tab.wait_for_load_state("load")
    # Two frames: the first may be drawn before the layout is whole.
    tab.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    taken = time.perf_counter() - started
    tab.close()
    return taken


def in_a_browser(page: Path, chromium: str) -> Found:
    """How long a page takes to open, the median of five."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        taken = statistics.median(opened(page, browser) for _ in range(5))
        browser.close()
    return Found(what="page opened in Chromium", value=taken, unit="s", limit=OPENED)


def main(arguments: list[str]) -> int:
    """Print every measurement; 1 where a bar is missed."""
    chromium = os.environ.get("POCKETNEST_CHROMIUM")
    timed(lambda: reports.full(1))  # what it imports is loaded
    every = []
    for images in (IMAGES // 10, IMAGES):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            found = made(folder, images)
            found.append(compared(folder, images))
            if chromium is not None and images == IMAGES:
                found.append(in_a_browser(folder / "report.html", chromium))
        print(f"{CLASSES} classes, {images} test images, {TARGETS} targets")
        print("".join(f"  {one.line()}\n" for one in found), end="", flush=True)
        every += found
    if chromium is None:
        print("not opened in a browser: POCKETNEST_CHROMIUM names none")
    missed = [one for one in every if one.limit is not None and one.value > one.limit]
    return 1 if missed else 0
