"""A stage that costs far more accuracy than any should ends the run; what was good is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import __main__
from pipeline.base.errors import InputError, MismatchError
from pipeline.base.store import Result
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.target import GuardConfig
from pipeline.stages import graph, guard
from pipeline.stages.context import Context, Inputs
from pipeline.stages.guard import refuse_collapse
from pipeline.stages.judge import JUDGES
from pipeline.stages.stage import Stage, StageFacts
from pipeline.stages.verify import VerifyFacts
from tests.making import reports
from tests.making.recipes import DEVICE_RECIPES, device_recipe

NAME = DEVICE_RECIPES["onnx"].stem
TOP1 = {"train": None, "baseline": 0.95, "prune": 0.9, "sparsify": 0.92, "fold": 0.91}


def recipe(*overrides: str) -> Recipe:
    return device_recipe(*overrides)


def results(top1: Mapping[str, float | None]) -> dict[str, Result[Any]]:
    return {
        stage: Result(
            stage=stage,
            key="0",
            directory=Path("store") / stage,
            facts=StageFacts(figure=value),
            seconds=1.0,
            reused=False,
        )
        for stage, value in _tested(top1)
    }


def _tested(top1: Mapping[str, float | None]) -> Iterator[tuple[str, float | None]]:
    """Where a stage leaves weights, another one tests them."""
    for stage, value in top1.items():
        if stage in JUDGES:
            yield stage, None
        yield (JUDGES[stage].name if stage in JUDGES else stage), value


def judge(top1: Mapping[str, float | None], *overrides: str) -> None:
    """As a run does: every result is there when it is judged."""
    found: dict[str, Result[Any]] = {}
    for stage, result in results(top1).items():
        found[stage] = result
        refuse_collapse(recipe(*overrides), found, result)


def refusal(top1: Mapping[str, float | None], *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        judge(top1, *overrides)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_healthy_run_passes() -> None:
    judge(TOP1)
    judge({"train": None, "baseline": 0.1, "prune": 0.09, "fold": 0.12})
    judge({"train": None, "baseline": 0.9, "prune": 0.6})  # thirty points are allowed


def test_a_collapse_names_stage_accuracies_limit_fix_and_the_last_good_network() -> None:
    assert refusal(TOP1 | {"prune": 0.1}) == (
        f"{NAME}: top-1 is 10.00% after prune, 85.00 points below the 95.00% of baseline; "
        "guard.accuracy_drop_pt allows 30; remove less, or raise prune.finetune.epochs; or raise "
        "that (null: no limit), and the next run goes on from here; the last good network, that "
        "of train, lies in store/train"
    )


@pytest.mark.parametrize(
    ("stage", "fix", "good"),
    [
        ("sparsify", "lower sparsify.sparsity, or raise sparsify.train.epochs", "prune"),
        ("fold", "raise qat.train.epochs, or lower qat.train.learning_rate", "sparsify"),
        ("verify", "try target.precision float", "fold"),
        ("measure", "try target.precision float", "export"),
    ],
)
def test_every_stage_has_its_fix(stage: str, fix: str, good: str) -> None:
    files = {"export": None, "verify": 0.9, "measure": 0.9}
    line = refusal(TOP1 | files | {stage: 0.5})
    assert f"50.00% after {stage}, 45.00 points below the 95.00% of baseline; " in line
    assert f" allows 30; {fix}; " in line
    assert line.endswith(f"that of {good}, lies in store/{good}")


def test_the_best_stage_before_counts() -> None:
    better = TOP1 | {"baseline": 0.5, "prune": 0.9, "sparsify": 0.55}
    assert "35.00 points below the 90.00% of prune;" in refusal(better)


def test_the_limit_is_the_recipes() -> None:
    assert recipe().guard == GuardConfig(accuracy_drop_pt=30)
    assert "allows 1.5;" in refusal(TOP1, "guard.accuracy_drop_pt=1.5")
    low = TOP1 | {"fold": 0.0}
    judge(low, "guard.accuracy_drop_pt=96")
    judge(low, "guard.accuracy_drop_pt=null")
    with pytest.raises(InputError, match=r"guard\.accuracy_drop_pt: got 0; must be a number > 0"):
        recipe("guard.accuracy_drop_pt=0")


def test_the_limit_is_in_no_key() -> None:
    for stage in graph.STAGES:
        reads = stage.reads + stage.also_reads(recipe())
        assert not [name for name in reads if name.split(".")[0] == "guard"], stage.name


# In a run


MADE: list[str] = []


def stage(name: str, top1: float | None) -> Stage[StageFacts]:
    def make(context: Context, inputs: Inputs, out: Path) -> StageFacts:
        MADE.append(name)
        (out / "weights").touch()
        return StageFacts(figure=top1)

    return Stage(
        name=name,
        make=make,
        facts=StageFacts,
        after=(),
        reads=("model", "prune"),
        packages=(),
        code=("base/errors.py",),
    )


@pytest.fixture
def collapsing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages in place of the real ones, the third of which ruins the network; those made."""
    top1 = {"train": None, "baseline": 0.9, "prune": 0.2, "fold": 0.2}
    monkeypatch.setattr(graph, "STAGES", tuple(stage(name, value) for name, value in top1.items()))
    MADE.clear()
    return MADE


def test_a_run_ends_with_exit_code_2_and_goes_on_with_another_limit(
    collapsing: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(DEVICE_RECIPES["onnx"]), "--out", str(tmp_path), "--until", "fold"]
    for times in (1, 2):
        assert __main__.main(arguments) == 2
        error = capsys.readouterr().err
        assert f"error: {NAME}: top-1 is 20.00% after prune, 70.00 points below" in error
        assert error.count("\n") == 1, times
        (good,) = tmp_path.glob(".store/train-*")
        assert error.endswith(f"lies in {good}\n")
        assert (good / "weights").exists()
    assert collapsing == ["train", "baseline", "prune"], "what collapsed is kept"
    assert __main__.main([*arguments, "--set", "guard.accuracy_drop_pt=80"]) == 0
    assert collapsing == ["train", "baseline", "prune", "fold"]


def test_files_that_may_differ_may_be_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --allow-mismatch; without it the difference itself stops the run."""
    found = results({"train": None, "baseline": 0.9, "fold": 0.9, "export": None, "verify": 0.1})
    facts = VerifyFacts(
        runtime="runtime 1",
        evaluated="runtime",
        ops={"Conv": 1},
        partitions=None,
        outside=(),
        takes="an image",
        gives="logits",
        int8_coverage=1.0,
        scales_exact=None,
        parity=reports.parity(passed=False, misses=("all",)),
        agreement=0.1,
        agreement_images=1,
        golden=(0,),
        figure=0.1,
    )
    found["verify"] = replace(found["verify"], facts=facts)
    guard.judged(recipe(), found, True, found["verify"])
    with pytest.raises(MismatchError):
        guard.judged(recipe(), found, False, found["verify"])
    worse = results({"baseline": 0.9, "fold": 0.1})
    for allowed in (False, True):
        with pytest.raises(InputError, match="after fold"):
            guard.judged(recipe(), {"train": found["train"], **worse}, allowed, worse["judge_fold"])
