"""The translation to ONNX, beside that of torch's own exporter."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pipeline.compress.quantization import quantizer
from pipeline.compress.quantization.fold import float_program
from pipeline.formats import as_onnx
from pipeline.formats.onnx_operations import OPERATIONS, are_all_known
from pipeline.networks.lowering.float_rules import _ELEMENTWISE, _OF_TWO
from tests.making import floats, programs
from tests.networks import test_float_rules, test_lowering
from tests.networks.test_operations import Odd

aten = torch.ops.aten
GONE = {aten.add_.Tensor, aten.relu_.default}
"""In graphs for training alone: a program has no operation in place."""
ENLARGING_TAKEN_APART = Counter(
    {"GatherND": 4, "Transpose": 5, "Add": 3, "Mul": 3, "Sub": 3, "Resize": -1}
)
"""What torch's exporter makes of a bilinear enlarging, in place of ONNX's own operation."""


def of_int8_operations() -> torch.export.ExportedProgram:
    return floats.program(model=test_lowering.made(Odd()), side=test_lowering.SIDE)


def of_float_operations() -> torch.export.ExportedProgram:
    row = sorted(test_float_rules.OPERATIONS, key=lambda name: name == "average pool")
    model = floats.in_a_row([test_float_rules.OPERATIONS[name] for name in row])
    return floats.program("operations.*", model=model, side=test_lowering.SIDE)


PROGRAMS: dict[str, Callable[[], torch.export.ExportedProgram]] = {
    "every operation of int8": of_int8_operations,
    "every operation of float": of_float_operations,
    "a float network": lambda: programs.unquantized("radix2").program,
}


def of_torch(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    made = torch.onnx.export(
        program, dynamo=True, opset_version=as_onnx.OPSET, optimize=True, verbose=False
    )
    assert made is not None
    return made.model_proto


def answers(model: onnx.ModelProto, images: Tensor) -> np.ndarray:
    """What ONNX Runtime computes of the graph as it stands."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (image,) = session.get_inputs()
    return session.run(None, {image.name: images.numpy()})[0]


def operations(model: onnx.ModelProto) -> Counter[str]:
    """How many there are of each; torch's exporter also merges readers of equal weights."""
    means = {"ReduceMean": "GlobalAveragePool"}  # over height and width, which both of them are
    found = Counter(means.get(node.op_type, node.op_type) for node in model.graph.node)
    del found["DequantizeLinear"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_is_the_graph_that_torch_exports(name: str) -> None:
    program = PROGRAMS[name]()
    ours, theirs = as_onnx.to_onnx(program), of_torch(program)
    onnx.checker.check_model(ours, full_check=True)
    shape = [dim.dim_value for dim in ours.graph.input[0].type.tensor_type.shape.dim][1:]
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3))
    found, wanted = answers(ours, images), answers(theirs, images)
    # A mean and a pool of the whole may sum up in another order; roundings are the same.
    assert np.abs(found - wanted).max() <= (1e-6 if "float" in name else 0)
    counted, theirs_counted = operations(ours), operations(theirs)
    for _ in range(counted["Resize"]):
        theirs_counted.subtract(ENLARGING_TAKEN_APART)
    assert +counted == +theirs_counted


def test_tensors_have_the_programs_names_and_shapes() -> None:
    program = programs.quantized("radix2").program
    graph = as_onnx.to_onnx(program).graph
    nodes = {node.name: node for node in program.graph.nodes}
    for value in graph.value_info:
        dims = value.type.tensor_type.shape.dim
        wanted = [s if isinstance(s, int) else "batch" for s in nodes[value.name].meta["val"].shape]
        assert [dim.dim_param or dim.dim_value for dim in dims] == wanted
    assert {value.name for value in graph.value_info} >= {
        node.name for node in program.graph.nodes if node.target is quantizer.aten.conv2d.default
    }


def test_every_operation_that_lowering_leaves_is_known() -> None:
    left = {*quantizer.RULES, *_ELEMENTWISE, *_OF_TWO.values()}
    assert left - GONE <= OPERATIONS.keys()


@pytest.mark.slow
def test_a_float_network_may_hold_any_operation() -> None:
    class Any(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.cumsum(x.mean((2, 3)), 1)
            y.add_(1)
            return torch.relu_(y * 2 - 3)

    program = float_program(Any(), torch.zeros(2, 3, 8, 8))
    assert not are_all_known(program)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    wanted = Any()(images).numpy()
    assert np.abs(answers(as_onnx.to_onnx(program), images) - wanted).max() < 1e-6


def test_zeros_are_no_bias() -> None:
    conv = nn.Conv2d(3, 4, 1)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    graph = as_onnx.to_onnx(float_program(conv, torch.zeros(2, 3, 8, 8))).graph
    assert [len(node.input) for node in graph.node] == [2]


def test_equal_numbers_are_stored_once() -> None:
    graph = as_onnx.to_onnx(programs.quantized("radix2").program).graph
    seen = Counter(
        (one.data_type, tuple(one.dims), onnx.numpy_helper.to_array(one).tobytes())
        for one in graph.initializer
        if one.name.startswith("val_")
    )
    assert max(seen.values()) == 1
    assert functools.reduce(int.__add__, seen.values()) > 10
