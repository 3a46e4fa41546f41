"""The program on disk: a `torch.export` archive with the quantized operations known."""

from __future__ import annotations

from pathlib import Path

import torch
import torchao.quantization.pt2e  # noqa: F401  registers the quantized_decomposed operations


def save(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write `program` to `path` (.pt2)."""
    torch.export.save(program, path)


def load(path: Path) -> torch.export.ExportedProgram:
    """Read a program that `save` wrote."""
    return torch.export.load(path)
