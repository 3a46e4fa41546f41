"""What `verify` asks of which images: gates on a sample, accuracy on whole test sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.compress.quantization import program
from pipeline.recipe.recipe import load_recipes
from pipeline.report import words
from pipeline.stages import judge, verify
from pipeline.stages.context import LOGITS, PROGRAM, Context
from pipeline.stages.exported import CALIBRATION
from pipeline.stages.known import KNOWN
from pipeline.tasks.images.dataset import sample_rows
from tests.making import networks, programs
from tests.making.recipes import DEVICE_RECIPES
from tests.making.runs import context

MOST, TESTED = 500, 540
pytestmark = pytest.mark.slow


@pytest.fixture
def about() -> Context:
    (recipe,) = load_recipes([DEVICE_RECIPES["onnx"]], [f"verify.images={MOST}"], KNOWN)
    dataset = networks.dataset()
    tests = {"test": networks.dataset(TESTED, seed=5).train, "few": networks.dataset(7).train}
    return replace(context(recipe), dataset=replace(dataset, tests=tests))


@pytest.fixture
def inputs(about: Context, tmp_path: Path) -> dict[str, Path]:
    """What comes before `verify`, with the program's logits as `judge_fold` leaves them."""
    places = {name: tmp_path / name for name in ("export", "fold", "judge_fold", "verify")}
    for place in places.values():
        place.mkdir()
    (places["export"] / "model.onnx").write_bytes(programs.file_of("onnx").read_bytes())
    program.save(programs.quantized("radix2").program, places["fold"] / PROGRAM)
    return places


def test_gates_are_taken_on_a_sample_and_accuracy_on_all(
    about: Context, inputs: dict[str, Path]
) -> None:
    judged = judge.judge_program(about, inputs, inputs["judge_fold"])
    found = verify.verify(about, inputs, inputs["verify"])
    wanted = torch.load(inputs["judge_fold"] / LOGITS)
    answers = torch.load(inputs["verify"] / LOGITS)
    tests = about.dataset.tests
    lengths = {"test": MOST, "few": 7, CALIBRATION: 16}
    assert {name: len(logits) for name, logits in wanted.items()} == lengths
    assert {n: len(logits) for n, logits in answers.items()} == lengths | {"test": TESTED}
    rows = sample_rows(tests["test"], MOST)
    named = answers["test"].argmax(1)
    assert found.agreement == float(
        torch.cat([named[rows], answers["few"].argmax(1)])
        .eq(torch.cat([wanted["test"].argmax(1), wanted["few"].argmax(1)]))
        .double()
        .mean()
    )
    assert found.figure == float((named == tests["test"].labels).double().mean())
    assert found.agreement_images == MOST + 7
    assert (found.parity.images, found.parity.available) == (MOST + 7 + 16, TESTED + 7 + 16)
    assert words.answered(found.parity) == "523 of 563"
    right = wanted["test"].argmax(1) == tests["test"].labels[rows]
    assert judged is not None
    assert (judged.figure, judged.figure_images) == (float(right.double().mean()), MOST)
    assert judged.told("top-1") == [f"top-1 {judged.figure:.2%} (of {MOST} images)"]


def test_a_wrong_answer_in_the_sample_is_a_miss(about: Context, inputs: dict[str, Path]) -> None:
    judge.judge_program(about, inputs, inputs["judge_fold"])
    wanted = torch.load(inputs["judge_fold"] / LOGITS)
    wanted["test"][:6] = -wanted["test"][:6]
    torch.save(wanted, inputs["judge_fold"] / LOGITS)
    assert not verify.verify(about, inputs, inputs["verify"]).parity.passed


def test_an_answer_that_is_no_number_is_a_miss_wherever_it_lies(
    about: Context, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.judge_program(about, inputs, inputs["judge_fold"])
    left = torch.ones(TESTED, dtype=torch.bool)
    left[sample_rows(about.dataset.tests["test"], MOST)] = False
    asked = verify.answers_to_tests

    def spoilt(*given: object) -> dict[str, torch.Tensor]:
        found = asked(*given)  # type: ignore[arg-type]
        found["test"][left.nonzero().flatten()[0]] = torch.nan
        return found

    monkeypatch.setattr(verify, "answers_to_tests", spoilt)
    found = verify.verify(about, inputs, inputs["verify"]).parity
    assert found.misses == (f"the logits of 1 of {TESTED} images of test are NaN or infinite",)


def test_few_images_are_all_taken(about: Context, inputs: dict[str, Path]) -> None:
    few = replace(about, dataset=networks.dataset())
    judged = judge.judge_program(few, inputs, inputs["judge_fold"])
    assert judged is not None
    assert judged.figure_images is None
    found = verify.verify(few, inputs, inputs["verify"])
    assert found.parity.images == found.parity.available == 32
    assert words.answered(found.parity) == "32"


def test_too_small_a_sample_is_refused() -> None:
    with pytest.raises(InputError, match=r"verify\.images: got 499; must be a whole number >= 500"):
        load_recipes([DEVICE_RECIPES["onnx"]], ["verify.images=499"], KNOWN)
