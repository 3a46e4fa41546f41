"""Probabilities in ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import helper

from pipeline.formats.as_onnx import OUTPUT, PROBABILITIES
from pipeline.recipe.task import Link

_OPERATIONS: dict[Link, str] = {"softmax": "Softmax", "sigmoid": "Sigmoid"}


def add(path: Path, link: Link, labels: Sequence[str] | None = None) -> None:
    """Put a softmax or sigmoid behind the logits of a file, in place.

    before: ... -> logits
    after:  ... -> logits -> Softmax -> probabilities

    Args:
        path: of the file.
        link: what makes probabilities.
        labels: ONNX files name no classes.
    """
    model = onnx.load(path)
    graph = model.graph
    (logits,) = graph.output
    node = helper.make_node(_OPERATIONS[link], [OUTPUT], [PROBABILITIES], name=PROBABILITIES)
    if link == "softmax":
        node.attribute.append(helper.make_attribute("axis", -1))
    graph.node.append(node)
    logits.name = PROBABILITIES
    onnx.checker.check_model(model)
    onnx.save(model, path)
