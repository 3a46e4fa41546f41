"""Which operations every format has in int8: a file of each, held to the gates of a run.

    python -m tests.networks.operations "hard swish" "bilinear, larger"

Without names, all of them.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import quantized_program
from pipeline.formats.formats import FORMATS
from pipeline.networks.rewrites import with_normalization
from pipeline.recipe.input_shape import square
from tests.networks.table import Row, row
from tests.networks.test_lowering import OPERATIONS, SIDE, made


def rows(model: nn.Module, formats: tuple[str, ...] = tuple(FORMATS)) -> dict[str, Row]:
    """What the files of a network are, by format; its ranges are those of noise.

    Args:
        model: (batch, 3, SIDE, SIDE) to (batch, outputs), in evaluation mode.
        formats: to write.
    """
    images = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    graph = qat.prepare(with_normalization(model, None), square(SIDE))
    qat.calibrate(graph, lambda: list(images.split(8)))
    qat.set_training(graph, False)
    program = quantized_program(graph, images[:2])
    return {form: row(program, images[:4], FORMATS[form]) for form in formats}


def main(names: list[str]) -> int:
    """Print the table; 1 where a file does not pass."""
    failed = False
    print("| operation | " + " | ".join(one.title for one in FORMATS.values()) + " |")
    print("| --- " * (1 + len(FORMATS)) + "|")
    for name in names or OPERATIONS:
        found = rows(made(OPERATIONS[name])).values()
        failed |= any(one.misses for one in found)
        print(f"| {name} | " + " | ".join(one.cell() for one in found) + " |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
