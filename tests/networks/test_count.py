"""Parameters and MACs against published figures and the formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.networks.count import LayerCount, count
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.network import ResNeSt, ResNeStConfig, named
from pipeline.recipe.input_shape import square
from tests.making.networks import SMALL


def test_resnest50_has_the_published_size() -> None:
    """27.5 M parameters, 5.4 G MACs at 224 pixels (paper, table 1)."""
    counts = count(named("resnest50", num_classes=1000), square(224))
    assert counts.params / 1e6 == pytest.approx(27.5, abs=0.05)
    assert counts.macs / 1e9 == pytest.approx(5.4, abs=0.05)
    assert counts.macs == sum(layer.macs for layer in counts.layers)
    assert counts.layers[0] == LayerCount(
        name="conv1.0",
        kernel=(3, 3),
        groups=1,
        inputs=3,
        outputs=32,
        biased=False,
        params=32 * 27,
        macs=112 * 112 * 32 * 27,
        output_shape=(1, 32, 112, 112),
    )
    assert counts.layers[0].positions == 112 * 112
    assert counts.layers[-1] == LayerCount(
        name="fc",
        kernel=(1, 1),
        groups=1,
        inputs=2048,
        outputs=1000,
        biased=True,
        params=2_049_000,
        macs=2_048_000,
        output_shape=(1, 1000),
    )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 3),
    per_group=st.integers(1, 4),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    side=st.integers(8, 13),
)
def test_grouped_convolution(
    groups: int, per_group: int, kernel: int, stride: int, dilation: int, bias: bool, side: int
) -> None:
    channels = 3 * groups
    conv = nn.Conv2d(
        channels, groups * per_group, kernel, stride, 1, dilation, groups=groups, bias=bias
    )
    model = nn.Sequential(nn.Conv2d(3, channels, 1, bias=False), conv)
    out = (side + 2 - dilation * (kernel - 1) - 1) // stride + 1
    weights = groups * per_group * 3 * kernel**2
    counts = count(model, square(side))
    assert counts.layers[1] == LayerCount(
        name="1",
        kernel=(kernel, kernel),
        groups=groups,
        inputs=channels,
        outputs=groups * per_group,
        biased=bias,
        params=weights + bias * groups * per_group,
        macs=weights * out**2,
        output_shape=(1, groups * per_group, out, out),
    )
    assert counts.macs == counts.layers[1].macs + side**2 * 3 * channels


def test_behind_a_small_stem_every_stage_has_sixteen_times_the_positions() -> None:
    with torch.device("meta"):
        deep, small = (
            {layer.name: layer for layer in count(model, square(32)).layers}
            for stem in ("deep", "small")
            for model in [branch_form(named("resnest14", num_classes=10, stem=stem))]
        )
    assert small.pop("conv1") == LayerCount(
        name="conv1",
        kernel=(3, 3),
        groups=1,
        inputs=3,
        outputs=64,
        biased=False,
        params=64 * 27,
        macs=32 * 32 * 64 * 27,
        output_shape=(1, 64, 32, 32),
    )
    assert deep.keys() - {"conv1.0", "conv1.3", "conv1.6"} == small.keys()
    for name, layer in small.items():
        times = 1 if name == "fc" or ".fc" in name else 16
        assert layer.positions == times * deep[name].positions, name


def test_linear_counts_every_position() -> None:
    counts = count(nn.Linear(8, 5), square(8))  # (1, 3, 8, 8): 24 vectors of 8
    assert counts.macs == 24 * 8 * 5
    assert counts.params == 45


def test_a_layer_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))  # type: ignore[no-any-return]

    counts = count(Twice(), square(4))
    assert counts.macs == 2 * 9 * 16
    assert counts.params == 9
    assert len(counts.layers) == 1


def test_a_network_without_parameters() -> None:
    counts = count(nn.ReLU(), square(32))
    assert (counts.params, counts.macs, counts.layers) == (0, 0, ())


def test_the_network_is_left_as_it_was() -> None:
    model = ResNeSt(SMALL).train()
    model.conv1[1].eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    count(model, square(64))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_network_is_left_as_it_was_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1)).train()
    with pytest.raises(RuntimeError, match="Invalid channel dimensions"):
        count(model, square(8))
    assert model.training
    assert not model[0]._forward_hooks


def test_the_count_is_of_one_image_of_the_networks_precision() -> None:
    assert count(ResNeSt(SMALL).double(), square(64)).macs == count(ResNeSt(SMALL), square(64)).macs


def test_no_memory_is_taken_however_large_the_network() -> None:
    with torch.device("meta"):  # 4 TB of weights
        model = nn.Sequential(nn.Conv2d(3, 10**6, 1, bias=False), nn.Conv2d(10**6, 10**6, 1))
    assert count(model, square(1024)).macs == (3 * 10**6 + 10**12) * 1024**2


@settings(max_examples=8, deadline=None, derandomize=True)
@given(radix=st.sampled_from([1, 2, 4]), cardinality=st.sampled_from([1, 2]))
def test_branch_form_counts_the_same(radix: int, cardinality: int) -> None:
    model = ResNeSt(ResNeStConfig(**{**vars(SMALL), "radix": radix, "cardinality": cardinality}))
    branched = branch_form(model)
    original = count(model, square(64))
    assert (count(branched, square(64)).params, count(branched, square(64)).macs) == (
        original.params,
        original.macs,
    )
    # Its average pools are convolutions, and count.
    assert count(deploy_form(branched), square(64)).macs > original.macs
