"""Networks whose numbers went wrong are refused by name; healthy ones are not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.base.errors import InputError, listed
from pipeline.compress.training.hooks import Hooks
from pipeline.compress.training.resume import Saves
from pipeline.networks.checkpoints import save_checkpoint
from pipeline.networks.resnest.network import named
from pipeline.networks.sanity import dead_layers, not_finite, refuse_dead, refuse_not_finite
from pipeline.recipe.training import TrainConfig
from pipeline.stages import train
from tests.making.graphs import calibrated
from tests.making.networks import CLASSES, ONE_BLOCK, dataset, small
from tests.making.recipes import device_recipe
from tests.making.runs import context as making_context
from tests.making.training import evaluate, fit

NAN, INF = float("nan"), float("inf")
CONFIG = TrainConfig(epochs=2, batch_size=8, learning_rate=0.01)
CONVOLUTION = "layer2.0.conv1"


def network() -> nn.Module:
    return small(layers=ONE_BLOCK)


def refusal(model: nn.Module, hooks: Hooks, saves: Saves | None = None) -> str:
    """The one line that ends a training."""
    with pytest.raises(InputError) as caught:
        fit(model, dataset(), CONFIG, 0, hooks, saves)
    (line,) = str(caught.value).splitlines()
    return line


# Weights and statistics


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_values_that_are_not_finite_are_counted(value: float) -> None:
    broken = torch.zeros(3, 4)
    broken[1, :2] = value
    tensors = {"fine": torch.ones(2), "a": broken, "b": broken, "count": torch.tensor(3)}
    assert not_finite(tensors) == "NaN or infinity in a, b; 2 of 12 in the first"
    assert not_finite({"fine": torch.ones(2), "none": torch.empty(0)}) == ""


def test_a_message_lists_a_few() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_every_tensor_of_a_batch_norm_is_looked_at(name: str) -> None:
    model = network()
    refuse_not_finite("train", model)
    model.state_dict()[f"layer2.0.bn1.{name}"][:2] = NAN
    message = rf"^train: NaN or infinity in layer2\.0\.bn1\.{name}; 2 of its \d+ values; lower"
    with pytest.raises(InputError, match=message):
        refuse_not_finite("train", model)


def test_ranges_that_saw_nothing_are_no_matter_of_weights() -> None:
    graph = calibrated()
    assert any(not value.isfinite().all() for value in graph.state_dict().values())
    refuse_not_finite("qat.train", graph)
    graph.get_buffer("layer2.1.bn3.running_var")[0] = INF
    with pytest.raises(InputError, match=r"^qat\.train: NaN or infinity in layer2\.1\.bn3\.runn"):
        refuse_not_finite("qat.train", graph)


def test_a_training_that_ends_in_weights_that_are_not_finite_is_refused() -> None:
    model, steps = network(), []

    def spoil() -> None:
        steps.append(None)
        if len(steps) == 4:  # of four: no loss shows it any more
            model.get_parameter(f"{CONVOLUTION}.weight").data[0, 0] = INF

    hooks = Hooks(part="prune.finetune", after_step=spoil)
    assert refusal(model, hooks) == (
        "prune.finetune: NaN or infinity in layer2.0.conv1.weight; 1 of its 512 values; lower "
        "learning_rate or set clip_norm in prune.finetune"
    )


def test_the_loss_says_where_earlier_states_are(tmp_path: Path) -> None:
    saves = Saves(directory=tmp_path / "train", steps=1)
    at_once = Hooks(adjust_loss=lambda images, logits, loss: loss * NAN)
    assert "kept" not in refusal(network(), at_once, saves)
    steps: list[None] = []

    def diverge(images: object, logits: object, loss: Any) -> Any:
        steps.append(None)
        return loss * NAN if len(steps) == 3 else loss

    assert refusal(network(), Hooks(adjust_loss=diverge), saves) == (
        "train: the loss became nan at step 3 with learning_rate 0.01; lower learning_rate or set "
        f"clip_norm in train; the states saved before are kept in {tmp_path}/train"
    )
    assert sorted(path.name for path in saves.directory.iterdir()) == ["000000001", "000000002"]


def test_a_state_with_nan_is_never_saved(tmp_path: Path) -> None:
    model, saves = network(), Saves(directory=tmp_path / "train", steps=1)
    steps: list[None] = []

    def spoil() -> None:
        steps.append(None)
        if len(steps) == 2:
            model.get_buffer("bn1.running_mean")[0] = NAN

    line = refusal(model, Hooks(after_step=spoil), saves)
    assert line.startswith("train: NaN or infinity in bn1.running_mean; 1 of its 16 values; ")
    assert line.endswith(f"; the states saved before are kept in {tmp_path}/train")
    assert [path.name for path in saves.directory.iterdir()] == ["000000001"]


# Layers without weights


def test_a_layer_without_weights_is_named() -> None:
    model = network()
    assert dead_layers(model) == []
    model.start_as_identity()
    assert dead_layers(model) == [], "trainings begin with factors of zero"
    refuse_dead("train", model)
    model.get_parameter(f"{CONVOLUTION}.weight").data.zero_()
    model.get_parameter("fc.weight").data.zero_()
    assert dead_layers(model) == [CONVOLUTION, "fc"]
    model.get_parameter("fc.weight").data[0, 0] = 1e-30
    assert dead_layers(model) == [CONVOLUTION]


def test_a_quantized_graph_without_weights_is_named() -> None:
    graph = calibrated()
    assert dead_layers(graph) == []
    graph.get_parameter("layer2.1.conv3.weight").data.zero_()
    assert dead_layers(graph) == ["layer2.1.conv3"]


@pytest.mark.parametrize(
    ("part", "fix"),
    [
        ("train", "lower train.learning_rate or train.weight_decay"),
        ("prune.finetune", "remove less, or lower learning_rate or weight_decay in prune.finetune"),
        ("sparsify.train", "lower sparsify.sparsity, or set sparsify.scope to layer"),
        ("qat.train", "lower qat.train.learning_rate or qat.train.weight_decay"),
    ],
)
def test_a_training_that_leaves_a_layer_without_weights_is_refused(part: str, fix: str) -> None:
    model = network()
    weight = model.get_parameter(f"{CONVOLUTION}.weight")
    hooks = Hooks(part=part, after_step=lambda: weight.data.zero_())
    assert refusal(model, hooks) == (
        f"{part}: all weights of {CONVOLUTION} are zero, so that nothing passes there; {fix}"
    )


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    narrow = ("model.name=resnest14", "model.width_multiplier=0.25")
    model = named("resnest14", num_classes=CLASSES, width_multiplier=0.25)
    for spoiled in (False, True):
        if spoiled:
            model.get_parameter("layer3.0.conv3.weight").data.zero_()
        path = tmp_path / "given.safetensors"
        save_checkpoint(model, path)
        recipe = device_recipe(*narrow, f"model.checkpoint={path}")
        context = making_context(recipe)
        if not spoiled:
            assert train.train(context, {}, tmp_path) == train.TrainFacts()
            continue
        dead = "all weights of layer3.0.conv3 are zero"
        message = rf"^model\.checkpoint: {re.escape(f'{path}: {dead}')}, .*; take another"
        with pytest.raises(InputError, match=message):
            train.train(context, {}, tmp_path)


# Answers


def test_answers_that_are_not_finite_name_the_first_layer() -> None:
    model = network()
    assert 0 <= evaluate(model, dataset())["test"].top1 <= 1
    # Finite, as every check of weights wants it; its root is not.
    model.get_buffer("layer2.0.bn1.running_var")[3] = -1.0
    with pytest.raises(InputError) as caught:
        evaluate(model, dataset(), "baseline")
    assert str(caught.value) == (
        "baseline: test set test: the logits of 16 of 16 images are NaN or infinite, first in "
        "layer2.0.bn1 (64 of 2048 values of one image); take another checkpoint, or train again "
        "with a lower learning_rate or with clip_norm"
    )
    assert not any(module._forward_hooks for module in model.modules())
