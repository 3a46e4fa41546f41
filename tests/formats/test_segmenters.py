"""Networks that give a class to every place, in files that compute what their programs do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.compress.pruning.followed import followed
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import quantized_program
from pipeline.formats.file_facts import program_macs
from pipeline.formats.formats import FORMATS
from pipeline.measure.file_layers import file_layers
from pipeline.networks.segmenter.family import FAMILY
from pipeline.recipe.input_shape import InputShape
from tests.making.segmenters import CLASSES, NETWORKS, SIZE, config, images, segmenter
from tests.networks.operations import row
from tests.networks.test_lowering import made

pytestmark = pytest.mark.slow


@cache
def program(name: str) -> torch.export.ExportedProgram:
    asked = config(**NETWORKS[name])
    model = segmenter(asked)
    graph = qat.prepare(FAMILY.deploy(FAMILY.prunable(model), None), asked.input_shape)
    qat.calibrate(graph, lambda: list(images(16).split(8)))
    qat.set_training(graph, False)
    return quantized_program(graph, images(2))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_computes_what_the_network_does(name: str) -> None:
    x = images(4, seed=2)
    with torch.no_grad():
        wanted = segmenter(config(**NETWORKS[name]))(x)
        found = program(name).module(check_guards=False)(x)
    assert found.shape == wanted.shape
    assert float(F.mse_loss(found, wanted)) < 1e-3 * float(wanted.square().mean())


FILES = [(name, "onnx") for name in NETWORKS] + [
    (name, form) for name in ("unet", "deeplabv3plus") for form in FORMATS if form != "onnx"
]
"""The two have every operation that decoders have; writing takes long in other formats."""


@pytest.mark.parametrize(("name", "form"), FILES)
def test_every_layer_of_a_file_is_the_programs_and_all_are_int8(name: str, form: str) -> None:
    whole_program = program(name)
    int8, whole = program_macs(whole_program)
    assert int8 == whole
    found = row(whole_program, images(2), FORMATS[form])
    assert found.misses == []
    assert found.partitions in (None, 1)
    assert found.outside == 0


@pytest.mark.parametrize("form", ["onnx", "tflite"])
def test_a_file_with_fewer_channels_is_timed_in_place_of_a_pruned_one(
    form: str, tmp_path: Path
) -> None:
    """The channels go on through all that enlarges."""
    written, known = program("deeplabv3plus"), FORMATS[form]
    path = tmp_path / f"whole{known.suffix}"
    known.module().write(written, path)
    asked = config(**NETWORKS["deeplabv3plus"])
    model = FAMILY.prunable(segmenter(asked))
    groups = followed(model, asked.input_shape, FAMILY.structure(model)).groups
    widths = {}
    for layer in file_layers(written, groups):
        if layer.sized:
            present = {group.name: group.channels for group in groups}
            widths[layer.name] = layer.outputs.at({n: c // 2 for n, c in present.items()})
    assert known.layers is not None
    small = tmp_path / f"small{known.suffix}"
    small.write_bytes(known.layers().resized(path.read_bytes(), widths))
    assert small.stat().st_size < path.stat().st_size
    opened = known.module().open_file(small)
    opened.set_input(images(1).numpy())
    opened.invoke()
    assert opened.output().size == CLASSES * SIZE[0] * SIZE[1]


def test_wide_dilations_of_depthwise_convolutions_stay_one_operation() -> None:
    """TensorFlow's own function leaves SPACE_TO_BATCH_ND around those wider than the image."""
    layers = [nn.Conv2d(8, 8, 3, padding=d, dilation=d, groups=8) for d in (6, 12, 18)]
    shape = InputShape(channels=3, height=15, width=20)
    noise = torch.randn(shape.batch(8), generator=torch.Generator().manual_seed(0))
    graph = qat.prepare(made(nn.Sequential(*layers)), shape)
    qat.calibrate(graph, lambda: [noise])
    qat.set_training(graph, False)
    found = row(quantized_program(graph, noise[:2]), noise[:2], FORMATS["tflite"])
    assert found.misses == []
    assert found.partitions == 1


class Twins(nn.Module):
    """Two convolutions of the same image, as the splits of a ResNeSt are, with a dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Conv2d(8, 8, 3, padding=2, dilation=2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.one(x)) + torch.relu(self.other(x))


def test_dilated_convolutions_of_the_same_image_stay_one_operation_each() -> None:
    """TensorFlow's converter finds one convolution between SPACE_TO_BATCH_ND and its inverse."""
    shape = InputShape(channels=3, height=15, width=20)
    noise = torch.randn(shape.batch(8), generator=torch.Generator().manual_seed(0))
    graph = qat.prepare(made(Twins()), shape)
    qat.calibrate(graph, lambda: [noise])
    qat.set_training(graph, False)
    found = row(quantized_program(graph, noise[:2]), noise[:2], FORMATS["tflite"])
    assert found.misses == []
    assert (found.partitions, found.outside) == (1, 0)
