"""Core ML packages read from disk, and evaluated: whole networks, and what is refused."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.proto import FeatureTypes_pb2, Model_pb2
from torch import Tensor, fx

from pipeline.formats import as_onnx
from pipeline.formats.coreml import file as coreml_file
from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.coreml.evaluator import Arithmetic, Evaluator
from pipeline.formats.coreml.ops import OPS
from pipeline.formats.file_facts import learned_scales
from pipeline.measure.layers import led_integers, step_counts
from tests.making import networks, programs
from tests.making.packages import Array, answers, network, normal, of_x

# A batching rule that torch lacks makes one operation of many images a slow loop.
_NO_LOOP = pytest.mark.filterwarnings("error:There is a performance drop")
pytestmark = [pytest.mark.slow, _NO_LOOP]


def changed(net: coreml_package.Network, name: str, **fields: Any) -> coreml_package.Network:
    """The network with other fields in the operation that makes `name`."""
    assert name in net.producers()
    operations = [
        replace(op, **fields) if op.outputs[0].name == name else op for op in net.operations
    ]
    return replace(net, operations=tuple(operations))


def test_what_is_read_is_what_was_built() -> None:
    net = network(
        lambda x: mb.conv(x=x, weight=normal(6, 2, 3, 1), groups=2, name="c"), (1, 4, 5, 5)
    )
    (taken,) = net.inputs
    assert taken == coreml_package.Input(
        value=coreml_package.Value(name="x", dtype="float32", shape=(1, 4, 5, 5)), kind="array"
    )
    op = net.producers()["c"]
    assert (op.type, op.name, net.outputs) == ("conv", "c", ("c",))
    assert op.outputs == (coreml_package.Value(name="c", dtype="float32", shape=(1, 6, 3, 5)),)
    assert op.tensor("x") == "x"
    constants = {
        name: op.constant(name, net.producers()) for name in ("groups", "pad_type", "bias")
    }
    assert constants == {"groups": 2, "pad_type": "valid", "bias": None}
    weight = op.constant("weight", net.producers())
    np.testing.assert_array_equal(weight, normal(6, 2, 3, 1))


def test_float16_is_rounded_after_every_operation() -> None:
    def build(x: Any) -> Any:
        return mb.relu(x=mb.mul(x=mb.add(x=x, y=np.float32(0.1)), y=np.float32(3.3), name="m"))

    x = normal(1, 2, 50)
    net = network(build, (2, 50), float16=True)
    (name,) = (op.outputs[0].name for op in net.operations if op.type == "mul")
    found = {
        arithmetic: Evaluator(net, arithmetic).run({"x": x}, [name])[name]
        for arithmetic in ("float16", "float32")
    }
    half = np.float16
    # numpy, too, computes in float32 and rounds. In this file casts make the constants float16.
    rounded = (x.astype(half) + half(0.1)) * half(3.3)
    kept = (x + np.float32(0.1)) * np.float32(3.3)
    np.testing.assert_array_equal(found["float16"], rounded.astype(np.float32))
    np.testing.assert_allclose(found["float32"], kept, rtol=1e-6)
    assert not np.array_equal(found["float32"], found["float32"].astype(half))


def test_any_number_of_examples_is_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(of_x("softmax", axis=0), (3, 2))
    x = normal(7, 3, 2)
    (whole,) = answers(net, x)
    monkeypatch.setattr("pipeline.formats.coreml.evaluator._AT_ONCE", 3)
    (parts,) = answers(net, x)
    assert np.array_equal(whole, parts)
    (single,) = answers(net, x[4:5])
    np.testing.assert_allclose(single, whole[4:5], rtol=1e-6)


def test_large_tensors_are_evaluated_few_at_a_time() -> None:
    small, large = (Evaluator(network(of_x("relu"), shape)) for shape in ((2, 3), (2048, 2048)))
    assert small._at_once == 64
    assert large._at_once == 4  # input and output of 16 MiB each


def test_an_unknown_operation_is_named() -> None:
    net = network(of_x("erf", name="strange"), (2, 3))
    with pytest.raises(NotImplementedError, match=r"erf 'strange' cannot .* known are abs, add, "):
        Evaluator(net)


def computed(x: Any) -> Any:
    return mb.cast(x=mb.reduce_max(x=x, axes=[0], keep_dims=True), dtype="int32")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x: mb.concat(values=[x, x], axis=0, interleave=True, name="odd"), "interleave"),
        (of_x("pad", pad=[1, 1], mode="reflect", name="odd"), "mode 'reflect'"),
        (
            lambda x: mb.slice_by_size(x=x, begin=computed(x), size=[1], name="odd"),
            "argument 'begin' is computed",
        ),
    ],
)
def test_an_unsupported_argument_is_named(build: Callable[[Any], Any], message: str) -> None:
    net = network(build, (3,))
    with pytest.raises(NotImplementedError, match=rf"^\w+ 'odd': {message}"):
        answers(net, normal(1, 3))


def test_an_argument_that_no_definition_has_is_named() -> None:
    net = network(of_x("relu", name="odd"), (2, 3))
    inputs = {**net.producers()["odd"].inputs, "slope": np.float32(1)}
    with pytest.raises(NotImplementedError, match="relu 'odd': argument 'slope' is not known"):
        Evaluator(changed(net, "odd", inputs=inputs))


@pytest.mark.parametrize("declared", [{"shape": (3, 2)}, {"dtype": "int8"}])
def test_another_shape_or_type_than_declared_is_an_error(declared: dict[str, Any]) -> None:
    net = network(of_x("relu", name="odd"), (2, 3))
    value = replace(net.producers()["odd"].outputs[0], **declared)
    with pytest.raises(RuntimeError, match=r"relu 'odd' gave .* the file declares"):
        answers(changed(net, "odd", outputs=(value,)), normal(1, 2, 3))


def test_an_input_of_another_shape_is_an_error() -> None:
    net = network(of_x("relu"), (2, 3))
    message = "input 'x' has shape (1, 3, 2); must be (examples, 2, 3)"
    with pytest.raises(ValueError, match=re.escape(message)):
        answers(net, normal(1, 3, 2))


def test_every_operation_is_tested_by_name() -> None:
    tests = "".join(
        path.read_text("utf-8") for path in Path(__file__).parent.glob("test_coreml_*.py")
    )
    assert [name for name in OPS if not re.search(rf'mb\.{name}\b|"{name}"', tests)] == []


def test_inputs_are_arrays_or_rgb_images() -> None:
    feature = Model_pb2.FeatureDescription(name="image")
    feature.type.multiArrayType.SetInParent()
    assert coreml_package.input_kind(feature) == "array"
    feature.type.imageType.colorSpace = FeatureTypes_pb2.ImageFeatureType.RGB
    assert coreml_package.input_kind(feature) == "image"
    feature.type.imageType.colorSpace = FeatureTypes_pb2.ImageFeatureType.BGR
    with pytest.raises(NotImplementedError, match="'image' is of type image of colour space 30"):
        coreml_package.input_kind(feature)
    feature.type.stringType.SetInParent()
    with pytest.raises(NotImplementedError, match="'image' is of type stringType"):
        coreml_package.input_kind(feature)


@dataclass(frozen=True, kw_only=True)
class Int8:
    """The int8 program of a variant, and its package."""

    variant: str
    source: programs.Written
    path: Path
    network: coreml_package.Network


@pytest.fixture(scope="module", params=sorted(programs.SHAPES))
def int8(request: pytest.FixtureRequest) -> Int8:
    path, source = programs.file_of("coreml", request.param), programs.quantized(request.param)
    return Int8(variant=request.param, source=source, path=path, network=coreml_package.read(path))


def logits(
    net: coreml_package.Network, images: Tensor, arithmetic: Arithmetic = "float16"
) -> Tensor:
    found = Evaluator(net, arithmetic).run(
        {as_onnx.INPUT: images.numpy()[:, None]}, [as_onnx.OUTPUT]
    )
    return torch.from_numpy(found[as_onnx.OUTPUT][:, 0])


@cache
def integers(variant: str) -> dict[str, Array]:
    """The layers of a program, by torch; without those that repeat a tensor, as reshapes do."""
    source = programs.quantized(variant)
    found: dict[str, Array] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.target is torch.ops.quantized_decomposed.quantize_per_tensor.default:
                found[n.name] = result.numpy()
            return result

    with torch.no_grad():
        Recorder(source.program.module(check_guards=False)).run(source.images)
    return {name: found[name] for name in learned_scales(source.program)[0]}


def with_the_programs_biases(int8: Int8) -> coreml_package.Network:
    """The network with biases of float32; the file has the nearest float16 numbers."""
    program = int8.source.program
    stored = {**program.state_dict, **program.constants}
    biases = {
        f"{spec.arg.name}_to_fp16": stored[spec.target].detach().numpy()
        for spec in program.graph_signature.input_specs
        if spec.target and "bias" in spec.target
    }
    net = int8.network
    assert len(biases) > 10
    for name, bias in biases.items():
        net = changed(net, name, attributes={"val": bias})
    return net


def test_integers_that_nobody_asks_for_need_not_be_made(int8: Int8) -> None:
    images = {as_onnx.INPUT: int8.source.images.numpy()[:, None]}
    evaluator = Evaluator(int8.network)
    (alone,) = evaluator.run(images, [as_onnx.OUTPUT]).values()
    pairs = [op.outputs[0].name for op in int8.network.operations if op.type == "quantize"]
    for asked in (pairs, pairs[: len(pairs) // 2]):
        found = evaluator.run(images, [*asked, as_onnx.OUTPUT])
        np.testing.assert_array_equal(found[as_onnx.OUTPUT], alone)
        assert {found[name].dtype.name for name in asked} <= {"int8", "uint8"}
    steps = {names: len(plan) for names, plan in evaluator._plans.items()}
    assert steps[frozenset([as_onnx.OUTPUT])] < steps[frozenset([*pairs, as_onnx.OUTPUT])]


def test_the_biases_are_all_that_differs_in_float32(int8: Int8) -> None:
    exact = Evaluator(with_the_programs_biases(int8), "float32")
    names = list(integers(int8.variant))
    found = exact.run({as_onnx.INPUT: int8.source.images.numpy()[:, None]}, names)
    numbers = {}
    for name in names:
        values = found[name][:, 0].astype(np.int16)
        shift = 128 if found[name].dtype == np.uint8 else 0
        numbers[name] = torch.from_numpy((values - shift).astype(np.int8))
    # Each layer alone: one number that rounds otherwise would move others after it.
    wanted = led_integers(int8.source.program, int8.source.images, numbers)
    counts = sum(step_counts(numbers[name], wanted[name]) for name in names)
    # Measured: one integer in three million, where a sum in another order rounds otherwise.
    assert counts[1] <= 1e-5 * counts.sum()
    assert counts[2:].sum() == 0


FARTHEST = {
    "float32": {"basic": 1, "radix1": 1, "radix2": 3, "radix4": 1},
    "float16": {"basic": 1, "radix1": 1, "radix2": 5, "radix4": 2},
}
"""Measured: most steps of the output grid between the program's logits and the file's."""


@pytest.mark.parametrize("arithmetic", ["float32", "float16"])
def test_int8_logits_are_near_the_programs(int8: Int8, arithmetic: Arithmetic) -> None:
    source = int8.source
    found = logits(int8.network, source.images, arithmetic)
    apart = (found - source.logits).abs() / programs.output_scale(source.program)
    steps = apart.round()
    # float16 has 11 bits, so logits of a hundred steps miss the grid by some hundredths.
    assert (apart - steps).abs().max() < (1e-3 if arithmetic == "float32" else 0.1)
    assert steps.max() <= FARTHEST[arithmetic][int8.variant] + 3
    assert steps.median() <= (1 if int8.variant == "radix2" or arithmetic == "float16" else 0)
    same = found.argmax(1) == source.logits.argmax(1)
    best = source.logits.topk(2, dim=1).values
    lead = (best[:, 0] - best[:, 1]) / programs.output_scale(source.program)
    assert same[lead > 2 * steps.max()].all(), "only what rounding can turn is turned"
    assert same.float().mean() > (0.9 if arithmetic == "float32" else 0.85)


@pytest.mark.parametrize("variant", ["radix4"])
def test_float_logits_are_the_programs(variant: str, tmp_path: Path) -> None:
    source = programs.unquantized(variant)
    path = tmp_path / "model.mlpackage"
    coreml_file.write(source.program, path)
    net = coreml_package.read(path)
    assert (logits(net, source.images, "float32") - source.logits).abs().max() < 1e-3
    assert (logits(net, source.images, "float16") - source.logits).abs().max() < 3e-3


def test_a_float32_package_gives_the_programs_logits(tmp_path: Path) -> None:
    source = programs.unquantized("basic")
    model = ct.convert(
        source.program.run_decompositions({}),
        inputs=[ct.TensorType(name=as_onnx.INPUT, shape=(1, 3, networks.SIDE, networks.SIDE))],
        outputs=[ct.TensorType(name=as_onnx.OUTPUT)],
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    path = tmp_path / "model.mlpackage"
    model.save(str(path))
    for arithmetic in ("float16", "float32"):
        found = logits(coreml_package.read(path), source.images, arithmetic)
        assert (found - source.logits).abs().max() < 1e-5


def test_one_image_at_a_time_is_the_same_as_many(int8: Int8) -> None:
    runnable = coreml_file.ReferenceRunnable(int8.path)
    images = int8.source.images[:4]
    many, single = (programs.run(runnable, batch, images) for batch in (len(images), 1))
    assert torch.equal(many, logits(int8.network, images))
    # Convolutions of one image may add up in another order, which a rounding can make a step.
    steps = ((many - single).abs() / programs.output_scale(int8.source.program)).round()
    assert steps.max() <= 1
    assert (steps == 0).float().mean() > 0.8


def test_trace_has_the_programs_layers_and_integers(int8: Int8) -> None:
    wanted = integers(int8.variant)
    traced = coreml_file.trace(int8.path, int8.source.images.numpy())
    assert list(traced) == list(wanted)
    for name, values in traced.items():
        assert (values.dtype, values.shape) == (np.int8, wanted[name].shape)
        apart = np.abs(values.astype(int) - wanted[name])
        # Measured: medians of 1 in radix2 and 0 elsewhere, means up to 1.03, single ones up to 9.
        assert np.median(apart) <= 1
        assert apart.mean() < 1.5
        assert apart.max() <= 12


def test_a_wrong_scale_shows(int8: Int8) -> None:
    net = int8.network
    quantize = [op for op in net.operations if op.type == "quantize"][3]
    scale = quantize.constant("scale", net.producers())
    wrong = changed(net, quantize.tensor("scale"), attributes={"val": np.asarray(scale) * 1.5})
    assert_differs(int8, wrong)


def test_swapped_input_channels_show(int8: Int8) -> None:
    net = int8.network
    convolution = next(op for op in net.operations if op.type == "conv")
    name = convolution.tensor("weight")
    attributes = dict(net.producers()[name].attributes)
    attributes["quantized_data"] = np.asarray(attributes["quantized_data"])[:, [1, 0, 2]]
    assert_differs(int8, changed(net, name, attributes=attributes))


def assert_differs(int8: Int8, wrong: coreml_package.Network) -> None:
    images, step = int8.source.images, programs.output_scale(int8.source.program)
    apart = (logits(wrong, images) - logits(int8.network, images)).abs() / step
    assert apart.max() > max(FARTHEST["float16"].values()) + 1
