"""A further task and a further lane are one entry of a table each, and run like any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.__main__ import main
from pipeline.formats.description import labels_text
from pipeline.measure.lanes import host
from pipeline.measure.lanes.lane import Advance, ModelFile, silent
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.recipe.input_shape import square
from pipeline.report.records import Report
from pipeline.stages.finished_run import open_run
from pipeline.tasks.images.digits import digits_dataset
from pipeline.tasks.predictions import PREDICTIONS, read_predictions
from pipeline.tasks.tasks import TASKS
from tests.making.recipes import DEVICE_RECIPES, PLAIN_MODEL, settings
from tests.making.toys import MACHINE, MILLISECONDS, NUMBERS, TOY_LANE

RECIPE = DEVICE_RECIPES["onnx"]
SMALL = (
    PLAIN_MODEL,
    "task.kind=numbers",
    "data.test_images=40",
    "data.calibration_images=40",
    "train.epochs=1",
    "prune=null",
    "qat.train.epochs=1",
    "qat.distill=null",
    "guard.accuracy_drop_pt=null",
    "measure.rounds=3",
    "budgets=null",
    "threads=1",
)
Asked = list[tuple[str, int]]
NO_WORDS = (
    "task.kind: got 'words'; must be one of classification, binary, multilabel, detection, "
    "segmentation, numbers"
)


@pytest.fixture(scope="module")
def asked() -> Asked:
    """What the host's lane was asked for: the name of each file and the number of its images."""
    return []


@pytest.fixture(scope="module")
def tables(asked: Asked) -> Iterator[None]:
    """Both tables with their further entry, and the host's lane listened to."""

    def answers(
        files: Mapping[str, ModelFile],
        inputs: Iterable[Tensor],
        threads: int,
        advance: Advance = silent,
    ) -> dict[str, Tensor]:
        found = host.answers(files, inputs, threads, advance)
        asked.extend((files[name].path.name, len(one)) for name, one in found.items())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "numbers", NUMBERS)
        patch.setitem(LANES, "toy", TOY_LANE)
        patch.setitem(LANES, HOST, replace(host.LANE, answers=answers))
        yield


@pytest.fixture(scope="module")
def finished(tables: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the further task."""
    out = tmp_path_factory.mktemp("toys")
    assert main(["run", str(RECIPE), "--out", str(out), *settings(*SMALL)]) == 0
    return out / RECIPE.stem


@pytest.mark.slow
def test_a_further_task_is_learned_exported_and_judged(finished: Path, asked: Asked) -> None:
    run = open_run(finished, None)
    report = run.report()
    assert run.recipe.task.kind == "numbers"
    target = report.targets[0]
    assert target.parity.passed
    assert target.accuracy is not None
    dataset = digits_dataset(run.recipe.data, square(32), 0)
    answers = run.logits(dataset.tests["test"].pixels(torch.arange(40)))
    assert answers.shape == (40, 1), "one number an image, not a logit a class"
    task = TASKS["numbers"].module(run.recipe.task)
    assert task.accuracies({"test": answers}, dataset) == target.accuracy
    kept = read_predictions(finished / PREDICTIONS)["test"]
    assert tuple(kept.file.tolist()) == task.named({"test": answers}, dataset)["test"]
    assert kept.labels.tolist() == dataset.tests["test"].labels.tolist()
    # Calibration images stand beside the test images where the file is verified.
    assert ("model.onnx", 40 + len(dataset.calibration)) in asked
    assert Report.model_validate_json((finished / "report.json").read_bytes()) == report
    assert (finished / "labels.txt").read_text() == labels_text(dataset.classes)


@pytest.mark.slow
def test_predict_shows_what_the_task_makes_of_an_image(
    finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = finished.parent / "digit.png"
    Image.new("RGB", (32, 32), "white").save(image)
    assert main(["predict", str(finished), str(image)]) == 0
    shown = capfd.readouterr().out
    assert "reading" in shown
    assert "2 readings" in shown
    assert "class" not in shown


@pytest.mark.slow
def test_a_further_lane_times_the_files_of_a_run(
    finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(finished), "--lane", "toy", "--rounds", "3"]) == 0
    found = json.loads((finished / "bench.json").read_text())
    assert (found["lane"], found["host"]) == ("toy", MACHINE.model_dump())
    for timed in found["timed"]:
        assert list(timed["latency_ms"]) == [RECIPE.stem]
        assert timed["latency_ms"][RECIPE.stem]["median"] == MILLISECONDS / timed["threads"]
        assert timed["speedup_over_eager"] == {}
    (eager,) = (c for c in found["contestants"] if c["name"] == "torch eager")
    assert eager["missing"] == "a toy runs files alone"
    assert "not timed: a toy runs files alone" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda run: ["bench", run, "--lane", "toys"], "--lane: got 'toys'; must be one of host"),
        (
            lambda run: ["check", str(RECIPE), "--set", "task.kind=words"],
            NO_WORDS,
        ),
        (
            lambda run: ["run", str(RECIPE), "--out", f"{run}-2", "--set", "task.kind=words"],
            NO_WORDS,
        ),
    ],
)
def test_what_no_table_has_is_refused_by_name(
    arguments: Callable[[str], list[str]],
    message: str,
    tables: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(str(tmp_path))) == 2
    assert message in capsys.readouterr().err
