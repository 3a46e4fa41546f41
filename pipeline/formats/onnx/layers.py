"""An ONNX file with fewer channels, and how long each of its layers takes in ONNX Runtime."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.base.errors import following
from pipeline.formats import as_onnx
from pipeline.formats.channels import ChannelOperation, Kind, channels_after, sliced
from pipeline.formats.layer_times import OTHER, blocks, net_times
from pipeline.formats.onnx.few_bits import unpacked
from pipeline.formats.onnx.file import session_options

_SAME: Kind = "same"
_KINDS: dict[str, Kind] = {
    "Conv": "convolution",
    "Add": "elementwise",
    "Mul": "elementwise",
    "Reshape": "reshape",
    "Slice": "slice",
    "Concat": "concat",
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "MaxPool", "Pad", "ReduceMean"), _SAME),
    **dict.fromkeys(("Clip", "Elu", "Gelu", "LeakyRelu", "Relu", "Sigmoid", "Tanh"), _SAME),
    **dict.fromkeys(("Cast", "DequantizeLinear", "QuantizeLinear", "Transpose"), _SAME),
    **dict.fromkeys(("Resize", "Softmax", "Sum"), _SAME),
}
"""How channels follow through every operation that our files have."""

_FOLLOWERS = {"Relu", "QuantizeLinear"}
"""Operations that belong to the one whose output they read, where they alone read it."""

_KERNEL = "_kernel_time"
_BLOCKED = "_nchwc"
_MICROSECOND = 1e-3
"""Milliseconds; the profile counts whole microseconds."""


def resized(content: bytes, widths: Mapping[str, int]) -> bytes:
    """The same network with fewer channels, for timing: its answers mean nothing.

    All other tensors follow. Of weights, scales, zero points and biases the first are kept.

    Args:
        content: an ONNX file from `onnx.write`.
        widths: new output channels by layer name (in a float file: name of the tensor after the
            ReLU, if any) of any regular convolution but the last, which makes the file's output.
            Others keep theirs.

    Raises:
        ValueError: a name is none of these, a width is below 1 or above the present one, its
            groups do not divide a convolution's channels, or operands do not match.
    """
    file = _File(content)
    operations = file.operations()
    given = {file.model.graph.input[0].name: file.input_channels()}
    present = channels_after(operations, given, {})
    channels = channels_after(operations, given, widths)
    if channels == present:
        return content
    kinds = {operation.output: operation for operation in operations}
    for node in file.model.graph.node:
        output, source = node.output[0], node.input[0]
        if node.op_type == "Conv":
            file.resize_conv(node, channels[output], channels[source])
        elif node.op_type == "Reshape" and channels[output] != present[output]:
            shape = file.values[node.input[1]].copy()
            shape[1] = channels[output]
            file.set_input(node, 1, shape)
        elif node.op_type == "Slice" and kinds[output].kind == "slice":
            ends = sliced(kinds[output], present[source], channels[source])
            for place, end in enumerate(ends, 1):
                file.set_input(node, place, np.array([end], np.int64))
    as_onnx.drop_unused_constants(file.model)
    del file.model.graph.value_info[:]
    return bytes(file.model.SerializeToString())


@following("an ONNX graph")
def layer_times(content: bytes, rounds: int, threads: int) -> dict[str, float]:
    """Typical milliseconds of every operation of a file, from ONNX Runtime's profile of its runs.

    To note a node takes the profiler longer than many a node takes to run. Runs without it, in
    turn with the others, say by how much: see `layer_times.net_times`.

    Args:
        content: an ONNX file from `onnx.write`.
        rounds: how often the network is timed, at least once.
        threads: of ONNX Runtime.

    Returns:
        By name of the layer that the operation gives out, in the order of computation; in a float
        file by that of the tensor, after the ReLU, if any. What ONNX Runtime adds, such
        as changes of layout, is under `layer_times.OTHER`.
    """
    file = _File(content)
    layers = file.number_nodes()
    samples, whole = _profile(file.model.SerializeToString(), rounds, threads)
    times: defaultdict[str, float] = defaultdict(float)
    for name, milliseconds in net_times(samples, whole).items():
        times[_layer_of_node(name, layers)] += milliseconds
    return dict(times)


def _layer_of_node(name: str, layers: Sequence[str]) -> str:
    """The layer behind a node of the graph that ONNX Runtime made of ours, by its name.

    Nodes keep their own name, with something added (node7_token_12), except in float
    convolutions that are blocked by channels: those have that of their output (relu_3_nchwc).
    """
    number = re.match(r"node(\d+)", name)
    if number:
        return layers[int(number[1])]
    return name.removesuffix(_BLOCKED) if name.endswith(_BLOCKED) else OTHER


def _profile(
    content: bytes, rounds: int, threads: int
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Milliseconds of every node, by its name, and of the whole network without the profiler.

    Both have one value for each round.
    """
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        plain, profiled = (_session(content, threads, folder) for folder in (None, scratch))
        image = plain.get_inputs()[0]
        dtype = np.uint8 if image.type == "tensor(uint8)" else np.float32
        fed = {image.name: np.zeros((1, *image.shape[1:]), dtype)}
        for block in blocks(rounds):
            for _ in block:
                started = time.perf_counter()
                plain.run(None, fed)
                whole.append((time.perf_counter() - started) * 1e3)
            for _ in block:
                profiled.run(None, fed)
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    samples: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_KERNEL):
            samples[event["name"].removesuffix(_KERNEL)].append(event["dur"] * _MICROSECOND)
    counts = np.concatenate(blocks(rounds))
    return {name: np.array(taken)[counts] for name, taken in samples.items()}, np.array(whole)[
        counts
    ]


def _session(content: bytes, threads: int, profile_folder: str | None) -> Any:
    import onnxruntime

    options = session_options(threads)
    if profile_folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(profile_folder, "profile"))
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class _File:
    """An ONNX model with its constants and who reads and makes each tensor."""

    def __init__(self, content: bytes) -> None:
        self.model = unpacked(onnx.load_from_string(content))
        self.values = as_onnx.constants(self.model)
        self._made_by = as_onnx.producers(self.model)
        self._readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            for name in node.input:
                self._readers[name].append(node)

    def input_channels(self) -> int:
        """Channels of the image, which is (batch, side, side, 3) where it is transposed first."""
        image = self.model.graph.input[0]
        (reader, *_) = self._readers[image.name]
        axis = 3 if reader.op_type == "Transpose" else 1
        return int(image.type.tensor_type.shape.dim[axis].dim_value)

    def layer(self, node: onnx.NodeProto) -> str:
        """Name of the layer that a node computes: what it is after its ReLU and its rounding."""
        readers = self._readers[node.output[0]]
        if len(readers) == 1 and node.op_type != "QuantizeLinear":
            (reader,) = readers
            if reader.op_type in _FOLLOWERS:
                return self.layer(reader)
        return str(node.output[0])

    def number_nodes(self) -> list[str]:
        """Call the nodes `node0`, `node1` and so on, in place; returns the layer of each."""
        for number, node in enumerate(self.model.graph.node):
            node.name = f"node{number}"
        return [self.layer(node) for node in self.model.graph.node]

    def operations(self) -> list[ChannelOperation]:
        """What `channels_after` needs to know of the nodes, those of constants left out."""
        nodes = self.model.graph.node
        return [self._operation(node) for node in nodes if node.input[0] not in self.values]

    def _operation(self, node: onnx.NodeProto) -> ChannelOperation:
        kind, groups, channels, start, stop, step = _KINDS.get(node.op_type), 1, 0, 0, 0, 1
        if kind is None:
            raise ValueError(
                f"{self.layer(node)}: channels cannot be followed through {node.op_type}"
            )
        if kind == "convolution":
            channels, groups = len(self._weight(node)), _groups(node)
            kind = "same" if self._is_depthwise(node) else kind
        elif kind == "reshape":
            channels = int(self.values[node.input[1]][1])
        elif kind == "slice":
            starts, stops, axes, *steps = (self.values[name].tolist() for name in node.input[1:5])
            if axes == [1]:
                (start,), (stop,), ((step,),) = starts, stops, steps
            else:
                kind = "same"  # of height or width: all channels go on
        elif kind == "concat" and _axis(node) != 1:
            kind = "elementwise"  # beside each other in height or width: windows of one image
        several = kind in ("concat", "elementwise")
        read = [name for name in node.input if name not in self.values]
        return ChannelOperation(
            layer=self.layer(node),
            kind=kind,
            inputs=tuple(read if several else read[:1]),
            output=node.output[0],
            channels=channels,
            groups=groups,
            start=start,
            stop=stop,
            step=step,
        )

    def _weight(self, conv: onnx.NodeProto) -> as_onnx.Array:
        maker = self._made_by.get(conv.input[1])
        return self.values[maker.input[0] if maker else conv.input[1]]

    def _is_depthwise(self, conv: onnx.NodeProto) -> bool:
        outputs, per_group = self._weight(conv).shape[:2]
        return per_group == 1 and _groups(conv) == outputs

    def resize_conv(self, conv: onnx.NodeProto, outputs: int, inputs: int) -> None:
        """Cut a convolution's weights and biases, with what they are rounded by, in place."""
        if self._is_depthwise(conv):
            _group_attribute(conv).i = outputs
        per_group = inputs // _groups(conv)
        for index, name in enumerate(conv.input[1:], 1):
            maker = self._made_by.get(name)
            reader, places = (maker, range(len(maker.input))) if maker else (conv, [index])
            for place in places:
                values = self.values[reader.input[place]]
                if values.ndim:
                    cut = values[:outputs] if values.ndim == 1 else values[:outputs, :per_group]
                    self.set_input(reader, place, cut)

    def set_input(self, node: onnx.NodeProto, place: int, values: as_onnx.Array) -> None:
        """Let a node read a constant of its own in `place`, unless it has those values there."""
        if np.array_equal(values, self.values[node.input[place]]):
            return
        name = f"{node.output[0]}.resized.{place}"
        self.model.graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(values), name)
        )
        node.input[place] = name


def _group_attribute(conv: onnx.NodeProto) -> Any:
    return next(attribute for attribute in conv.attribute if attribute.name == "group")


def _axis(concat: onnx.NodeProto) -> int:
    return next(int(a.i) for a in concat.attribute if a.name == "axis")


def _groups(conv: onnx.NodeProto) -> int:
    return int(_group_attribute(conv).i)
