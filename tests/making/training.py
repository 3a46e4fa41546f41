"""The training loop, and what judges a network, on the task that tests have: classification."""

from __future__ import annotations

from functools import partial

from torch import nn

from pipeline.compress.training import loop
from pipeline.measure import parity
from pipeline.tasks import classification
from pipeline.tasks.accuracy import Accuracy
from pipeline.tasks.evaluation import network_logits
from pipeline.tasks.images.dataset import Dataset

fit = partial(loop.fit, task=classification)


def evaluate(model: nn.Module, dataset: Dataset, stage: str = "evaluation") -> dict[str, Accuracy]:
    """Accuracy of a network on every test set; as `network_logits`."""
    return classification.accuracies(network_logits(model, dataset, stage), dataset)


def agreement(found: parity.Logits, wanted: parity.Logits) -> float:
    """Share of all images to which both give the same first class."""
    return classification.compare(found, wanted, None).share


def compare_logits(
    found: parity.Logits, wanted: parity.Logits, step: float | None
) -> parity.Compared:
    """Logits compared with those they should be."""
    return parity.compare_logits(found, wanted, step, classification.compare)
