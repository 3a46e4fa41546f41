"""Two processes train as one does: the same curve, weights, scales and answers in both."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.base import torchrun
from pipeline.base.errors import InputError
from pipeline.compress.training.schedule import batches_per_epoch, highest_rate
from pipeline.recipe.training import AugmentConfig
from pipeline.tasks.images.batches import ProcessShare, batches
from tests.making import ROOT
from tests.making.networks import dataset, small
from tests.making.torchrun import IMAGES, config, trained
from tests.making.training import fit

pytestmark = pytest.mark.slow

Found = dict[str, Any]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What tests.making.torchrun found in two processes."""
    file = tmp_path_factory.mktemp("processes") / "found.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = ["-m", "tests.making.torchrun", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, *program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: Found = torch.load(file, weights_only=False)
    return found


@pytest.fixture(scope="module")
def one() -> dict[str, Found]:
    """What one process finds."""
    return {
        "float": trained(False, ema=0.5),
        "accumulated": trained(False, accumulate=2),
        "graph": trained(True),
    }


def assert_near(found: Found, wanted: Found, tolerance: float, epochs: int = 2) -> None:
    """The same curve; each epoch is a row of loss, accuracy and learning rate."""
    for row, other in zip(found["curve"][:epochs], wanted["curve"][:epochs], strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)


def test_both_know_each_other_and_nobody_else(two: Found) -> None:
    assert [word[0] for word in two["words"]] == [(2, 0, [0, 1, 2, 3]), (2, 1, [4, 5, 6])]
    assert (two["told"], two["apart"]) == (1, 1)


def test_two_processes_have_the_curve_of_one(two: Found, one: Found) -> None:
    assert_near(two["words"][0][1]["float"], one["float"], 1e-4)


def test_a_graph_that_learns_its_ranges_has_the_curve_of_one_process(
    two: Found, one: Found
) -> None:
    found, wanted = two["words"][0][1]["graph"], one["graph"]
    assert_near(found, wanted, 1e-4, epochs=1)
    assert found["curve"][1][0] == pytest.approx(wanted["curve"][1][0], rel=0.02)


def test_own_statistics_give_another_curve(two: Found, one: Found) -> None:
    found, wanted = two["words"][0][1]["own statistics"], one["float"]
    with pytest.raises(AssertionError):
        assert_near(found, wanted, 1e-2)


def test_parts_of_two_processes_are_the_parts_that_one_accumulates(two: Found, one: Found) -> None:
    assert_near(two["words"][0][1]["own statistics"], one["accumulated"], 1e-4)


@pytest.mark.parametrize("kind", ["float", "own statistics", "accumulated", "graph"])
def test_both_end_with_the_same_network(two: Found, kind: str) -> None:
    first, second = (word[1][kind] for word in two["words"])
    assert first["curve"] == second["curve"]
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name


def test_both_end_with_the_same_scales_and_those_of_one_process(two: Found, one: Found) -> None:
    first, second = (word[1]["graph"]["scales"] for word in two["words"])
    assert first == second
    assert len(first) > 10
    for found, wanted in zip(first, one["graph"]["scales"], strict=True):
        assert found[0] == pytest.approx(wanted[0], rel=1e-2)


def test_every_image_is_evaluated_once_and_all_answers_are_everywhere(two: Found) -> None:
    first, second = (word[1]["float"] for word in two["words"])
    assert first["logits"].shape == (IMAGES, 5)
    assert torch.equal(first["logits"], second["logits"])
    model = small(layers=(0, 1, 0, 0))
    model.load_state_dict(first["state"])
    images = dataset(IMAGES)
    with torch.inference_mode():
        ((x, _),) = batches(images.tests["test"], IMAGES, images)
        torch.testing.assert_close(first["logits"], model(x), rtol=1e-4, atol=1e-4)


# What needs no second process


def test_shared_statistics_of_one_process_are_those_of_torch() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    norms = [nn.BatchNorm2d(4).double() for _ in range(2)]
    graphs = [torch.export.export(norm, (x,)).module() for norm in norms]
    found: list[list[Tensor]] = []
    for module, mode in zip((*norms, *graphs), (False, True, False, True), strict=True):
        given = x.clone().requires_grad_()
        if mode:
            with torchrun.SharedStatistics():
                y = module(given)
        else:
            y = module(given)
        (y * torch.arange(y.numel()).view(y.shape)).sum().backward()
        assert given.grad is not None
        found.append([y.detach(), given.grad, *module.state_dict().values()])
    for plain, shared in ((found[0], found[1]), (found[2], found[3])):
        for one, other in zip(plain, shared, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_evaluation_is_as_ever_with_shared_statistics() -> None:
    norm, x = nn.BatchNorm2d(4).eval(), torch.randn(6, 4, 3, 3)
    plain = norm(x)
    with torchrun.SharedStatistics():
        assert torch.equal(norm(x), plain)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_shares_together_are_the_batch_with_its_changes(parts: int) -> None:
    images = dataset(IMAGES)
    change = AugmentConfig(shift=0.1, rotate_deg=10, scale=0.1, flip=True)

    def epoch(share: ProcessShare) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        given = batches(
            images.train, 8, images, augment_config=change, generator=generator, share=share
        )
        return list(given)

    whole = epoch(ProcessShare())
    shares = [epoch(ProcessShare(parts=parts, first=first)) for first in range(parts)]
    left_out = 2 * parts > IMAGES % 8
    assert len(shares[0]) == len(whole) - left_out == batches_per_epoch(IMAGES, 8, parts)
    for step, of_step in enumerate(zip(*shares, strict=True)):
        assert torch.equal(torch.cat([x for x, _ in of_step]), whole[step][0])
        assert torch.equal(torch.cat([labels for _, labels in of_step]), whole[step][1])


def test_a_batch_too_small_to_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "count", lambda: 3)
    wanted = r"train.batch_size: got 4; 3 processes times accumulate 1 .* so at least 6; raise it"
    with pytest.raises(InputError, match=wanted):
        fit(small(layers=(0, 1, 0, 0)), dataset(), config(batch_size=4), 0)


def test_a_part_of_one_image_is_refused_with_the_recipe() -> None:
    with pytest.raises(ValueError, match="a part needs two images, and batch_size is 24"):
        config(accumulate=13)


def test_the_learning_rate_follows_the_batch() -> None:
    assert highest_rate(config(learning_rate=0.1)) == 0.1
    scaled = config(learning_rate=0.1, learning_rate_batch=256, batch_size=1024)
    assert highest_rate(scaled) == pytest.approx(0.4)
    curve = fit(
        small(layers=(0, 1, 0, 0)),
        dataset(),
        scaled.model_copy(update={"batch_size": 8, "warmup_epochs": 2}),
        0,
    )
    assert curve[-1]["learning_rate"] == pytest.approx(0.1 * 8 / 256)


def test_a_process_by_itself_is_the_first_and_only_one() -> None:
    with torchrun.together():
        assert (torchrun.count(), torchrun.rank(), torchrun.is_first()) == (1, 0, True)
        assert torchrun.own_rows(3).tolist() == [0, 1, 2]
        assert torchrun.told_by_first(lambda: "word") == "word"
        assert torchrun.said_by_all("word") == ["word"]
