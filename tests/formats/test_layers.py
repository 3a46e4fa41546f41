"""Resized files against files of really pruned networks, and the times of single layers."""

import copy
import functools
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.removal import remove
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import float_program, quantized_program
from pipeline.formats import as_onnx, layer_times
from pipeline.formats.channels import ChannelOperation, channels_after, sliced
from pipeline.formats.formats import FORMATS
from pipeline.measure.file_layers import file_layers, sized_layers
from pipeline.measure.layers import layers_of
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import DeployNet, deploy_form
from pipeline.networks.resnest.family import FAMILY
from pipeline.recipe.input_shape import square
from tests.making import graphs, networks, structures

pytestmark = pytest.mark.slow

LAYERED = ("onnx", "tflite")
# Radix 2; radix 4 with two cardinal groups; two basic blocks of radix 1 with two of them.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"layers": networks.ONE_BLOCK},
    "four_splits": networks.VARIANTS["four_splits"],
    "one_split": {
        **networks.VARIANTS["basic_one_split"],
        **{"cardinality": 2, "avd_first": True, "layers": networks.SHALLOW},
    },
}


def layers_module(format_name: str) -> Any:
    return FORMATS[format_name].layers()


@functools.cache
def deployed(variant: str, *, pruned: bool = False) -> DeployNet:
    branched = branch_form(networks.small(**VARIANTS[variant]))
    if not pruned:
        return deploy_form(branched)
    removed = {}
    groups = groups_of(branched, square(networks.SIDE), FAMILY.structure(branched))
    for number, group in enumerate(groups):
        # About a third of every cardinal group, not the same everywhere.
        size = group.channels // group.parts
        lost = size // 3 + number % 2
        removed[group.name] = [
            part * size + channel for part in range(group.parts) for channel in range(lost)
        ]
    return deploy_form(remove(branched, groups, removed))


@functools.cache
def program(variant: str, *, pruned: bool = False) -> Any:
    graph = qat.prepare(deployed(variant, pruned=pruned), square(networks.SIDE))
    qat.calibrate(graph, lambda: [networks.images(4)])
    return quantized_program(graph, graphs.EXAMPLE)


to_onnx = functools.cache(as_onnx.to_onnx)


def write(format_name: str, source: Any) -> bytes:
    """Write a file; what both formats begin with, most of the time it takes, is done once."""
    module = FORMATS[format_name].module()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(as_onnx, "to_onnx", lambda given: copy.deepcopy(to_onnx(given)))
        path = Path(folder, "model")
        module.write(source, path)
        return path.read_bytes()


@functools.cache
def content(format_name: str, variant: str, *, pruned: bool = False) -> bytes:
    return write(format_name, program(variant, pruned=pruned))


@functools.cache
def float_content(format_name: str) -> bytes:
    return write(format_name, float_program(deployed("one_split"), graphs.EXAMPLE))


def widths(variant: str, *, pruned: bool = False) -> dict[str, int]:
    """Output channels of every regular convolution but the classifier, by layer name."""
    network, found = deployed(variant, pruned=pruned), {}
    for layer in layers_of(program(variant)):
        module = network.get_submodule(layer.module)
        if isinstance(module, nn.Conv2d) and module.groups < module.out_channels:
            found[layer.name] = module.out_channels
    del found[classifier(variant)]
    return found


def classifier(variant: str) -> str:
    return layer_at(variant, "fc")


def layer_at(variant: str, module: str) -> str:
    (name,) = (layer.name for layer in layers_of(program(variant)) if layer.module == module)
    return name


def structure(format_name: str, file: bytes) -> Any:
    return (onnx_structure if format_name == "onnx" else tflite_structure)(file)


def tflite_structure(file: bytes) -> Counter[Any]:
    """Type, shapes and layer of every operation, and the constants that are shapes."""
    model = schema.ModelT.InitFromPackedBuf(file, 0)
    graph = model.subgraphs[0]
    activations = {int(i) for op in graph.operators for i in op.outputs} | {int(graph.inputs[0])}

    def described(index: int) -> Any:
        tensor = graph.tensors[index]
        grid, data = tensor.quantization, model.buffers[tensor.buffer].data
        scales = len(grid.scale) if grid and grid.scale is not None else 0
        zeros = len(grid.zeroPoint) if grid and grid.zeroPoint is not None else 0
        small = data is not None and tensor.type == schema.TensorType.INT32 and scales == 0
        values = tuple(np.asarray(data).view(np.int32)) if small else None
        size = None if index in activations else len(data)
        return (*map(int, tensor.shape), tensor.type, scales, zeros, values, size)

    return Counter(
        (
            model.operatorCodes[op.opcodeIndex].builtinCode,
            tuple(described(i) for i in (*op.inputs, *op.outputs)),
            graph.tensors[op.outputs[0]].type == schema.TensorType.INT8
            and graph.tensors[op.outputs[0]].name.decode().split("/")[-1],
        )
        for op in graph.operators
    )


def onnx_structure(file: bytes) -> Any:
    """Type, output, constants' shapes and groups of every node, and the shape of every tensor."""
    model = onnx.load_from_string(file)
    onnx.checker.check_model(model)
    values = as_onnx.constants(model)
    nodes = [
        (
            node.op_type,
            node.output[0],
            [values[i].shape for i in node.input if i in values],
            [values[i].tolist() for i in node.input if i in values and values[i].dtype == np.int64],
            [a.i for a in node.attribute if a.name == "group"],
        )
        for node in model.graph.node
    ]
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.graph.value_info, *inferred.graph.output)
    }
    return nodes, shapes


def opened(format_name: str, file: bytes) -> Any:
    module = FORMATS[format_name].module()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        path.write_bytes(file)
        return module.open_file(path)


def logits(format_name: str, file: bytes) -> Any:
    runnable = opened(format_name, file)
    runnable.set_input(networks.images(1).numpy())
    runnable.invoke()
    return runnable.output()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("format_name", LAYERED)
def test_resized_file_is_that_of_a_network_pruned_to_those_widths(
    format_name: str, variant: str
) -> None:
    wanted, present = widths(variant, pruned=True), widths(variant)
    assert all(wanted[name] < width for name, width in present.items())
    whole = content(format_name, variant)
    pruned = content(format_name, variant, pruned=True)
    small = layers_module(format_name).resized(whole, wanted)
    assert structure(format_name, small) == structure(format_name, pruned)
    assert structure(format_name, small) != structure(format_name, whole)
    assert len(small) < len(whole)
    assert logits(format_name, small).shape == (1, networks.CLASSES)
    if format_name == "tflite":
        partitions = opened(format_name, small).partitions()
        assert partitions == opened(format_name, pruned).partitions()
        assert partitions == 1 or variant == "four_splits"  # XNNPACK has no int8 softmax


@pytest.mark.parametrize("format_name", LAYERED)
def test_comparison_sees_one_channel_too_many(format_name: str) -> None:
    wanted, name = widths("plain", pruned=True), layer_at("plain", "layer2.0.branches.0.0")
    other = layers_module(format_name).resized(
        content(format_name, "plain"), wanted | {name: wanted[name] + 1}
    )
    pruned = content(format_name, "plain", pruned=True)
    assert structure(format_name, other) != structure(format_name, pruned)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("format_name", LAYERED)
def test_present_widths_leave_the_file_as_it_is(format_name: str, variant: str) -> None:
    file = content(format_name, variant)
    resized = layers_module(format_name).resized
    assert resized(file, {}) == file
    assert resized(file, widths(variant)) == file


@pytest.mark.parametrize("format_name", LAYERED)
def test_kept_channels_keep_their_numbers(format_name: str) -> None:
    """A narrower branch alone: what comes before it is computed as ever."""
    name = layer_at("plain", "layer2.0.branches.1.0")
    file = content(format_name, "plain")
    small = layers_module(format_name).resized(file, {name: 4})
    module = FORMATS[format_name].module()
    traces = []
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate((file, small)):
            path = Path(folder, f"{number}")
            path.write_bytes(part)
            traces.append(module.trace(path, networks.images(1).numpy()))
    whole, cut = traces
    assert np.array_equal(cut[name], whole[name][:, :4])


@pytest.mark.parametrize("format_name", LAYERED)
@pytest.mark.parametrize(
    ("variant", "module", "width", "message"),
    [
        ("plain", "layer2.0.fc1", 0, r"can have 1 to \d+"),
        ("plain", "layer2.0.fc1", 1000, r"can have 1 to \d+"),
        ("plain", "layer2.0.complement", 8, "is no convolution"),
        ("plain", "fc", 4, "is no convolution"),
        ("plain", "layer2.0.fc2.0", 8, "its operands have"),
        ("plain", "layer2.0.conv3", 8, "its operands have"),
        ("one_split", "layer2.0.branches.0.0", 5, "cannot be divided among its 2 groups"),
        ("one_split", "layer2.0.fc1", 5, "cannot be divided among its 2 groups"),
        ("four_splits", "layer2.0.fc2.0", 6, "cannot be reshaped"),
    ],
)
def test_widths_that_cannot_be_are_refused(
    format_name: str, variant: str, module: str, width: int, message: str
) -> None:
    name = layer_at(variant, module)
    with pytest.raises(ValueError, match=message) as caught:
        layers_module(format_name).resized(content(format_name, variant), {name: width})
    named = {layer.name for layer in layers_of(program(variant))}
    assert named & set(str(caught.value).replace(":", " ").split())


@pytest.mark.parametrize("format_name", LAYERED)
def test_unknown_layers_are_named(format_name: str) -> None:
    with pytest.raises(ValueError, match="conv_nowhere, quantize_per_tensor is no convolution"):
        layers_module(format_name).resized(
            content(format_name, "plain"), {"quantize_per_tensor": 3, "conv_nowhere": 8}
        )


def tied(variant: str) -> list[list[str]]:
    """Groups of layers that must have the same width, found by their places in the network."""
    groups: dict[str, list[str]] = {}
    present = widths(variant)
    for layer in layers_of(program(variant)):
        if layer.name in present:
            place = layer.module
            block = ".".join(place.split(".")[:2])
            if place.endswith((".conv3", ".downsample.1")):
                place = "residual"
            elif place.endswith((".4", ".fc2.0")):
                place = f"{block}.attended"
            groups.setdefault(place, []).append(layer.name)
    return list(groups.values())


@pytest.mark.parametrize("format_name", LAYERED)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_widths_that_agree_give_a_file_that_runs(format_name: str, data: st.DataObject) -> None:
    present = widths("plain")
    chosen = {}
    for names in tied("plain"):
        width = data.draw(st.integers(1, present[names[0]]), label=names[0])
        chosen |= dict.fromkeys(names, width)
    small = layers_module(format_name).resized(content(format_name, "plain"), chosen)
    assert logits(format_name, small).shape == (1, networks.CLASSES)
    module = FORMATS[format_name].module()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        path.write_bytes(small)
        traced = module.trace(path, networks.images(1).numpy())
    assert {name: traced[name].shape[1] for name in chosen} == chosen


def whole_file_ms(format_name: str, file: bytes) -> float:
    runnable, taken = opened(format_name, file), []
    runnable.set_input(networks.images(1).numpy())
    for _ in range(20):
        started = time.perf_counter()
        runnable.invoke()
        taken.append((time.perf_counter() - started) * 1e3)
    return layer_times.typical(taken)


@pytest.mark.alone
@pytest.mark.parametrize("variant", ["plain", "four_splits"])
@pytest.mark.parametrize("format_name", LAYERED)
def test_times_of_the_layers_make_up_that_of_the_file(format_name: str, variant: str) -> None:
    file = content(format_name, variant)
    ratios = []
    for _ in range(5):  # machines are noisy
        times = layers_module(format_name).layer_times(file, rounds=10, threads=1)
        assert all(milliseconds > 0 for milliseconds in times.values())
        assert times.keys() >= widths(variant).keys() | {classifier(variant)}
        ratios.append(sum(times.values()) / whole_file_ms(format_name, file))
        if 0.5 <= ratios[-1] <= 2:
            return
    raise AssertionError(f"layers took {ratios} of the whole file's time")


@pytest.mark.alone
@pytest.mark.parametrize("format_name", LAYERED)
def test_time_goes_to_the_layer_that_takes_it(format_name: str) -> None:
    # Not the same layer at two widths: runtimes can be slower with fewer channels.
    large, small = layer_at("plain", "conv1.6"), layer_at("plain", "layer2.0.fc1")
    for _ in range(5):
        times = layers_module(format_name).layer_times(content(format_name, "plain"), 10, 1)
        if times[large] > 2 * times[small]:
            return
    raise AssertionError(f"295,000 MACs took {times[large]} ms, 1,000 took {times[small]} ms")


@pytest.mark.parametrize("format_name", LAYERED)
def test_float_files_go_by_their_tensors(format_name: str) -> None:
    module, file = layers_module(format_name), float_content(format_name)
    times = module.layer_times(file, rounds=3, threads=1)
    assert all(milliseconds > 0 for milliseconds in times.values())
    with pytest.raises(ValueError, match="those are ") as caught:
        module.resized(file, {"nowhere": 1})
    first = str(caught.value).split("those are ")[1].split(", ")[0]
    assert first in times
    small = module.resized(file, {first: 2})
    assert len(small) < len(file)
    assert logits(format_name, small).shape == (1, networks.CLASSES)


def test_a_slice_that_leaves_out_the_last_channels_is_refused() -> None:
    cut = ChannelOperation(layer="half", kind="slice", inputs=("x",), output="y", stop=4, step=2)
    with pytest.raises(ValueError, match="half: a slice that stops at channel 4 of 8"):
        channels_after([cut], {"x": 8}, {})


def test_channels_beside_each_other_and_shares_of_them_follow() -> None:
    layers = {
        name: ChannelOperation(
            layer=name, kind="convolution", inputs=("x",), output=name, channels=8
        )
        for name in ("a", "b", "last")
    }
    beside = ChannelOperation(layer="c", kind="concat", inputs=("a", "b"), output="c")
    half = ChannelOperation(
        layer="half", kind="slice", inputs=("c",), output="half", start=8, stop=16
    )
    operations = [layers["a"], layers["b"], beside, half, layers["last"]]
    after = channels_after(operations, {"x": 3}, {"a": 4})
    assert (after["c"], after["half"]) == (12, 6)
    assert sliced(half, 16, 12) == (6, 12)
    with pytest.raises(ValueError, match="half: a slice of channels 8 to 16 of 16 takes no whole"):
        channels_after(operations, {"x": 3}, {"a": 3})


@functools.cache
def tied_program(kind: type[nn.Module], *, pruned: bool) -> tuple[Any, tuple[Any, ...]]:
    """A small network, whole or with half of the channels of every group; the groups."""
    model = kind().eval()
    networks.randomise(model)
    groups = groups_of(model, square(structures.SIDE), structures.STRUCTURE)
    if pruned:
        model = remove(model, groups, half_of_each(groups))
    graph = qat.prepare(model, square(structures.SIDE))
    images = torch.randn(square(structures.SIDE).batch(4))
    qat.calibrate(graph, lambda: [images])
    return quantized_program(graph, images[:2]), groups


def half_of_each(groups: tuple[Any, ...]) -> dict[str, list[int]]:
    removed = {}
    for group in groups:
        size = group.channels // group.parts
        removed[group.name] = [c for c in range(group.channels) if c % size < size // 2]
    return removed


@pytest.mark.parametrize("kind", [structures.Concat, structures.Halves, structures.Gated])
@pytest.mark.parametrize("format_name", LAYERED)
def test_channels_of_several_groups_follow_into_the_file(
    format_name: str, kind: type[nn.Module]
) -> None:
    whole, groups = tied_program(kind, pruned=False)
    layers = file_layers(whole, groups)
    widths = {group.name: group.channels // 2 for group in groups}
    small = layers_module(format_name).resized(
        write(format_name, whole), sized_layers(layers, widths)
    )
    pruned = write(format_name, tied_program(kind, pruned=True)[0])
    assert structure(format_name, small) == structure(format_name, pruned)
    shapes = {n.name: n.meta["val"].shape for n in whole.graph.nodes if "val" in n.meta}
    present = {group.name: group.channels for group in groups}
    assert all(layer.outputs.at(present) == shapes[layer.name][1] for layer in layers)


def test_typical_time_ignores_outliers_and_is_finer_than_the_clock() -> None:
    assert layer_times.typical([1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 2.0, 900.0]) == 2.5
    assert layer_times.typical([7.0]) == 7.0


def test_as_many_rounds_count_as_were_asked_for() -> None:
    assert [sum(block) for block in layer_times.blocks(12)] == [5, 5, 2]
    assert all(block[0] is False for block in layer_times.blocks(12))


def test_cost_of_timing_is_taken_off_every_operation() -> None:
    samples = {"a": [3.0, 13.0], "b": [5.0, 15.0]}
    assert layer_times.net_times(samples, [6.0, 26.0]) == {"a": 7.0, "b": 9.0}
    # What ran faster in pieces stays as it was timed, and nothing takes no time.
    assert layer_times.net_times(samples, [50.0, 50.0]) == {"a": 8.0, "b": 10.0}
    assert 0 < layer_times.net_times({"a": [1.0], "b": [9.0]}, [2.0])["a"] < 1e-3
