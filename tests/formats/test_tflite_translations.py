"""Our translations of ONNX operations, called as onnx2tf calls them."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.base.errors import InputError
from pipeline.formats.tflite.translations import own_translations

pytestmark = pytest.mark.slow  # tensorflow takes seconds to import


def translated(
    op: str, attrs: dict[str, Any], *operands: Any, made_by: Any = None, constant: bool = False
) -> Any:
    """What an operation becomes; operands are arrays (NCHW), or `constant` ones as they are."""
    import tensorflow as tf

    layers: dict[str, Any] = {}
    inputs = []
    for number, operand in enumerate(operands):
        name = f"input{number}"
        producers = [] if made_by is None else [made_by]
        shape = operand.shape
        inputs.append(SimpleNamespace(name=name, inputs=producers, values=operand, shape=shape))
        if number == 0 or (op in {"Add", "Mul"} and not constant):
            moved = np.moveaxis(operand, 1, -1) if operand.ndim == 4 else operand
            layers[name] = {"tf_node": tf.constant(moved)}
    output = SimpleNamespace(name="output", shape=())
    node = SimpleNamespace(op=op, name="here", attrs=attrs, inputs=inputs, outputs=[output])
    with own_translations():
        importlib.import_module(f"onnx2tf.ops.{op}").make_node(
            graph_node=node, tf_layers_dict=layers
        )
    found = layers["output"]["tf_node"].numpy()
    return np.moveaxis(found, -1, 1) if found.ndim == 4 else found


QUANTIZED = SimpleNamespace(
    op="QuantizeLinear",
    inputs=[None, SimpleNamespace(values=np.float32(0.1)), SimpleNamespace(values=np.int8(20))],
)
READ = SimpleNamespace(op="DequantizeLinear", inputs=[SimpleNamespace(inputs=[QUANTIZED])])


@pytest.mark.parametrize("made_by", [None, READ], ids=["float", "int8"])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 1), (2, 2, 0), (4, 3, 1), (5, 4, 2)])
def test_padding_never_wins(
    kernel: int, stride: int, pad: int, ceil_mode: bool, made_by: Any
) -> None:
    x = -1 - np.random.default_rng(0).random((1, 3, 13, 14), np.float32)
    attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    found = translated("MaxPool", attrs | {"ceil_mode": int(ceil_mode)}, x, made_by=made_by)
    wanted = F.max_pool2d(torch.from_numpy(x), kernel, stride, pad, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(found, wanted.numpy())


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0.5, 2.0, shape).astype(np.float32)


@pytest.mark.parametrize("op", ["Abs", "Cos", "Exp", "Floor", "Log", "Sin", "Sqrt", "Reciprocal"])
def test_what_float_layers_compute_number_by_number(op: str) -> None:
    x = drawn(1, 3, 2, 4)
    found = translated(op, {}, x)
    np.testing.assert_allclose(found, getattr(np, op.lower())(x), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (4,), (2, 4), (3, 1, 1), (3, 2, 4), (1, 1, 2, 4)])
@pytest.mark.parametrize(("op", "function"), [("Mul", np.multiply), ("Sub", np.subtract)])
def test_a_constant_stands_beside_an_image_as_it_does_in_onnx(
    op: str, function: Any, shape: tuple[int, ...]
) -> None:
    x, constant = drawn(1, 3, 2, 4), drawn(*shape, seed=1)
    found = translated(op, {}, x, constant, constant=True)
    np.testing.assert_allclose(found, function(x, constant), rtol=1e-6)


def test_a_constant_beside_int8_numbers_is_refused() -> None:
    rounded = SimpleNamespace(op="DequantizeLinear", inputs=[])
    with pytest.raises(InputError, match="a constant operand beside int8 numbers"):
        translated("Mul", {}, drawn(1, 3, 2, 4), drawn(3, 1, 1), made_by=rounded, constant=True)


def test_a_softmax_over_channels() -> None:
    x = drawn(1, 3, 2, 4)
    found = translated("Softmax", {"axis": 1}, x)
    wanted = torch.softmax(torch.from_numpy(x), 1)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5)


IMAGE = np.ones((1, 4, 2, 2), np.float32)
VECTOR = np.ones((1, 4), np.float32)
STEPS = tuple(map(np.array, ([0, 0], [2, 2], [1, 2], [1, 1])))
REFUSED: dict[str, tuple[str, dict[str, Any], tuple[Any, ...], str]] = {
    "dilation": (
        "MaxPool",
        {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [0] * 4, "dilations": [2, 2]},
        (IMAGE,),
        "a dilation; a max pool may have none",
    ),
    "axes": ("Add", {}, (IMAGE, VECTOR), "operands of 4 and 2 axes; they must have as many"),
    "softmax": ("Softmax", {"axis": 2}, (IMAGE,), "a softmax over axis 2 of 4; it may be over the"),
    "slice": ("Slice", {}, (IMAGE, *STEPS), r"a slice of axes \[1, 2\] of 4; it may be of"),
    "reshape": (
        "Reshape",
        {},
        (IMAGE, np.array([1, 16])),
        r"a reshape of \(1, 2, 2, 4\) to \(1, 16\), which changes the layout",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_translated_is_refused_by_name(name: str) -> None:
    op, attrs, operands, message = REFUSED[name]
    with pytest.raises(InputError, match=f"^{op} here: cannot be written to TFLite with {message}"):
        translated(op, attrs, *operands)
