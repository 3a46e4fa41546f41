"""A program that is rounded otherwise: the same program but for what rounding decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.compress.quantization.other_rounding import rounded_otherwise
from pipeline.measure.layers import layers_of
from pipeline.measure.parity import output_steps
from pipeline.measure.parity_record import OutputSteps
from tests.making import programs

pytestmark = pytest.mark.slow

EPSILON = torch.finfo(torch.float32).eps


def answers(share: float, variant: str = "radix2") -> Tensor:
    return rounded_otherwise(programs.quantized(variant).program, share)(programs.examples())


def moved(share: float, variant: str = "radix2") -> OutputSteps:
    written = programs.quantized(variant)
    step = programs.output_scale(written.program)
    return output_steps({"": answers(share, variant)}, {"": written.logits}, step)


@pytest.mark.parametrize("variant", programs.SHAPES)
def test_without_noise_it_is_the_program(variant: str) -> None:
    assert torch.equal(answers(0.0, variant), programs.quantized(variant).logits)


def test_its_logits_lie_on_the_program_s_grid() -> None:
    grid = layers_of(programs.quantized("radix2").program)[-1]
    steps = answers(1e-2) / grid.scale
    assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_more_noise_moves_more() -> None:
    shares = [moved(share).differing for share in (0.0, EPSILON, 1e-2, 1e-1)]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[2] < shares[3]


def test_noise_below_the_grid_moves_a_program_little() -> None:
    found = moved(EPSILON)
    assert found.median == 0
    assert found.p99 <= 2


def test_it_answers_alike_from_time_to_time_and_leaves_the_program_as_it_is() -> None:
    assert torch.equal(answers(1e-2), answers(1e-2))
    assert not torch.equal(answers(1e-2), programs.quantized("radix2").logits)
    module = programs.quantized("radix2").program.module(check_guards=False)
    with torch.no_grad():
        assert torch.equal(module(programs.examples()), programs.quantized("radix2").logits)
