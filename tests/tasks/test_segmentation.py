"""The class of every pixel: loss, metric, agreement and what is kept, against other counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from pipeline.base.errors import InputError
from pipeline.recipe.data import DigitScenesData
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.recipe.task import PixelLossConfig
from pipeline.recipe.training import TrainConfig
from pipeline.stages.known import KNOWN
from pipeline.tasks import class_maps
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.preparation import VOID
from pipeline.tasks.map_accuracy import MapAccuracy, map_accuracy
from pipeline.tasks.pixel_loss import balanced, dice_loss
from pipeline.tasks.predictions import NAMED, read_predictions, write_predictions
from pipeline.tasks.segmentation import Segmentation
from tests.making.recipes import ROOT

CLASSES, IMAGES, SIDE = 5, 6, 16
PLAIN = TrainConfig(epochs=1, batch_size=2, learning_rate=0.1)


@pytest.fixture(scope="module")
def masks() -> Tensor:
    """Of all classes but the fourth, and void."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(0, CLASSES, (IMAGES, SIDE, SIDE), generator=generator)
    found[found == 3] = VOID
    return found.to(torch.uint8)


def answers(stride: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    side = SIDE // stride
    found = torch.randn(IMAGES, CLASSES, side, side, generator=generator)
    found[:, 3] = -9
    return found


def whole(logits: Tensor, stride: int) -> Tensor:
    """The maps at the input's size, by whole matrices of linear weights."""
    n = logits.shape[-1]
    places = ((torch.arange(n * stride) + 0.5) / stride - 0.5).clamp(0, n - 1)
    low = places.floor().long()
    share = places - low
    line = torch.zeros(n * stride, n)
    rows = torch.arange(n * stride)
    line[rows, low] += 1 - share
    line[rows, (low + 1).clamp(max=n - 1)] += share
    return torch.einsum("ah,bw,nchw->ncab", line, line, logits)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_answers_are_scaled_linearly_between_the_middles_of_squares(stride: int) -> None:
    given = answers(stride)
    assert torch.allclose(class_maps.at_input(given, stride), whole(given, stride), atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_metric_is_that_of_torchmetrics(masks: Tensor, stride: int) -> None:
    given = answers(stride)
    found = class_maps.measured(given, masks, stride)
    assert found is not None
    named, wanted = whole(given, stride).argmax(1), masks.long()
    each = multiclass_jaccard_index(named, wanted, CLASSES, average=None, ignore_index=VOID)
    mean = multiclass_jaccard_index(named, wanted, CLASSES, average="macro", ignore_index=VOID)
    pixels = multiclass_accuracy(named, wanted, CLASSES, average="micro", ignore_index=VOID)
    assert found.iou[3] is None, "no pixel has it, and none is given it"
    for row in (0, 1, 2, 4):
        assert found.iou[row] == pytest.approx(float(each[row]), abs=1e-6)
    assert found.mean_iou == pytest.approx(float(mean), abs=1e-6)
    assert found.pixel_accuracy == pytest.approx(float(pixels), abs=1e-6)
    assert found.pixels == tuple(int((masks == row).sum()) for row in range(CLASSES))


def test_a_class_that_is_given_and_not_there_counts() -> None:
    found = map_accuracy([4, 0], [3, 1], [3, 0], 1)
    assert found is not None
    assert found.iou == (0.75, 0.0)
    assert found.mean_iou == 0.375
    assert map_accuracy([0, 0], [0, 0], [0, 0], 1) is None
    with pytest.raises(ValidationError, match="must be the mean of iou"):
        MapAccuracy(**found.model_dump() | {"mean_iou": 0.5})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_mean_over_pixels_with_a_class(masks: Tensor, smoothing: float) -> None:
    task, given = Segmentation(), answers(1)
    config = PLAIN.model_copy(update={"label_smoothing": smoothing})
    known = masks != VOID
    flat = given.movedim(1, -1)[known]
    wanted = F.cross_entropy(flat, masks[known].long(), label_smoothing=smoothing)
    assert torch.allclose(task.loss(config)(given, masks), wanted)
    changed = given.clone()
    changed.movedim(1, -1)[~known] = 7.0
    assert torch.equal(task.loss(config)(changed, masks), task.loss(config)(given, masks))


def test_masks_of_void_alone_cost_nothing_and_give_no_nan(masks: Tensor) -> None:
    task = Segmentation(of_loss=PixelLossConfig(dice=0.5))
    given = answers(1).requires_grad_()
    loss = task.loss(PLAIN)(given, torch.full_like(masks, VOID))
    loss.backward()
    assert loss == 0
    assert given.grad is not None
    assert not given.grad.any()


def test_class_weights_weigh_pixels(masks: Tensor) -> None:
    weights = (1.0, 2.0, 0.0, 1.0, 0.5)
    given = answers(1)
    task = Segmentation(of_loss=PixelLossConfig(class_weights=weights))
    own = torch.tensor(weights)
    each = F.cross_entropy(given, masks.long(), reduction="none", ignore_index=VOID)
    of_pixels = own[masks.long().where(masks != VOID, 2)]
    wanted = (each * of_pixels).sum() / of_pixels.sum()
    assert torch.allclose(task.loss(PLAIN)(given, masks), wanted)
    with pytest.raises(InputError, match="class_weights: got 5 numbers; the data has 2 classes"):
        task.outputs(("a", "b"))


def test_balanced_weights_are_median_frequencies() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    masks[0, 0, :2] = 1  # 2 of 16 pixels of the one image that it is in
    masks[1, 0, :] = VOID
    found = balanced(masks)
    shares = torch.tensor([26 / 28, 2 / 16])
    # The lower of the middle two is the median.
    assert torch.allclose(found[:2], shares.min() / shares)
    assert found[2] == 1


def test_dice_is_one_minus_twice_the_overlap(masks: Tensor) -> None:
    given = answers(1)
    shares, terms = given.softmax(1), []
    known = (masks != VOID).float()
    for row in (0, 1, 2, 4):
        own = (masks == row).float()
        share = shares[:, row] * known
        terms.append(1 - 2 * (share * own).sum() / (share.sum() + own.sum()))
    wanted = torch.stack(terms).mean()
    assert torch.allclose(dice_loss(given, masks.long()), wanted)
    task = Segmentation(of_loss=PixelLossConfig(dice=0.25))
    cross = Segmentation().loss(PLAIN)(given, masks)
    assert torch.allclose(task.loss(PLAIN)(given, masks), 0.75 * cross + 0.25 * wanted)
    perfect = 50 * F.one_hot(masks.long().where(masks != VOID, 0), CLASSES).movedim(-1, 1).float()
    assert float(dice_loss(perfect, masks.long())) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_agreement_counts_pixels_and_says_by_how_many_steps(stride: int) -> None:
    task, step = Segmentation(stride=stride), 0.05
    wanted, found = answers(stride), answers(stride) + 0.2 * answers(stride, seed=2)
    one, two = whole(wanted, stride), whole(found, stride)
    apart = one.argmax(1) != two.argmax(1)
    agreement = task.compare({"test": found}, {"test": wanted}, step)
    assert agreement.units == IMAGES * SIDE * SIDE
    assert agreement.share == pytest.approx(1 - float(apart.double().mean()))
    ahead = one.amax(1) - one.gather(1, two.argmax(1)[:, None])[:, 0]
    assert sorted(agreement.leads) == pytest.approx(
        sorted((ahead[apart] / step).tolist()), abs=1e-3
    )
    assert task.compare({"test": wanted}, {"test": wanted}, step).share == 1.0
    endless = task.compare({"test": found}, {"test": wanted}, None)
    assert set(endless.leads) == {math.inf}


def test_answers_for_other_places_are_refused(masks: Tensor) -> None:
    with pytest.raises(InputError, match=r"task.stride: got 1; the network gives 5 x 8 x 8"):
        Segmentation().loss(PLAIN)(answers(2), masks)
    with pytest.raises(InputError, match=r"task.stride: got 2; .* must give \(classes\) x 8 x 8"):
        Segmentation(stride=2).loss(PLAIN)(answers(1), masks)
    with pytest.raises(InputError, match=r"task.stride: got 1"):
        Segmentation().loss(PLAIN)(torch.zeros(IMAGES, CLASSES), masks)


def test_what_is_right_while_training_is_the_share_of_pixels(masks: Tensor) -> None:
    given = answers(1)
    hits = (given.argmax(1) == masks) & (masks != VOID)
    each = hits.flatten(1).sum(1) / (masks != VOID).flatten(1).sum(1)
    assert Segmentation().right(given, masks) == pytest.approx(float(each.sum()))
    assert 0 < Segmentation(stride=2).right(answers(2), masks) < IMAGES


def test_distillation_shares_every_pixel_by_itself() -> None:
    given = answers(2)
    shares = Segmentation(stride=2).shares(given)
    assert shares.shape == (IMAGES * 64, CLASSES)
    assert torch.equal(shares[9], given[0, :, 1, 1])


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    config = DigitScenesData(train_images=6, test_images=6, calibration_images=2)
    return Segmentation().load(config, square(32))


@pytest.fixture(scope="module")
def found(dataset: Dataset) -> Mapping[str, Tensor]:
    """Answers that are right but for a few pixels."""
    masks = dataset.tests["test"].labels
    maps = F.one_hot(masks.long(), 11).movedim(-1, 1).float()
    maps[0, :, :4] = 0
    maps[0, 3, :4] = 1
    return {"test": maps}


def test_what_is_kept_gives_the_same_metric_and_what_became_of_images(
    dataset: Dataset, found: Mapping[str, Tensor], tmp_path: Path
) -> None:
    task, perfect = (
        Segmentation(),
        {"test": F.one_hot(dataset.tests["test"].labels.long(), 11).movedim(-1, 1).float()},
    )
    (accuracy,) = task.accuracies(found, dataset).values()
    named = task.named(found, dataset)["test"]
    targets = dataset.tests["test"].labels
    assert task.confirms(named, targets, accuracy)
    assert not task.confirms(task.named(perfect, dataset)["test"], targets, accuracy)
    for name, given in (("float", perfect), ("file", found)):
        (tmp_path / name).mkdir()
        task.keep(given, dataset, tmp_path / name / NAMED)
    kept = task.gathered(dataset, tmp_path / "float", tmp_path / "file")
    changes = task.counted(kept).changes["test"]
    assert (changes.kept, changes.lost, changes.gained, changes.neither) == (5, 1, 0, 0)
    write_predictions(kept, tmp_path / "predictions.safetensors")
    again = read_predictions(tmp_path / "predictions.safetensors")
    assert task.changes(again["test"], again["test"]).kept == 5
    assert task.counted(again).changes["test"] == changes
    shown = kept["test"].shown
    assert shown is not None
    assert torch.equal(shown.labels, shown.float_model)
    assert shown.pixels.shape == (4, 3, 32, 32)


def test_golden_images_show_different_classes_first(dataset: Dataset) -> None:
    masks = dataset.tests["test"].labels
    order = Segmentation().golden_order(masks).tolist()
    assert sorted(order) == list(range(6))
    seen = set(masks[order[:4]].unique().tolist())
    assert len(seen) >= len(set(masks[:2].unique().tolist()))


def test_golden_images_that_are_clear_come_first() -> None:
    given = torch.zeros(3, 2, 4, 4)
    given[:, 0] = 1.0
    given[0, 1, :2] = 0.95
    given[1, 1, :1] = 0.95
    assert Segmentation().golden_clear(given, 0.1).tolist() == [2, 1, 0]


def test_a_prediction_says_shares_and_draws(dataset: Dataset, found: Mapping[str, Tensor]) -> None:
    image = dataset.tests["test"].pixels(torch.tensor([0]))[0]
    both = {"float": found["test"][1], "file": found["test"][0]}
    one = Segmentation().prediction("a.png", both, dataset.classes, 3)
    names = [name for name, _ in one.rows()]
    assert names[0] == "background"
    assert len(names) <= 3
    assert one.notes()[0].startswith("pixels with the class of float: file ")
    picture = one.drawn(image)
    assert picture.size == (4 * 32 + 3 * 4, 32)


RECIPE = f"""\
model: {{name: "python:{ROOT}/tests/making/plain_segmenter.py:segmenter", input_size: 32}}
task: {{kind: segmentation, stride: 2}}
data: {{kind: digit_scenes}}
train: {{epochs: 1, batch_size: 16, learning_rate: 0.1}}
qat: {{train: {{epochs: 1, batch_size: 16, learning_rate: 0.1}}}}
target: {{device: a phone, format: onnx, precision: int8}}
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data={kind: digits}"], "task.kind segmentation takes data.kind mask_folder or"),
        (["task.kind=classification"], "only task.kind segmentation has one; remove it"),
        (
            ["task={kind: classification, stride: null}"],
            "data.kind digit_scenes is for task.kind detection or segmentation, not classification",
        ),
        (["task.stride=3"], "task.stride: got 3; must be one of 1, 2, 4, 8, 16, 32"),
        (["task.loss={class_weights: even}"], "must be balanced, or a list with a number"),
        (["train.mixup=0.2"], "mixup: got 0.2; what task.kind segmentation learns lies in"),
        (["qat.train.cutmix=0.2"], "cutmix: got 0.2"),
        (["train.augment={policy: randaugment}"], "augment.policy: got randaugment"),
        (["target.output=probabilities"], "output: must be logits"),
    ],
)
def test_recipes_that_cannot_be_are_refused(
    tmp_path: Path, changes: list[str], message: str
) -> None:
    recipe = tmp_path / "one.yaml"
    recipe.write_text(RECIPE)
    assert load_recipes([recipe], known=KNOWN)[0].task.stride == 2
    with pytest.raises(InputError) as caught:
        load_recipes([recipe], changes, known=KNOWN)
    assert message in str(caught.value)
