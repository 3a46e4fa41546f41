"""Narrow networks that behave like trained ones, and what is made of them, shared by tests."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import DeployNet, deploy_form
from pipeline.networks.resnest.family import FAMILY
from pipeline.networks.resnest.network import ResNeSt, ResNeStConfig, named
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images

SIDE = 32
CLASSES = 5
SMALL = ResNeStConfig(layers=(1, 1, 1, 1), width_multiplier=0.25, num_classes=CLASSES)

# One stage: a block with a stride, and one whose input is added as it is. Time goes by blocks.
SHALLOW = (0, 2, 0, 0)
ONE_BLOCK = (0, 1, 0, 0)

# Every block, radix, cardinality and place of the pool, without all 24 combinations.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_split": {"radix": 1, "cardinality": 2, "avd_first": True},
    "four_splits": {"radix": 4, "cardinality": 2, "layers": ONE_BLOCK},
    "basic": {"block": "basic", "cardinality": 2, "avd_first": True},
    "basic_one_split": {"block": "basic", "radix": 1},
    "basic_four_splits": {
        **{"block": "basic", "radix": 4, "avd_first": True},
        "layers": ONE_BLOCK,
    },
}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Batch norms as after training: a fresh one is the identity and hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = (module.num_features,)
            if module.affine:
                module.weight.data = 0.5 + torch.rand(shape, generator=generator)
                module.bias.data = 0.3 * torch.randn(shape, generator=generator)
            module.running_mean = 0.3 * torch.randn(shape, generator=generator)
            module.running_var = 0.5 + torch.rand(shape, generator=generator)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data = 0.3 * torch.randn(module.bias.shape, generator=generator)


def small(name: str = "resnest50", *, seed: int = 0, **overrides: Any) -> ResNeSt:
    """A narrow named network in evaluation mode, its batch norms as after training."""
    torch.manual_seed(seed)
    shape = {"layers": SMALL.layers, "width_multiplier": SMALL.width_multiplier}
    model = named(name, **{"num_classes": CLASSES} | shape | overrides).eval()
    randomise(model, seed)
    return model


structure = FAMILY.structure
"""Where in a network is what."""


structure = FAMILY.structure
"""Where in a network is what."""


def images(count: int, seed: int = 0) -> Tensor:
    """(count, 3, 32, 32) of normal noise around a colour for each image."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, 1, 1, generator=generator)
    return colours + torch.randn(count, 3, SIDE, SIDE, generator=generator)


def deploy(variant: str = "plain") -> DeployNet:
    """One of VARIANTS in deploy form, of few blocks."""
    return deploy_form(branch_form(small(**{"layers": SHALLOW} | VARIANTS[variant])))


def dataset(count: int = 16, seed: int = 0) -> Dataset:
    """Images in memory whose class shows in their brightness, so that training can succeed."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.randint(0, 60, (count, 3, SIDE, SIDE), generator=generator)
    pixels = (noise + 40 * labels[:, None, None, None]).to(torch.uint8)
    one_set = Images(labels=labels, shape=square(SIDE), source=pixels)
    return Dataset(
        name="digits",
        classes=tuple("abcde"),
        train=one_set,
        calibration=one_set,
        tests={"test": one_set},
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        sha256="0" * 64,
        training_sha256="1" * 64,
    )


def same_state(one: nn.Module, two: nn.Module) -> bool:
    """Bit for bit."""
    left, right = one.state_dict(), two.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    assert wanted.abs().max() > 0
    return ((found - wanted).abs().max() / wanted.abs().max()).item()
