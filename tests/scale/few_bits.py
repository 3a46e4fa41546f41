"""How many bytes a ResNeSt-50 of random weights takes with weights of few bits, by format.

    python -m tests.scale few_bits              # all formats that have the option
    python -m tests.scale few_bits coreml       # one of them

Each program is written with the option `few_bits` and without it, and read back: a number or a
scale that is not the program's stops it. Bytes do not depend on the images, which are of noise and
small. "zipped" is what a download takes. Half of the weights are zero in the last rows, and formats
that store them sparsely do so.
"""

from __future__ import annotations

import argparse
import copy
import io
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import fx

from pipeline.compress.quantization import qat
from pipeline.compress.quantization.few_bits import take_forms, weighted_layers
from pipeline.compress.quantization.fold import quantized_program
from pipeline.formats.file_facts import scales_exact
from pipeline.formats.format import Format, Option
from pipeline.formats.formats import FORMATS
from pipeline.networks.families import family_of
from pipeline.recipe.input_shape import InputShape, square
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.models import ALONE, kind_of
from pipeline.recipe.weight_forms import WEIGHT_FORMS, WeightForm

CLASSES, IMAGES = 1000, 8
SHAPE = square(64)


def graph(shape: InputShape = SHAPE) -> fx.GraphModule:
    """The network with observers, calibrated."""
    config: ModelConfig = kind_of("resnest50", ALONE).model_validate(
        {"name": "resnest50", "input_size": shape.height}
    )
    family = family_of(config)
    torch.manual_seed(0)
    model = family.build(config, CLASSES).train()
    images = torch.randn(shape.batch(IMAGES))
    with torch.no_grad():
        model(images)  # what batch normalisation divides by
    model.eval()
    found = qat.prepare(family.deploy(family.prunable(model), None), shape)
    qat.calibrate(found, lambda: [images])
    return found


def program(
    calibrated: fx.GraphModule, form: WeightForm, shape: InputShape = SHAPE
) -> torch.export.ExportedProgram:
    """The program with all weights of a form that take it."""
    changed = copy.deepcopy(calibrated)
    take_forms(changed, {layer.name: form for layer in weighted_layers(changed)})
    return quantized_program(changed, torch.zeros(shape.batch(2)))


def halve(of: torch.export.ExportedProgram) -> None:
    """Set every second weight to zero, in place."""
    draw = torch.Generator().manual_seed(0)
    for tensor in {**of.state_dict, **of.constants}.values():
        if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.int8 and tensor.dim() == 4:
            tensor[torch.rand(tensor.shape, generator=draw) < 0.5] = 0


def measured(
    source: torch.export.ExportedProgram, form: Format, folder: Path, options: Collection[Option]
) -> str:
    """Bytes of a file, of its largest part where it is a folder, and zipped; and what is exact.

    Raises:
        SystemExit: a number or a scale is not the program's.
    """
    path = folder / f"{'-'.join(sorted(options)) or 'plain'}{form.suffix}"
    form.module().write(source, path, options=options)
    parts = [file for file in path.rglob("*") if file.is_file()] if form.folder else [path]
    sizes = [part.stat().st_size for part in parts]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in parts:
            archive.write(part)
    facts = form.module().inspect(path)
    exact = scales_exact(source, facts)
    assert exact is not None
    if (exact.same, exact.codes_same) != (exact.total, exact.codes_total):
        raise SystemExit(f"{path.name}: {exact}")
    return (
        f"{sum(sizes):>11,} bytes, largest part {max(sizes):>11,}, zipped "
        f"{len(packed.getvalue()):>11,}; {exact.codes_total:,} weights and {exact.total:,} scales "
        f"exact, int8 coverage {facts.int8_coverage}"
    )


def lines(names: Collection[str]) -> Iterator[str]:
    """A line for every file."""
    calibrated = graph()
    for form in WEIGHT_FORMS:
        for half in (False, True):
            source = program(calibrated, form)
            if half:
                halve(source)
            for name in names:
                sparse: set[Option] = {"sparse"} & FORMATS[name].options if half else set()
                with tempfile.TemporaryDirectory() as folder:
                    for options in (set(), {"few_bits", *sparse}):
                        said = measured(source, FORMATS[name], Path(folder), options)
                        what = f"{name} {form}{', half zero' if half else ''}"
                        yield f"{what}, {'+'.join(sorted(options)) or 'no option'}: {said}"


def main(arguments: list[str]) -> int:
    """Print the bytes."""
    having = [name for name, form in FORMATS.items() if "few_bits" in form.options]
    parser = argparse.ArgumentParser(prog="python -m tests.scale few_bits", description=__doc__)
    parser.add_argument("format", nargs="?", choices=having, help="all of them by default")
    asked = parser.parse_args(arguments).format
    for line in lines([asked] if asked else having):
        print(line, flush=True)
    return 0
