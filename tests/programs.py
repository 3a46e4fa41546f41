"""Programs of small ResNeSts, made once per session, for tests that write and run real files."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline import qat
from pipeline.deploy import deploy_form
from pipeline.fold import float_program, quantized_program
from pipeline.measure import Runnable
from pipeline.models.branches import branch_form
from pipeline.models.resnest import ResNeSt, ResNeStConfig
from tests.test_resnest import randomise

SIDE = 32
CLASSES = 7
SMALL = ResNeStConfig(layers=(1, 1, 1, 1), width_multiplier=0.25, num_classes=CLASSES)
SHORT = (1, 1, 0, 0)
"""A stage with stride 1 and one with stride 2 have every operation; the rest is repetition."""
VARIANTS: dict[str, dict[str, Any]] = {
    "radix2": {},
    "basic": {"block": "basic", "layers": SHORT},
    "radix1": {"radix": 1, "avd_first": True, "layers": SHORT},
    "radix4": {"radix": 4, "cardinality": 2, "avd_first": True, "layers": SHORT},
}
"""What each network changes of `SMALL`, a bottleneck of radix 2."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A network, the program made of it, and what the program gives for `images`."""

    network: ResNeSt
    program: torch.export.ExportedProgram
    logits: Tensor


def coloured_noise(count: int, seed: int) -> Tensor:
    """Random images of different colours; to noise alone a network answers always the same."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, 1, 1, generator=generator)
    return colours + torch.randn(count, 3, SIDE, SIDE, generator=generator)


@cache
def images() -> Tensor:
    """Images (16, 3, SIDE, SIDE) the networks were not calibrated on."""
    return coloured_noise(16, seed=1)


def network(variant: str) -> ResNeSt:
    """A small network with batch norms as after training."""
    torch.manual_seed(0)
    model = ResNeSt(replace(SMALL, **VARIANTS[variant])).eval()
    randomise(model)
    return model


@cache
def quantized(variant: str) -> Written:
    """The int8 program of a network of `VARIANTS`, calibrated on random images. Do not change."""
    model = network(variant)
    graph = qat.prepare(deploy_form(branch_form(model)), SIDE)
    qat.calibrate(graph, lambda: [coloured_noise(32, seed=2)])
    return _written(model, quantized_program(graph, torch.zeros(2, 3, SIDE, SIDE)))


@cache
def unquantized(variant: str) -> Written:
    """The float program of a network of `VARIANTS`. Do not change."""
    model = network(variant)
    deploy = deploy_form(branch_form(model))
    return _written(model, float_program(deploy, torch.zeros(2, 3, SIDE, SIDE)))


def _written(model: ResNeSt, program: torch.export.ExportedProgram) -> Written:
    with torch.no_grad():
        logits = program.module(check_guards=False)(images())
    return Written(network=model, program=program, logits=logits)


def run(runnable: Runnable, batch: int = 1) -> Tensor:
    """Logits of an opened file for `images`."""
    parts = []
    for part in images().split(batch):
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
