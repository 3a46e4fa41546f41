"""Checkpoints as training programs write them, with the objects that they put beside weights."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.networks.family import Checkpoint
from tests.making.networks import images

State = Mapping[str, Tensor]


KNOWN = Checkpoint(head=("fc.weight", "fc.bias"), hints=lambda found, wanted: [])
"""Of a network with such a classifier; nothing else is known of it."""


def assert_same(one: nn.Module, two: nn.Module) -> None:
    """Equal outputs, bit for bit."""
    with torch.inference_mode():
        assert torch.equal(one(images(2)), two(images(2)))


class Phase(enum.Enum):
    LAST = 3


class Settings(dict[str, Any]):
    """Stands for the dicts with attributes of Lightning and omegaconf."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.__dict__ = self


def beside(model: nn.Module) -> dict[str, Any]:
    """What programs keep beside the weights."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad][:3]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    return {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2).state_dict(),
        "args": argparse.Namespace(lr=0.1, out=Path("out"), phase=Phase.LAST, seen={1, 2}),
        "best": np.float64(0.71),
        "curve": np.arange(5.0),
        "best_acc1": torch.tensor(71.0),
        "began": datetime.datetime(2024, 2, 3, tzinfo=datetime.UTC),
        "sizes": defaultdict(list, {"a": [1]}),
        "config": Settings(model=Settings(name="resnest14"), tags=frozenset({"a"})),
        "counts": collections.Counter("abc"),
        "rng": torch.get_rng_state(),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
    }


def with_prefix(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def lightning(model: nn.Module, other: nn.Module, prefix: str) -> dict[str, Any]:
    more = {"criterion.weight": torch.ones(5), "accuracy.total": torch.tensor(3)}
    return {
        "state_dict": with_prefix(prefix, model.state_dict()) | more,
        "pytorch-lightning_version": "2.2.0",
        "hyper_parameters": Settings(lr=0.1, path=Path("x")),
        "optimizer_states": [beside(model)["optimizer"]],
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best": torch.tensor(0.1)}},
        "loops": {"fit_loop": {"state_dict": {}}},
    }


def averaged(model: nn.Module) -> AveragedModel:
    """Torch's average of one network, which is that network."""
    wrapped = AveragedModel(model)
    wrapped.update_parameters(model)
    return wrapped


def profiled(model: nn.Module) -> dict[str, Tensor]:
    layers = [name for name, _ in model.named_modules() if name]
    counters = {
        f"{name}.total_{what}": torch.zeros(1) for name in layers for what in ("ops", "params")
    }
    return {**model.state_dict(), "total_ops": torch.zeros(1), **counters}


def in_part(model: nn.Module, around: str) -> dict[str, Tensor]:
    """A network of which one part alone was wrapped, as the AlexNet of torch's example is."""
    return {
        name.replace("layer2.", f"layer2.{around}.", 1): value
        for name, value in model.state_dict().items()
    }


def cast(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: v.to(dtype) if v.is_floating_point() else v for name, v in state.items()}


def attributed(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, some with attributes of their own, as optimizers leave them."""
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for number, value in enumerate(state.values()):
        if number % 2:
            value.group = Phase.LAST  # type: ignore[attr-defined]
    return state


KINDS: dict[str, Callable[[nn.Module, nn.Module], Any]] = {
    "state dict": lambda model, other: model.state_dict(),
    "parameters": lambda model, other: attributed(model),
    "torch's imagenet": lambda model, other: {
        **beside(model),
        "state_dict": nn.DataParallel(model).state_dict(),
        "arch": "resnest14",
    },
    "torchvision's references": lambda model, other: {
        **beside(model),
        "model": other.state_dict(),
        "model_ema": averaged(model).state_dict(),
    },
    "torch's tutorial": lambda model, other: {
        **beside(model),
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": beside(model)["optimizer"],
        "loss": np.float32(0.3),
    },
    "timm": lambda model, other: {
        **beside(model),
        "state_dict": other.state_dict(),
        "state_dict_ema": model.state_dict(),
        "version": 2,
        "amp_scaler": {"scale": 1024.0, "_growth_tracker": 0},
    },
    "lightning": lambda model, other: lightning(model, other, "model."),
    "lightning, net": lambda model, other: lightning(model, other, "net.encoder."),
    "compiled": lambda model, other: torch.compile(model).state_dict(),
    "compiled in parallel": lambda model, other: with_prefix(
        "module._orig_mod.", model.state_dict()
    ),
    "parallel, compiled": lambda model, other: with_prefix("_orig_mod.module.", model.state_dict()),
    "compiled in part": lambda model, other: in_part(model, "_orig_mod"),
    "parallel in part": lambda model, other: {"model": in_part(model, "module")},
    "torch's average": lambda model, other: averaged(model).state_dict(),
    "student": lambda model, other: {"model": with_prefix("student.backbone.", model.state_dict())},
    "params": lambda model, other: {
        "params": other.state_dict(),
        "params_ema": model.state_dict(),
    },
    "wrapped twice": lambda model, other: {"model": {"net": {"state_dict": model.state_dict()}}},
    "profiled": lambda model, other: profiled(model),
    "without counters": lambda model, other: {
        name: v for name, v in model.state_dict().items() if "num_batches" not in name
    },
    "with a teacher": lambda model, other: {
        **model.state_dict(),
        **with_prefix("ema_teacher.", other.state_dict()),
        "criterion.weight": torch.ones(5),
        "aux_head.fc.weight": torch.ones(5, 5),
    },
    "average in one dict": lambda model, other: {
        "state_dict": {
            **with_prefix("model.", other.state_dict()),
            **with_prefix("model_ema.", model.state_dict()),
        }
    },
    "double": lambda model, other: cast(model, torch.float64),
}
FORMS: dict[str, dict[str, Any]] = {
    "a.pth.tar": {},
    "a.ckpt": {"pickle_protocol": 4},
    "a.pth": {"_use_new_zipfile_serialization": False},
}
