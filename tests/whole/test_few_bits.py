"""Weights of few bits, chosen for a download, through the real command line."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from pathlib import Path

import jsonschema
import pytest

from pipeline.report.records import Report, TargetResult
from pipeline.report.write import json_schema
from pipeline.stages.weights import COSTS, FORMS
from tests.making.cli import pocketnest
from tests.making.recipes import DEVICE_RECIPES, PLAIN_MODEL, settings

pytestmark = pytest.mark.slow

SHORT = (
    PLAIN_MODEL,
    "threads=1",
    "data.test_images=60",
    "data.calibration_images=60",
    "train.epochs=2",
    "prune=null",
    "guard.accuracy_drop_pt=null",
    "measure.rounds=3",
    "measure.warmup=1",
    "budgets=null",
)
LAYERS = ["stem.0", *(f"blocks.{n}.conv{k}" for n in (0, 1) for k in (1, 2)), "fc"]
FEW = "qat: {train: {epochs: 1}, weights: {forms: [int4, int8], download_mb: 0.0095}}"
ADAPTIVE = "qat: {train: {epochs: 0}, weights: {forms: [palette16], layers: {fc: int8}}}"
PLAIN = "qat: {train: {epochs: 1}}"


def recipe(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(f"extends: {DEVICE_RECIPES['onnx']}\n{text}\n")
    return file


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one network in one store: forms chosen, one form without training, plain int8."""
    folder = tmp_path_factory.mktemp("few-bits")
    recipes = [
        recipe(folder, name, text)
        for name, text in (("few", FEW), ("adaptive", ADAPTIVE), ("plain", PLAIN))
    ]
    done = pocketnest("run", *recipes, "--out", folder, *settings(*SHORT))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def target_of(folder: Path) -> TargetResult:
    text = (folder / "report.json").read_text()
    jsonschema.validate(json.loads(text), json_schema())
    (target,) = Report.model_validate_json(text).targets
    return target


@pytest.mark.parametrize("name", ["few", "adaptive", "plain"])
def test_every_gate_passes_and_every_weight_is_the_learned_one(name: str, out: Path) -> None:
    target = target_of(out / name)
    assert target.parity.misses == ()
    exact = target.scales_exact
    assert exact is not None
    assert exact.same == exact.total > 0
    assert exact.codes_same == exact.codes_total == 16 * 3 * 9 + 4 * 16 * 16 * 9 + 160


def test_the_report_has_the_form_of_every_layer_and_what_was_expected(out: Path) -> None:
    found = target_of(out / "few").weights
    assert found is not None
    assert [one.layer for one in found.layers] == LAYERS
    assert set(found.forms) == {"int4", "int8"}
    assert sum(one.layers for one in found.forms.values()) == 6
    assert all(one.loss is not None for one in found.layers)
    known = found.expected
    assert known.download_mb is not None
    assert 0 < known.download_mb <= 0.0095
    assert known.loss is not None
    assert known.divergence is not None
    assert known.loss == pytest.approx(sum(one.loss or 0 for one in found.layers))
    assert known.loss / 10 < known.divergence < 10 * known.loss


def test_forms_that_were_said_have_no_losses(out: Path) -> None:
    found = target_of(out / "adaptive").weights
    assert found is not None
    forms = {one.layer: one.form for one in found.layers}
    assert forms == {**dict.fromkeys(LAYERS, "palette16"), "fc": "int8"}
    known = found.expected
    assert (known.download_mb, known.loss, known.divergence) == (None, None, None)
    assert all(one.loss is None for one in found.layers)


def test_plain_int8_has_no_such_record_and_no_such_stage(out: Path) -> None:
    assert target_of(out / "plain").weights is None
    stages = json.loads((out / "plain" / "stages.json").read_text())
    assert "sensitivity" not in stages
    assert "sensitivity" in json.loads((out / "few" / "stages.json").read_text())


def test_the_file_is_about_as_large_as_predicted_and_the_download_smaller(out: Path) -> None:
    targets = {name: target_of(out / name) for name in ("few", "adaptive", "plain")}
    for name in ("few", "adaptive"):
        found = targets[name].weights
        assert found is not None
        assert found.expected.size_mb == pytest.approx(targets[name].size_mb, rel=0.25)
        assert targets[name].download_bytes < targets["plain"].download_bytes
    few = targets["few"].weights
    assert few is not None
    assert few.expected.download_mb == pytest.approx(targets["few"].download_bytes / 1e6, rel=0.35)


def test_it_is_said_at_the_terminal(out: Path) -> None:
    said = (out / "said.txt").read_text()
    assert re.search(r"sensitivity .*6 layers, \d+ images", said)
    assert re.search(r"layers' weights: \d in int\d, \d in int\d", said)
    assert "layers' weights: 5 in palette16, 1 in int8" in said
    rows = re.findall(r"^(few|adaptive|plain) .* (\d+)/\2 +all +passed *$", said, re.M)
    assert {name for name, _ in rows} == {"few", "adaptive", "plain"}


def test_the_pages_have_a_section_and_the_frontier(out: Path) -> None:
    for name, wanted in (("few", True), ("adaptive", True), ("plain", False)):
        markdown = (out / name / "report.md").read_text()
        page = (out / name / "report.html").read_text()
        assert ("## Bits of the weights" in markdown) is wanted
        assert (f"Bits of the weights of {name}, layer by layer" in page) is wanted
        assert "against download" not in page
    whole = (out / "combined" / "report.html").read_text()
    (label,) = re.findall(r'aria-label="(Top-1 against download[^"]*)"', whole)
    for name in ("few", "adaptive", "plain"):
        assert f"{name}: " in label


def test_inspect_lists_the_forms(out: Path, tmp_path: Path) -> None:
    table = tmp_path / "layers.csv"
    done = pocketnest("inspect", out / "adaptive", "--rounds", "2", "--csv", table)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^blocks\.0\.conv1 .* 4 bits, palette16 *$", done.stdout, re.M)
    assert re.search(r"^fc .* 8 bits, int8 *$", done.stdout, re.M)
    with table.open() as file:
        rows = {row["layer"]: row["form of weights"] for row in csv.DictReader(file)}
    assert {name: rows[name] for name in LAYERS} == {
        **dict.fromkeys(LAYERS, "palette16"),
        "fc": "int8",
    }
    plain = pocketnest("inspect", out / "plain", "--rounds", "2")
    assert "bits, int8" not in plain.stdout


def test_the_card_has_the_bits(out: Path, tmp_path: Path) -> None:
    done = pocketnest("bundle", out / "adaptive", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    (packed,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(packed) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("model_card.md")]
        card = archive.read(name).decode()
    assert "Bits of the weights: 1 layer in int8 (160 weights), 5 layers in palette16" in card
    assert re.search(r"exactly those that training learned, and (\d+) of \1 weights\.", card)


def test_another_limit_uses_the_costs_again(out: Path) -> None:
    """And one that no forms keep is refused in a line."""
    again = pocketnest("run", out / "few.yaml", "--out", out, *settings(*SHORT), "--explain")
    assert again.returncode == 0, again.stderr
    assert not re.search(r"^  \w+ +made", again.stdout, re.M)
    other = settings(*SHORT, "qat.weights.download_mb=0.001")
    explained = pocketnest("run", out / "few.yaml", "--out", out, *other, "--explain")
    assert re.search(r"^  sensitivity +reused", explained.stdout, re.M)
    assert re.search(r"^  qat +made", explained.stdout, re.M)
    refused = pocketnest("run", out / "few.yaml", "--out", out, *other)
    assert refused.returncode == 2
    assert "qat.weights.download_mb: got 0.001; with the fewest bits" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_stages_keep_costs_and_forms(out: Path) -> None:
    places = json.loads((out / "few" / "stages.json").read_text())
    assert (out / "few" / places["sensitivity"] / COSTS).is_file()
    assert (out / "few" / places["qat"] / FORMS).is_file()
    assert not (
        out / "plain" / json.loads((out / "plain" / "stages.json").read_text())["qat"] / FORMS
    ).exists()
