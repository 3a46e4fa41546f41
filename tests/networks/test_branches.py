"""Branch form and deploy form compute what the network they are made of computes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.base.errors import InputError
from pipeline.networks.resnest.branches import BranchedBlock, branch_form
from pipeline.networks.resnest.deploy import DeployBlock, deploy_form
from pipeline.networks.resnest.network import DropBlock, ResNeSt
from pipeline.networks.rewrites import Normalization, average_conv, normalize_conv
from pipeline.recipe.data import IMAGENET_MEAN, IMAGENET_STD
from pipeline.tasks.images.pixels import normalize
from tests.making.networks import SMALL, randomise, relative_difference

LIMIT = 1e-5
IMAGENET = Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)


def network(**changes: Any) -> ResNeSt:
    torch.manual_seed(0)
    model = ResNeSt(replace(SMALL, **changes)).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("avd_first", [False, True])
@pytest.mark.parametrize("cardinality", [1, 2])
@pytest.mark.parametrize("radix", [1, 2, 4])
@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_all_forms_are_equal(block: Any, radix: int, cardinality: int, avd_first: bool) -> None:
    model = network(block=block, radix=radix, cardinality=cardinality, avd_first=avd_first)
    branched = branch_form(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = model(x)
        assert relative_difference(branched(x), wanted) <= LIMIT
        assert relative_difference(deploy_form(branched)(x), wanted) <= LIMIT


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    block=st.sampled_from(["bottleneck", "basic"]),
    layers=st.tuples(*[st.integers(1, 2)] * 4),
    radix=st.sampled_from([1, 2, 4]),
    cardinality=st.sampled_from([1, 2, 4]),
    base_width=st.sampled_from([24, 40, 64, 72]),
    stem_width=st.integers(1, 40),
    avd=st.booleans(),
    width_multiplier=st.sampled_from([0.25, 0.3, 0.4]),
    side=st.sampled_from([32, 96]),
    seed=st.integers(0, 2**16),
)
def test_all_forms_of_odd_networks_are_equal(side: int, seed: int, **changes: Any) -> None:
    model = network(**changes)
    randomise(model, seed)
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    branched = branch_form(model)
    with torch.no_grad():
        wanted = model(x)
        assert relative_difference(branched(x), wanted) <= LIMIT
        assert relative_difference(deploy_form(branched)(x), wanted) <= LIMIT


@pytest.mark.parametrize("radix", [1, 2, 4])
def test_forms_are_equal_in_training_too(radix: int) -> None:
    """Batch statistics and their running averages; DropBlock, which is left out, aside."""
    model = network(radix=radix).train()
    branched = branch_form(model)
    deploy = deploy_form(branched)
    assert branched.training
    assert deploy.training
    x = torch.randn(4, 3, 64, 64)
    wanted = model(x)
    assert relative_difference(branched(x), wanted) <= 1e-4
    assert relative_difference(deploy(x), wanted) <= 1e-4
    with torch.no_grad():
        after = model.eval()(x)
        assert relative_difference(branched.eval()(x), after) <= 1e-4
        assert relative_difference(deploy.eval()(x), after) <= 1e-4


def test_the_original_is_untouched_and_shares_nothing() -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    branched = branch_form(model)
    deploy = deploy_form(branched)
    for derived in (branched, deploy):
        with torch.no_grad():
            for parameter in derived.parameters():
                parameter.fill_(float("nan"))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_branch_form_has_no_split_and_no_wide_convolution() -> None:
    model = network(radix=4, cardinality=2, dropblock=0.1)
    branched = branch_form(model)
    blocks = [block for stage in branched.stages() for block in stage]
    assert all(isinstance(block, BranchedBlock) for block in blocks)
    groups = {m.groups for m in branched.modules() if isinstance(m, nn.Conv2d)}
    assert groups == {1, 2}
    assert not any(isinstance(m, DropBlock) for m in branched.modules())
    assert sum(p.numel() for p in branched.parameters()) == sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize("stem", ["deep", "small"])
@pytest.mark.parametrize("radix", [1, 2, 4])
@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_a_layer_has_one_name_in_all_forms(block: Any, radix: int, stem: Any) -> None:
    model = network(block=block, radix=radix, stem=stem, avd_first=True)
    branched = branch_form(model)
    deploy = deploy_form(branched)
    original, split, deployed = (
        {name: parameter.shape for name, parameter in form.named_parameters()}
        for form in (model, branched, deploy)
    )
    assert {name for name in original if not name.startswith("layer")} <= deployed.keys()
    # Of the attention's logits one convolution is left, and has the first one's name.
    joined = {name for name in split if name.rpartition(".")[0].endswith((".1", ".2", ".3"))}
    joined = {name for name in joined if ".fc2." in name}
    assert len(joined) == 2 * 4 * (radix - 1)
    assert split.keys() - joined <= deployed.keys()
    same = {name for name in split.keys() - joined if ".fc2." not in name and name != "fc.weight"}
    assert {name: deployed[name] for name in same} == {name: split[name] for name in same}
    # Whatever else there is holds constants: pools and complements.
    constants = {name for name, p in deploy.named_parameters() if not p.requires_grad}
    assert deployed.keys() - split.keys() == constants


def test_gradients_reach_every_parameter_of_the_deploy_form() -> None:
    deploy = deploy_form(branch_form(network().train()))
    deploy(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for name, parameter in deploy.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name


def test_deploy_form_has_only_operations_of_phones() -> None:
    branched = branch_form(network())
    deploy = deploy_form(branched)
    assert not any(isinstance(m, nn.AvgPool2d | nn.Linear) for m in deploy.modules())
    blocks = [block for name in branched.stage_names() for block in deploy.get_submodule(name)]
    assert len(blocks) == 4
    assert all(isinstance(block, DeployBlock) for block in blocks)
    fixed = [p for p in deploy.parameters() if not p.requires_grad]
    # A pool in the block and one beside it, in three stages; weight and bias of every complement.
    assert len(fixed) == 6 + 2 * len(blocks)
    program = torch.export.export(deploy, (torch.zeros(1, 3, 64, 64),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {t for t in targets if "softmax" in t or "view" in t or "chunk" in t}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padded=st.booleans(),
    channels=st.integers(1, 9),
)
def test_average_conv_equals_the_pool(
    kernel: int, stride: int, padded: bool, channels: int
) -> None:
    pool = nn.AvgPool2d(kernel, stride, padding=kernel // 2 if padded else 0)
    x = torch.randn(2, channels, 12, 12, generator=torch.Generator().manual_seed(kernel))
    torch.testing.assert_close(average_conv(pool, channels)(x), pool(x))


def test_average_conv_of_windows_that_are_not_square() -> None:
    pool = nn.AvgPool2d((3, 2), (2, 1), padding=(1, 0), divisor_override=5)
    x = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(average_conv(pool, 4)(x), pool(x))


def test_a_pool_that_is_no_convolution_is_refused() -> None:
    with pytest.raises(InputError, match=r"pool \(3, 3\), padding \(1, 1\): does not count"):
        average_conv(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), 4)
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    whole, cut = torch.randn(1, 4, 12, 12), torch.randn(1, 4, 12, 13)
    torch.testing.assert_close(average_conv(pool, 4)(whole), pool(whole))
    assert pool(cut).shape[3] == 7
    with pytest.raises(InputError, match=r"windows over the edge of \(12, 13\)"):
        average_conv(pool, 4)(cut)


def test_forms_keep_the_precision_of_the_network() -> None:
    """As they must keep its device, which a machine without a GPU cannot show."""
    model = network().double()
    branched = branch_form(model)
    deploy = deploy_form(branched)
    for form in (branched, deploy):
        assert {p.dtype for p in form.parameters()} == {torch.float64}
        assert {b.dtype for b in form.buffers()} == {torch.float64, torch.int64}
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(branched(x), model(x)) <= 1e-12
        # The constants of its pools, 1/9, are made in single precision.
        assert relative_difference(deploy(x), model(x)) <= 1e-7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_forms_stay_on_the_device() -> None:
    model = network().cuda()
    deploy = deploy_form(branch_form(model))
    x = torch.randn(1, 3, 64, 64, device="cuda")
    with torch.no_grad():
        assert relative_difference(deploy(x), model(x)) <= 1e-3  # TF32


def pixels(count: int = 2, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)


def test_normalisation_as_a_convolution_is_that_of_the_data() -> None:
    every = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    wanted = normalize(every, IMAGENET.mean, IMAGENET.std)
    with torch.no_grad():
        found = normalize_conv(IMAGENET)(every.float())
        swapped = normalize_conv(Normalization(mean=IMAGENET.mean[::-1], std=IMAGENET.std[::-1]))
        assert (found - wanted).abs().max() <= 1e-5
        assert (swapped(every.float()) - wanted).abs().max() > 0.1


def test_a_network_that_takes_pixels_computes_the_same() -> None:
    model = network()
    deploy = deploy_form(branch_form(model), IMAGENET)
    with torch.no_grad():
        wanted = model(normalize(pixels(), IMAGENET.mean, IMAGENET.std))
        assert relative_difference(deploy(pixels().float()), wanted) <= LIMIT
        assert relative_difference(deploy(pixels().flip(1).float()), wanted) > 0.01


def test_normalisation_is_a_constant_and_absent_unless_asked_for() -> None:
    branched = branch_form(network())
    plain, with_pixels = deploy_form(branched), deploy_form(branched, IMAGENET)
    kinds = [type(form.normalize) for form in (plain, with_pixels)]
    assert kinds == [nn.Identity, nn.Conv2d]
    added = with_pixels.state_dict().keys() - plain.state_dict().keys()
    assert added == {"normalize.weight", "normalize.bias"}
    assert plain.state_dict().keys() <= with_pixels.state_dict().keys()
    assert not any(p.requires_grad for p in with_pixels.normalize.parameters())
