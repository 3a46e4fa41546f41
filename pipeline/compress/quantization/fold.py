"""Fold: batch normalisation into the convolutions, then one quantized program.

The program is a `torch.export.ExportedProgram` of `quantized_decomposed` operations. It is what
every format is written from and what every exported file is compared with.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import FakeQuantizeBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from pipeline.base.profile import span
from pipeline.compress.quantization import grid
from pipeline.compress.quantization.fake_quantize import (
    ActivationFakeQuantize,
    WeightFakeQuantize,
    only_round,
)
from pipeline.compress.quantization.quantizer import CLAMPS, CONVOLUTIONS

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
_HALF_EPSILON = 2.0**-11
"""Half of the distance between float16 numbers, as a share of them."""


def attribute(model: fx.GraphModule, node: Any) -> Tensor:
    """The tensor behind a node of it, without its gradient; changed in place, it is changed."""
    value: Any = model
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value.detach()


def readers_of(parameter: fx.Node) -> list[fx.Node]:
    """Who reads a stored tensor, by this node or another of the same tensor, rounded or not."""
    nodes = [n for n in parameter.graph.nodes if n.op == "get_attr"]
    first = [user for n in nodes if n.target == parameter.target for user in n.users]
    return [r for user in first for r in (user.users if user.op == "call_module" else [user])]


def source_weight(node: fx.Node) -> fx.Node:
    """The stored weight behind its rounding."""
    while node.op != "get_attr":
        node = node.args[0]  # type: ignore[assignment]
    return node


def fold_batch_norms(model: fx.GraphModule) -> None:
    """Take every batch normalisation out of an exported graph, in place.

    One that alone reads a convolution is folded into it,
    `w' = w * gamma / sqrt(var + eps)` and `b' = (b - mean) * gamma / sqrt(var + eps) + beta`
    (Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2). Any other becomes a
    depthwise 1x1 convolution of its own: folded, it would change what the convolution's other
    readers get.

    Args:
        model: in evaluation mode: what counts are the running statistics.

    Raises:
        NotImplementedError: a batch normalisation that is not folded reads no image-like tensor.
    """
    graph = model.graph
    for index, norm in enumerate([n for n in graph.nodes if n.target is aten.batch_norm.default]):
        conv = norm.args[0]
        if conv.target in CONVOLUTIONS and _tensor_readers(conv) == [norm]:
            _fold_into(model, conv, norm, index)
        else:
            _as_convolution(model, norm, index)
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in {"placeholder", "output"})
    graph.lint()  # type: ignore[no-untyped-call]
    model.recompile()


def _tensor_readers(node: fx.Node) -> list[fx.Node]:
    """Who reads a node's numbers, and not only its shape."""
    return [user for user in node.users if user.target is not aten.sym_size.int]


def _factor_and_shift(model: fx.GraphModule, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`y -> (y - mean) * factor + shift`: factor, mean and shift, one per channel each."""
    gamma, beta, mean, var = (None if a is None else attribute(model, a) for a in norm.args[1:5])
    assert mean is not None
    assert var is not None
    deviation = torch.sqrt(var + norm.args[7])
    factor = 1 / deviation if gamma is None else gamma / deviation
    return factor, mean, torch.zeros_like(mean) if beta is None else beta


def _fold_into(model: fx.GraphModule, conv: fx.Node, norm: fx.Node, index: int) -> None:
    """A batch normalisation goes into the convolution that it alone reads.

    before: y = conv(x, w, b);  z = batch_norm(y, gamma, beta, mean, var)
    after:  z = conv(x, w', b'); a rounding of w now rounds w'
    """
    graph = model.graph
    bias_node = conv.args[2] if len(conv.args) > 2 else None
    weight_node = conv.args[1]
    assert isinstance(weight_node, fx.Node)
    weight = attribute(model, source_weight(weight_node))
    factor, mean, shift = _factor_and_shift(model, norm)
    bias = attribute(model, bias_node) if bias_node is not None else torch.zeros_like(mean)
    model.register_buffer(f"folded_weight_{index}", weight * factor[:, None, None, None])
    model.register_buffer(f"folded_bias_{index}", (bias - mean) * factor + shift)
    with graph.inserting_before(conv):
        folded_weight = graph.get_attr(f"folded_weight_{index}")
        folded_bias = graph.get_attr(f"folded_bias_{index}")
        if weight_node.op == "call_module":  # the rounding stays
            rounding_of(model, weight_node).folded(factor)
            folded_weight = graph.call_module(str(weight_node.target), (folded_weight,))
    conv.args = (conv.args[0], folded_weight, folded_bias, *conv.args[3:])
    norm.replace_all_uses_with(conv)
    graph.erase_node(norm)


def _as_convolution(model: fx.GraphModule, norm: fx.Node, index: int) -> None:
    """A batch normalisation that cannot be folded becomes a depthwise 1x1 convolution.

    before: y -> readers;  z = batch_norm(y, gamma, beta, mean, var)
    after:  y -> readers;  z = conv(y, factor, shift - mean * factor), one group a channel
    """
    graph, source = model.graph, norm.args[0]
    assert isinstance(source, fx.Node)
    factor, mean, shift = _factor_and_shift(model, norm)
    if (value := source.meta.get("val")) is not None and value.dim() != 4:
        raise NotImplementedError(
            f"{norm.name}: a batch normalisation of {value.dim()} dimensions that follows no "
            "convolution of its own; only (batch, channels, height, width) can be written"
        )
    model.register_buffer(f"folded_weight_{index}", factor[:, None, None, None])
    model.register_buffer(f"folded_bias_{index}", shift - mean * factor)
    with graph.inserting_before(norm):
        weight = graph.get_attr(f"folded_weight_{index}")
        bias = graph.get_attr(f"folded_bias_{index}")
        still = ([1, 1], [0, 0], [1, 1], len(factor))  # stride, padding, dilation, groups
        conv = graph.call_function(aten.conv2d.default, (source, weight, bias, *still))
    conv.meta.update(norm.meta)
    norm.replace_all_uses_with(conv)
    graph.erase_node(norm)


def _biased_convolutions(model: fx.GraphModule) -> list[Any]:
    convolutions = [n for n in model.graph.nodes if n.target in CONVOLUTIONS]
    return [n for n in convolutions if len(n.args) > 2 and n.args[2] is not None]


def _with_int8_biases(model: fx.GraphModule) -> list[Any]:
    """The convolutions of a bias that is rounded: all but those that stay in float."""
    return [n for n in _biased_convolutions(model) if n.args[1].op != "get_attr"]


def raise_faint_weights(model: fx.GraphModule) -> None:
    """Give channels with hardly any weights the smallest grid that all formats have, in place.

    What batch normalisation multiplies by almost nothing leaves a bias, which has to fit into
    int32 in steps of the weights' scale. One weight of the channel grows: over the largest
    activation by some 6e-5 of the bias, or by 127 steps of the smallest scale.
    """
    for conv in _with_int8_biases(model):
        activation = model.get_submodule(str(conv.args[0].target))
        assert isinstance(activation, ActivationFakeQuantize)
        scale, _ = activation.calculate_qparams()
        smallest = grid.smallest_weight_scales(attribute(model, conv.args[2]), scale)
        weight = attribute(model, source_weight(conv.args[1]))
        rounding_of(model, conv.args[1]).raise_to(weight, smallest)


def store_rounded(model: fx.GraphModule) -> None:
    """Put weights of few bits in the place of those that are rounded to them, in place.

    What rounds to the int8 grid then finds their numbers.
    """
    for conv in [n for n in model.graph.nodes if n.target in CONVOLUTIONS]:
        rounding = conv.args[1]
        if rounding.op == "call_module":
            weight = attribute(model, source_weight(rounding))
            rounding_of(model, rounding).store(weight)


def rounding_of(model: fx.GraphModule, node: fx.Node) -> WeightFakeQuantize:
    """What rounds the weights at a node of the graph."""
    module = model.get_submodule(str(node.target))
    assert isinstance(module, WeightFakeQuantize)
    return module


def bias_to_grid(model: fx.GraphModule) -> None:
    """Round every int8 convolution's bias to the int32 grid that runtimes use, in place.

    The grid's scale is input scale x weight scale, per output channel; the bias stays float in
    the program, and is exactly a multiple of it. Core ML stores biases in float16: taking the
    multiple next to a float16 number keeps its file within half a step of the others.
    """
    _own_biases(model)
    for conv in _with_int8_biases(model):
        scale = bias_scale(model, conv)
        bias = attribute(model, conv.args[2])
        steps = torch.round(bias.half().double() / scale).clamp(-(2**31), 2**31 - 1)
        bias.copy_((steps * scale).float())


def _own_biases(model: fx.GraphModule) -> None:
    """Give each convolution of a bias that several add one of its own: their grids differ.

    before: y = conv(x, w, b);  z = conv(u, w, b)
    after:  y = conv(x, w, b);  z = conv(u, w, b_1)
    """
    seen: set[fx.Node] = set()
    for index, conv in enumerate(_biased_convolutions(model)):
        shared = conv.args[2]
        if shared in seen:
            model.register_buffer(f"own_bias_{index}", attribute(model, shared).clone())
            with model.graph.inserting_before(conv):
                own = model.graph.get_attr(f"own_bias_{index}")
            conv.args = (*conv.args[:2], own, *conv.args[3:])
        seen.add(shared)
    model.recompile()


def bias_roundings(model: fx.GraphModule) -> dict[str, Tensor]:
    """By how much `bias_to_grid` moves each convolution's biases at most, by the node's name."""
    return {
        conv.name: (bias_scale(model, conv) / 2 + _HALF_EPSILON * bias.abs()).float()
        for conv in _with_int8_biases(model)
        for bias in [attribute(model, conv.args[2])]
    }


def bias_scale(model: fx.GraphModule, conv: fx.Node) -> Tensor:
    """Input scale x weight scale of one convolution: float64, one per output channel."""
    activation, weight = conv.args[0], conv.args[1]
    assert isinstance(activation, fx.Node)
    assert isinstance(weight, fx.Node)
    scales = attribute(model, weight.args[1])
    return torch.mul(scales.double(), float(activation.args[1]))  # type: ignore[arg-type]


def drop_dropouts(model: fx.GraphModule) -> None:
    """Remove dropout, which only training has, in place."""
    for dropout in [n for n in model.graph.nodes if n.target is aten.dropout.default]:
        dropout.replace_all_uses_with(dropout.args[0])
        model.graph.erase_node(dropout)
    model.recompile()


def drop_clamps(model: fx.GraphModule) -> None:
    """Remove each ReLU and clamp whose ends are those of its output's grid, which clamps as well.

    before: y = conv(x);  z = quantize(relu(y))
    after:  y = conv(x);  z = quantize(y)
    """
    for clamp in [n for n in model.graph.nodes if n.target in CLAMPS]:
        low, high = _ends(clamp)
        users = list(clamp.users)
        if users and all(_clamps_as(user, low, high) for user in users):
            clamp.replace_all_uses_with(clamp.args[0])
            model.graph.erase_node(clamp)
    model.recompile()


def drop_unread(model: fx.GraphModule) -> None:
    """Take away the tensors that no node reads, in place: a program would keep them all.

    Of a convolution into which a batch normalisation was folded, those are six.
    """
    for node in [n for n in model.graph.nodes if n.op == "get_attr" and not n.users]:
        model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    read = {_owned(model, str(n.target)) for n in model.graph.nodes if n.op == "get_attr"}
    for module in model.modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, _ in own:
            if (id(module), name) not in read:
                delattr(module, name)
    model.recompile()


def _owned(model: fx.GraphModule, target: str) -> tuple[int, str]:
    """The module that has a tensor, which may go by several paths, and the tensor's name there."""
    owner, _, name = target.rpartition(".")
    return id(model.get_submodule(owner)), name


def _ends(clamp: fx.Node) -> tuple[float, float]:
    if clamp.target is aten.hardtanh.default:
        low, high = clamp.args[1:3]
        return float(low), float(high)  # type: ignore[arg-type]
    return 0.0, float("inf")


def _clamps_as(reader: fx.Node, low: float, high: float) -> bool:
    """Whether what reads a clamp rounds to a grid that ends no later than the clamp does."""
    if reader.target is not quantized.quantize_per_tensor.default:
        return False
    given: Any = reader.args
    scale, zero, first, last = given[1:5]
    ends_below = round(low / scale) + zero <= first
    return bool(ends_below and (math.isinf(high) or round(high / scale) + zero >= last))


def quantized_program(prepared: fx.GraphModule, example: Tensor) -> torch.export.ExportedProgram:
    """Turn a trained PT2E graph into the quantized program.

    Args:
        prepared: the graph after training, in evaluation mode; changed in place.
        example: one batch (at least 2, 3, side, side), to trace with; the batch stays dynamic.
    """
    only_round(prepared)
    drop_dropouts(prepared)
    fold_batch_norms(prepared)
    raise_faint_weights(prepared)
    store_rounded(prepared)
    with torch.no_grad():
        prepared(example)  # weight scales follow the folded weights
    model = convert_pt2e(prepared)
    drop_clamps(model)
    bias_to_grid(model)
    return _exported(model, example)


def float_twin(prepared: fx.GraphModule, example: Tensor) -> torch.export.ExportedProgram:
    """The float network behind a trained PT2E graph: the same operations with nothing rounded.

    Args:
        prepared: the graph after training, in evaluation mode; not changed.
        example: one batch (at least 2, 3, side, side), to trace with; the batch stays dynamic.
    """
    model = copy.deepcopy(prepared)
    drop_dropouts(model)
    fold_batch_norms(model)
    for node in list(model.graph.nodes):
        is_module = node.op == "call_module"
        if is_module and isinstance(model.get_submodule(str(node.target)), FakeQuantizeBase):
            # before: y = conv(round_x(x), round_w(w))
            # after:  y = conv(x, w)
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    model.recompile()
    return _exported(model, example)


def float_program(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The program of a network that is not quantized: batch normalisation folded, nothing else."""
    graph = _traced(model.cpu().eval(), example).module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    fold_batch_norms(graph)
    return _exported(graph, example)


def _exported(model: fx.GraphModule, example: Tensor) -> torch.export.ExportedProgram:
    drop_unread(model)
    return _traced(model, example)


@span("trace", "the program")
def _traced(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
