"""Programs of small ResNeSts, made once per session, for tests that write and run real files."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compress.quantization import program as saved
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.few_bits import take_forms, weighted_layers
from pipeline.compress.quantization.fold import float_program, quantized_program
from pipeline.formats.formats import FORMATS
from pipeline.measure.timing import Runnable
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.network import ResNeSt
from pipeline.networks.rewrites import Normalization
from pipeline.recipe.data import IMAGENET_MEAN, IMAGENET_STD
from pipeline.recipe.input_shape import square
from pipeline.recipe.weight_forms import WEIGHT_FORMS
from tests.making.graphs import EXAMPLE, calibrated
from tests.making.networks import SIDE, images, small
from tests.making.shared import made_once

SHORT = (1, 1, 0, 0)
"""A stage with stride 1 and one with stride 2 have every operation; the rest is repetition."""
SHAPES: dict[str, dict[str, Any]] = {
    "radix2": {},
    "basic": {"block": "basic", "layers": SHORT},
    "radix1": {"radix": 1, "avd_first": True, "layers": SHORT},
    "radix4": {"radix": 4, "cardinality": 2, "avd_first": True, "layers": SHORT},
}
"""What each written network changes of `small()`, a bottleneck of radix 2."""
SMALL_STEM = "small_stem"
FURTHER: dict[str, dict[str, Any]] = {SMALL_STEM: {"stem": "small", "layers": (0, 1, 0, 0)}}
"""Likewise, for tests of their own: those that go by `SHAPES` learn nothing more of it."""
NORMALIZATION = Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""Of the networks that take pixels: no two channels alike."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A network, the program made of it, and what the program gives for `images`."""

    network: ResNeSt
    program: torch.export.ExportedProgram
    images: Tensor
    logits: Tensor


@cache
def examples() -> Tensor:
    """Images (16, 3, SIDE, SIDE) the networks were not calibrated on."""
    return images(16, seed=1)


def pixel_noise(count: int, seed: int) -> Tensor:
    """Random 8-bit images of different colours, as floats."""
    return (images(count, seed) * 50 + 128).round().clamp(0, 255)


def network(variant: str) -> ResNeSt:
    """A small network, batch norms as after training: a block's last has two faint channels."""
    model = small(**(SHAPES | FURTHER)[variant])
    for block in (block for stage in model.stages() for block in stage):
        if isinstance(block.bn3, nn.BatchNorm2d):
            block.bn3.weight.data[:2] = torch.tensor([0.0, 2e-6])
    return model


@cache
def quantized(variant: str, *, pixels: bool = False) -> Written:
    """The int8 program of a network above, calibrated on random images. Do not change."""

    def make(model: ResNeSt) -> torch.export.ExportedProgram:
        deploy = deploy_form(branch_form(model), NORMALIZATION if pixels else None)
        graph = qat.prepare(deploy, square(SIDE), pixels=pixels)
        noise = pixel_noise if pixels else images
        qat.calibrate(graph, lambda: [noise(32, seed=2)])
        return quantized_program(graph, torch.zeros(2, 3, SIDE, SIDE))

    return _written(variant, make, "int8", pixels=pixels)


MIXED = "mixed"
"""A form of each kind that is the same for a channel, layer by layer."""


@cache
def few_bits(variant: str, form: str) -> Written:
    """The program of `quantized` with weights of fewer bits: a `WeightForm` or `MIXED`."""

    def make(model: ResNeSt) -> torch.export.ExportedProgram:
        graph = qat.prepare(deploy_form(branch_form(model)), square(SIDE))
        qat.calibrate(graph, lambda: [images(32, seed=2)])
        whole = [one for one in WEIGHT_FORMS if one != "int4_blocks"]
        cycle = whole if form == MIXED else [form]
        layers = weighted_layers(graph)
        take_forms(graph, {x.name: cycle[i % len(cycle)] for i, x in enumerate(layers)})
        return quantized_program(graph, torch.zeros(2, 3, SIDE, SIDE))

    return _written(variant, make, form, pixels=False)


@cache
def unquantized(variant: str, *, pixels: bool = False) -> Written:
    """The float program of a network above. Do not change."""

    def make(model: ResNeSt) -> torch.export.ExportedProgram:
        deploy = deploy_form(branch_form(model), NORMALIZATION if pixels else None)
        return float_program(deploy, torch.zeros(2, 3, SIDE, SIDE))

    return _written(variant, make, "float", pixels=pixels)


def _written(
    variant: str,
    make: Callable[[ResNeSt], torch.export.ExportedProgram],
    kind: str,
    *,
    pixels: bool,
) -> Written:
    """A program as one process of the session made and saved it, as the stages of a run do."""
    model = network(variant)
    fed = pixel_noise(16, seed=1) if pixels else examples()

    def save(folder: Path) -> None:
        made = make(model)
        with torch.no_grad():
            torch.save(made.module(check_guards=False)(fed), folder / "logits.pt")
        saved.save(made, folder / "program.pt2")

    folder = made_once(f"{kind}-{variant}{'-pixels' * pixels}", save)
    return Written(
        network=model,
        program=saved.load(folder / "program.pt2"),
        images=fed,
        logits=torch.load(folder / "logits.pt"),
    )


def file_of(form: str, variant: str = "radix2", *, pixels: bool = False) -> Path:
    """A file of `quantized(variant)` that one process of the session wrote. Do not change."""
    known = FORMATS[form]
    name = f"model{known.suffix}"

    def write(folder: Path) -> None:
        program = quantized(variant, pixels=pixels).program
        known.module().write(program, folder / name, pixels=pixels)

    return made_once(f"{form}-{variant}{'-pixels' * pixels}", write) / name


def run(runnable: Runnable, batch: int = 1, fed: Tensor | None = None) -> Tensor:
    """Logits of an opened file for `fed`, which are `examples` unless given."""
    parts = []
    for part in (examples() if fed is None else fed).split(batch):
        runnable.set_input(part.numpy())
        runnable.invoke()
        parts.append(torch.from_numpy(runnable.output().copy()))
    return torch.cat(parts)


def steps_apart(found: Tensor, written: Written) -> Tensor:
    """By how many steps of the output grid logits differ from the program's."""
    apart = (found - written.logits).abs() / output_scale(written.program)
    assert torch.allclose(apart, apart.round(), atol=1e-3)
    return apart.round().int()


def output_scale(program: torch.export.ExportedProgram) -> float:
    """The step of the grid that a quantized program's logits lie on."""
    output = next(n for n in program.graph.nodes if n.op == "output").args[0][0]
    return float(output.args[1])


@functools.cache
def program(variant: str = "plain") -> torch.export.ExportedProgram:
    """The quantized program of a calibrated graph; shared, not to be changed."""
    return quantized_program(calibrated(variant), EXAMPLE)
