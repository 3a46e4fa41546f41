"""Zeros come in the pattern and the share asked for, and stay through QAT into int8."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.compress.pruning import sparsify
from pipeline.compress.pruning.sparsify import Sparsifier, keep_zeros, sparsity, zero_masks
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.network import ResNeSt
from tests.making.networks import ONE_BLOCK, SHALLOW, VARIANTS, structure
from tests.making.sparse import (
    DENSE,
    STEPS,
    config,
    eligible,
    network,
    sparse,
    train,
)

pytestmark = pytest.mark.slow

ONE_CUT: dict[str, Any] = {"start": 0.0, "end": 0.0}
DEEP = (1, 1, 1, 1)
"""Its last stage sees one pixel, where most weights of a 3 x 3 kernel have no gradient."""


def zeros_per_block(model: nn.Module, rows: int, columns: int) -> Tensor:
    """Zeros in every block of output channels x inputs, of all layers that may have some."""
    blocks = [
        (weight == 0).unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).sum((1, 3)).flatten()
        for weight in eligible(model).values()
    ]
    return torch.cat(blocks)


CRITERIA = ["magnitude", "snip", "snip_momentum"]
SHARES = [("1x1", 0.5), ("1x1", 0.97), ("4x1", 0.5), ("1x4", 0.3)]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("pattern", "share"), SHARES)
def test_the_share_is_reached_in_whole_blocks(pattern: str, share: float, criterion: str) -> None:
    model = sparse(pattern=pattern, sparsity=share, criterion=criterion)
    assert sparsity(model, DENSE) == pytest.approx(share, abs=1e-3)
    rows, columns = map(int, pattern.split("x"))
    assert set(zeros_per_block(model, rows, columns).tolist()) == {0, rows * columns}
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and name not in eligible(model):
            assert (weight != 0).all(), name


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
def test_so_many_of_so_many_inputs_are_zero_everywhere(pattern: str, criterion: str) -> None:
    zeros, inputs = map(int, pattern.split(":"))
    layers = DEEP if pattern == "2:4" else SHALLOW
    model = sparse(layers, pattern=pattern, sparsity=zeros / inputs, criterion=criterion)
    assert set(zeros_per_block(model, 1, inputs).tolist()) == {zeros}
    assert sparsity(model, DENSE) == zeros / inputs


def test_equal_scores_do_not_fall_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_cut() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1))
        for weight in eligible(model).values():
            weight.fill_(0.25)
        sparsifier = Sparsifier(
            model, config(pattern="2:4", criterion="magnitude", **ONE_CUT), 1, DENSE
        )
        sparsifier.before_step(0, 1)
        sparsifier.finish()
        return model

    assert set(zeros_per_block(one_cut(), 1, 4).tolist()) == {2}
    monkeypatch.setattr(sparsify, "_POSITION_STEP", 0.0)
    assert set(zeros_per_block(one_cut(), 1, 4).tolist()) == {4}


def test_weights_without_gradients_do_not_fall_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsify, "_GRADIENT_FLOOR", 0.0)
    model = network(DEEP)
    train(model, config(pattern="2:4", criterion="snip"))
    assert zeros_per_block(model, 1, 4).max() > 2  # as they would, and do not above


def test_a_rounded_share_is_that_of_the_pattern() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 1))
    settings = config(pattern="1:3", sparsity=0.333333, criterion="magnitude", **ONE_CUT)
    sparsifier = Sparsifier(model, settings, 1, DENSE)
    sparsifier.before_step(0, 1)
    sparsifier.finish()
    assert set(zeros_per_block(model, 1, 3).tolist()) == {1}


def test_a_scope_is_a_layer_or_the_network() -> None:
    def shares(scope: str) -> list[float]:
        weights = eligible(sparse(scope=scope)).values()
        return [(w == 0).double().mean().item() for w in weights]

    assert all(share == pytest.approx(0.5, abs=0.01) for share in shares("layer"))
    assert max(shares("network")) - min(shares("network")) > 0.1


def test_the_smallest_weights_go() -> None:
    before = network()
    weights = eligible(before)
    limit = torch.cat([w.abs().flatten() for w in weights.values()]).median()
    model = copy.deepcopy(before)
    train(model, config(criterion="magnitude", **ONE_CUT))
    for name, weight in eligible(model).items():
        assert torch.equal(weight == 0, weights[name].abs() <= limit), name


@pytest.mark.parametrize("criterion", CRITERIA)
def test_weights_go_gradually_between_start_and_end(criterion: str) -> None:
    shares: list[float] = []

    def watch(step: int, model: ResNeSt) -> None:
        shares.append(sparsity(model, DENSE))

    settings = config(criterion=criterion, start=0.25, end=0.75)
    train(network(), settings, watch=watch)
    assert len(shares) == STEPS
    begin, last = 3, 9
    assert all(share == 0 for share in shares[: begin + 1])
    for step in range(begin + 1, last + 1):
        cut, cuts = step - begin, last - begin
        assert shares[step] == pytest.approx(0.5 * (1 - (1 - cut / cuts) ** 3), abs=1e-3)
    assert shares[last] == shares[-1] == pytest.approx(0.5, abs=1e-3)


def test_cuts_are_few_and_the_last_is_on_time() -> None:
    steps = 10_000
    begin, last, every = sparsify._cut_steps(config(start=0.1, end=0.9), steps)
    cuts = list(range(begin + every, last + 1, every))
    assert (cuts[-1], len(cuts)) == (9000, 32)
    assert 1000 <= begin < 1000 + every
    # With gradients there is no cut before the first step, and never one after the last.
    assert sparsify._cut_steps(config(start=0.0, end=0.0), 2)[:2] == (1, 1)
    assert sparsify._cut_steps(config(start=1.0, end=1.0), 7)[:2] == (6, 6)


def test_the_same_seed_gives_the_same_masks() -> None:
    def masks(seed: int) -> dict[str, Tensor]:
        model = network()
        train(model, config(), seed)
        return zero_masks(model, DENSE)

    one, two, other = masks(0), masks(0), masks(1)
    assert one.keys() == two.keys() == other.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("pattern", ["1x1", "2:4"])
def test_counting_once_changes_no_mask(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsify, "_count_once", lambda pattern: None)
    model = network()
    train(model, config(pattern=pattern))
    wanted = zero_masks(sparse(pattern=pattern), DENSE)
    assert all(torch.equal(mask, wanted[name]) for name, mask in zero_masks(model, DENSE).items())


def test_the_network_stays_a_plain_module() -> None:
    model, untouched = network(), network()
    torch_save = torch.save
    sparsifier = train(model, config())
    assert torch.save is torch_save
    for name, module in model.named_modules():
        assert vars(module).keys() == vars(untouched.get_submodule(name)).keys(), name
        assert not module._forward_hooks, name
        assert not module._forward_pre_hooks, name
    assert model.state_dict().keys() == untouched.state_dict().keys()
    signs = torch.cat([w[w == 0].signbit() for w in eligible(model).values()])
    assert not signs.any()
    del sparsifier
    copy.deepcopy(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_left_out(variant: str) -> None:
    model = network(**VARIANTS[variant])
    left_out = Sparsifier(model, config(criterion="magnitude"), STEPS, DENSE).left_out
    assert {name for name in left_out if "fc2" not in name} == {"conv1.0", "fc"}
    second = {n for n, m in model.named_modules() if "fc2" in n and isinstance(m, nn.Conv2d)}
    assert second <= set(left_out)
    chosen = {n.removesuffix(".weight") for n in eligible(model)}
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert chosen == layers - set(left_out)


def test_a_small_stem_stays_dense() -> None:
    model = network(ONE_BLOCK, stem="small")
    dense = structure(model).dense
    left_out = Sparsifier(model, config(criterion="magnitude"), STEPS, dense).left_out
    assert {name for name in left_out if "fc2" not in name} == {"conv1", "fc"}
    with torch.no_grad():
        model.get_parameter("conv1.weight")[0] = 0.0
    deploy = deploy_form(model)
    assert not deploy.get_parameter("conv1.weight")[0].any()
    assert [zero_masks(form, dense) for form in (model, deploy)] == [{}, {}]


def test_a_dense_network_has_no_masks() -> None:
    model = network()
    assert zero_masks(model, DENSE) == {}
    assert sparsity(model, DENSE) == 0.0
    with torch.no_grad():
        model.fc.weight[0] = 0.0
        model.conv1[0].weight[0] = 0.0
    assert zero_masks(model, DENSE) == {}
    assert sparsity(nn.Linear(2, 2), DENSE) == 0.0


def test_a_mask_of_another_network_is_an_error() -> None:
    model = sparse()
    with pytest.raises(KeyError, match="conv1"):
        keep_zeros(nn.Linear(2, 2), zero_masks(model, DENSE))
