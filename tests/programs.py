"""Programs of small ResNeSts, made once per session, for tests that write and run real files."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline import qat
from pipeline.deploy import deploy_form
from pipeline.fold import float_program, quantized_program
from pipeline.models.branches import branch_form
from pipeline.models.resnest import ResNeSt, ResNeStConfig
from tests.test_resnest import randomise

SIDE = 32
CLASSES = 7
SMALL = ResNeStConfig(layers=(1, 1, 1, 1), width_multiplier=0.25, num_classes=CLASSES)
VARIANTS: dict[str, dict[str, Any]] = {
    "radix2": {},
    "basic": {"block": "basic"},
    "radix1": {"radix": 1},
    "radix4": {"radix": 4, "cardinality": 2},
    "avd_first": {"avd_first": True},
}
"""What each network changes of `SMALL`, a bottleneck of radix 2."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A network, the program made of it, and what the program gives for `images`."""

    network: ResNeSt
    program: torch.export.ExportedProgram
    logits: Tensor


@cache
def images() -> Tensor:
    """Images (16, 3, SIDE, SIDE) the networks were not calibrated on."""
    return torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


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
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(16, 3, SIDE, SIDE, generator=generator) for _ in range(4)]
    qat.calibrate(graph, lambda: batches)
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


def output_scale(program: torch.export.ExportedProgram) -> float:
    """The step of the grid that a quantized program's logits lie on."""
    output = next(n for n in program.graph.nodes if n.op == "output").args[0][0]
    return float(output.args[1])
