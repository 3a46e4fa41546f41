"""Where the program is quantized: the project's quantizer for torchao's PT2E flow.

Every tensor between two operations gets one grid, written at its producer and shared by all its
consumers. Operations whose output must have the grid of their input in some runtime (max pooling,
reshape and slice) share it; sigmoid and softmax have TFLite's fixed one, and camera pixels are a
grid already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from pipeline.compress.quantization import grid
from pipeline.compress.quantization.fake_quantize import (
    ActivationFakeQuantize,
    FixedFakeQuantize,
    WeightFakeQuantize,
)

aten = torch.ops.aten


def _activation(fake_quantize: Any, **fixed: float) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=grid.QMIN,
        quant_max=grid.QMAX,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=fake_quantize.with_args(**fixed),
    )


ACTIVATION = _activation(ActivationFakeQuantize)
SIGMOID = _activation(
    FixedFakeQuantize, scale=grid.SIGMOID_SCALE, zero_point=grid.SIGMOID_ZERO_POINT
)
PIXELS = _activation(FixedFakeQuantize, scale=grid.PIXEL_SCALE, zero_point=grid.PIXEL_ZERO_POINT)
WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-grid.WEIGHT_QMAX,
    quant_max=grid.WEIGHT_QMAX,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=WeightFakeQuantize.with_args(),
)

CONVOLUTIONS = {aten.conv2d.default, aten.conv2d.padding}
OWN_GRID = {aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mean.dim}
FIXED_GRID = {aten.sigmoid.default, aten.softmax.int}
INPUT_GRID = {
    aten.max_pool2d.default,
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.view.default,
    aten.slice.Tensor,
    aten.dropout.default,
}


def _sole_user(node: fx.Node, targets: set[Any]) -> fx.Node | None:
    users = [user for user in node.users if user.target is not aten.sym_size.int]
    return users[0] if len(users) == 1 and users[0].target in targets else None


def _last_of_group(node: fx.Node) -> fx.Node:
    """The node whose output the runtime sees: past batch normalisation and ReLU."""
    last = node
    for targets in ({aten.batch_norm.default}, {aten.relu.default, aten.relu_.default}):
        last = _sole_user(last, targets) or last
    return last


def _annotate(node: fx.Node, inputs: dict[fx.Node, Any], output: Any) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=inputs, output_qspec=output, _annotated=True
    )


def _producer(node: fx.Node) -> Any:
    """The grid of `node`'s output, as its consumers refer to it."""
    return SharedQuantizationSpec(node)


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    return [a for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr"]


class MobileQuantizer(Quantizer):
    """int8 everywhere: per-tensor affine activations, per-channel symmetric weights.

    `image` is the grid of the network's input: learned (`ACTIVATION`), or that of `PIXELS`.
    """

    def __init__(self, image: QuantizationSpec = ACTIVATION) -> None:
        super().__init__()
        self._image = image

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Write a `quantization_annotation` on every operation of `model`."""
        for node in model.graph.nodes:
            if node.op == "placeholder":
                _annotate(node, {}, self._image)
            elif node.target in CONVOLUTIONS:
                self._annotate_group(node, {node.args[1]: WEIGHT}, ACTIVATION)
            elif node.target in OWN_GRID and _tensor_inputs(node):
                self._annotate_group(node, {}, ACTIVATION)
            elif node.target in FIXED_GRID:
                self._annotate_group(node, {}, SIGMOID)
            elif node.target in INPUT_GRID:
                self._annotate_group(node, {}, _producer(node.args[0]))
        return model

    def _annotate_group(self, node: fx.Node, weights: dict[fx.Node, Any], output: Any) -> None:
        inputs: dict[fx.Node, Any] = {a: _producer(a) for a in _tensor_inputs(node)}
        for weight in weights:
            inputs.pop(weight, None)
        last = _last_of_group(node)
        if last is node:
            _annotate(node, inputs | weights, output)
            return
        _annotate(node, inputs | weights, None)
        middle = node
        while middle is not last:
            middle = next(iter(middle.users))
            _annotate(middle, {}, output if middle is last else None)

    def validate(self, model: fx.GraphModule) -> None:
        """Refuse a program with an operation this quantizer has no rule for.

        Raises:
            NotImplementedError: names the operation and its module. Going on would leave a float
                island.
        """
        for node in model.graph.nodes:
            if node.op != "call_function" or "quantization_annotation" in node.meta:
                continue
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and value.dim() >= 2:
                raise NotImplementedError(_without_rule(node))


def _without_rule(node: fx.Node) -> str:
    path = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
    where = f"{path[-1]}, {node.name}" if path and path[-1] else node.name
    if node.target is aten.batch_norm.default:
        return (
            f"no quantization rule for a batch normalisation that is not the only reader of a "
            f"convolution ({where}); put it behind a convolution of its own"
        )
    return (
        f"no quantization rule for {node.target} ({where}); "
        "add it to pipeline/compress/quantization/quantizer.py"
    )
