"""Accuracy and answers, whatever the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipe.input_shape import square
from pipeline.tasks import evaluation
from pipeline.tasks.accuracy import Accuracy
from pipeline.tasks.classification import accuracy
from pipeline.tasks.evaluation import evaluation_batch, predictions
from tests.making.networks import CLASSES, dataset
from tests.making.tiny import tiny


def test_accuracy_by_hand() -> None:
    logits = torch.tensor(
        [
            [6.0, 5, 4, 3, 2, 1, 0],  # label first
            [6.0, 5, 4, 3, 2, 1, 0],  # second
            [6.0, 5, 4, 3, 2, 1, 0],  # fifth
            [6.0, 5, 4, 3, 2, 1, 0],  # sixth
            [-1.0, -2, -3, -4, -5, -6, 9],  # first
        ]
    )
    labels = torch.tensor([0, 1, 4, 5, 6])
    assert accuracy(logits, labels) == Accuracy(top1=2 / 5, top5=4 / 5, images=5)


@pytest.mark.parametrize("classes", [1, 3, 5])
def test_with_five_classes_or_fewer_top5_is_all(classes: int) -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    logits = -torch.arange(classes).repeat(4, 1).float()
    assert accuracy(logits, labels) == Accuracy(top1=1.0, top5=1.0, images=4)
    assert accuracy(-logits, labels).top1 == (1.0 if classes == 1 else 0.0)


@given(seed=st.integers(0, 2**16), count=st.integers(1, 30), classes=st.integers(2, 12))
def test_accuracy_counts_ranks(seed: int, count: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(count, classes, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    above = (logits > logits.gather(1, labels[:, None])).sum(1)
    found = accuracy(logits, labels)
    assert found.top1 == pytest.approx((above == 0).double().mean().item())
    assert found.top5 == pytest.approx((above < 5).double().mean().item())


def test_predictions_keep_the_order_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = tiny().eval(), dataset(7)
    whole = predictions(model, images.train, images)
    assert whole.shape == (7, CLASSES)
    monkeypatch.setattr(evaluation, "evaluation_batch", lambda side: 3)
    torch.testing.assert_close(predictions(model, images.train, images), whole)


def test_large_images_are_evaluated_in_small_batches() -> None:
    sizes = [evaluation_batch(square(side)) for side in (32, 64, 224, 1024)]
    assert sizes[:2] == [64, 64]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 2  # a program may not take one image alone
