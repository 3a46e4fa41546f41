"""Which operations every format has in int8: a file of each, held to the gates of a run.

    python -m tests.networks.operations "hard swish" "bilinear, larger"

Without names, all of them.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import quantized_program
from pipeline.formats.file_facts import learned_scales, program_macs, scales_exact
from pipeline.formats.format import Format
from pipeline.formats.formats import FORMATS
from pipeline.measure.layers import compare_layers
from pipeline.measure.parity import file_misses, layer_misses
from pipeline.networks.rewrites import with_normalization
from pipeline.recipe.input_shape import square
from tests.networks.test_lowering import OPERATIONS, SIDE, made


@dataclass(frozen=True, kw_only=True)
class Row:
    """A file of a network.

    Attributes:
        misses: gates that it does not pass; [] if none.
        partitions: of XNNPACK; None for other formats.
        outside: operations that move numbers between axes.
    """

    misses: list[str]
    partitions: int | None
    outside: int

    def cell(self) -> str:
        """For the table."""
        if self.misses:
            return "; ".join(self.misses)
        parts = ["passed"]
        parts += [f"{self.partitions} partitions"] if self.partitions not in (None, 1) else []
        parts += [f"{self.outside} transposes"] if self.outside else []
        return ", ".join(parts)


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


def row(program: torch.export.ExportedProgram, images: torch.Tensor, form: Format) -> Row:
    """The file of one format, written and held to its gates."""
    module = form.module()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, f"model{form.suffix}")
        module.write(program, path)
        found = module.inspect(path)
        layers = compare_layers(program, None, partial(module.trace, path), images)
    misses = file_misses(found, scales_exact(program, found), program_macs(program))
    misses += layer_misses(layers, learned_scales(program)[0])
    outside = sum(n for op, n in found.ops.items() if op.lower() == "transpose")
    return Row(misses=misses, partitions=found.partitions, outside=outside)


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
