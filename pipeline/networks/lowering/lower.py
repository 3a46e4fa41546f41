"""The rewriting of a whole network: a rule for every operation.

    graph = torch.export.export(model, (example,)).module(check_guards=False)
    lower(graph)

What comes out is of few operations: convolutions, batch normalisations that follow one, ReLU and
clamps, sigmoid, tanh, leaky ReLU, ELU, GELU, sums and products of images, means over height and
width, max pooling, concatenations, slices, zero padding, channel shuffles, depth-to-space,
and one flatten at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from pipeline.base.errors import InputError
from pipeline.networks.lowering import (
    activations,
    arithmetic,
    linear,
    pools,
    resizing,
    shapes,
    stacks,
    transposed,
)
from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.float_rules import FLOAT_RULES
from pipeline.networks.lowering.places import FloatPlaces
from pipeline.networks.lowering.values import Pooled, Stacked, Viewed, is_flat, shape_of

aten = torch.ops.aten
Rule = Callable[..., Any]
"""From a builder and the operation's arguments, by place, to what stands for its result."""


def _same(b: Builder, x: Any, *_: Any, **__: Any) -> Any:
    return x


RULES: dict[Any, Rule] = {
    aten.conv2d.default: linear.conv2d,
    aten.conv2d.padding: linear.conv2d,
    aten.conv_transpose2d.input: transposed.conv_transpose,
    aten.linear.default: linear.linear,
    aten.relu.default: activations.relu,
    aten.relu_.default: activations.relu,
    aten.relu6.default: activations.relu6,
    aten.relu6_.default: activations.relu6,
    aten.hardtanh.default: activations.hardtanh,
    aten.hardtanh_.default: activations.hardtanh,
    aten.clamp.default: activations.clamp,
    aten.clamp_.default: activations.clamp,
    aten.clamp_min.default: activations.clamp,
    aten.hardsigmoid.default: activations.hardsigmoid,
    aten.hardsigmoid_.default: activations.hardsigmoid,
    aten.hardswish.default: activations.hardswish,
    aten.hardswish_.default: activations.hardswish,
    aten.sigmoid.default: activations.sigmoid,
    aten.sigmoid_.default: activations.sigmoid,
    aten.silu.default: activations.silu,
    aten.silu_.default: activations.silu,
    aten.tanh.default: activations.tanh,
    aten.tanh_.default: activations.tanh,
    aten.leaky_relu.default: activations.leaky_relu,
    aten.leaky_relu_.default: activations.leaky_relu,
    aten.elu.default: activations.elu,
    aten.elu_.default: activations.elu,
    aten.gelu.default: activations.gelu,
    aten.prelu.default: activations.prelu,
    aten.dropout.default: activations.dropout,
    aten.dropout_.default: activations.dropout,
    aten.feature_dropout.default: _same,
    aten.alpha_dropout.default: _same,
    aten.contiguous.default: _same,
    aten.clone.default: _same,
    aten.detach.default: _same,
    aten.max_pool2d.default: pools.max_pool,
    aten.avg_pool2d.default: pools.avg_pool,
    aten.adaptive_avg_pool2d.default: pools.adaptive_avg_pool,
    aten.adaptive_max_pool2d.default: pools.adaptive_max_pool,
    aten.mean.dim: pools.mean,
    aten.add.Tensor: arithmetic.add,
    aten.add_.Tensor: arithmetic.add,
    aten.add.Scalar: arithmetic.add,
    aten.sub.Tensor: arithmetic.sub,
    aten.sub_.Tensor: arithmetic.sub,
    aten.rsub.Scalar: arithmetic.rsub,
    aten.rsub.Tensor: arithmetic.rsub,
    aten.mul.Tensor: arithmetic.mul,
    aten.mul_.Tensor: arithmetic.mul,
    aten.mul.Scalar: arithmetic.mul,
    aten.div.Tensor: arithmetic.div,
    aten.div_.Tensor: arithmetic.div,
    aten.neg.default: arithmetic.neg,
    aten.sum.dim_IntList: arithmetic.total,
    aten.cat.default: shapes.cat,
    aten.stack.default: stacks.stack,
    aten.pad.default: shapes.pad,
    aten.constant_pad_nd.default: shapes.pad,
    aten.permute.default: shapes.permute,
    aten.pixel_shuffle.default: shapes.pixel_shuffle,
    aten.pixel_unshuffle.default: shapes.pixel_unshuffle,
    aten.channel_shuffle.default: shapes.channel_shuffle,
    aten.upsample_nearest2d.vec: resizing.nearest,
    aten.upsample_nearest2d.default: resizing.nearest,
    aten._upsample_nearest_exact2d.vec: resizing.nearest_exact,
    aten.upsample_bilinear2d.vec: resizing.bilinear,
    aten.upsample_bilinear2d.default: resizing.bilinear,
    aten.native_channel_shuffle.default: shapes.channel_shuffle,
}
"""What an operation becomes; those whose rules look at more than their arguments are below."""

_RESHAPES = {
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unflatten.int,
}
_READ_POOLED = {
    *_RESHAPES,
    *(aten.dropout.default, aten.dropout_.default, aten.linear.default),
    *(aten.contiguous.default, aten.clone.default, aten.detach.default),
}
"""What may read an image of which a pool takes more windows than pixels; others get the windows."""


_FORWARD = "the network's own forward"
_KNOWN = {
    *(*RULES, *_RESHAPES, aten.batch_norm.default, aten.transpose.int),
    *(aten.slice.Tensor, aten.softmax.int, aten.chunk.default, aten.split.Tensor),
    aten.split_with_sizes.default,
}


def lower(
    model: fx.GraphModule,
    floats: FloatPlaces = FloatPlaces(),  # noqa: B008  frozen
) -> fx.GraphModule:
    """Write the graph of an exported network anew, in place.

    Args:
        model: (batch, channels, height, width) to (batch, outputs), the batch free.
        floats: modules that stay in float, which may have operations that no runtime has in int8.

    Raises:
        InputError: an operation has no form that every runtime has in int8; names it, the module
            that holds it, and what may be done.
    """
    b = Builder(model, floats)
    values: dict[fx.Node, Any] = {}
    for node in model.graph.nodes:
        b.at(node)
        if node.op == "placeholder":
            values[node] = b.copy(node)
        elif node.op == "get_attr":
            values[node] = node  # read where it is needed, perhaps in another form
        elif node.op == "output":
            (result,) = node.args[0]
            b.graph.output((_output(b, values[result], node),))
        elif node.op == "call_function":
            values[node] = _lowered(b, node, values)
        else:
            raise InputError(f"{node.name}: a {node.op} cannot be rewritten")
    linear.with_convolutions_of_their_own(b)
    b.graph.set_codegen(model.graph._codegen)
    model.graph = b.graph
    model.graph.eliminate_dead_code(is_impure_node=_stays)
    model.graph.lint()  # type: ignore[no-untyped-call]
    model.recompile()
    return model


def _stays(node: fx.Node) -> bool:
    return node.op in {"placeholder", "output"} or node.target is aten.add_.Tensor


def _lowered(b: Builder, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """What stands for the result of one operation."""
    if not isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
        return None  # a size: shapes are known
    if not any(
        isinstance(n.meta.get("val"), torch.Tensor | list | tuple) for n in node.all_input_nodes
    ):
        return node  # a constant of its own; whoever reads it is asked for its rule
    if _counts(node):
        return b.call(node.target, *fx.node.map_arg(node.args, values.__getitem__))
    try:
        if node.target not in _KNOWN and not _is_item(node):
            raise Unsupported("no rule for this operation")
        for operand in node.all_input_nodes:
            if node.target not in _READ_POOLED and isinstance(values[operand], Pooled):
                values[operand] = pools.cut_out(b, values[operand])
        return _ruled(b, node, *_arguments(node, values))
    except Unsupported as why:
        return _in_float(b, node, values, why)


def _in_float(b: Builder, node: fx.Node, values: dict[fx.Node, Any], why: Unsupported) -> Any:
    """What stands for the result of an operation that is not known in int8.

    Raises:
        InputError: it is not to stay in float, or not known there either.
    """
    held = b.floats.hold(node)
    if node.target not in FLOAT_RULES:
        raise _refused(b, node, f"{why}, nor in float" if held else str(why)) from why
    b.only_float = True
    try:
        args, kwargs = _arguments(node, values)
        made = FLOAT_RULES[node.target](b, *args, **kwargs)
    except Unsupported as neither:
        raise _refused(b, node, f"{why}; in float, {neither}" if held else str(why)) from neither
    finally:
        b.only_float = False
    if not held:
        raise _refused(b, node, str(why), in_float=True) from why
    return made


def _is_item(node: fx.Node) -> bool:
    """Whether a node takes one of several results of an operation."""
    return getattr(node.target, "__name__", "") == "getitem"


def _counts(node: fx.Node) -> bool:
    """Whether an operation counts the batches of a batch normalisation, in place."""
    return node.target is aten.add_.Tensor and not node.meta["val"].is_floating_point()


def _arguments(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of the old operation, its operands as they are in the new graph."""

    def new(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return values[argument]
        if isinstance(argument, list | tuple):
            return [new(part) for part in argument]
        return argument

    return [new(a) for a in node.args], {key: new(a) for key, a in node.kwargs.items()}


def _ruled(b: Builder, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    target: Any = node.target
    if target in RULES:
        return RULES[target](b, *args, **kwargs)
    if target in _RESHAPES:
        return shapes.reshape(b, args[0], node)
    source: Any = node.args[0]
    if target is aten.batch_norm.default:
        return linear.batch_norm(b, *args)
    if target is aten.transpose.int:
        return shapes.transpose(b, args[0], args[1], args[2], source.meta["val"].dim())
    if target is aten.slice.Tensor:
        return shapes.cut(b, *_slice_arguments(args))
    if target is aten.softmax.int:
        if source.meta["val"].dim() == 5 and args[1] == 1:
            return stacks.softmax_of_stack(b, args[0])
        return activations.softmax(b, *args)
    if target is aten.chunk.default:
        dim = args[2] if len(args) > 2 else 0
        return shapes.split(b, args[0], shapes.chunks(source, args[1], dim), dim)
    if target is aten.split.Tensor:
        dim = args[2] if len(args) > 2 else 0
        return shapes.split(b, args[0], shapes.equal_parts(source, args[1], dim), dim)
    if target is aten.split_with_sizes.default:
        return shapes.split(b, args[0], args[1], args[2] if len(args) > 2 else 0)
    return args[0][args[1]]  # one of several results


def _slice_arguments(args: list[Any]) -> tuple[Any, int, int, int, int]:
    """Of a slice: what it is of, axis, begin, end and step, defaults filled in."""
    x, *given = args
    axis, begin, end, step = given + [0, None, None, 1][len(given) :]
    return x, axis, begin or 0, 2**62 if end is None else end, step


def _output(b: Builder, value: Any, node: fx.Node) -> fx.Node:
    """The network's answers: (batch, outputs)."""
    if is_flat(value):
        assert isinstance(value, Viewed)
        if shape_of(value.image)[1:] == (1, 1) or shape_of(value.image)[0] == 1:
            return b.call(aten.flatten.using_ints, value.image, 1)
    if isinstance(value, fx.Node):
        return value
    kind = "a stack" if isinstance(value, Stacked) else "a tensor of another order"
    raise InputError(f"the network gives {kind}, not (batch, outputs)")


def _refused(b: Builder, node: fx.Node, why: str, *, in_float: bool = False) -> InputError:
    """An operation that stops the rewriting, in a line; `in_float` is known there, and a way out.

    An operation of the network's own `forward` has no module that a recipe could name.
    """
    schema = getattr(node.target, "_schema", None)
    name = schema.name.rpartition("::")[2] if schema is not None else str(node.target)
    place = b.place()
    ways = ["put operations in its place that docs/networks.md names"]
    ways.append("leave the module out of the network")
    if in_float:
        named = f"`qat.float: [{place}]`" if place else "`qat.float`, once it is a module"
        ways.append(f"leave it in float by {named}")
    ways[-1] = f"or {ways[-1]}"
    return InputError(f"{name} in {place or _FORWARD}: {why}; {', '.join(ways)}")
