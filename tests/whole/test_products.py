"""A whole run whose Core ML package multiplies tensors in another form: every gate is passed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.formats.coreml import faults, package
from tests.making.cli import pocketnest
from tests.making.recipes import DEVICE_RECIPES, settings

pytestmark = pytest.mark.slow

SHORT = (
    "model={name: resnest50, layers: [1, 1, 1, 1], width_multiplier: 0.125, input_size: 32}",
    "threads=1",
    "data.test_images=60",
    "data.calibration_images=60",
    "train.epochs=1",
    "prune=null",
    "qat.train.epochs=1",
    "guard.accuracy_drop_pt=null",
    "measure.rounds=3",
    "measure.warmup=1",
    "budgets=null",
)


def test_every_gate_passes_and_no_stage_but_the_files_is_made_anew(tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", DEVICE_RECIPES["coreml"]
    found = {}
    for products in ("quantized", "float16"):
        done = pocketnest(
            "run", recipe, "--out", out, *settings(*SHORT, f"target.products={products}")
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (target,) = json.loads((out / recipe.stem / "report.json").read_text())["targets"]
        assert target["parity"]["misses"] == []
        assert target["parity"]["layers_alike"] == target["parity"]["layers"] > 10
        assert target["scales_exact"]["same"] == target["scales_exact"]["total"] > 0
        assert target["int8_coverage"] == 1
        found[products] = target
        network = package.read(out / recipe.stem / "model.mlpackage")
        kinds = [op.type for op in network.operations]
        assert ("clip" in kinds) is (products == "float16")
        spared = faults.with_fault(network, "both factors are given the product's scale") is network
        assert spared is (products == "float16")
    for figure in ("accuracy", "parity", "agreement"):
        assert found["float16"][figure] == found["quantized"][figure]
    assert len(list((out / ".store").glob("train-*"))) == 1
    assert len(list((out / ".store").glob("fold-*"))) == 1
