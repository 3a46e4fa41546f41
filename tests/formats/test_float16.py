"""Float16 files: smaller than float ones, and near the float program."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from pipeline.formats.formats import FORMATS
from pipeline.measure.parity import float_difference
from pipeline.measure.timing import size_bytes
from tests.making import programs
from tests.making.shared import made_once

pytestmark = pytest.mark.slow


@functools.cache
def float_file(form: str, *, pixels: bool, half: bool) -> Path:
    """A file of `programs.unquantized("radix2")`. Do not change."""
    known = FORMATS[form]
    name = f"model{known.suffix}"
    asked = [option for option in ("float16",) if half and option in known.options]

    def write(folder: Path) -> None:
        program = programs.unquantized("radix2", pixels=pixels).program
        known.module().write(program, folder / name, pixels=pixels, options=asked)

    return made_once(f"{form}-float{'16' * half}{'-pixels' * pixels}", write) / name


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_a_float16_file_answers_as_the_float_program(form: str, pixels: bool) -> None:
    written, module = programs.unquantized("radix2", pixels=pixels), FORMATS[form].module()
    path = float_file(form, pixels=pixels, half=True)
    found = programs.run(module.open_file(path), fed=written.images)
    off = float_difference({"": found}, {"": written.logits})
    assert 0 < off < 1e-2
    assert not torch.equal(found, written.logits), "nothing was rounded"
    assert module.interface(path) == module.interface(float_file(form, pixels=pixels, half=False))


@pytest.mark.parametrize("form", ["onnx", "tflite"])
def test_a_float16_file_takes_half_of_the_bytes_of_the_weights(form: str) -> None:
    whole, half = (size_bytes(float_file(form, pixels=False, half=one)) for one in (False, True))
    weights = sum(value.numel() for value in programs.network("radix2").state_dict().values())
    assert whole - half > 0.9 * 2 * weights - 20_000
