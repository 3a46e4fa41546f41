"""The layers of a quantized program, one by one: what torch, a file and the float network give.

A layer is one quantized tensor: an operation (with its ReLU, if any) and the grid of its output.
Files carry the program's layer names, so a tensor of a file is found by its layer's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torchao.quantization.pt2e  # noqa: F401  registers the quantized_decomposed operations
from numpy.typing import NDArray
from torch import Tensor, fx

from pipeline.base.profile import span
from pipeline.compress.quantization import grid
from pipeline.compress.quantization.other_rounding import QUANTIZE
from pipeline.compress.quantization.program import graph_of
from pipeline.compress.quantization.quantizer import CLAMPS
from pipeline.formats.limits import MEDIAN_STEPS, P99_STEPS
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import normalize

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed

DEQUANTIZE = {
    quantized.dequantize_per_tensor.default,
    quantized.dequantize_per_channel.default,
}

_CALIBRATION_PROBES, _NOISE_PROBES = 6, 2

_TIE = 1e-3
"""How near to the middle between two steps, in steps, a number may be rounded either way.

More than summing in another order moves it. Where an attention of exactly one half multiplies, as
in a network that was hardly trained, half of the numbers lie in the middle.
"""

_BATCH = 8
"""Images at a time: every layer's values are held at once, 0.2 GB for an image of 224 x 224."""

Trace = Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.int8]]]
"""Runs a file on images (batch, 3, side, side); every format has one."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One quantized tensor of a program.

    Attributes:
        name: of the quantized tensor, in the program and in every file.
        operation: the operation that makes it, such as `conv2d_12`; `image` for the input.
        module: where that operation stands in the network, by the name that every form of it has.
        inputs: names of the layers it reads, past operations that stay in float.
        scale: of its grid.
        zero_point: of its grid.
    """

    name: str
    operation: str
    module: str
    inputs: tuple[str, ...]
    scale: float
    zero_point: int

    @property
    def title(self) -> str:
        """For people: module and operation."""
        return f"{self.module} {self.operation}".strip()


def layers_of(program: torch.export.ExportedProgram) -> tuple[Layer, ...]:
    """The layers of a quantized program in the order they are computed; () for a float one."""
    return tuple(_layer(node) for node in program.graph.nodes if node.target is QUANTIZE)


def _layer(node: fx.Node) -> Layer:
    operation = node.args[0]
    assert isinstance(operation, fx.Node)
    made = operation
    source = operation.args[0] if operation.args else None
    if operation.target in CLAMPS and isinstance(source, fx.Node):
        # A clamp that reads a rounded tensor is a layer of its own.
        made = operation if source.target in DEQUANTIZE else source
    stack = list(made.meta.get("nn_module_stack", {}).values())
    return Layer(
        name=node.name,
        operation="image" if made.op == "placeholder" else made.name,
        module=str(stack[-1][0]) if stack else "",
        inputs=tuple(node.name for node in _read_by(made, set())),
        scale=float(node.args[1]),  # type: ignore[arg-type]
        zero_point=int(node.args[2]),  # type: ignore[arg-type]
    )


def _read_by(operation: fx.Node, seen: set[fx.Node]) -> Iterator[fx.Node]:
    """The roundings whose numbers an operation reads, through those that stay in float.

    Args:
        operation: of a program.
        seen: operations in float that were gone through; added to.
    """
    for source in operation.all_input_nodes:
        if source.target in DEQUANTIZE:
            rounding = source.args[0]
            if isinstance(rounding, fx.Node) and rounding.target is QUANTIZE:
                yield rounding
        elif source.op == "call_function" and source not in seen:
            seen.add(source)
            yield from _read_by(source, seen)


def output_scale(program: torch.export.ExportedProgram) -> float | None:
    """The step of the grid that a program's answers lie on; None where they are float numbers."""
    (answers,) = next(n for n in program.graph.nodes if n.op == "output").args[0]
    return float(answers.args[1]) if answers.target in DEQUANTIZE else None


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, graph: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(graph)
        self._wanted = wanted
        self.kept: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node.name in self._wanted:
            self.kept[node.name] = value
        return value


def _record(program: torch.export.ExportedProgram, images: Tensor, wanted: set[str]) -> _Recorder:
    recorder = _Recorder(graph_of(program), wanted)
    with torch.no_grad():
        recorder.run(images)
    return recorder


def integers(program: torch.export.ExportedProgram, images: Tensor) -> dict[str, Tensor]:
    """The int8 numbers of every layer of a quantized program for `images`, by its name."""
    return _record(program, images, {layer.name for layer in layers_of(program)}).kept


class _Led(_Recorder):
    """Runs a program, but after each layer goes on with a file's numbers instead of its own.

    What it keeps of a layer are the program's numbers; where one lies between two steps, the step
    that is nearer to the file's.
    """

    def __init__(self, graph: fx.GraphModule, numbers: Mapping[str, Tensor]) -> None:
        super().__init__(graph, set())
        self._numbers = numbers

    def run_node(self, node: fx.Node) -> object:
        found = self._numbers.get(node.name)
        if found is None:
            return super().run_node(node)
        (real, scale, *grid), _ = self.fetch_args_kwargs_from_env(node)
        low, high = (QUANTIZE(real + side * scale * _TIE, scale, *grid) for side in (-1, 1))
        self.kept[node.name] = found.clamp(low, high)
        return found


def led_integers(
    program: torch.export.ExportedProgram, images: Tensor, numbers: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What each layer of a program makes of the numbers that a file gave to the layers it reads.

    So a layer is judged alone: what went wrong before it does not count against it.

    Args:
        program: quantized.
        images: as the program takes them.
        numbers: the file's int8 numbers for them, by layer name.
    """
    led = _Led(graph_of(program), numbers)
    with torch.no_grad():
        led.run(images)
    return led.kept


def float_nodes(
    program: torch.export.ExportedProgram, twin: torch.export.ExportedProgram
) -> dict[str, str]:
    """The node of the float program `twin` that gives what each layer rounds, by layer name.

    Both programs come of one graph and hold the same operations in the same order, besides the
    rounding and the ReLUs that it makes superfluous.

    Raises:
        ValueError: they do not.
    """
    ours, theirs = _operations(program), _operations(twin)
    if [n.target for n in ours] != [n.target for n in theirs]:
        raise ValueError("the float program is not that of the quantized program")
    partner = {node.name: other for node, other in zip(ours, theirs, strict=True)}
    image = next(n for n in twin.graph.nodes if n.name in twin.graph_signature.user_inputs)
    found = {}
    for layer in layers_of(program):
        node = image if layer.operation == "image" else partner[layer.operation]
        relus = [user for user in node.users if user.target in CLAMPS]
        found[layer.name] = relus[0].name if relus else node.name
    return found


def _operations(program: torch.export.ExportedProgram) -> list[fx.Node]:
    rounding = {QUANTIZE, *DEQUANTIZE}
    return [
        node
        for node in program.graph.nodes
        if node.op == "call_function"
        and node.target not in rounding | CLAMPS
        and isinstance(node.meta.get("val"), Tensor)
    ]


def float_values(
    program: torch.export.ExportedProgram, twin: torch.export.ExportedProgram, images: Tensor
) -> dict[str, Tensor]:
    """What the float network gives where each layer of `program` rounds, by layer name."""
    nodes = float_nodes(program, twin)
    kept = _record(twin, images, set(nodes.values())).kept
    return {layer: kept[node] for layer, node in nodes.items()}


def step_counts(found: Tensor, wanted: Tensor) -> Tensor:
    """How many values are 0, 1, 2, ... 255 steps apart: int64 [256].

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != wanted.shape:
        raise ValueError(f"shape {tuple(found.shape)}, but the program's is {tuple(wanted.shape)}")
    apart = (found.to(torch.int16) - wanted.to(torch.int16)).abs()
    return torch.bincount(apart.flatten().long(), minlength=256)


def percentile(counts: Tensor, share: float) -> int:
    """The smallest number of steps that at least `share` of the counted values stay within."""
    reached = counts.cumsum(0) >= share * counts.sum()
    return int(reached.int().argmax())


@dataclass(kw_only=True)
class LayerSums:
    """Running sums of one layer over images; the figures follow from them.

    `steps` counts how far file and program are apart, `own` how far this layer alone brings them
    apart. Noise is against the float network: rounding, clipping and whatever came from the
    layers before.
    """

    layer: Layer
    steps: Tensor = field(default_factory=lambda: torch.zeros(256, dtype=torch.int64))
    own: Tensor = field(default_factory=lambda: torch.zeros(256, dtype=torch.int64))
    signal: float = 0.0
    program_noise: float = 0.0
    file_noise: float = 0.0
    outside: int = 0
    values: int = 0

    def add(self, exact: Tensor, ours: Tensor, files: Tensor) -> None:
        """Count the values of some images: the float network's, the program's, the file's."""
        layer = self.layer
        low = (grid.QMIN - layer.zero_point - 0.5) * layer.scale
        high = (grid.QMAX - layer.zero_point + 0.5) * layer.scale
        exact = exact.double()
        self.signal += float(exact.square().sum())
        self.program_noise += float((_real(ours, layer) - exact).square().sum())
        self.file_noise += float((_real(files, layer) - exact).square().sum())
        self.outside += int(((exact < low) | (exact > high)).sum())
        self.values += exact.numel()

    @property
    def at_fault(self) -> bool:
        """Whether the file computes this layer otherwise than the program, beyond rounding."""
        return percentile(self.own, 0.5) > MEDIAN_STEPS or percentile(self.own, 0.99) > P99_STEPS

    @property
    def saturated(self) -> float:
        """Share of the float network's values that lie outside the grid."""
        return self.outside / self.values if self.values else 0.0

    @property
    def program_sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio of the program, in decibels."""
        return decibels(self.signal, self.program_noise)

    @property
    def file_sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio of the file, in decibels."""
        return decibels(self.signal, self.file_noise)


def _real(numbers: Tensor, layer: Layer) -> Tensor:
    return (numbers.double() - layer.zero_point) * layer.scale


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares; infinite without noise."""
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0.0 else -math.inf


@span("compare", "layers")
def compare_layers(
    program: torch.export.ExportedProgram,
    twin: torch.export.ExportedProgram | None,
    trace: Trace,
    images: Tensor,
) -> list[LayerSums]:
    """Compare a file with its program, layer by layer, in the order of computation.

    Args:
        program: the quantized program.
        twin: its float network; without one the noise figures mean nothing.
        trace: the file's integers for images (batch, 3, side, side), by layer name.
        images: as the program takes them.

    Returns:
        One record for every layer that the file has; runtimes have no tensor of their own for a
        flatten.
    """
    layers = layers_of(program)
    sums = {layer.name: LayerSums(layer=layer) for layer in layers}
    for part in torch.split(images, _BATCH):
        files = {name: torch.as_tensor(found) for name, found in trace(part.numpy()).items()}
        for name in sums.keys() - files.keys():
            del sums[name]
        numbers = {name: files[name] for name in sums}
        ours = integers(program, part)
        for name, record in sums.items():
            record.steps += step_counts(numbers[name], ours[name])
        led = led_integers(program, part, numbers)
        exact = float_values(program, twin, part) if twin is not None else {}
        for name, record in sums.items():
            record.own += step_counts(numbers[name], led[name])
            if name in exact:
                record.add(exact[name], ours[name], numbers[name])
    return list(sums.values())


def probes(dataset: Dataset) -> Tensor:
    """Images (8, channels, height, width) to compare layers on: of the calibration set, and noise.

    The noise is coloured where images are: on grey ones alone a swap would not show.
    """
    images, _ = next(batches(dataset.calibration, _CALIBRATION_PROBES, dataset))
    generator = torch.Generator().manual_seed(0)
    shape = (_NOISE_PROBES, *images.shape[1:])
    noise = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    return torch.cat([images, normalize(noise, dataset.mean, dataset.std)])


def first_difference(compared: Iterable[LayerSums]) -> LayerSums | None:
    """The first layer that the file computes otherwise; else the one that differs most."""
    records = list(compared)
    for record in records:
        if record.at_fault:
            return record
    differing = [record for record in records if record.steps[1:].sum() > 0]
    return max(differing, key=lambda r: float(r.steps[1:].sum() / r.steps.sum()), default=None)
