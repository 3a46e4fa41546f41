"""Pruning by a latency and sparse weights, by the real command line on a network of six layers."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.prune import goal_of, take_shapes
from pipeline.formats.formats import FORMATS
from pipeline.networks.families import family_of
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.stages.known import KNOWN
from tests.making.cli import pocketnest
from tests.making.recipes import DEVICE_RECIPES, PLAIN_MODEL, RECIPES, SHORT, settings
from tests.making.runs import narrow_runs

pytestmark = pytest.mark.slow

PLAIN = (PLAIN_MODEL, "model.arguments={channels: 32}", *SHORT)
TIME = (
    *("prune.macs=null", "prune.latency=0.9", "prune.criterion=taylor", "prune.scope=network"),
    *("prune.round_to=2", "budgets.accuracy_drop_pt=null"),
    # Where fixed costs are most of so small a network's time, hardly a channel is left.
    "guard.accuracy_drop_pt=null",
)
SPARSE = RECIPES / "more" / "iphone-coreml-w8a8-sparse.yaml"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of a shorter time, dense and sparse Core ML packages, distilled."""
    directory = tmp_path_factory.mktemp("pruning") / "artifacts"
    distilled = ("prune.distill={}", "qat.distill={features: 100}")
    # A search takes other widths on every machine; on one with AMX, ONNX Runtime 1.23 gets some
    # of them wrong, and the gate would rightly stop the run.
    arguments = ["--out", directory, "--allow-mismatch", *settings(*PLAIN, *TIME, *distilled)]
    done = pocketnest("run", DEVICE_RECIPES["onnx"], *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    done = plain_run([DEVICE_RECIPES["coreml"], SPARSE], directory, "prune.steps=2")
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def plain_run(
    recipes: Sequence[Path], out: Path, *overrides: str
) -> subprocess.CompletedProcess[str]:
    """`pocketnest run` on the network of six layers."""
    return pocketnest("run", *recipes, "--out", out, *settings(*PLAIN, *overrides))


def target_of(out: Path, name: str) -> dict[str, Any]:
    report = json.loads((out / name / "report.json").read_text())
    (target,) = report["targets"]
    assert isinstance(target, dict)
    return target


def test_a_time_is_searched_for_timed_and_reported(out: Path) -> None:
    """How near it comes is for a quiet machine to say; docs/measurements.md has the figures."""
    pruning = target_of(out, "linux-arm-onnxruntime-int8")["pruning"]
    assert (pruning["goal"], pruning["asked"], pruning["unit"]) == ("latency", 0.9, "share")
    assert 0 < pruning["predicted"] <= 1
    assert pruning["reached"] == pruning["reached_share"] > 0
    assert 0 < pruning["first_measured"] < 2
    stages = json.loads((out / "linux-arm-onnxruntime-int8" / "stages.json").read_text())
    times = out / "linux-arm-onnxruntime-int8" / stages["times"]
    samples = json.loads((times / "samples.json").read_text())
    assert len({json.dumps(sample["widths"]) for sample in samples}) == len(samples) > 10
    text = (out / "linux-arm-onnxruntime-int8" / "report.md").read_text()
    assert "| time of the file | 0.900 |" in text


def test_what_was_timed_is_not_timed_again(out: Path) -> None:
    overrides = settings(*PLAIN, *TIME, "prune.criterion=l1")
    done = pocketnest("run", DEVICE_RECIPES["onnx"], "--out", out, "--until", "times", *overrides)
    assert "times     reused" in done.stdout, done.stdout + done.stderr


def test_zeros_stay_and_are_not_stored(out: Path) -> None:
    dense = target_of(out, "iphone-coreml-w8a8")
    sparse = target_of(out, "iphone-coreml-w8a8-sparse")
    assert dense["sparsity"] is None
    assert sparse["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert sparse["size_bytes"] < dense["size_bytes"]
    assert sparse["scales_exact"]["same"] == sparse["scales_exact"]["total"]
    assert sparse["int8_coverage"] == 1.0
    assert "constexpr_sparse_to_dense" in sparse["ops"]
    weights = list(out.glob(".store/qat-*/weights.safetensors"))
    shares = [zero_share(path) for path in weights]
    assert max(shares) > 0.4
    assert sorted(shares)[0] < 0.01


def zero_share(weights: Path) -> float:
    convs = [
        w for name, w in load_file(weights).items() if name.endswith(".weight") and w.dim() == 4
    ]
    return float(sum((w == 0).sum() for w in convs) / sum(w.numel() for w in convs))


def test_pruning_in_steps_trains_between(out: Path) -> None:
    (curve,) = [
        json.loads(path.read_text())
        for path in out.glob(".store/prune-*/curve.json")
        if len(json.loads(path.read_text())) == 3
    ]
    assert [point["epoch"] for point in curve] == [1, 1, 2]


@pytest.mark.parametrize("form", ["onnx", "coreml"])
def test_the_size_of_a_file_is_known_before_it_is_written(form: str, tmp_path: Path) -> None:
    """Of a ResNeSt, whose file is more than what is the same in every file."""
    out = narrow_runs(tmp_path / "artifacts")
    name = {"onnx": "linux-arm-onnxruntime-int8", "coreml": "iphone-coreml-w8a8"}[form]
    (recipe,) = load_recipes([out / name / "recipe.yaml"], known=KNOWN)
    stages = json.loads((out / name / "stages.json").read_text())
    family = family_of(recipe.model)
    model = family.prunable(family.build(recipe.model, 10).eval())
    take_shapes(model, load_file(out / name / stages["prune"] / "weights.safetensors"))
    assert recipe.prune is not None
    config = recipe.prune.model_copy(update={"macs": None, "latency": None, "size_mb": 1.0})
    goal = goal_of(family, model, square(32), config, FORMATS[form].bytes["int8"])
    groups = groups_of(model, square(32), family.structure(model))
    estimate = goal.cost.of({group.name: group.channels for group in groups})
    assert estimate == pytest.approx(target_of(out, name)["size_bytes"] / 1e6, rel=0.05)


def test_inspect_shows_the_layers_before_and_after_with_their_times(
    out: Path, tmp_path: Path
) -> None:
    file = tmp_path / "layers.csv"
    done = pocketnest("inspect", out / "linux-arm-onnxruntime-int8", "--rounds", "3", "--csv", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "blocks.0.conv2" in done.stdout
    rows = {row["layer"]: row for row in csv.DictReader(file.open(encoding="utf-8"))}
    conv = rows["blocks.1.conv2"]
    assert (conv["kernel"], conv["groups"]) == ("3x3", "1")
    inputs = int(rows["blocks.1.conv1"]["outputs before"])
    outputs, places = int(conv["outputs before"]), int(conv["height"]) * int(conv["width"])
    assert int(conv["params before"]) == outputs * inputs * 9 + outputs
    assert int(conv["macs before"]) == outputs * inputs * 9 * places
    assert int(conv["outputs after"]) <= outputs
    assert float(conv["milliseconds"]) > 0
    assert sum(float(row["share of time"] or 0) for row in rows.values()) == pytest.approx(1.0)
    pruned = sum(int(row["macs after"] or 0) for row in rows.values())
    report = json.loads((out / "linux-arm-onnxruntime-int8" / "report.json").read_text())
    assert pruned == next(s["macs"] for s in report["stages"] if s["name"] == "prune")


def test_inspect_shows_a_recipes_network() -> None:
    done = pocketnest("inspect", DEVICE_RECIPES["onnx"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "fc  " in done.stdout
    assert "111,441,920" in done.stdout  # MACs at 32 x 32
    missing = pocketnest("inspect", "nowhere.yaml")
    assert missing.returncode == 2
    assert "nowhere.yaml" in missing.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("prune.macs=0.001",),
            r"prune.macs: got 0.001; .* at the least; .* Layers at their floor",
        ),
        (("prune.latency=0.01",), "prune.latency: got 0.01;"),
    ],
)
def test_a_target_out_of_reach_ends_before_training(
    out: Path, overrides: tuple[str, ...], message: str
) -> None:
    known = set(out.glob(".store/*"))
    extra = (*TIME, *overrides) if "latency" in overrides[0] else overrides
    done = plain_run([DEVICE_RECIPES["onnx"]], out, *extra)
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(part in done.stderr for part in message.split(" .* "))
    assert "Traceback" not in done.stderr
    assert "fine-tune" not in done.stdout
    assert not {path for path in set(out.glob(".store/*")) - known if path.name.startswith("prune")}


def test_a_time_needs_a_runtime_that_runs_here(out: Path) -> None:
    done = plain_run([DEVICE_RECIPES["coreml"]], out, *TIME)
    assert done.returncode == 2
    assert "prune.latency: coreml files cannot be timed here" in done.stderr
    done = plain_run([DEVICE_RECIPES["onnx"]], out, *TIME, "target.precision=float")
    assert done.returncode == 2
    assert "prune.latency: layers are timed in int8 files" in done.stderr


def test_a_run_can_end_after_a_stage(out: Path) -> None:
    arguments = ["run", DEVICE_RECIPES["onnx"], "--out", out, *settings(*PLAIN)]
    done = pocketnest(*arguments, "--until", "train")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].split()[:2] == ["train", "reused"]
    wrong = pocketnest(*arguments, "--until", "nothing")
    assert wrong.returncode == 2
    assert "--until: got 'nothing'; must be one of train, baseline, times, prune" in wrong.stderr
