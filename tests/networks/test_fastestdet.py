"""FastestDet: the network of the published weights, and what the pipeline knows of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.base.errors import InputError
from pipeline.compress.pruning.followed import groups_of
from pipeline.networks.checkpoints import load_checkpoint, save_checkpoint
from pipeline.networks.count import count
from pipeline.networks.families import family_of
from pipeline.networks.fastestdet.network import FastestDet, ShuffleV2Block
from pipeline.networks.lowering.check import lowered
from pipeline.recipe.input_shape import square
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.models import ALONE, kind_of
from tests.making.networks import randomise

CLASSES = 3


def config(**keys: object) -> ModelConfig:
    return kind_of("fastestdet", ALONE).model_validate(
        {"name": "fastestdet", "input_size": 64, **keys}
    )


@pytest.fixture
def model() -> FastestDet:
    torch.manual_seed(0)
    made = FastestDet(CLASSES).eval()
    randomise(made)
    return made


def images(side: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_it_answers_for_every_sixteenth_place(model: FastestDet) -> None:
    assert model(torch.rand(2, 3, 64, 96)).shape == (2, 1 + 4 + CLASSES, 4, 6)


def test_it_is_as_large_as_published() -> None:
    """0.24 million parameters, as the authors count them."""
    found = count(FastestDet(80).eval(), square(352))
    assert found.params / 1e6 == pytest.approx(0.24, abs=0.01)


def test_a_block_gives_its_branch_every_second_channel() -> None:
    block = ShuffleV2Block(4, 8, stride=1)
    seen: list[torch.Tensor] = []
    block.branch_main = nn.Sequential(nn.Identity())
    block.branch_main.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.arange(8.0).reshape(1, 8, 1, 1)
    made = block(x)
    assert seen[0].flatten().tolist() == [1, 3, 5, 7]
    assert made.flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_it_is_rewritten_without_a_change_of_its_numbers(model: FastestDet) -> None:
    graph = lowered(model, square(64))
    with torch.no_grad():
        torch.testing.assert_close(graph(images()), model(images()), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_that_reads_blue_first_is_turned(model: FastestDet, tmp_path: Path) -> None:
    path = tmp_path / "published.safetensors"
    save_checkpoint(model, path)
    wanted = model.backbone.first_conv[0].weight
    for colours, turned in (("bgr", True), ("rgb", False)):
        asked = config(colours=colours)
        family = family_of(asked)
        read = family.build(asked, 5 + CLASSES).eval()
        load_checkpoint(read, path, family.checkpoint(read))
        family.loaded(asked, read)
        found = read.backbone.first_conv[0].weight
        assert torch.equal(found, wanted.flip(1) if turned else wanted)
        assert torch.equal(read.SPP.output[0].weight, model.SPP.output[0].weight)


def test_a_head_for_other_classes_leaves_the_rest(model: FastestDet, tmp_path: Path) -> None:
    path = tmp_path / "published.safetensors"
    save_checkpoint(model, path)
    asked = config()
    family = family_of(asked)
    other = family.build(asked, 5 + CLASSES + 2).eval()
    with pytest.raises(InputError, match="was trained for 3 classes, the data has 5"):
        load_checkpoint(other, path, family.checkpoint(other))
    load_checkpoint(other, path, family.checkpoint(other), head=False)
    with torch.no_grad():
        found, wanted = other(images()), model(images())
    assert torch.equal(found[:, :5], wanted[:, :5])
    assert found.shape[1] == wanted.shape[1] + 2


def test_what_it_answers_with_is_not_pruned(model: FastestDet) -> None:
    structure = family_of(config()).structure(model)
    made = {maker for group in groups_of(model, square(64), structure) for maker in group.makers}
    assert not made & set(structure.last)
    assert made
    assert {*structure.last, *structure.stages, *structure.dense} <= dict(
        model.named_modules()
    ).keys()


def test_a_classifier_it_is_not() -> None:
    with pytest.raises(InputError, match=r"set task\.kind to detection"):
        family_of(config()).build(config(), 5)
