"""Runs and reports take the baseline of another machine, and say so."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
import torch
from rich.console import Console

from pipeline.__main__ import main
from pipeline.base.children import Children
from pipeline.base.errors import InputError
from pipeline.base.store import Result
from pipeline.measure.baseline import files
from pipeline.measure.baseline.record import BASELINES, Baseline
from pipeline.measure.latency import latency_of
from pipeline.networks.checkpoints import WEIGHTS, save_checkpoint
from pipeline.networks.count import count
from pipeline.recipe.input_shape import square
from pipeline.report import html, markdown
from pipeline.report.records import Report
from pipeline.report.write import combine, json_schema
from pipeline.stages import publish, run
from pipeline.stages.baseline import BaselineFacts
from pipeline.stages.context import Context
from pipeline.stages.schedule import RecipeRun
from pipeline.stages.train import TrainFacts
from pipeline.tasks import classification
from pipeline.tasks.classification import accuracies
from pipeline.tasks.evaluation import network_logits
from pipeline.tasks.predictions import Predictions
from tests.making import markup, networks, reports
from tests.making.baselines import DAY, GPU, dataset, here, network, of_gpu, recipe, silent
from tests.making.documented import DIGITS
from tests.making.recipes import DEVICE_RECIPES
from tests.making.recipes import settings as set_values

pytestmark = pytest.mark.slow


def begun(tmp_path: Path, kind: Literal["cpu", "gpu"]) -> RecipeRun:
    """A run that has trained, on a machine whose baseline is of this kind of device."""
    save_checkpoint(network(), tmp_path / WEIGHTS)
    images, counts = dataset(), count(network(), square(networks.SIDE))
    facts = {
        "train": TrainFacts(),
        "baseline": BaselineFacts(
            device_kind=kind,
            accuracy=accuracies(network_logits(network(), images, "x"), images),
            latency_ms=latency_of([1.0], threads=1, batch=1),
            size_bytes=1,
            params=counts.params,
            macs=counts.macs,
        ),
    }
    results = {
        name: Result(
            stage=name, key="k", directory=tmp_path, facts=found, seconds=1.0, reused=False
        )
        for name, found in facts.items()
    }
    return RecipeRun(
        context=Context(recipe=recipe(), dataset=dataset(), tracked=silent, children=Children()),
        gate=lambda result: None,
        results=results,
    )


def test_a_run_without_a_gpu_takes_it_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "SHIPPED", tmp_path / "shipped")
    said: list[str] = []
    seen = partial(
        publish._of_a_gpu_elsewhere, begun(tmp_path, "cpu"), tmp_path / "out", said.append
    )
    assert seen() is None
    assert said == []
    path = files.save(of_gpu(), tmp_path)
    path.parent.rename(tmp_path / "shipped")
    kept = seen()
    assert kept is not None
    assert kept.found == of_gpu()
    own = files.save(of_gpu("Own [/GPU]", measured_at="2026-11-21T00:00:00Z"), tmp_path / "out")
    kept = seen()
    assert kept is not None
    assert kept.path == own
    own.write_text("{")
    kept = seen()
    assert kept is not None
    assert kept.found == of_gpu(), "the damaged one is named, and the next one taken"
    used = f"  float baseline of {GPU}, measured elsewhere: {tmp_path}/shipped/{path.name}"
    assert [said[0], said[-1]] == [used, used]
    assert said[1] == f"  float baseline of Own \\[/GPU], measured elsewhere: {own}"
    assert said[2].startswith(f"  {own}: is no baseline, or damaged (")
    Console(file=io.StringIO()).print(*said)  # no markup that is none


def test_a_run_with_a_gpu_measures_itself(tmp_path: Path) -> None:
    files.save(of_gpu(), tmp_path)
    assert publish._of_a_gpu_elsewhere(begun(tmp_path, "gpu"), tmp_path, lambda line: None) is None


def test_a_recipe_cannot_take_the_folder(tmp_path: Path) -> None:
    taken = recipe().model_copy(update={"name": BASELINES})
    with pytest.raises(InputError, match=r"name: got 'baselines'.* give the recipe another name"):
        run.run_recipes([taken], tmp_path, Console(file=io.StringIO()), until="train")


def test_the_command_measures_saves_and_shows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = set_values(*DIGITS, "train.epochs=0")
    arguments = ["baseline", str(DEVICE_RECIPES["onnx"]), "--out", str(tmp_path / "out")]
    assert main([*arguments, *overrides]) == 0
    (path,) = (tmp_path / "out" / BASELINES).iterdir()
    (weights,) = tmp_path.glob("out/.store/train-*/weights.safetensors")
    found = files.read(path).found
    shown = capfd.readouterr().out
    assert f"weights: {weights}\nbaseline: {path}\n" in shown
    assert f"{found.device}, clocks before and after: " in shown
    assert "not measured: tf32: a CPU has no tf32" in shown
    assert {p.name for p in (tmp_path / "out").iterdir()} == {BASELINES, ".store", "run.log"}
    assert found.accuracy["fp32"]["test"].images == 64
    assert found.size_bytes == weights.stat().st_size
    assert main([*arguments, *overrides, "--set", "measure.rounds=4"]) == 0
    assert "reused" in capfd.readouterr().out
    assert files.read(path).found.timing("fp32", 32).latency_ms.runs == 4
    assert main(["baseline", str(tmp_path / "none.yaml")]) == 2


def elsewhere(tmp_path: Path) -> Baseline:
    kept = files.read(files.save(of_gpu(), tmp_path))
    return kept.baseline(dataset(), classification)


def test_the_baseline_of_a_report_is_the_files(tmp_path: Path) -> None:
    found = elsewhere(tmp_path)
    assert (found.device, found.device_kind, found.measured_here) == (GPU, "gpu", False)
    assert found.accuracy == here().accuracy["fp32"]
    assert found.latency_ms == here().timing("fp32", 1).latency_ms
    assert found.origin is not None
    assert (found.origin.cpu, found.origin.measured_at) == ("Another CPU", DAY)
    assert found.origin.code == here().code
    assert Baseline.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(ValueError, match="measured_here is True"):
        Baseline(**dict(found) | {"measured_here": True})


def test_the_float_models_answers_are_the_baselines(tmp_path: Path) -> None:
    kept = files.read(files.save(of_gpu(), tmp_path))
    labels = dataset().tests["test"].labels
    ours = Predictions(labels=labels, float_model=torch.zeros(16), file=torch.ones(16))
    found = kept.answering({"test": ours})["test"]
    assert (found.labels is ours.labels, found.file is ours.file) == (True, True)
    assert tuple(found.float_model.tolist()) == here().named["test"]


def in_a_report(tmp_path: Path) -> Report:
    """A whole report against a baseline of another machine."""
    whole = reports.full(3)
    origin = elsewhere(tmp_path).origin
    changes = {"device": GPU, "device_kind": "gpu", "measured_here": False, "origin": origin}
    baseline = Baseline(**dict(whole.baseline) | changes)
    return Report(**dict(whole) | {"baseline": baseline})


def test_every_form_of_the_report_says_that_it_was_not_measured_here(tmp_path: Path) -> None:
    report = in_a_report(tmp_path)
    tree = report.model_dump(mode="json")
    jsonschema.validate(tree, json_schema())
    assert tree["baseline"]["origin"]["measured_at"] == DAY
    table = markup.rows(markdown.render(report))
    where = f"{GPU} (GPU, measured elsewhere on 2026-11-20)"
    assert table["float baseline"]["device"] == where
    assert "float on this CPU" in table
    said = f"not measured here, but on a machine with {GPU} and Another CPU, at 2026-11-20 10:11:12"
    assert said in markdown.render(report)
    page = html.render(report)
    assert page.count(said) == 2, "beside the cards, and under the setting"
    assert f"float baseline ({GPU}, measured elsewhere on 2026-11-20)" in page
    assert "float on this CPU" in page


def test_reports_of_one_baseline_combine_and_of_two_do_not(tmp_path: Path) -> None:
    one = in_a_report(tmp_path)
    (first, second, third) = (
        Report(**dict(one) | {"targets": (target,), "passed": target.passed})
        for target in one.targets
    )
    assert combine([first, second]).baseline == one.baseline
    here_too = Report(**dict(third) | {"baseline": reports.full(3).baseline})
    with pytest.raises(ValueError, match=r"baseline\.measured_here is False and True"):
        combine([first, here_too])


def test_a_timing_that_was_not_taken_is_named() -> None:
    with pytest.raises(KeyError, match="tf32, batch 1"):
        here().timing("tf32", 1)
