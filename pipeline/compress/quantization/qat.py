"""Quantization-aware training with torchao's PT2E flow and the project's quantizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchao.quantization.pt2e import FakeQuantizeBase
from torchao.quantization.pt2e.prepare import prepare as pt2e_prepare
from torchao.quantization.pt2e.utils import _get_node_name_to_scope

from pipeline.base.errors import InputError
from pipeline.base.profile import span
from pipeline.compress.quantization import grid
from pipeline.compress.quantization.bias_correction import InputMeans
from pipeline.compress.quantization.concatenations import tie_concatenations
from pipeline.compress.quantization.fake_quantize import ActivationFakeQuantize, FixedFakeQuantize
from pipeline.compress.quantization.float_layers import float_operations
from pipeline.compress.quantization.quantizer import ACTIVATION, CLAMPS, PIXELS, MobileQuantizer
from pipeline.compress.quantization.ranges import Observed, Ranges
from pipeline.compress.quantization.sums import keep_near
from pipeline.networks.lowering.lower import lower
from pipeline.networks.lowering.places import FloatPlaces
from pipeline.recipe.compression import Milestones
from pipeline.recipe.input_shape import InputShape

aten = torch.ops.aten
_NORMALIZES = aten.batch_norm.default
_RELU = (aten.relu.default, aten.relu_.default)
_TRAINING_ARGUMENT = 5
_SMALLEST_GAMMA = 1e-6
_MOMENTUM = 0.1


@span("trace", "the network, to quantize")
def prepare(
    model: nn.Module,
    shape: InputShape,
    *,
    pixels: bool = False,
    floats: FloatPlaces = FloatPlaces(),  # noqa: B008  frozen
) -> fx.GraphModule:
    """Export a network in deploy form and put fake quantization into it.

    The graph starts in training mode. Batch size stays dynamic. Parameters keep their names.

    Args:
        model: takes images (batch, 3, side, side); moved to the CPU, in training mode afterwards.
        shape: of an image.
        pixels: whether the images are camera pixels, which have their grid at the input; for any
            other one is learned.
        floats: modules that are not quantized.

    Raises:
        InputError: an operation has no form that every runtime has, or `floats` names what is not
            there or nothing that can stay in float.
    """
    floats.refuse_unknown(model)
    _keep_gammas_from_zero(model)
    example = torch.zeros(shape.batch(2))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(trainable(model.cpu()), (example,), dynamic_shapes=({0: batch},))
    exported = program.module(check_guards=False)
    assert isinstance(exported, fx.GraphModule)
    lowered = lower(exported, floats)
    kept = float_operations(lowered.graph, floats, learned_input=not pixels)
    quantizer = MobileQuantizer(PIXELS if pixels else ACTIVATION, kept)
    graph = _with_fake_quantization(lowered, quantizer)
    _round_as_folded(graph)
    _not_behind_dropout(graph)
    tie_concatenations(graph)
    keep_near(graph)
    return graph


def _not_behind_dropout(graph: fx.GraphModule) -> None:
    """Leave what dropout gives unrounded, in place: it is rounded already, and scaled up.

    before: y = round(dropout(round(x)))
    after:  y = dropout(round(x))

    Otherwise training would learn a range that the network in use, without dropout, does not have.
    """
    for dropout in [n for n in graph.graph.nodes if n.target is aten.dropout.default]:
        for reader in [n for n in dropout.users if n.op == "call_module"]:
            reader.replace_all_uses_with(dropout)
            graph.graph.erase_node(reader)
    graph.recompile()


def trainable(model: nn.Module) -> nn.Module:
    """A network in the mode that its graph is trained in; changed in place.

    Batch normalisation and dropout train. All else is as in use, since it would be in the graph for
    good: stochastic depth, auxiliary heads.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm | _DropoutNd):
            module.train()
        if isinstance(module, _BatchNorm) and module.momentum is None:
            module.momentum = _MOMENTUM  # a running mean of all batches reads their number
    return model


def _with_fake_quantization(model: fx.GraphModule, quantizer: MobileQuantizer) -> fx.GraphModule:
    """As torchao's `prepare_qat_pt2e`, but for the fusion of batch normalisations.

    That one gives every batch normalisation an epsilon of 1e-5 and the usual momentum, and scales
    weights and outputs where `_round_as_folded` does neither.
    """
    scopes = _get_node_name_to_scope(model)
    quantizer.annotate(model)
    quantizer.validate(model)
    prepared: fx.GraphModule = pt2e_prepare(model, scopes, is_qat=True)
    return prepared


def _round_as_folded(graph: fx.GraphModule) -> None:
    """Round weights to the grid that they will have when batch normalisation is folded, in place.

    before: z = bn(conv(x, round(w), b))
    after:  z = bn(conv(x, round(w, s), b)) ; s = gamma / sqrt(var + eps)

    `s` is what folding will multiply the weights by (Jacob et al. 2018,
    https://arxiv.org/abs/1712.05877, section 3.2). Rounding to steps that are `s` times as fine
    gives the same numbers as rounding `w * s` and dividing by `s` after, without two passes over
    the weights and two over the activations, forward and backward. (Left out is the gradient that
    `s` gets for the rounding error.)
    """
    nodes = graph.graph
    for norm in [n for n in nodes.nodes if n.target is _NORMALIZES]:
        conv, gamma, _, _, variance = norm.args[:5]
        rounded = conv.args[1]
        if rounded.op == "get_attr":
            continue  # a float layer's, which are not rounded
        for source in filter(None, (variance, gamma)):
            rounded.prepend(source)  # it may be read further down
        with nodes.inserting_before(rounded):
            square = nodes.call_function(aten.add.Tensor, (variance, norm.args[7]))
            deviation = nodes.call_function(aten.sqrt.default, (square,))
            divided = (deviation, -1) if gamma is None else (gamma, deviation)
            division = aten.pow.Tensor_Scalar if gamma is None else aten.div.Tensor
            factor = nodes.call_function(division, divided)
        rounded.args = (rounded.args[0], factor)
    nodes.lint()  # type: ignore[no-untyped-call]
    graph.recompile()


def merge_rounding(graph: fx.GraphModule) -> None:
    """Take passes over activations out of a calibrated graph that is to be trained, in place.

    A ReLU before a grid that starts at zero is left to the rounding, and what max pooling picks
    of rounded values is not rounded again. Numbers and state stay the same; gradients too, but
    for values less than half a step below zero.

    before: z = round(relu(y));  p = round(max_pool(round(x)))
    after:  z = round(y), which rectifies;  p = max_pool(round(x))
    """
    nodes = graph.graph
    for node in [n for n in nodes.nodes if n.op == "call_module"]:
        module, source = graph.get_submodule(str(node.target)), node.args[0]
        if not isinstance(module, ActivationFakeQuantize):
            continue
        if source.target in _RELU and len(source.users) == 1 and _starts_at_zero(module):
            module.rectifies = True
            node.args = source.args
            nodes.erase_node(source)
        elif source.target is aten.max_pool2d.default:
            before = source.args[0]
            if before.op == "call_module" and graph.get_submodule(before.target) is module:
                node.replace_all_uses_with(source)
                nodes.erase_node(node)
    nodes.lint()  # type: ignore[no-untyped-call]
    graph.recompile()


def _starts_at_zero(module: ActivationFakeQuantize) -> bool:
    return float(module.low) == 0.0 and int(module.zero_point) == grid.QMIN


def _keep_gammas_from_zero(model: nn.Module) -> None:
    """PT2E divides by gamma while training; a dead channel would turn everything to NaN."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            with torch.no_grad():
                gamma = module.weight
                tiny = gamma.abs() < _SMALLEST_GAMMA
                gamma[tiny] = torch.where(gamma[tiny] < 0, -_SMALLEST_GAMMA, _SMALLEST_GAMMA)


def set_training(graph: nn.Module, mode: bool, *, batch_norms: bool | None = None) -> None:
    """Switch an exported graph's dropout and batch normalisations, these by `batch_norms`."""
    assert isinstance(graph, fx.GraphModule)
    training = mode if batch_norms is None else mode and batch_norms
    changed = False
    switches = {_NORMALIZES: (_TRAINING_ARGUMENT, training), aten.dropout.default: (2, mode)}
    for node in [n for n in graph.graph.nodes if n.target in switches]:
        place, wanted = switches[node.target]
        if node.args[place] != wanted:
            node.args = (*node.args[:place], wanted, *node.args[place + 1 :])
            changed = True
    if changed:
        graph.recompile()


class Schedule:
    """The four phases of quantization-aware training, entered by the step they begin at.

    observe: ranges are learned, nothing is rounded. fake_quantize: values are rounded to the
    grids. freeze_observers: grids stay as they are. freeze_bn: batch normalisation uses its
    running statistics, as it will when folded.
    """

    def __init__(self, graph: fx.GraphModule, milestones: Milestones) -> None:
        self._graph = graph
        self._starts = milestones.model_dump()
        self.phase = ""
        self._enter(set())

    def before_step(self, step: int, steps: int) -> None:
        """Enter the phase that `step` of `steps` belongs to."""
        begun = [name for name, share in self._starts.items() if step >= share * steps]
        if begun and begun[-1] != self.phase:
            self.phase = begun[-1]
            self._enter(set(begun))

    def set_training(self, graph: nn.Module, mode: bool) -> None:
        """Mode switch for the training loop; frozen statistics stay frozen."""
        set_training(graph, mode, batch_norms=self.phase != "freeze_bn")

    def _enter(self, begun: set[str]) -> None:
        for module in self._graph.modules():
            if isinstance(module, FakeQuantizeBase):
                module.enable_observer("observe" in begun and "freeze_observers" not in begun)
                module.enable_fake_quant("fake_quantize" in begun)
        set_training(self._graph, True, batch_norms="freeze_bn" not in begun)


@span("evaluate", "ranges")
def calibrate(
    graph: fx.GraphModule,
    batches: Callable[[], Iterable[Tensor]],
    ranges: Ranges = Ranges(),  # noqa: B008  frozen
    means: InputMeans | None = None,
) -> None:
    """Set the grids from calibration images alone, with nothing rounded meanwhile.

    Args:
        graph: from `prepare`.
        batches: the images.
        ranges: how ranges come of them.
        means: of this graph; sees the images as well.
    """
    run = graph if means is None else means.run
    averages = ranges.kind == "moving_average"
    without_rounding(graph, observes=averages)
    with torch.no_grad(), nullcontext() if averages else Observed(graph) as observed:
        for images in batches():
            if observed is not None:
                observed.next_batch()
            run(images)
    if observed is not None:
        observed.choose(ranges)


def without_rounding(graph: fx.GraphModule, *, observes: bool = False) -> None:
    """Have a graph compute as the float network does, in evaluation mode."""
    set_training(graph, False)
    for module in graph.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(observes)
            module.enable_fake_quant(False)


def load_state(graph: fx.GraphModule, state: dict[str, Tensor]) -> None:
    """Load a saved state into a graph from `prepare`; learned scales keep their saved shapes."""
    for name, buffer in graph.named_buffers():
        if name in state and buffer.shape != state[name].shape:
            buffer.resize_(state[name].shape)
    graph.load_state_dict(state)


def refuse_bad_grids(graph: fx.GraphModule) -> None:
    """Stop on a grid that cannot be right.

    Raises:
        InputError: a scale is not above zero and finite, or is not so as a float16 number, which
            every scale has to be; or a tensor was never observed. Names what is rounded.
    """
    rounded = _what_is_rounded(graph)
    for name, module in _fake_quantizes(graph):
        scales, _ = module.calculate_qparams()
        halves = scales.half()
        usable = halves.isfinite() & (halves > 0)
        low = getattr(module, "low", torch.tensor(0.0))
        if not usable.all():
            first = float(scales[~usable][0])
            why = (
                f"{int((~usable).sum())} of {len(scales)} scales of {rounded.get(name, name)} are "
                f"no float16 numbers above 0 (the first is {first:g})"
            )
        elif not isinstance(module, FixedFakeQuantize) and not torch.isfinite(low):
            why = f"nothing was seen of {rounded.get(name, name)}"
        else:
            continue
        raise InputError(
            f"quantization: {name} has no usable range; {why}; check the calibration images and "
            "qat.train (at least one epoch is needed)"
        )


def silent_layers(graph: fx.GraphModule) -> list[str]:
    """What was zero for every image that a graph has been calibrated with, and nothing else.

    Such a layer counts for nothing, and is often a ReLU that training has driven below zero for
    good. Blocks can do without: their shortcuts go on.

    Args:
        graph: calibrated and not yet trained, since observers forget the calibration in training.
    """
    rounded = _what_is_rounded(graph)
    return [
        rounded.get(name, name)
        for name, module in _fake_quantizes(graph)
        if isinstance(module, ActivationFakeQuantize)
        and float(module.low) == float(module.high) == 0.0
    ]


def _fake_quantizes(graph: fx.GraphModule) -> list[tuple[str, Any]]:
    """Every module that rounds, by its name."""
    modules = graph.named_modules()
    return [(name, module) for name, module in modules if isinstance(module, FakeQuantizeBase)]


def _made_by(node: fx.Node) -> fx.Node:
    """The operation whose layer a node's numbers are: past its ReLU and batch normalisation."""
    for targets in (CLAMPS, {_NORMALIZES}):
        source = node.args[0]
        if node.target in targets and isinstance(source, fx.Node):
            node = source
    return node


def _what_is_rounded(graph: fx.GraphModule) -> dict[str, str]:
    """What each module that rounds is given, in words, by the module's name."""
    words: dict[str, str] = {}
    for node in [n for n in graph.graph.nodes if n.op == "call_module"]:
        source = node.args[0]
        if source.op == "get_attr":
            text = f"the weights of {source.target.removesuffix('.weight')}"
        elif source.op == "placeholder":
            text = "the images"
        else:
            # The modules of the network that hold the operation, the innermost last.
            path = [name for name, _ in _made_by(source).meta.get("nn_module_stack", {}).values()]
            text = (
                f"the output of {path[-1] or 'the network'} ({source.name})"
                if path
                else source.name
            )
        words.setdefault(str(node.target), text)
    return words
