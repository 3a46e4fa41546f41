"""The forms that a float network is measured in: precision, layout, kernels."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.base.torchrun import has_bfloat16
from pipeline.measure.baseline.record import Precision

_TF32_SINCE = (8, 0)
"""Compute capability of the first GPUs with tf32, Ampere."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a precision is computed.

    Attributes:
        dtype: of images and of the weights, but for those of batch normalisation.
        memory_format: tensor cores want channels last, plain float32 does not.
        tf32: whether float32 products are rounded to tf32.
    """

    dtype: torch.dtype
    memory_format: Literal["contiguous", "channels_last"]
    tf32: bool


FORMS: dict[Precision, Form] = {
    "fp32": Form(dtype=torch.float32, memory_format="contiguous", tf32=False),
    "tf32": Form(dtype=torch.float32, memory_format="channels_last", tf32=True),
    "bf16": Form(dtype=torch.bfloat16, memory_format="channels_last", tf32=False),
}


_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Formed(nn.Module):
    """A copy of a network that computes in one form: float32 images to float32 logits."""

    def __init__(self, model: nn.Module, form: Form, place: torch.device) -> None:
        super().__init__()
        self.form, self.layout = form, _LAYOUTS[form.memory_format]
        self.network = copy.deepcopy(model).to(place, form.dtype)
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()  # statistics of eight bits would cost accuracy, and save no time

    def take(self, images: Tensor) -> Tensor:
        """Images as the network computes with them."""
        return images.to(self.form.dtype).contiguous(memory_format=self.layout)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, side, side) to logits (batch, ...)."""
        logits: Tensor = self.network(self.take(images)).float()
        return logits


@contextmanager
def settings_kept() -> Iterator[None]:
    """Put torch's settings of GPU kernels back afterwards, as the stages have them."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    before = (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32)
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)


@contextmanager
def fastest_kernels() -> Iterator[None]:
    """Let a GPU take its fastest kernels, whatever the stages have set; put back afterwards.

    The stages ask for deterministic ones, which are slower. Whoever deploys the float network does
    not, so a speed against those would flatter the target. On a CPU it changes nothing.
    """
    with settings_kept():
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True
        yield


def round_products(on: bool) -> None:
    """Whether a GPU rounds the float32 numbers that it multiplies to tf32."""
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cuda.matmul.allow_tf32 = on


def precisions(place: torch.device) -> tuple[list[Precision], dict[str, str]]:
    """What a device multiplies in hardware, and why not the others."""
    left_out: dict[str, str] = {}
    if place.type != "cuda":
        left_out["tf32"] = "a CPU has no tf32"
    elif (capability := torch.cuda.get_device_capability(place)) < _TF32_SINCE:
        found, least = (".".join(map(str, pair)) for pair in (capability, _TF32_SINCE))
        left_out["tf32"] = f"it needs compute capability {least}, this GPU has {found}"
    if not has_bfloat16():
        left_out["bf16"] = "this device does not multiply bfloat16 in hardware"
    return [precision for precision in FORMS if precision not in left_out], left_out
