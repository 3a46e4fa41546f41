"""A program as coremltools takes it."""

from __future__ import annotations

import copy

import torch
from torch import fx
from torch._export.verifier import Verifier
from torch.export import ExportedProgram

from pipeline.formats.onnx_operations import are_all_known

aten = torch.ops.aten
_VIEWS = {aten.flatten.using_ints, aten.reshape.default}


def for_coremltools(program: ExportedProgram) -> ExportedProgram:
    """The program as one of the dialect that coremltools reads (ATEN), for one image.

    `ExportedProgram.run_decompositions` gives it that dialect by tracing it anew, which takes as
    long as half of the conversion. Where a program holds known operations alone, none of them in
    place, only the label is another, and the two operations that the dialect has as a view:

    before: y = flatten(x, 1);            y = reshape(x, (batch, 8, 32))
    after:  y = view(x, (1, channels));   y = view(x, (1, 8, 32))
    """
    if not are_all_known(program):
        decomposed: ExportedProgram = program.run_decompositions({})
        return decomposed
    module = copy.deepcopy(program.graph_module)
    for copied, node in zip(module.graph.nodes, program.graph.nodes, strict=True):
        # A copy has `input_1` for what is called as something of Python's is, such as `input`.
        copied.name = node.name
        if node.op == "placeholder":
            copied.target = node.target
    for node in module.graph.nodes:
        if node.target in _VIEWS or node.target is aten.view.default:
            node.args = (node.args[0], _of_one_image(node))
            node.target = aten.view.default
    module.graph.eliminate_dead_code()
    module.recompile()
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=[Verifier],
    )


def _of_one_image(node: fx.Node) -> list[int]:
    return [size if isinstance(size, int) else 1 for size in node.meta["val"].shape]
