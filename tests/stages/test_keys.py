"""What makes a stage anew, and what does not: keys hold all that decides a result, and no more."""

from __future__ import annotations

import ast
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.machine import TOOLS, HostInfo
from pipeline.base.store import key_of
from pipeline.formats.formats import FORMATS
from pipeline.networks.checkpoints import WEIGHTS
from pipeline.recipe.recipe import load_recipes
from pipeline.stages import fold, prune, qat, schedule, sparsify, train
from pipeline.stages.context import PROGRAM, Context
from pipeline.stages.graph import STAGES
from pipeline.stages.schedule import PACKAGE, stage_ingredients
from tests.making import networks
from tests.making.recipes import DEVICE_RECIPES, RECIPES

SPARSE = RECIPES / "more" / "iphone-coreml-w8a8-sparse.yaml"
A_TIME = ("prune.macs=null", "prune.latency=0.9")
OF_FORMAT = {name: (form.package, *form.writers) for name, form in FORMATS.items()}
JUDGED = {"baseline", "judge_prune", "judge_fold", "verify", "measure"}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "ai_edge_litert": "ai-edge-litert",
    "neural_compressor": "neural-compressor",
    "sklearn": "scikit-learn",
    "torch_pruning": "torch-pruning",
}
"""Of packages that are not imported by their own name."""


def context(recipe: Path = DEVICE_RECIPES["onnx"], *overrides: str) -> Context:
    (found,) = load_recipes([recipe], overrides)
    return Context(
        recipe=found,
        dataset=networks.dataset(),
        tracked=lambda title, total: nullcontext(lambda done, text: None),
    )


def keys(about: Context) -> dict[str, str]:
    """Of every stage that a recipe needs."""
    found: dict[str, str] = {}
    for stage in STAGES:
        if stage.needed(about.recipe):
            found[stage.name] = key_of(stage_ingredients(stage, about, found))
    return found


def test_a_network_that_pruning_leaves_as_it_was_is_not_judged_again() -> None:
    assert "judge_prune" in keys(context())
    assert "judge_prune" not in keys(context(DEVICE_RECIPES["onnx"], "prune=null"))


def anew(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, key in before.items() if after[name] != key}


def bumped(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(
        schedule, "_version_of", lambda name: "0.0.1" if name == package else version(name)
    )


# The test sets


def test_another_test_set_trains_nothing_anew() -> None:
    about = context()
    other = replace(about.dataset, sha256="2" * 64)
    assert anew(keys(about), keys(replace(about, dataset=other))) == JUDGED


def test_nor_does_it_sparsify_or_time_anew() -> None:
    for about in (context(SPARSE), context(DEVICE_RECIPES["onnx"], *A_TIME)):
        other = replace(about.dataset, sha256="2" * 64)
        found = anew(keys(about), keys(replace(about, dataset=other)))
        assert found == JUDGED | ({"judge_sparsify"} if about.recipe.sparsify else set())
        assert "times" not in found


def test_other_training_images_make_everything_anew() -> None:
    about = context()
    other = replace(about.dataset, sha256="2" * 64, training_sha256="3" * 64)
    assert anew(keys(about), keys(replace(about, dataset=other))) == set(keys(about))


@pytest.mark.slow
def test_no_weight_depends_on_a_test_set(tmp_path: Path) -> None:
    """The stages whose keys have no test set work without one."""
    short = ("model.name=resnest14", "model.width_multiplier=0.25", "train.epochs=0")
    short += ("prune.finetune.epochs=0", "sparsify.train.epochs=4", "qat.train.epochs=1")
    about = context(SPARSE, *short)
    about = replace(about, dataset=replace(about.dataset, tests={}))
    inputs = {name: tmp_path / name for name in ("train", "prune", "sparsify", "qat", "fold")}
    for place in inputs.values():
        place.mkdir()
    for stage in (train.STAGE, prune.STAGE, sparsify.STAGE, qat.STAGE, fold.STAGE):
        assert not stage.sees_tests
        stage.make(about, inputs, inputs[stage.name])
        assert (inputs[stage.name] / (PROGRAM if stage is fold.STAGE else WEIGHTS)).is_file()


# Versions of packages


@pytest.mark.parametrize(
    ("package", "form", "expected"),
    [
        ("coremltools", "coreml", {"export", "verify", "measure"}),
        ("coremltools", "onnx", set()),
        ("coremltools", "tflite", set()),
        ("onnx2tf", "tflite", {"export", "verify", "measure"}),
        ("tensorflow", "tflite", {"export", "verify", "measure"}),
        ("ai-edge-litert", "tflite", {"export", "verify", "measure"}),
        ("ai-edge-litert", "onnx", set()),
        ("tensorflow", "onnx", set()),
        ("onnxruntime", "onnx", {"export", "verify", "measure"}),
        ("onnxruntime", "coreml", set()),
        ("neural-compressor", "onnx", set()),
        ("torchao", "onnx", {"qat", "fold", "judge_fold", "export", "verify", "measure"}),
    ],
)
def test_another_version_counts_where_the_package_is_used(
    package: str, form: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = context(DEVICE_RECIPES[form])
    before = keys(about)
    bumped(monkeypatch, package)
    assert anew(before, keys(about)) == expected


def test_what_prunes_trains_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    about = context(SPARSE)
    before = keys(about)
    bumped(monkeypatch, "torch-pruning")
    assert anew(before, keys(about)) == before.keys() - {"train", "baseline"}
    bumped(monkeypatch, "neural-compressor")
    later = {"sparsify", "judge_sparsify", "qat", "fold", "judge_fold"}
    assert anew(before, keys(about)) == later | {"export", "verify", "measure"}
    bumped(monkeypatch, "torch")
    assert anew(before, keys(about)) == set(before)


def imported(path: Path) -> set[str]:
    """Packages of `TOOLS` that a module imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module or "")
    found = {name.split(".")[0] for name in names}
    return {DISTRIBUTIONS.get(name, name) for name in found} & set(TOOLS)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_package_that_a_stages_code_imports_is_in_its_key(stage: Any) -> None:
    known = set(stage.packages)
    for form in OF_FORMAT.values() if stage.of_format else ():
        known |= set(form)
    used: set[str] = set()
    for name in stage.code:
        place = PACKAGE / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            if path.name == "sparsify.py" and stage.name != "sparsify":
                continue  # they take the zeros from it, and not what sets them
            used |= imported(path)
    assert used - known <= ({"pillow"} if stage.name == "export" else set())
    assert used, "a stage computes something"


def test_every_tool_is_in_some_key() -> None:
    every = {name for stage in STAGES for name in stage.packages}
    assert every | {name for form in OF_FORMAT.values() for name in form} == set(TOOLS)


# The machine


def test_another_host_judges_anew_and_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    about = context()
    before = keys(about)
    other = HostInfo(cpu="Another CPU", cores=64, gpu=None)
    monkeypatch.setattr(schedule, "host_info", lambda: other)
    assert anew(before, keys(about)) == JUDGED


def test_a_time_is_that_of_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    about = context(DEVICE_RECIPES["onnx"], *A_TIME)
    before = keys(about)
    other = HostInfo(cpu="Another CPU", cores=64, gpu=None)
    monkeypatch.setattr(schedule, "host_info", lambda: other)
    assert anew(before, keys(about)) == before.keys() - {"train"}


def test_bfloat16_counts_where_it_is_trained_in(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = ("train.precision=float32", "prune.finetune.precision=float32")
    float32 = context(DEVICE_RECIPES["onnx"], *exact)
    found = []
    for has in (False, True):
        monkeypatch.setattr(schedule, "has_bfloat16", lambda has=has: has)
        found.append((keys(context()), keys(float32)))
    (auto, full), (auto_too, full_too) = found
    assert anew(auto, auto_too) == set(auto)
    assert anew(full, full_too) == set()


def test_a_gpu_counts_where_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {stage.name for stage in STAGES if stage.on_device}
    assert names == {"train", "baseline", "prune", "sparsify", "qat"}
