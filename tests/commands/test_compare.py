"""What changed between two runs: what is a regression and what is chance."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.commands.compare.change import Allowances, Change
from pipeline.commands.compare.changes import changes_between, mcnemar
from pipeline.commands.compare.table import markdown
from pipeline.formats.scales import ScalesExact
from pipeline.measure.latency import latency_of
from pipeline.report.records import all_met, budget
from pipeline.report.write import write_report
from pipeline.stages.finished_run import open_runs
from pipeline.tasks.accuracy import Accuracy, Changes, accuracy_drop_pt
from pipeline.tasks.predictions import PREDICTIONS, Predictions, write_predictions
from tests.making import reports
from tests.making.cli import pocketnest
from tests.making.recipes import device_recipe
from tests.making.runs import left_behind

NAME = "android-litert-int8"
IMAGES = 1000
RIGHT = 980


def run(
    folder: Path,
    right: int = RIGHT,
    *,
    shift: int = 0,
    kept: bool = True,
    classes: str = "0123456789",
    **changes: Any,
) -> Path:
    """A run whose file is right about the images from `shift` on, `right` of them."""
    folder.mkdir(parents=True)
    labels = [number % 10 for number in range(IMAGES)]
    named = [
        label if shift <= number < shift + right else (label + 1) % 10
        for number, label in enumerate(labels)
    ]
    accuracy = {"test": Accuracy(top1=right / IMAGES, top5=1.0, images=IMAGES)}
    base = {"test": Accuracy(top1=1.0, top5=1.0, images=IMAGES)}
    size = changes.pop("size_bytes", 6_800_000)
    latency = changes.pop("latency_ms", latency_of([20.0, 21.0, 22.0], threads=1, batch=1))
    drop = accuracy_drop_pt(base, accuracy)
    budgets = (budget("size_mb", 7.0, size / 1e6),)
    target = reports.target(
        NAME,
        size_bytes=size,
        accuracy=accuracy,
        accuracy_drop_pt=drop,
        latency_ms=latency,
        speedup=None if latency is None else 85.4 / latency.median,
        latency_missing="no phone" if latency is None else None,
        speedup_missing="no phone" if latency is None else None,
        budgets=budgets,
        passed=all_met(budgets),
        **changes,
    )
    data = reports.report().data.model_copy(update={"test_sets": {"test": IMAGES}})
    float_model = reports.float_model(accuracy=base)
    whole = reports.report(
        target, name=NAME, data=data, baseline=float_model, float_cpu=float_model
    )
    write_report(whole, folder)
    if kept:
        right = torch.tensor(labels)
        found = Predictions(labels=right, float_model=right, file=torch.tensor(named))
        write_predictions({"test": found}, folder / PREDICTIONS)
    return left_behind(folder, device_recipe(form="tflite"), classes=classes)


def found(old: Path, new: Path, **limits: float) -> dict[str, Change]:
    changes = changes_between(open_runs(old), open_runs(new), Allowances(**limits))
    return {one.what: one for one in changes}


def verdict(tmp_path: Path, what: str, **changes: Any) -> str:
    old, new = run(tmp_path / "old"), run(tmp_path / "new", **changes)
    return found(old, new)[what].verdict


def test_the_same_run_is_the_same(tmp_path: Path) -> None:
    changes = found(run(tmp_path / "old"), run(tmp_path / "new"))
    assert {one.verdict for one in changes.values()} == {"same"}
    assert markdown(list(changes.values())).startswith("**No regression**")


@pytest.mark.parametrize(
    ("right", "shift", "expected"),
    [
        (980, 0, "same"),
        (990, 0, "better"),
        (977, 0, "worse"),  # within the limit
        (970, 0, "regression"),  # 10 lost, none gained
        (972, 14, "worse"),  # 14 lost and 6 gained: past the limit, but may be chance
    ],
)
def test_accuracy(tmp_path: Path, right: int, shift: int, expected: str) -> None:
    assert verdict(tmp_path, "top-1 on test", right=right, shift=shift) == expected


@pytest.mark.parametrize(
    ("classes", "note"),
    [
        ("012345678x", "without 9; with x"),
        ("abcdefghij", "without 0, 1, 2, 3, 4, ...; with a, b, c, d, e, ..."),
        ("1023456789", "in another order"),
    ],
)
def test_runs_of_other_classes_are_not_compared(tmp_path: Path, classes: str, note: str) -> None:
    old, new = run(tmp_path / "old"), run(tmp_path / "new", classes=classes)
    (change,) = found(old, new).values()
    assert (change.what, change.verdict) == ("classes", "regression")
    assert change.note == f"{note}; nothing else is compared"


@pytest.mark.slow
def test_the_command_fails_for_other_classes(tmp_path: Path) -> None:
    old, new = run(tmp_path / "old"), run(tmp_path / "new", classes="012345678x")
    done = pocketnest("compare", old, new)
    assert done.returncode not in {0, 2}, done.stdout + done.stderr
    assert "without 9; with x; nothing else is compared" in done.stdout


def test_the_paired_test_is_said(tmp_path: Path) -> None:
    changes = found(run(tmp_path / "old"), run(tmp_path / "new", right=972, shift=14))
    assert changes["top-1 on test"].note == "-0.80 pt; 14 lost, 6 gained, p = 0.12"


def test_runs_without_predictions_are_judged_by_the_limit_alone(tmp_path: Path) -> None:
    old = run(tmp_path / "old")
    new = run(tmp_path / "new", right=972, shift=14, kept=False)
    change = found(old, new)["top-1 on test"]
    assert change.verdict == "regression"
    assert "not paired" in change.note


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([20.0, 21.0, 22.0], "same"),
        ([21.0, 23.5, 25.0], "same"),  # 12 % slower, but the intervals overlap
        ([22.0, 22.5, 23.0], "worse"),
        ([30.0, 31.0, 32.0], "regression"),
        ([10.0, 11.0, 12.0], "better"),
        (None, "unknown"),
    ],
)
def test_latency_is_judged_by_intervals(
    tmp_path: Path, samples: list[float] | None, expected: str
) -> None:
    latency = None if samples is None else latency_of(samples, threads=1, batch=1)
    assert verdict(tmp_path, "latency", latency_ms=latency) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [(6_700_000, "better"), (6_900_000, "worse"), (6_980_000, "regression")],
)
def test_size(tmp_path: Path, size: int, expected: str) -> None:
    assert verdict(tmp_path, "size", size_bytes=size) == expected


def test_a_budget_that_is_missed_now_is_a_regression(tmp_path: Path) -> None:
    assert verdict(tmp_path, "budget: size", size_bytes=7_000_001) == "regression"


def test_what_is_inside(tmp_path: Path) -> None:
    wrong = reports.parity(passed=False, misses=("99 % agree",), first_difference="conv1")
    scales = ScalesExact(same=190, total=192)
    changes = found(
        run(tmp_path / "old"),
        run(tmp_path / "new", parity=wrong, scales_exact=scales, int8_coverage=0.9, ops={"ADD": 2}),
    )
    for what in ("answers as its program", "scales as learned", "int8 share of MACs"):
        assert changes[what].verdict == "regression", what
    assert changes["operations"].note == "ADD 0 to 2, CONV_2D 60 to 0"
    assert next(iter(changes.values())).verdict == "regression", "worst first"


def test_weights_that_are_not_the_learned_ones_are_a_regression(tmp_path: Path) -> None:
    scales = ScalesExact(same=191, total=192, codes_same=9000, codes_total=10_000)
    changes = found(run(tmp_path / "old"), run(tmp_path / "new", scales_exact=scales))
    assert changes["scales as learned"].verdict == "same"
    one = changes["weights as learned"]
    assert (one.before, one.after, one.verdict) == ("9999/10000", "9000/10000", "regression")
    older = found(
        run(tmp_path / "older", scales_exact=ScalesExact(same=191, total=192)),
        run(tmp_path / "newer"),
    )
    assert "weights as learned" not in older, "it did not count them"


def test_forms_that_changed_are_named(tmp_path: Path) -> None:
    few, fewer = reports.few_bits(), reports.few_bits(("int8", "int4", "int4"))
    changes = found(run(tmp_path / "old", weights=few), run(tmp_path / "new", weights=fewer))
    one = changes["forms of weights"]
    assert (one.before, one.after) == ("1 int8, 1 int4, 1 palette16", "1 int8, 2 int4")
    assert (one.note, one.verdict) == ("layer3.conv palette16 to int4", "changed")
    plain = found(run(tmp_path / "plain"), run(tmp_path / "again", weights=few))
    assert plain["forms of weights"].before == "int8"
    assert (
        plain["forms of weights"].note == "layer2.conv int8 to int4, layer3.conv int8 to palette16"
    )
    same = found(run(tmp_path / "one", weights=few), run(tmp_path / "two", weights=few))
    assert same["forms of weights"].verdict == "same"


def test_limits_can_be_chosen(tmp_path: Path) -> None:
    old, new = run(tmp_path / "old"), run(tmp_path / "new", right=970, size_bytes=6_990_000)
    assert found(old, new)["size"].verdict == "regression"
    assert found(old, new, size_growth=0.05)["size"].verdict == "worse"
    assert found(old, new, accuracy_drop_pt=2.0)["top-1 on test"].verdict == "worse"


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    old, new = run(tmp_path / "old"), run(tmp_path / "new", right=900)
    done = pocketnest("compare", old, new)
    assert (done.returncode, done.stderr) == (3, "")
    first, _, head, *rows = done.stdout.splitlines()
    assert first.startswith("**1 regression**; ")
    assert head.startswith("| | target")
    assert rows[1].startswith(f"| regression | {NAME} | top-1 on test | 98.00 % | 90.00 % |")
    done = pocketnest("compare", old, new, "--accuracy-drop", "20", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["verdict"] == "worse"
    for bad in ("-1", "nan", "x"):
        done = pocketnest("compare", old, new, "--accuracy-drop", bad)
        assert done.returncode == 2
        assert "must be a number of at least 0" in done.stderr


def test_other_targets_cannot_be_compared(tmp_path: Path) -> None:
    old, new = open_runs(run(tmp_path / "old")), open_runs(run(tmp_path / "new"))
    other = [one for one in new]
    other[0] = type(other[0])(
        **vars(other[0]) | {"recipe": other[0].recipe.model_copy(update={"name": "other"})}
    )
    with pytest.raises(InputError, match="no target is in both"):
        changes_between(old, other, Allowances())
    names = {one.target: one.verdict for one in changes_between(old, [*new, *other], Allowances())}
    assert names["other"] == "changed"
    names = {one.target: one.verdict for one in changes_between([*old, *other], new, Allowances())}
    assert names["other"] == "worse"


@settings(deadline=None)  # the first one imports scipy
@given(lost=st.integers(0, 60), gained=st.integers(0, 60))
def test_mcnemar_is_an_exact_binomial_test(lost: int, gained: int) -> None:
    found = mcnemar(Changes(kept=1, lost=lost, gained=gained, neither=1))
    discordant = lost + gained
    tail = sum(comb(discordant, i) for i in range(min(lost, gained) + 1))
    if discordant == 0:
        assert found == 1
    else:
        assert found == pytest.approx(min(1.0, 2 * tail / 2**discordant), rel=1e-9)
    assert mcnemar(Changes(kept=9, lost=gained, gained=lost, neither=0)) == found


def test_mcnemar_by_hand() -> None:
    # 10 lost, 2 gained: 2 (C(12, 0) + C(12, 1) + C(12, 2)) / 2^12
    expected = 2 * (comb(12, 0) + comb(12, 1) + comb(12, 2)) / 2**12
    assert mcnemar(Changes(kept=0, lost=10, gained=2, neither=0)) == pytest.approx(expected)
