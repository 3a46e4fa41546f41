"""A part of a sum that is far smaller than the sum: XNNPACK takes no such scales."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.__main__ import main
from pipeline.compress.quantization import grid, qat
from pipeline.compress.quantization.fake_quantize import ActivationFakeQuantize
from pipeline.compress.quantization.fold import quantized_program
from pipeline.formats.formats import FORMATS
from pipeline.recipe.input_shape import square
from tests.making.plain_net import plain
from tests.networks.operations import row

SIDE = 16
IMAGES = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def faint(classes: int = 4) -> nn.Module:
    """A network whose second block has learned next to nothing."""
    torch.manual_seed(0)
    model = plain(classes, channels=8)
    stem, norm = model.stem[1], model.blocks[1].bn2
    with torch.no_grad():
        stem.weight.fill_(200.0)  # a grid of 1/16384 is the finest there is
        norm.weight.fill_(3e-4)
    return model.eval()


def program_of() -> torch.export.ExportedProgram:
    graph = qat.prepare(faint(), square(SIDE))
    qat.calibrate(graph, lambda: list(IMAGES.split(8)))
    qat.set_training(graph, False)
    return quantized_program(graph, IMAGES[:2])


def test_its_scale_is_one_that_xnnpack_takes() -> None:
    found = row(program_of(), IMAGES[:4], FORMATS["tflite"])
    assert (found.misses, found.partitions) == ([], 1)


def test_what_xnnpack_leaves_out_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(qat, "keep_near", lambda graph: None)
    module = FORMATS["tflite"].module()
    path = tmp_path / "model.tflite"
    module.write(program_of(), path)
    facts = module.inspect(path)
    assert facts.partitions is not None
    assert facts.partitions > 1
    (told,) = facts.outside.values()
    assert told.startswith("ADD: the scale of an input is")
    assert "XNNPACK takes 0.00098 to 256" in told


RECIPE = f"""\
model: {{name: "python:nets.py:net", input_size: {SIDE}, checkpoint: faint.safetensors}}
data: {{kind: digits, test_images: 64, calibration_images: 64}}
train: {{epochs: 0}}
qat: {{train: {{epochs: 0}}}}
target: {{device: a phone, format: tflite, precision: int8}}
measure: {{rounds: 2}}
guard: {{accuracy_drop_pt: null}}
"""
NETS = """\
from tests.making.plain_net import plain


def net(num_classes):
    return plain(num_classes, channels=8)
"""


@pytest.mark.slow
def test_a_run_of_such_a_network_is_one_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("phone.yaml").write_text(RECIPE)
    save_file(faint(10).state_dict(), "faint.safetensors")
    assert main(["run", "phone.yaml", "--out", "out"]) == 0
    (target,) = json.loads(Path("out/phone/report.json").read_text())["targets"]
    assert (target["partitions"], target["outside"]) == (1, [])


def test_a_range_that_is_its_own_is_left_alone() -> None:
    graph = qat.prepare(faint(), square(SIDE))
    qat.calibrate(graph, lambda: list(IMAGES.split(8)))
    parts = [m for m in graph.modules() if isinstance(m, ActivationFakeQuantize) and m.sums]
    assert len(parts) == 2, "the other part of each sum is read by a convolution as well"
    raised = [m for m in parts if float(m.scale) * 255 > 1.01 * float(m.high - m.low)]
    assert len(raised) == 1
    (sum_of,) = raised[0].sums
    assert float(raised[0].scale) == pytest.approx(float(sum_of.scale) * grid.LEAST_PART, rel=2e-3)
    assert float(raised[0].scale) >= float(sum_of.scale) * grid.LEAST_PART


def test_a_sum_that_grows_takes_its_parts_along() -> None:
    whole, part = ActivationFakeQuantize(), ActivationFakeQuantize()
    part.sums, whole.parts = (whole,), (part,)
    part(torch.tensor([-1.0, 1.0]))
    assert float(part.scale) == pytest.approx(2 / 255, rel=1e-3)
    for end in (1.0, 1e4):
        whole.low.fill_(-end)
        whole.high.fill_(end)
        whole.take_ranges()
        assert float(part.scale) == pytest.approx(max(2 / 255, end * 2 / 255 / 1024), rel=2e-3)
