"""Times of layers make up that of the file, and channels follow into a resized one."""

import functools
import time
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.removal import remove
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import float_program, quantized_program
from pipeline.formats import layer_times
from pipeline.formats.channels import ChannelOperation, channels_after, sliced
from pipeline.measure.file_layers import file_layers, sized_layers
from pipeline.recipe.input_shape import square
from tests.making import graphs, networks, structures
from tests.making.layered import (
    LAYERED,
    classifier,
    content,
    deployed,
    layer_at,
    layers_module,
    logits,
    opened,
    structure,
    widths,
    write,
)

pytestmark = pytest.mark.slow


@functools.cache
def float_content(format_name: str) -> bytes:
    return write(format_name, float_program(deployed("one_split"), graphs.EXAMPLE))


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
