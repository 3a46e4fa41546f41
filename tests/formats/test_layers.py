"""Resized files against files of really pruned networks, and the times of single layers."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.formats.formats import FORMATS
from pipeline.measure.layers import layers_of
from tests.making import networks
from tests.making.layered import (
    LAYERED,
    VARIANTS,
    content,
    layer_at,
    layers_module,
    logits,
    opened,
    program,
    structure,
    widths,
)

pytestmark = pytest.mark.slow


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
