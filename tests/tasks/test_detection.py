"""Detection: from maps to boxes, the metric, decisions, the loss, and what is said of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.base.errors import InputError
from pipeline.recipe.data import DigitsData
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.recipe.task import TaskConfig
from pipeline.stages.known import KNOWN
from pipeline.tasks.box_accuracy import BoxAccuracy
from pipeline.tasks.box_code import best_ones, boxes_of, overlaps, places_of
from pipeline.tasks.box_loss import BoxLoss, complete_overlap, hits, overlap, places_around
from pipeline.tasks.box_precision import precisions
from pipeline.tasks.detection import Detection
from pipeline.tasks.found import Found, found_in
from pipeline.tasks.images.boxes import targets_of
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.predictions import read_predictions, write_predictions
from pipeline.tasks.task import Agreement
from pipeline.tasks.tasks import TASKS

TASK = Detection(threshold=0.5, overlap=0.45)
CLASSES, SIDE = 3, 4
BOXES = ((0.0, 0.0, 0.5, 0.5, 1), (0.5, 0.25, 1.0, 0.75, 0))
NAMES = ("ant", "bee", "cat")


RECIPE = """\
model: {name: fastestdet, input_size: 64}
task: {kind: detection}
data: {kind: digit_scenes, train_images: 8, test_images: 4, calibration_images: 4}
train: {epochs: 1, batch_size: 4, learning_rate: 0.01}
qat: {train: {epochs: 0}}
target: {device: a test, format: onnx, precision: int8}
measure: {rounds: 3, warmup: 1}
threads: 1
"""


def maps_of(boxes: tuple[tuple[float, ...], ...], certain: float = 6.0) -> torch.Tensor:
    """Maps [8, 4, 4] that say these boxes (left, top, right, bottom, class), each at its cell."""
    maps = torch.zeros(5 + CLASSES, SIDE, SIDE)
    maps[0] = -certain
    for left, top, right, bottom, number in boxes:
        x, y = (left + right) / 2 * SIDE, (top + bottom) / 2 * SIDE
        column, row = min(int(x), SIDE - 1), min(int(y), SIDE - 1)
        maps[0, row, column] = certain
        sides = ((right - left), (bottom - top))
        offsets = [math.atanh(x - column), math.atanh(y - row)]
        maps[1:5, row, column] = torch.tensor(offsets + [math.log(s / (1 - s)) for s in sides])
        maps[5 + int(number), row, column] = certain
    return maps


def targets(*images: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    rows = [torch.tensor([(*box, 0.0) for box in boxes]).reshape(-1, 6) for boxes in images]
    return targets_of(rows)


def dataset(*images: tuple[tuple[float, ...], ...]) -> Dataset:
    count = len(images)
    source = torch.zeros(count, 3, 64, 64, dtype=torch.uint8)
    found = Images(labels=targets(*images), shape=square(64), source=source)
    return Dataset(
        name="coco",
        classes=NAMES,
        train=found,
        calibration=found,
        tests={"test": found},
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        sha256="",
        training_sha256="",
    )


# From maps to boxes


def test_maps_say_boxes() -> None:
    boxes, scores, classes = boxes_of(maps_of(BOXES).numpy(), least=0.5, overlap=0.45)
    assert classes.tolist() == [1, 0]
    np.testing.assert_allclose(boxes, [box[:4] for box in BOXES], atol=1e-6)
    share = math.exp(6) / (math.exp(6) + 2)
    wanted = (1 / (1 + math.exp(-6))) ** 0.6 * share**0.4
    np.testing.assert_allclose(scores, wanted, rtol=1e-6)


def test_any_maps_have_finite_boxes() -> None:
    maps = torch.randn(5 + CLASSES, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 1000
    boxes, scores, _ = boxes_of(maps.numpy(), least=0.0, overlap=0.45)
    assert np.isfinite(boxes).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (np.diff(scores) <= 0).all()


def test_of_boxes_of_one_class_that_overlap_the_best_stays() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 3], [0, 0, 4, 4], [5, 5, 6, 6]], np.float64)
    scores = np.array([0.5, 0.9, 0.7, 0.1])
    assert best_ones(boxes, scores, np.array([1, 1, 2, 1]), 0.45).tolist() == [1, 2, 3]
    assert best_ones(boxes, scores, np.array([1, 1, 2, 1]), 0.8).tolist() == [1, 2, 0, 3]
    assert overlaps(boxes[:1], boxes[1:2])[0, 0] == pytest.approx(0.75)


def test_suppression_is_that_of_torchvision() -> None:
    from torchvision.ops import batched_nms

    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(200, 2, generator=generator)
    boxes = torch.cat([corners, corners + 0.3 * torch.rand(200, 2, generator=generator)], 1)
    boxes = boxes.double()
    scores = torch.rand(200, generator=generator).double()
    classes = torch.randint(0, 3, (200,), generator=generator)
    found = best_ones(boxes.numpy(), scores.numpy(), classes.numpy(), 0.45)
    assert found.tolist() == batched_nms(boxes, scores, classes, 0.45).tolist()


# The metric


def accuracy(answers: torch.Tensor, *images: tuple[tuple[float, ...], ...]) -> BoxAccuracy:
    found = TASK.accuracies({"test": answers}, dataset(*images))["test"]
    assert isinstance(found, BoxAccuracy)
    return found


def test_what_is_right_is_one() -> None:
    found = accuracy(torch.stack([maps_of(BOXES), maps_of(BOXES[:1])]), BOXES, BOXES[:1])
    assert (found.ap50, found.ap, found.recall) == (1, 1, 1)
    assert found.by_class == (1, 1, None)
    assert found.objects == (1, 2, 0)
    assert found.columns == {"AP50": 1, "AP": 1, "recall": 1}


def test_a_missed_object_and_a_false_box_cost() -> None:
    other = ((0.0, 0.5, 0.25, 0.75, 1),)
    found = accuracy(torch.stack([maps_of(BOXES), maps_of(other)]), BOXES, BOXES[:1])
    assert found.by_class == (1, pytest.approx(51 / 101), None)
    assert found.ap50 == pytest.approx((1 + 51 / 101) / 2)
    assert found.recall == pytest.approx(2 / 3)


def test_a_box_that_fits_by_half_counts_there_alone() -> None:
    near = ((0.0, 0.0, 0.5, 0.32, 1),)
    found = accuracy(maps_of(near)[None], BOXES[:1])
    assert found.ap50 == 1
    assert found.ap == pytest.approx(0.3)  # 0.50, 0.55 and 0.60, of ten


def test_ignored_objects_do_not_count() -> None:
    wanted = targets(BOXES)
    wanted[0, 1, 5] = 1
    found = precisions(found_in(maps_of(BOXES)[None], 0.01, 0.45), wanted, CLASSES)
    assert found is not None
    assert found.by_class == (None, 1, None)


def test_no_object_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="test set test: none of 1 images has an object"):
        accuracy(maps_of(BOXES)[None], ())


def test_figures_agree_with_the_classes_that_are_there() -> None:
    found = accuracy(maps_of(BOXES)[None], BOXES)
    with pytest.raises(ValidationError, match="of the classes that an image has"):
        BoxAccuracy.model_validate(found.model_dump() | {"objects": (1, 1, 1)})


# Two sets of answers


def agreement(found: torch.Tensor, wanted: torch.Tensor, step: float | None = 0.1) -> Agreement:
    return TASK.compare({"test": found[None]}, {"test": wanted[None]}, step)


def test_equal_answers_agree() -> None:
    found = agreement(maps_of(BOXES), maps_of(BOXES))
    assert (found.share, found.units, found.leads) == (1, 2, ())


def test_a_box_that_is_lost_leads_by_what_its_numbers_must_move() -> None:
    wanted, found = maps_of(BOXES), maps_of(BOXES)
    place = (0, 1, 1)
    wanted[place], found[place] = -0.7, -0.9  # scores either side of the threshold
    scores = [boxes_of(one.numpy(), 0.5, 0.45)[1] for one in (wanted, found)]
    assert [len(one) for one in scores] == [2, 1]
    seen = agreement(found, wanted)
    assert (seen.share, seen.units) == (0.5, 2)
    (lead,) = seen.leads
    assert 0 < lead <= 2 * 0.2 / 0.1 + 1e-3  # both moved by 0.2 at most
    assert agreement(found, wanted, None).leads == (math.inf,)


def test_another_class_and_a_box_elsewhere_are_no_agreement() -> None:
    wanted = maps_of(BOXES)
    renamed, moved = maps_of(BOXES), maps_of(BOXES)
    renamed[5:7, 1, 1] = renamed[5:7, 1, 1].flip(0)
    moved[3:5, 1, 1] = -4
    assert agreement(renamed, wanted).leads == (pytest.approx(60),)
    (lead,) = agreement(moved, wanted).leads
    assert lead == pytest.approx(40)


def test_clear_images_come_first() -> None:
    doubtful = maps_of(BOXES)
    doubtful[0, 1, 1] = -0.7
    answers = torch.stack([doubtful, maps_of(BOXES)])
    assert TASK.golden_clear(answers, 0.2).tolist() == [1, 0]
    assert TASK.golden_clear(answers, 1e-3).tolist() == [0, 1]


def test_golden_images_are_of_as_many_classes_as_can_be() -> None:
    wanted = targets(BOXES[:1], BOXES[:1], (), BOXES[1:])
    assert TASK.golden_order(wanted).tolist() == [3, 0, 2, 1]


def test_a_golden_row_has_objects_boxes_and_numbers() -> None:
    heads, rows = TASK.golden_table(maps_of(BOXES)[None], targets(BOXES).tolist())
    assert heads[:3] == ["label", "named", "logit_0"]
    assert rows[0][0] == "1:0:0:0.5:0.5 0:0.5:0.25:1:0.75"
    assert rows[0][1].split()[0].startswith("1:")
    assert len(heads) == len(rows[0]) == 2 + 8 * 16


# What became of images


def test_what_is_kept_tells_what_became_of_images(tmp_path: Path) -> None:
    data = dataset(BOXES, BOXES, BOXES[:1])
    none = maps_of(())
    before = {"test": torch.stack([maps_of(BOXES), maps_of(BOXES[:1]), none])}
    after = {"test": torch.stack([maps_of(BOXES[:1]), maps_of(BOXES), none])}
    for name, answers in (("float", before), ("file", after)):
        (tmp_path / name).mkdir()
        TASK.keep(answers, data, tmp_path / name / "named.safetensors")
    found = TASK.gathered(data, tmp_path / "float", tmp_path / "file")
    write_predictions(found, tmp_path / "all.safetensors")
    found = read_predictions(tmp_path / "all.safetensors")
    seen = TASK.counted(found).changes["test"]
    assert (seen.kept, seen.lost, seen.gained, seen.neither) == (0, 1, 1, 1)
    again = replace(found["test"], file=found["test"].labels)
    assert TASK.changes(found["test"], again).gained == 2


def test_a_metric_is_confirmed_by_the_objects_that_were_found() -> None:
    data = dataset(BOXES, BOXES[:1])
    answers = {"test": torch.stack([maps_of(BOXES), maps_of(())])}
    figures, named = TASK.accuracies(answers, data)["test"], TASK.named(answers, data)["test"]
    assert named == ((1, 1), (0, 0))
    assert TASK.confirms(named, data.tests["test"].labels, figures)
    assert not TASK.confirms(((1, 1), (1, 0)), data.tests["test"].labels, figures)


# One image


def test_a_prediction_has_the_boxes_side_by_side() -> None:
    other = ((0.0, 0.0, 0.5, 0.48, 1), (0.0, 0.5, 0.25, 0.75, 2))
    answers = {"float": maps_of(BOXES), "int8": maps_of(other)}
    found = TASK.prediction("photo", answers, NAMES, 5)
    rows = found.rows()
    assert [name.partition(" ")[0] for name, _ in rows] == ["bee", "ant", "cat"]
    assert [cells["int8"] for _, cells in rows] == ["0.997 (0.960)", "-", "0.997"]
    assert [cells["float"] for _, cells in rows] == ["0.997", "0.997", "-"]
    assert found.notes()[0] == "other boxes than float: int8"
    assert TASK.prediction("photo", {"float": maps_of(())}, NAMES, 5).rows() == [
        ("no box", {"float": ""})
    ]
    assert TASK.prediction("photo", answers, NAMES, 1).notes()[0] == "2 more boxes"


def test_boxes_are_drawn_side_by_side() -> None:
    pixels = torch.full((3, 64, 96), 50, dtype=torch.uint8)
    answers = {"float": maps_of(BOXES), "int8": maps_of(())}
    drawn = TASK.prediction("photo", answers, NAMES, 5).drawn(pixels)
    times = 3  # small images are enlarged
    assert drawn.size == (2 * 96 * times + 4, 64 * times)
    seen = np.asarray(drawn)
    assert (seen[:, : 96 * times] != 50).any()
    assert (seen[:, 96 * times + 4 :] == 50).all()


# The loss


def test_the_places_around_a_middle_are_to_find_it() -> None:
    middle = ((0.3, 0.3, 0.6, 0.6, 2),)  # its middle at 1.8 of 4 places
    at = places_around(targets(middle), SIDE, SIDE)
    assert sorted(zip(at.row.tolist(), at.column.tolist(), strict=True)) == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    corner = places_around(targets(((0.9, 0.9, 1.0, 1.0, 0),)), SIDE, SIDE)
    assert (corner.row.tolist(), corner.column.tolist()) == ([3], [3])


def test_complete_overlap_is_the_overlap_less_what_is_apart() -> None:
    one = torch.tensor([[0.0, 0.0, 0.4, 0.4]])
    torch.testing.assert_close(complete_overlap(one, one), torch.ones(1))
    right = torch.tensor([[0.2, 0.0, 0.6, 0.4]])
    wanted = 1 / 3 - 0.2**2 / (0.6**2 + 0.4**2)
    assert float(overlap(one, right)) == pytest.approx(1 / 3, abs=1e-5)
    assert float(complete_overlap(one, right)) == pytest.approx(wanted, abs=1e-5)
    wide = torch.tensor([[-0.2, 0.1, 0.6, 0.3]])
    assert complete_overlap(one, wide) < overlap(one, wide)


def test_the_loss_falls_to_what_is_right() -> None:
    torch.manual_seed(0)
    wanted = targets(BOXES, ())
    answers = torch.randn(2, 5 + CLASSES, SIDE, SIDE).requires_grad_()
    loss = BoxLoss()
    optimizer = torch.optim.Adam([answers], lr=0.1)
    first = float(loss(answers, wanted).detach())
    for _ in range(300):
        optimizer.zero_grad()
        found = loss(answers, wanted)
        found.backward()
        optimizer.step()
    assert float(found.detach()) < 0.2 * first
    result = TASK.accuracies({"test": answers.detach()}, dataset(BOXES, ()))["test"]
    assert result.figure == 1
    assert hits(answers.detach(), wanted) == 2


def test_a_batch_without_objects_is_learned_from() -> None:
    answers = torch.zeros(2, 5 + CLASSES, SIDE, SIDE, requires_grad=True)
    BoxLoss()(answers, targets((), ())).backward()
    assert answers.grad is not None
    assert (answers.grad[:, 0] > 0).all()
    assert not answers.grad[:, 1:].any()


def test_shares_are_those_of_no_object_and_of_every_class() -> None:
    maps = torch.randn(2, 5 + CLASSES, SIDE, SIDE)
    shares = TASK.shares(maps).softmax(1).reshape(2, SIDE, SIDE, 1 + CLASSES)
    objects = maps[:, 0].sigmoid()
    torch.testing.assert_close(shares[..., 0], 1 - objects)
    wanted = objects[..., None] * maps[:, 5:].softmax(1).movedim(1, -1)
    torch.testing.assert_close(shares[..., 1:], wanted)


# The recipe


def test_keys_are_of_the_tasks_that_have_them() -> None:
    given = {"kind": "detection", "threshold": 0.3, "overlap": 0.6}
    config = TaskConfig.model_validate(given, context=KNOWN)
    task = TASKS["detection"].module(config)
    assert task == Detection(threshold=0.3, overlap=0.6)
    with pytest.raises(ValidationError, match=r"only task\.kind detection has one; remove it"):
        TaskConfig.model_validate({"kind": "multilabel", "overlap": 0.6}, context=KNOWN)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("task.kind=multilabel", "data.kind digit_scenes is for task.kind"),
        ("train.mixup=0.5", "mixup: got 0.5; what task.kind detection learns lies in the image"),
        ("train.augment={crop: [0.5, 1]}", "augment.crop: got (0.5, 1.0); what task.kind"),
        ("train.augment={rotate_deg: 5}", "augment.rotate_deg: got 5.0; what task.kind"),
        ("target.output=probabilities", "output: must be logits: task.kind detection gives no"),
    ],
)
def test_what_boxes_cannot_follow_is_refused(change: str, told: str, tmp_path: Path) -> None:
    recipe = tmp_path / "boxes.yaml"
    recipe.write_text(RECIPE)
    load_recipes([recipe], known=KNOWN)
    load_recipes([recipe], ["train.augment={flip: true, shift: 0.1, scale: 0.1}"], KNOWN)
    with pytest.raises(InputError) as caught:
        load_recipes([recipe], [change], KNOWN)
    assert told in str(caught.value)


def test_other_data_is_refused() -> None:
    with pytest.raises(InputError, match=r"takes data\.kind coco, voc or digit_scenes"):
        TASK.class_names(DigitsData())


def test_found_boxes_above_a_score() -> None:
    found = Found(
        boxes=np.zeros((3, 4)), scores=np.array([0.9, 0.5, 0.1]), classes=np.zeros(3, np.int64)
    )
    assert len(found.above(0.5).scores) == 2
    assert places_of(maps_of(BOXES).numpy()).shape == (SIDE, SIDE, 4)
