"""Where the program is quantized: the project's quantizer for torchao's PT2E flow.

Every tensor between two operations gets one grid, written at its producer and shared by all its
consumers. `RULES` says which, operation by operation:

    weighted   weights per output channel, and a grid of its own for the output
    own        a grid of its own
    input      the grid of its input, which some runtime asks for: what moves or picks numbers
    sigmoid    TFLite's fixed grid of sigmoid and softmax, 1/256 from -128
    tanh       TFLite's fixed grid of tanh, 1/128 from 0

Batch normalisation, ReLU and clamps belong to the operation before them, where they alone read it.
Camera pixels are a grid already. The inputs of a concatenation share one that covers them all
(`pipeline.compress.quantization.concatenations`).

What a recipe leaves in float (`pipeline.compress.quantization.float_layers`) gets no grid: it reads
what int8 layers rounded, and an int8 layer that reads it rounds its numbers first.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Literal

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
TANH = _activation(FixedFakeQuantize, scale=grid.TANH_SCALE, zero_point=grid.TANH_ZERO_POINT)
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
CLAMPS = {aten.relu.default, aten.relu_.default, aten.hardtanh.default}
Kind = Literal["weighted", "own", "input", "sigmoid", "tanh"]
RULES: dict[Any, Kind] = {
    aten.conv2d.default: "weighted",
    aten.conv2d.padding: "weighted",
    aten.add.Tensor: "own",
    aten.add_.Tensor: "own",
    aten.mul.Tensor: "own",
    aten.mean.dim: "own",
    aten.leaky_relu.default: "own",
    aten.elu.default: "own",
    aten.gelu.default: "own",
    aten.cat.default: "own",
    aten.sigmoid.default: "sigmoid",
    aten.softmax.int: "sigmoid",
    aten.tanh.default: "tanh",
    aten.relu.default: "input",
    aten.relu_.default: "input",
    aten.hardtanh.default: "input",
    aten.max_pool2d.default: "input",
    aten.flatten.using_ints: "input",
    aten.reshape.default: "input",
    aten.view.default: "input",
    aten.slice.Tensor: "input",
    aten.dropout.default: "input",
    aten.constant_pad_nd.default: "input",
    aten.transpose.int: "input",
    aten.pixel_shuffle.default: "input",
    aten.upsample_nearest2d.default: "input",
    aten.upsample_bilinear2d.default: "input",
}
"""The grid of each operation's output."""
_SPECS = {"weighted": ACTIVATION, "own": ACTIVATION, "sigmoid": SIGMOID, "tanh": TANH}


def _sole_user(node: fx.Node, targets: set[Any]) -> fx.Node | None:
    users = [user for user in node.users if user.target is not aten.sym_size.int]
    return users[0] if len(users) == 1 and users[0].target in targets else None


def last_of_group(node: fx.Node) -> fx.Node:
    """The node whose output the runtime sees: past batch normalisation and ReLU."""
    last = node
    for targets in ({aten.batch_norm.default}, CLAMPS):
        last = _sole_user(last, targets) or last
    return last


def _annotate(node: fx.Node, inputs: dict[fx.Node, Any], output: Any) -> None:
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=inputs, output_qspec=output, _annotated=True
    )


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """What an operation reads, parameters and sizes left out."""
    return [a for a in node.all_input_nodes if a.op != "get_attr" and _is_number(a)]


def _is_number(node: fx.Node) -> bool:
    """Whether a node gives numbers, and no size."""
    return node.target is not aten.sym_size.int


class MobileQuantizer(Quantizer):
    """int8 everywhere: per-tensor affine activations, per-channel symmetric weights.

    `image` is the grid of the network's input: learned (`ACTIVATION`), or that of `PIXELS`. The
    results of `floats` are not rounded, save where an int8 layer reads them.
    """

    def __init__(
        self, image: QuantizationSpec = ACTIVATION, floats: Set[fx.Node] = frozenset()
    ) -> None:
        super().__init__()
        self._image = image
        self._floats = floats

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Write a `quantization_annotation` on every operation of `model`."""
        for node in model.graph.nodes:
            if node in self._floats:
                _annotate(node, {}, None)
            elif node.op == "placeholder":
                _annotate(node, {}, self._image)
            elif "quantization_annotation" not in node.meta and node.target in RULES:
                self._annotate_by_rule(node, RULES[node.target])
        return model

    def _annotate_by_rule(self, node: fx.Node, kind: Kind) -> None:
        if kind == "weighted":
            self._annotate_group(node, {node.args[1]: WEIGHT}, ACTIVATION)  # type: ignore[dict-item]
        elif kind == "input":
            source: Any = node.args[0]
            # Of a float one, the grid that is made for this reader and all others.
            grid_of: Any = (source, node) if source in self._floats else source
            inputs = {a: self._producer(a) for a in tensor_inputs(node)}
            _annotate(node, inputs, SharedQuantizationSpec(grid_of))
        elif tensor_inputs(node):
            self._annotate_group(node, {}, _SPECS[kind])

    def _producer(self, node: fx.Node) -> Any:
        """The grid of `node`'s output, as its consumers refer to it.

        A float one has none; what its int8 readers ask for is one grid for all of them, since
        torchao has readers of one tensor share what they ask for alike.
        """
        return ACTIVATION if node in self._floats else SharedQuantizationSpec(node)

    def _annotate_group(self, node: fx.Node, weights: dict[fx.Node, Any], output: Any) -> None:
        inputs: dict[fx.Node, Any] = {a: self._producer(a) for a in tensor_inputs(node)}
        for weight in weights:
            inputs.pop(weight, None)
        last = last_of_group(node)
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
