"""The network: equal to timm's, names and shapes, training behaviour."""

import math
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.networks.resnest.network import (
    NAMED,
    DropBlock,
    ResNeSt,
    SplitAttention,
    named,
    split_attention,
)
from tests.making.networks import SMALL, randomise, relative_difference

# Of 1,000 classes. The paper gives 27.5 M (resnest50), 48.3, 70.2 and 110.9 M (101, 200, 269);
# all but the basic one, which is our own, have the shapes of timm's (tested below).
PARAMS = {
    "resnest14": 10_611_688,
    "resnest26": 17_069_448,
    "resnest50": 27_483_240,
    "resnest101": 48_275_016,
    "resnest200": 70_201_544,
    "resnest269": 110_929_480,
    "resnest50_fast_1s1x64d": 26_217_896,
    "resnest50_fast_2s1x64d": 27_483_240,
    "resnest50_fast_4s1x64d": 31_912_712,
    "resnest50_fast_1s2x40d": 25_946_680,
    "resnest50_fast_2s2x40d": 26_943_792,
    "resnest50_fast_4s2x40d": 30_417_592,
    "resnest50_fast_1s4x24d": 25_677_000,
    "resnest50_basic": 33_966_952,
}

TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "resnest14d": ("resnest14", {}),
    "resnest26d": ("resnest26", {}),
    "resnest50d": ("resnest50", {}),
    "resnest50d_1s4x24d": (
        "resnest50",
        {"radix": 1, "cardinality": 4, "base_width": 24, "avd_first": True},
    ),
    "resnest50d_4s2x40d": (
        "resnest50",
        {"radix": 4, "cardinality": 2, "base_width": 40, "avd_first": True},
    ),
}


@pytest.mark.parametrize("theirs", TIMM)
def test_equals_timm(theirs: str) -> None:
    torch.manual_seed(0)
    name, overrides = TIMM[theirs]
    reference = timm.create_model(theirs, num_classes=10).eval()
    randomise(reference)
    with torch.device("meta"):
        ours = named(name, num_classes=10, **overrides).eval()
    ours.load_state_dict(reference.state_dict(), strict=True, assign=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_difference(ours(x), reference(x)) <= 1e-5


def timm_network(name: str) -> nn.Module:
    """timm's counterpart of a bottleneck network; the fast ones have no name there."""
    number = name.removeprefix("resnest")
    if not number.startswith("50_fast"):
        return timm.create_model(f"{name}{'e' if int(number) > 50 else 'd'}")
    config = NAMED[name]
    return timm.models.resnet.ResNet(
        block=timm.models.resnest.ResNestBottleneck,
        layers=list(config.layers),
        stem_type="deep",
        stem_width=config.stem_width,
        avg_down=True,
        base_width=config.base_width,
        cardinality=config.cardinality,
        block_args={"radix": config.radix, "avd": config.avd, "avd_first": config.avd_first},
    )


@pytest.mark.parametrize("name", [name for name in NAMED if name != "resnest50_basic"])
def test_names_and_shapes_are_timms(name: str) -> None:
    with torch.device("meta"):
        ours = named(name, num_classes=1000).state_dict()
        theirs = timm_network(name).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", NAMED)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        model = named(name, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == PARAMS[name]


@pytest.mark.parametrize(("stem", "stride"), [("deep", 32), ("small", 8)])
@pytest.mark.parametrize("block", ["bottleneck", "basic"])
@pytest.mark.parametrize("side", [32, 64, 96])
def test_shapes(block: Any, side: int, stem: Any, stride: int) -> None:
    model = ResNeSt(replace(SMALL, block=block, stem=stem)).eval()
    with torch.no_grad():
        features = model.features(torch.zeros(2, 3, side, side))
        logits = model(torch.zeros(2, 3, side, side))
    channels = 512 if block == "bottleneck" else 128
    assert features.shape == (2, channels, side // stride, side // stride)
    assert logits.shape == (2, 5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(list(NAMED)),
    stem_width=st.integers(1, 80),
    width_multiplier=st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0]),
)
def test_a_small_stem_is_one_convolution_with_the_deep_ones_channels(
    name: str, **widths: Any
) -> None:
    with torch.device("meta"):
        deep, small = (
            named(name, num_classes=5, layers=(1, 0, 0, 1), stem=stem, **widths).state_dict()
            for stem in ("deep", "small")
        )
    weight = small.pop("conv1.weight")
    assert weight.shape == (*deep["conv1.6.weight"].shape[:1], 3, 3, 3)
    rest = {key: value.shape for key, value in deep.items() if not key.startswith("conv1.")}
    assert {key: value.shape for key, value in small.items()} == rest


def test_the_first_stage_sees_the_whole_side_behind_a_small_stem() -> None:
    """An image moved by a pixel moves the maps by one: nothing was skipped or pooled."""
    torch.manual_seed(0)
    model = ResNeSt(replace(SMALL, stem="small", layers=(0, 0, 0, 0))).eval()
    randomise(model)
    x = torch.zeros(1, 3, 32, 32)
    x[:, :, 8:24, 8:24] = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        maps, moved = model.features(x), model.features(x.roll((1, 1), (2, 3)))
    assert maps.shape == (1, 16, 32, 32)
    torch.testing.assert_close(moved[..., 1:, 1:], maps[..., :-1, :-1])


@given(multiplier=st.floats(0.01, 2).filter(lambda m: m != 1.0), channels=st.integers(1, 4096))
def test_scaled_widths_are_multiples_of_8(multiplier: float, channels: int) -> None:
    scaled = replace(SMALL, width_multiplier=multiplier).scaled(channels)
    assert scaled % 8 == 0
    assert scaled >= 8
    assert abs(scaled - channels * multiplier) <= max(4, 8 - channels * multiplier)


@given(channels=st.integers(1, 4096))
def test_multiplier_of_one_changes_no_width(channels: int) -> None:
    assert replace(SMALL, width_multiplier=1.0).scaled(channels) == channels


@pytest.mark.parametrize("radix", [1, 2, 4])
def test_attention_weights(radix: int) -> None:
    """Equal logits: the mean of the splits, or half of a single one."""
    splits = [torch.full((1, 3, 2, 2), float(r + 1)) for r in range(radix)]
    out = split_attention(splits, [torch.zeros(1, 3, 1, 1)] * radix)
    wanted = 0.5 if radix == 1 else (radix + 1) / 2
    torch.testing.assert_close(out, torch.full((1, 3, 2, 2), wanted))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(radix=st.integers(2, 5), seed=st.integers(0, 2**16))
def test_attention_is_a_softmax_over_the_splits(radix: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(radix, 2, 3, 4, 4, generator=generator)
    logits = 5 * torch.randn(radix, 2, 3, 1, 1, generator=generator)
    wanted = (values * logits.softmax(0)).sum(0)
    torch.testing.assert_close(split_attention(list(values), list(logits)), wanted)


@given(radix=st.integers(1, 4), cardinality=st.sampled_from([1, 2, 4]))
def test_logit_channels_of_all_splits_are_a_permutation(radix: int, cardinality: int) -> None:
    with torch.device("meta"):
        module = SplitAttention(16 * radix, stride=1, radix=radix, cardinality=cardinality)
    channels = torch.cat([module.logit_channels(r) for r in range(radix)])
    assert sorted(channels.tolist()) == list(range(16 * radix * radix))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    block=st.sampled_from(["bottleneck", "basic"]),
    radix=st.sampled_from([1, 2, 4]),
    cardinality=st.sampled_from([1, 2]),
    avd=st.booleans(),
    avd_first=st.booleans(),
)
def test_gradients_reach_every_parameter(
    block: Any, radix: int, cardinality: int, avd: bool, avd_first: bool
) -> None:
    torch.manual_seed(0)
    config = replace(SMALL, block=block, radix=radix, cardinality=cardinality)
    model = ResNeSt(replace(config, avd=avd, avd_first=avd_first)).train()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias before a batch norm is subtracted again; its gradient is rounding noise.
        if not name.endswith("fc1.bias"):
            assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_a_network_can_start_as_its_shortcuts(kind: str) -> None:
    model = ResNeSt(replace(SMALL, block=kind)).eval()
    randomise(model)
    model.start_as_identity()
    for block in (block for stage in model.stages() for block in stage):
        # Splits of one value each stay that value, whatever their attention is.
        block.conv2.bn0.bias.fill_(0.0 if kind == "basic" else 0.1)
    x = torch.randn(2, 3, 64, 64)
    expected = model.maxpool(torch.relu(model.bn1(model.conv1(x))))
    for block in (block for stage in model.stages() for block in stage):
        end = 0 if kind == "basic" else block.bn3.bias[:, None, None]
        expected = torch.relu(block.downsample(expected) + end)
    torch.testing.assert_close(model.features(x), expected)


def test_gradients_reach_a_basic_network_that_starts_as_its_shortcuts_after_a_step() -> None:
    torch.manual_seed(0)
    model = ResNeSt(replace(SMALL, block="basic"))
    model.start_as_identity()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        logits = model(torch.randn(8, 3, 64, 64))
        nn.functional.cross_entropy(logits, torch.arange(8) % 5).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("fc1.bias"):
            assert parameter.grad.abs().max() > 0, name


def test_a_network_learns() -> None:
    torch.manual_seed(0)
    model = ResNeSt(SMALL).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    x, y = torch.randn(10, 3, 32, 32), torch.arange(10) % 5
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert losses[0] == pytest.approx(math.log(5), abs=1.5)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
def test_dropblock_drops_squares_in_training_only(side: int) -> None:
    torch.manual_seed(0)
    module, x = DropBlock(0.5), torch.ones(64, 2, side, side)
    assert torch.equal(module.eval()(x), x)
    dropped = module.train()(x)
    assert dropped.shape == x.shape
    assert 0 < (dropped == 0).float().mean() < 1


def test_dropblock_is_in_the_last_two_stages_and_off_in_evaluation() -> None:
    torch.manual_seed(0)
    plain = ResNeSt(SMALL)
    model = ResNeSt(replace(SMALL, dropblock=0.3))
    model.load_state_dict(plain.state_dict())
    active = [
        index
        for index, stage in enumerate(model.stages(), 1)
        if any(isinstance(m, DropBlock) and m.probability > 0 for m in stage.modules())
    ]
    assert active == [3, 4]
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), plain.eval()(x))
        assert not torch.equal(model.train()(x), plain.train()(x))


def test_zero_probability_is_no_dropblock() -> None:
    x = torch.ones(2, 3, 4, 4)
    assert DropBlock(0.0).train()(x) is x
