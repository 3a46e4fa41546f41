"""Grids that cannot be right, and layers that calibration finds silent, are named."""

from __future__ import annotations

import io
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import fx

from pipeline.base.errors import InputError
from pipeline.base.store import Result
from pipeline.compress.quantization import qat
from pipeline.stages import qat as stage
from pipeline.stages import schedule
from pipeline.stages.context import Context
from tests.making.graphs import calibrated, prepared
from tests.making.networks import SHALLOW, dataset, images, small
from tests.making.recipes import device_recipe

FIX = "; check the calibration images and qat.train (at least one epoch is needed)"


def refusal(graph: fx.GraphModule) -> str:
    with pytest.raises(InputError) as caught:
        qat.refuse_bad_grids(graph)
    (line,) = str(caught.value).splitlines()
    assert line.endswith(FIX)
    return line.removesuffix(FIX)


def rounding(graph: fx.GraphModule, source: str) -> tuple[str, torch.nn.Module]:
    """The module that rounds what a node or parameter gives."""
    (node,) = [
        n for n in graph.graph.nodes
        if n.op == "call_module" and source in (n.args[0].name, n.args[0].target)
    ]  # fmt: skip
    return str(node.target), graph.get_submodule(node.target)


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e9, -0.5, math.nan, math.inf])
def test_scales_that_float16_does_not_have_are_refused(value: float) -> None:
    graph = calibrated()
    qat.refuse_bad_grids(graph)
    name, module = rounding(graph, "layer2.1.conv3.weight")
    assert float(module.scale[2:5].half().min()) > 0
    module.scale[2:5] = value
    assert refusal(graph) == (
        f"quantization: {name} has no usable range; 3 of 128 scales of the weights of "
        f"layer2.1.conv3 are no float16 numbers above 0 (the first is {value:g})"
    )


def test_the_output_of_a_layer_is_named_by_module_and_operation() -> None:
    graph = calibrated()
    name, module = rounding(graph, "relu_1")
    module.scale.fill_(0.0)
    assert refusal(graph) == (
        f"quantization: {name} has no usable range; 1 of 1 scales of the output of conv1.3 "
        "(relu_1) are no float16 numbers above 0 (the first is 0)"
    )


def test_the_smallest_scales_there_are_pass() -> None:
    graph = calibrated()
    rounding(graph, "relu_1")[1].scale.fill_(2.0**-14)
    rounding(graph, "layer2.1.conv3.weight")[1].scale.fill_(2.0**-24)
    qat.refuse_bad_grids(graph)


def test_what_was_never_observed_is_named() -> None:
    assert refusal(prepared()).endswith("has no usable range; nothing was seen of the images")


def test_layers_that_are_zero_for_every_image_are_named() -> None:
    assert qat.silent_layers(calibrated()) == []
    graph = prepared()
    graph.get_parameter("conv1.4.bias").data.fill_(-1e3)
    graph.get_parameter("layer2.0.branches.1.1.bias").data.fill_(-1e3)
    qat.calibrate(graph, lambda: [images(8)])
    assert qat.silent_layers(graph) == [
        "the output of conv1.3 (relu_1)",
        "the output of layer2.0.branches.1.0 (relu_5)",
    ]
    qat.refuse_bad_grids(graph)


def quantized(
    graph: fx.GraphModule, out: Path, monkeypatch: pytest.MonkeyPatch, epochs: int = 0
) -> stage.QatFacts:
    """The facts of quantizing a prepared graph as it is."""
    monkeypatch.setattr(stage, "small_model", lambda context, inputs: small(layers=SHALLOW))
    monkeypatch.setattr(stage, "quantized_graph", lambda context, model: graph)
    recipe = device_recipe(f"qat.train.epochs={epochs}")
    context = Context(
        recipe=recipe,
        dataset=dataset(),
        tracked=lambda title, total: nullcontext(lambda done, text: None),
    )
    return stage.quantize(context, {}, out)


def test_the_console_names_silent_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = prepared()
    graph.get_parameter("layer2.1.branches.0.1.bias").data.fill_(-1e3)
    facts = quantized(graph, tmp_path, monkeypatch)
    shown = io.StringIO()
    result = Result(
        stage="qat", key="0", directory=tmp_path, facts=facts, seconds=1.0, reused=False
    )
    schedule._announce(Console(file=shown, width=200), "qat", result, device_recipe())
    assert shown.getvalue() == (
        "  qat 1.0 s, zero for every calibration image: the output of layer2.1.branches.0.0 "
        "(relu_9)\n"
    )


def test_bad_grids_are_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = prepared()
    graph.get_parameter("layer2.1.branches.0.1.bias").data.fill_(1e30)
    with pytest.raises(InputError, match=r"of layer2\.1\.branches\.0\.0 \(relu_9\) are no float16"):
        quantized(graph, tmp_path, monkeypatch, epochs=1000)
