"""Several labels an image: loss, metric, decisions, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional as F

from pipeline.base.errors import InputError
from pipeline.compress.training.distill import soft_target_loss
from pipeline.measure.baseline.record import FloatBaseline, _is_of_others
from pipeline.recipe.data import DigitsData
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.recipe.task import TaskConfig
from pipeline.recipe.training import TrainConfig
from pipeline.stages.known import KNOWN
from pipeline.tasks.label_accuracy import LabelAccuracy
from pipeline.tasks.multilabel import Multilabel, logit_of
from pipeline.tasks.precision import average_precision, micro_f1
from pipeline.tasks.predictions import Predictions, read_predictions, write_predictions
from pipeline.tasks.tasks import TASKS
from tests.making import networks
from tests.making.recipes import DEVICE_RECIPES

TASK = Multilabel(threshold=0.5)
Z = torch.tensor([[2.0, -1.0, 0.5], [-0.25, 0.0, 3.0], [-4.0, -0.5, -1.0], [1.0, 1.0, -2.0]])
LABELS = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 0, 1]], dtype=torch.uint8)
NAMES = ("ant", "bee", "cat")


# The loss


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 1, "batch_size": 2, "learning_rate": 0.1} | changes)


def test_the_loss_is_binary_cross_entropy_of_every_label() -> None:
    expected = F.binary_cross_entropy_with_logits(Z, LABELS.float())
    assert torch.allclose(TASK.loss()(Z, LABELS), expected)
    smoothed = F.binary_cross_entropy_with_logits(Z, 0.9 * LABELS + 0.05)
    assert torch.allclose(TASK.loss(config(label_smoothing=0.1))(Z, LABELS), smoothed)


def test_labels_of_mixed_images_count_by_their_images_share() -> None:
    torch.manual_seed(0)
    mix = TASK.mixer(config(mixup=0.5), 3)
    assert mix is not None
    images = torch.rand(4, 3, 8, 8)
    mixed, targets = mix(images, LABELS)
    share = ((mixed - images.roll(1, 0)) / (images - images.roll(1, 0))).median()
    wanted = share * LABELS + (1 - share) * LABELS.roll(1, 0)
    assert torch.allclose(targets, wanted, atol=1e-4)
    assert torch.isfinite(TASK.loss()(Z, targets))


def test_a_teacher_is_followed_by_the_sigmoids() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(4, 3)
    found = soft_target_loss(TASK.shares(Z), TASK.shares(teacher), 2.0)
    p, q = (teacher / 2).sigmoid(), (Z / 2).sigmoid()
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert found.item() == pytest.approx(4 * divergence.mean().item(), rel=1e-5)


# The metric


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40), st.randoms()
)
def test_average_precision_is_scikit_learns_in_any_order(
    images: list[tuple[int, bool]], draw: Any
) -> None:
    """Whole numbers tie often, as int8 logits do."""

    def found() -> float | None:
        logits = torch.tensor([float(logit) for logit, _ in images])
        return average_precision(logits, torch.tensor([has for _, has in images]))

    before = found()
    has = [has for _, has in images]
    if not any(has):
        assert before is None
        return
    wanted = average_precision_score(has, [logit for logit, _ in images])
    assert before == pytest.approx(wanted, abs=1e-12)
    draw.shuffle(images)
    assert found() == before, "to the bit"


def test_average_precision_by_hand() -> None:
    has = torch.tensor([1, 0, 1, 0])
    assert average_precision(torch.tensor([4.0, 3.0, 2.0, 1.0]), has) == pytest.approx(5 / 6)
    assert average_precision(torch.tensor([4.0, 4.0, 2.0, 1.0]), has) == pytest.approx(
        0.5 * 1 / 2 + 0.5 * 2 / 3
    ), "the two that tie are taken together"
    assert average_precision(torch.zeros(4), has) == 0.5, "all tie: the share that has it"


def test_the_metric_of_a_test_set() -> None:
    data = dataset()
    (found,) = TASK.accuracies({"test": Z}, data).values()
    assert isinstance(found, LabelAccuracy)
    has = LABELS.numpy()
    assert found.figure == pytest.approx(average_precision_score(has, Z.numpy(), average="macro"))
    assert found.micro_f1 == pytest.approx(f1_score(has, Z.numpy() > 0, average="micro"))
    assert found.positives == (2, 1, 3)
    assert list(found.columns) == ["mAP", "micro F1"]
    none = LABELS.clone()
    none[:, 1] = 0
    (found,) = TASK.accuracies({"test": Z}, dataset(none)).values()
    assert isinstance(found, LabelAccuracy)
    assert found.ap[1] is None
    assert found.figure == pytest.approx((found.ap[0] + found.ap[2]) / 2)  # type: ignore[operator]
    with pytest.raises(InputError, match="test set test: none of 4 images has a label"):
        TASK.accuracies({"test": Z}, dataset(torch.zeros_like(LABELS)))
    with pytest.raises(ValidationError, match="must be the mean of ap"):
        LabelAccuracy(**found.model_dump() | {"mean_ap": 0.1})
    with pytest.raises(ValidationError, match="no other"):
        LabelAccuracy(**found.model_dump() | {"positives": (2, 1, 3)})


def test_f1_without_any_label_is_1() -> None:
    nothing = torch.zeros((2, 3), dtype=torch.bool)
    assert micro_f1(nothing, nothing) == 1.0
    assert micro_f1(~nothing, nothing) == 0.0


def dataset(labels: torch.Tensor = LABELS) -> Any:
    plain = networks.dataset()
    test = replace(plain.tests["test"].take(torch.arange(len(labels))), labels=labels)
    return replace(plain, classes=NAMES, tests={"test": test})


# Decisions


@pytest.mark.parametrize("threshold", [0.5, 0.1, 0.7, 1e-12, 0.999999])
def test_a_label_is_named_above_the_threshold_alone(threshold: float) -> None:
    task, cut = Multilabel(threshold=threshold), np.float32(logit_of(threshold))
    assert 1 / (1 + np.exp(-np.float64(cut))) == pytest.approx(threshold, rel=1e-6)
    above, below = (np.nextafter(cut, np.float32(to)) for to in (np.inf, -np.inf))
    answers = {"test": torch.tensor([[above, cut, below]])}
    assert task.named(answers, dataset(LABELS[:1])) == {"test": ((1, 0, 0),)}
    meaning = task.meaning()
    assert (meaning.threshold, meaning.above) == (threshold, float(cut))
    found = task.prediction("x", {"float": answers["test"][0]}, NAMES, 1)
    assert found.labels == ("ant",)


def test_how_far_a_decision_is_from_the_threshold() -> None:
    agreement = TASK.compare({"test": -Z}, {"test": Z}, 0.25)
    assert (agreement.same, agreement.unit) == ("the same label decisions", "decisions")
    assert (agreement.units, agreement.share) == (12, 1 / 12)
    assert sorted(agreement.leads)[:2] == [2.0, 4.0], "twice the steps from the threshold"
    assert TASK.compare({"test": Z}, {"test": Z}, None).leads == ()
    assert TASK.right(Z, LABELS) == pytest.approx(1 + 2 / 3 + 1 + 1 / 3)


def test_an_image_is_lost_where_fewer_of_its_labels_are_right() -> None:
    labels = torch.tensor([[1, 0], [1, 1], [0, 0], [0, 1], [1, 0]])
    before = torch.tensor([[1, 0], [1, 0], [0, 0], [1, 0], [0, 1]])
    after = torch.tensor([[1, 0], [1, 1], [1, 0], [1, 1], [0, 1]])
    one = Predictions(labels=labels, float_model=labels, file=before)
    two = Predictions(labels=labels, float_model=before, file=after)
    found = TASK.changes(one, two)
    assert (found.kept, found.lost, found.gained, found.neither) == (1, 1, 2, 1)
    counted = TASK.counted({"test": two})
    assert counted.changes == {"test": found}
    assert counted.file is None
    assert counted.missing


@pytest.mark.parametrize("labels", [[[1, 0], [0, 0]], [3, 70_000]], ids=["labels", "classes"])
def test_kept_predictions_come_back(labels: list[Any], tmp_path: Path) -> None:
    right = torch.tensor(labels)
    wrong = right.flip(0)
    kept = Predictions(labels=right, float_model=right, file=wrong)
    write_predictions({"test": kept}, tmp_path / "p.safetensors")
    (found,) = read_predictions(tmp_path / "p.safetensors").values()
    for one, two in ((found.labels, right), (found.float_model, right), (found.file, wrong)):
        assert torch.equal(one.long(), two)


def test_labels_take_a_byte_each(tmp_path: Path) -> None:
    right = torch.zeros(500, 100, dtype=torch.int64)
    kept = Predictions(labels=right, float_model=right, file=right)
    write_predictions({"test": kept}, tmp_path / "p.safetensors")
    assert (tmp_path / "p.safetensors").stat().st_size < 3 * right.numel() + 1000


def test_labels_of_other_images_are_not_compared() -> None:
    one, two = (torch.zeros(n, 2, dtype=torch.uint8) for n in (3, 4))
    kept = Predictions(labels=one, float_model=one, file=two)
    with pytest.raises(ValueError, match=r"\[3, 2\], \[3, 2\], \[4, 2\]"):
        TASK.counted({"test": kept})


def test_kept_results_confirm_their_metric() -> None:
    data = dataset()
    (accuracy,) = TASK.accuracies({"test": Z}, data).values()
    (named,) = TASK.named({"test": Z}, data).values()
    assert TASK.confirms(named, LABELS, accuracy)
    assert not TASK.confirms([(1, 1, 1)] * 4, LABELS, accuracy)
    assert "named" in FloatBaseline.model_fields
    assert not _is_of_others((0, 1, 1), 3)
    assert _is_of_others((0, 1), 3)
    assert _is_of_others((0, 2, 0), 3)


# What people are shown


def test_labels_that_any_column_names_are_shown() -> None:
    answers = {"float": Z[0], "phone": torch.tensor([1.5, 0.5, -0.5])}
    found = TASK.prediction("x.png", answers, NAMES, 1)
    assert found.labels == ("ant", "cat", "bee"), "by the float network's logits, all of them"
    assert found.rows()[0] == ("ant", {"float": "0.8808", "phone": "0.8176"})
    assert found.rows()[1] == ("cat", {"float": "0.6225", "phone": "(0.3775)"})
    assert found.notes()[:2] == [
        "in brackets: not above 0.5, so not named",
        "other labels than float: phone",
    ]
    none = TASK.prediction("x.png", {"float": Z[2]}, NAMES, 5)
    assert none.rows() == [("no label", {"float": ""})]


def test_golden_images_have_all_labels_and_none_first() -> None:
    order = TASK.golden_order(LABELS).tolist()
    assert sorted(order) == [0, 1, 2, 3]
    assert order[:3] == [0, 1, 2], "a first one with each label, and one without any"
    assert TASK.golden_clear(Z, 0.1).tolist() == [0, 2, 3, 1], "one logit lies on the threshold"
    heads, rows = TASK.golden_table(Z, LABELS.tolist())
    assert heads == ["label", "named", "logit_0", "logit_1", "logit_2"]
    assert rows[0] == ["0 2", "0 2", "2", "-1", "0.5"]
    assert rows[2][:2] == ["", ""]


# Recipes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task.threshold=0.3"], "only task.kind multilabel and detection have one; remove it"),
        (["task={kind: multilabel, threshold: 1}"], "task.threshold: got 1; must be a number > 0"),
        (["task.kind=multilabel"], "data.kind must be image_folder, not digits"),
        (
            ["data={kind: image_folder, path: x, labels: y.csv}"],
            "labels: task.kind classification takes what an image is from its folder; remove it, "
            "or set task.kind to multilabel",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_recipes([DEVICE_RECIPES["onnx"]], settings, KNOWN)
    assert message in str(refused.value)


def test_the_threshold_is_the_recipes_or_one_half() -> None:
    for said, wanted in ((None, 0.5), (0.3, 0.3)):
        task = TASKS["multilabel"].module(TaskConfig(kind="multilabel", threshold=said))
        assert task.meaning().threshold == wanted
        with pytest.raises(InputError, match=r"takes data\.kind image_folder, not digits"):
            task.load(DigitsData(), square(32))
