"""Programs run faster, and give the same numbers to the bit."""

import torch

from pipeline.compress.quantization.running import rounding_at_once
from tests.making.graphs import QUANTIZE, WEIGHT, compute_nodes, in_graph
from tests.making.networks import images
from tests.making.programs import program, unquantized


def test_the_same_numbers_to_the_bit_with_nothing_made_int8() -> None:
    slow, fast = program(), rounding_at_once(program())
    x = images(3, seed=4)
    with torch.no_grad():
        assert torch.equal(slow.module(check_guards=False)(x), fast(x))
    assert in_graph(slow.graph_module, QUANTIZE)
    assert not in_graph(fast, QUANTIZE)
    assert not in_graph(fast, WEIGHT)
    assert len(compute_nodes(fast.graph)) >= len(compute_nodes(slow.graph))


def test_another_scale_gives_other_numbers() -> None:
    fast = rounding_at_once(program())
    x = images(3, seed=4)
    with torch.no_grad():
        before = fast(x)
        name, weight = next((n, b) for n, b in fast.named_buffers() if "float_weight" in n)
        weight.mul_(1.5)
        assert not torch.equal(fast(x), before), name


def test_a_float_program_is_run_as_it_is() -> None:
    given = unquantized("radix1").program
    x = images(2)
    with torch.no_grad():
        assert torch.equal(rounding_at_once(given)(x), given.module(check_guards=False)(x))
