"""ShuffleNet v1 and ShiftResNet compute what their papers say."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.networks.count import count
from pipeline.networks.families import family_of
from pipeline.networks.shift.network import ShiftResNet, shift
from pipeline.networks.shufflenet.network import ShuffleBlock, ShuffleNet
from pipeline.recipe.input_shape import square
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.models import ALONE, kind_of
from tests.making.networks import randomise


def config(name: str, **keys: object) -> ModelConfig:
    return kind_of(name, ALONE).model_validate({"name": name, "input_size": 32, **keys})


@pytest.mark.parametrize(("groups", "width", "macs"), [(1, 1, 143), (3, 1, 137), (8, 1, 137)])
def test_a_shufflenet_works_as_much_as_the_paper_says(groups: int, width: float, macs: int) -> None:
    """Complexity of table 1 in millions of multiply-accumulates at 224 x 224.

    It does not say what it counts besides convolutions.
    """
    model = ShuffleNet(1000, groups=groups, width_multiplier=width).eval()
    assert count(model, square(224)).macs / 1e6 == pytest.approx(macs, rel=0.05)


@pytest.mark.parametrize(
    ("multiplier", "stem", "widths"),
    [
        (0.5, 12, (120, 240, 480)),
        (1.0, 24, (240, 480, 960)),
        (1.5, 24, (360, 720, 1440)),
        (2.0, 48, (480, 960, 1920)),
    ],
)
def test_published_widths_of_three_groups(
    multiplier: float, stem: int, widths: tuple[int, ...]
) -> None:
    """Those of the authors' checkpoints."""
    tensors = ShuffleNet(1000, width_multiplier=multiplier).state_dict()
    assert tensors["first_conv.0.weight"].shape[0] == stem
    assert "classifier.0.bias" not in tensors
    for place, channels in zip((1, 5, 13), widths, strict=True):
        assert tensors[f"features.{place}.branch_main_2.0.weight"].shape[0] == channels
        assert tensors[f"features.{place}.branch_main_1.0.weight"].shape[0] == channels // 4


def test_a_shuffle_hands_every_group_channels_of_all_groups() -> None:
    block = ShuffleBlock(12, 12, stride=1, groups=3, first=False).eval()
    block.branch_main_1 = nn.Sequential()  # the shuffle alone is looked at
    seen = []
    block.branch_main_2.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    block.branch_main_2[0] = nn.Conv2d(12, 12, 1, groups=3)
    block(torch.arange(12.0).reshape(1, 12, 1, 1))
    assert seen[0].flatten().tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_shift_moves_every_channel_by_at_most_a_pixel(stride: int) -> None:
    x = torch.randn(2, 18, 6, 5, generator=torch.Generator().manual_seed(0))
    conv = shift(18, stride)
    assert not conv.weight.requires_grad
    moved = conv(x)
    around = F.pad(x, (1, 1, 1, 1))
    for channel in range(18):
        down, right = divmod(channel % 9, 3)
        wanted = around[:, channel, down : down + 6 : stride, right : right + 5 : stride]
        torch.testing.assert_close(moved[:, channel], wanted, rtol=0, atol=0)


def test_a_stride_of_the_shift_is_one_of_the_convolution_behind_it() -> None:
    """As the authors have it."""
    behind = nn.Conv2d(9, 4, 1, bias=False)
    x = torch.randn(1, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    strided = F.conv2d(shift(9, 1)(x), behind.weight, stride=2)
    torch.testing.assert_close(behind(shift(9, 2)(x)), strided)


def test_shifts_are_not_trained() -> None:
    model = ShiftResNet(10)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {f"layer{s}.{n}.shift2.weight" for s in (1, 2, 3) for n in range(3)}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("shufflenet_v1", {"width_multiplier": 0.25, "stem": "small"}),
        ("shufflenet_v1", {"groups": 2, "channels": 1, "input_size": [40, 48]}),
        ("shiftresnet20", {"width_multiplier": 0.5, "expansion": 2}),
    ],
)
def test_the_rest_of_the_pipeline_finds_its_way(name: str, keys: dict[str, object]) -> None:
    asked = config(name, **keys)
    family = family_of(asked)
    model = family.build(asked, 7).eval()
    randomise(model)
    structure = family.structure(model)
    modules = dict(model.named_modules())
    assert {structure.classifier, *structure.stages, *structure.dense} <= modules.keys()
    x = torch.randn(asked.input_shape.batch(2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(x)
        found = family.deploy(family.prunable(model), None)(x)
    assert wanted.shape == (2, 7)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
