"""The size of a file is known before it is written: estimates beside files really written."""

from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.compress.pruning import costs, sizes
from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.stored import Bytes
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import float_program, quantized_program
from pipeline.formats.format import Format, Precision
from pipeline.formats.formats import FORMATS
from pipeline.measure.timing import size_bytes
from pipeline.networks.count import count
from pipeline.networks.lowering.places import FloatPlaces
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.family import FAMILY
from pipeline.recipe.input_shape import square
from tests.making.networks import SIDE, images, small, structure
from tests.making.programs import SHORT

pytestmark = pytest.mark.slow


def _spent(form: Format, precision: Precision, floats: FloatPlaces, layer: str) -> Bytes:
    return form.bytes["float" if floats.hold_path(layer) else precision]


@pytest.mark.parametrize(
    ("radix", "width", "precision", "patterns"),
    [
        (2, 1 / 32, "int8", ()),
        (2, 0.25, "int8", ()),
        (2, 0.25, "int8", ("layer2",)),
        (2, 1 / 32, "float", ()),
        (1, 0.25, "float", ()),
    ],
)
def test_the_size_of_a_file_is_known_before_it_is_written(
    radix: int, width: float, precision: Precision, patterns: tuple[str, ...], tmp_path: Path
) -> None:
    """A description is most of so small a file, which makes this the hardest case."""
    branched = branch_form(small(radix=radix, width_multiplier=width, layers=SHORT))
    groups = groups_of(branched, square(SIDE), structure(branched))
    shapes = costs.layer_shapes(groups, count(branched, square(SIDE)))
    widths = {group.name: group.channels for group in groups}
    deploy, example = deploy_form(branched), torch.zeros(2, 3, SIDE, SIDE)
    if precision == "int8":
        graph = qat.prepare(deploy, square(SIDE), floats=FloatPlaces(patterns))
        qat.calibrate(graph, lambda: [images(8, seed=2)])
        program = quantized_program(graph, example)
    else:
        program = float_program(deploy, example)
    for form, known in FORMATS.items():
        path = tmp_path / f"model{known.suffix}"
        known.module().write(program, path)
        spent = partial(_spent, known, precision, FloatPlaces(patterns))
        cost = sizes.size_mb(FAMILY.rewritten(branched), shapes, spent)
        assert cost.of(widths) == pytest.approx(size_bytes(path) / 1e6, rel=0.05), form
