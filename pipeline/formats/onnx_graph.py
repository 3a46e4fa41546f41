"""An ONNX graph as it is built of a program, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, fx
from torch.export.graph_signature import InputKind

Array = NDArray[Any]


class Graph:
    """Nodes and constants so far.

    Every tensor has the name of the program's node that gives it, so that layers keep theirs.

    Attributes:
        nodes: in the order of computation.
    """

    def __init__(self, program: torch.export.ExportedProgram, output: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._names: dict[fx.Node, str] = {}
        self._shared: dict[tuple[Any, ...], str] = {}
        self._types: dict[str, onnx.ValueInfoProto] = {}
        (self._answers,) = next(n for n in program.graph.nodes if n.op == "output").args[0]
        self._output = output
        self._stored = _stored(program)

    def take(self, node: fx.Node, name: str) -> None:
        """Have a node's numbers under a name that is there already."""
        self._names[node] = name

    def stored(self, node: fx.Node) -> str:
        """The name of a parameter, as a constant; its values become one when it is read."""
        name, values = self._stored[node.name]
        if name not in self._constants:
            self._constants[name] = values.detach().numpy()
        return name

    def is_zero(self, node: fx.Node) -> bool:
        """Whether a parameter holds nothing but zeros."""
        return node.name in self._stored and not bool(self._stored[node.name][1].any())

    def constant(self, values: object, kind: type[np.generic]) -> str:
        """The name of a constant; equal ones are one."""
        array = np.asarray(values, kind)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            # Short, since the names of scales and zero points are a tenth of a small file.
            name = f"val_{len(self._constants)}"
            self._shared[key] = name
            self._constants[name] = array
        return self._shared[key]

    def name_of(self, value: Any) -> str:
        """The name of what a node reads: a tensor, or a number, which becomes a constant."""
        if not isinstance(value, fx.Node):
            return self.constant(value, np.float32)
        return self._names[value] if value in self._names else self.stored(value)

    def add(self, op: str, node: fx.Node, inputs: list[str], **attributes: Any) -> None:
        """Add the operation that gives a node's numbers."""
        name = self._output if node is self._answers else node.name
        made = helper.make_node(op, inputs, [name], name=f"node_{node.name}", **attributes)
        self.nodes.append(made)
        self._names[node] = name
        self._types[name] = typed(name, node)

    def add_before(self, op: str, node: fx.Node, inputs: list[str], **attributes: Any) -> str:
        """Add an operation whose numbers only the last one of a node reads; their name."""
        name = f"{node.name}.{op.lower()}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def once(self, key: tuple[Any, ...], node: fx.Node) -> bool:
        """Whether a node is the first that computes `key`; a later one takes its numbers."""
        if node is not self._answers and key in self._shared:
            self._names[node] = self._shared[key]
            return False
        self._shared[key] = self._output if node is self._answers else node.name
        return True

    def model(self, image: onnx.ValueInfoProto, opset: int, ir_version: int) -> onnx.ModelProto:
        """The whole as a model of one input and one output."""
        last = self._names[self._answers]
        if last != self._output:  # nothing but a view, or what another operation gives as well
            self.add("Identity", self._answers, [last])
        graph = helper.make_graph(
            self.nodes,
            "main_graph",
            [image],
            [self._types.pop(self._output)],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()],
            value_info=list(self._types.values()),
        )
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def typed(name: str, node: fx.Node, batch: str = "batch") -> onnx.ValueInfoProto:
    """What is known of a node's numbers: their type and shape, a free size called `batch`."""
    value: Tensor = node.meta["val"]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(value.dtype).removeprefix("torch.")))
    shape = [size if isinstance(size, int) else batch for size in value.shape]
    return helper.make_tensor_value_info(name, kind, shape)


def _stored(program: torch.export.ExportedProgram) -> Mapping[str, tuple[str, Tensor]]:
    """Name and values of every parameter, buffer and constant, by the node that reads it."""
    kept = {**program.state_dict, **program.constants}
    return {
        spec.arg.name: (str(spec.target), kept[str(spec.target)])
        for spec in program.graph_signature.input_specs
        if spec.kind is not InputKind.USER_INPUT
    }
