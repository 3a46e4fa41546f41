"""torchvision's and timm's networks without their classifiers, as the backbones of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.networks.family import Trunks
from pipeline.networks.libraries.build import from_torchvision, refuse_unknown
from pipeline.recipe.libraries import TIMM, TORCHVISION, TorchvisionModel

STRIDES = (4, 8, 16, 32)
_SIDE = 128
"""Of the image that networks are tried with."""


class Chain(nn.Module):
    """Modules that run one after the other, of which four give what is asked for.

    Every layer keeps the path that it has in the network it was taken from.
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], ends: Sequence[str]) -> None:
        """Take over the modules of `model` at `paths`; `ends` are those of the four."""
        super().__init__()
        self._paths, self._ends = tuple(paths), tuple(ends)
        for name in dict.fromkeys(path.partition(".")[0] for path in paths):
            self.add_module(name, model.get_submodule(name))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(batch, channels, height, width) to images at a 4th, 8th, 16th and 32nd of the sides."""
        found = []
        for path in self._paths:
            x = self.get_submodule(path)(x)
            if path in self._ends:
                found.append(x)
        return found


def from_torchvision_trunk(name: str, channels: int, arguments: Mapping[str, Any]) -> Chain:
    """A network of torchvision's up to its last image, its weights random.

    Raises:
        InputError: there is none of that name, or it is no chain of modules with images at these
            strides.
    """
    from torchvision import models

    known = models.list_models(module=models)
    bare = name.removeprefix(TORCHVISION)
    refuse_unknown(bare, known, "torchvision", TORCHVISION, key="model.backbone")
    try:
        config = TorchvisionModel.model_validate(
            {"name": name, "input_size": _SIDE, "channels": channels, "arguments": {**arguments}}
        )
    except ValidationError as error:
        raise InputError(f"model.backbone: got {name!r}; {error.errors()[0]['msg']}") from error
    try:
        model = from_torchvision(config, 1).eval()
    except InputError as error:  # of its own keys
        raise InputError(f"model.backbone: {error}") from error
    image = torch.randn(1, channels, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    seen = _seen(model, image)
    ends = {_SIDE // value.shape[-1]: path for path, value in seen.items()}
    if not set(STRIDES) <= ends.keys():
        raise InputError(_without_strides(name, sorted(ends)))
    last = list(seen).index(ends[STRIDES[-1]])
    chain = Chain(model, list(seen)[: last + 1], [ends[stride] for stride in STRIDES]).eval()
    with torch.no_grad():
        found = chain(image)
    # A network that does more than its modules do gives others, or another number of them.
    if [one.shape for one in found] != [seen[ends[stride]].shape for stride in STRIDES] or not all(
        torch.equal(one, seen[ends[stride]]) for one, stride in zip(found, STRIDES, strict=True)
    ):
        raise InputError(
            f"model.backbone: {name} is no chain of modules, so that its images cannot be taken "
            "out; take another, or timm's of that name"
        )
    return chain.train()


def _seen(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What the modules near the top of a network give, by path, in the order in which they ran."""
    inside = getattr(model, "features", None)
    whole = isinstance(inside, nn.Sequential)
    watched = inside.named_children() if whole else model.named_children()  # type: ignore[union-attr]
    found: dict[str, Tensor] = {}

    def hook(path: str) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, _: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[-1] > 1:
                found[path] = output.clone()  # what follows may work in place

        return record

    prefix = "features." if whole else ""
    hooks = [m.register_forward_hook(hook(f"{prefix}{name}")) for name, m in watched]
    with torch.no_grad():
        model(image)
    for handle in hooks:
        handle.remove()
    return found


def from_timm_trunk(name: str, channels: int, arguments: Mapping[str, Any]) -> nn.Module:
    """A network of timm's up to its last image, its weights random.

    Raises:
        InputError: there is none of that name, or it has no images at these strides.
    """
    import timm

    bare = name.removeprefix(TIMM)
    if not timm.is_model(bare):
        refuse_unknown(bare, timm.list_models(), "timm", TIMM, key="model.backbone")
    make = {"pretrained": False, "features_only": True, "in_chans": channels, **arguments}
    try:
        whole: Any = timm.create_model(bare, **make)
        strides = list(whole.feature_info.reduction())
        if not set(STRIDES) <= set(strides):
            raise InputError(_without_strides(name, strides))
        last = {stride: place for place, stride in enumerate(strides)}
        places = tuple(last[stride] for stride in STRIDES)
        made: nn.Module = timm.create_model(bare, out_indices=places, **make)
    except (TypeError, RuntimeError, AssertionError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"model.backbone: {name} was not built as a backbone ({text})") from error
    return made


def _without_strides(name: str, found: Sequence[int]) -> str:
    wanted, there = (", ".join(map(str, strides)) for strides in (STRIDES, found))
    return f"model.backbone: {name} gives images at strides {there}; a backbone has {wanted}"


def _first_convolution(trunk: nn.Module) -> tuple[str, ...]:
    return next((n,) for n, m in trunk.named_modules() if isinstance(m, nn.Conv2d))


OF_TORCHVISION = Trunks(
    build=from_torchvision_trunk,
    example=f"{TORCHVISION}mobilenet_v2",
    dense=_first_convolution,
    decided_by=lambda: {"torchvision": version("torchvision")},
)
OF_TIMM = Trunks(
    build=from_timm_trunk,
    example=f"{TIMM}mobilenetv3_small_100",
    dense=_first_convolution,
    decided_by=lambda: {"timm": version("timm")},
)
