"""Dilated backbones: images that stay large, seen by kernels that are spread instead."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.networks.rewrites import both
from pipeline.networks.segmenter.maps import SIDE, on_meta

_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def dilate(trunk: nn.Module, stride: int, channels: int) -> nn.Module:
    """Have no image of a backbone be smaller than the `stride`-th part of its sides; in place.

    What would skip pixels beyond does not, and each convolution behind it looks as many pixels
    apart as were skipped, so that the weights see what they saw (Chen et al. 2017, section 3.1,
    https://arxiv.org/abs/1706.05587). Pools see their near pixels; those that only make an image
    smaller go.

    before: conv(3 x 3, stride 2) -> conv(3 x 3)
    after:  conv(3 x 3, stride 1) -> conv(3 x 3, dilation 2)

    Args:
        trunk: see `pipeline.networks.family.Trunks`.
        stride: 8, 16 or 32.
        channels: of an image.

    Raises:
        InputError: a kernel of even sides would have to skip nothing.
    """
    sizes = _sizes(trunk, channels)
    for name, module in list(trunk.named_modules()):
        if name not in sizes:
            continue
        before, after = sizes[name]
        if after <= stride and before <= stride:
            continue
        assert isinstance(module, _WINDOWS)
        apart, step = before // min(before, stride), min(after, stride) // min(before, stride)
        if not _spread(module, apart, step):
            if not isinstance(module, nn.AvgPool2d):
                raise InputError(
                    f"model.output_stride: got {stride}; {name} of model.backbone skips pixels "
                    f"with a kernel of {both(module.kernel_size)}, which cannot be spread; set it "
                    "to 32, or take another backbone"
                )
            parent, _, last = name.rpartition(".")
            setattr(trunk.get_submodule(parent), last, nn.Identity())
    return trunk


def _spread(module: nn.Module, apart: int, step: int) -> bool:
    """Give a layer its new stride and dilation; False where its kernel has no middle."""
    kernel, strides = both(module.kernel_size), both(module.stride)  # type: ignore[arg-type]
    if strides != (step, step) and any(size % 2 == 0 for size in kernel):
        return False
    module.stride = (step, step)  # type: ignore[assignment]
    if isinstance(module, nn.Conv2d):
        old = both(module.dilation)
        module.dilation = (old[0] * apart, old[1] * apart)
        if not isinstance(module.padding, str):
            sides = zip(both(module.padding), old, module.dilation, kernel, strict=True)
            more = [p + (new - was) * (k - 1) // 2 for p, was, new, k in sides]
            module.padding = (more[0], more[1])
            # torch keeps what other modes of padding add beside it.
            module._reversed_padding_repeated_twice = [more[1]] * 2 + [more[0]] * 2
    return True


def _sizes(trunk: nn.Module, channels: int) -> dict[str, tuple[int, int]]:
    """The stride at which every convolution and pool reads, and at which it gives, by path."""
    found: dict[str, tuple[int, int]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            if min(*given[0].shape[2:], *made.shape[2:]) > 1:  # of one pixel: an attention's
                sides = (given[0].shape[-1], made.shape[-1])
                found[name] = (round(SIDE / sides[0]), round(SIDE / sides[1]))

        return record

    watched = [(n, m) for n, m in trunk.named_modules() if isinstance(m, _WINDOWS)]
    hooks = [module.register_forward_hook(hook(name)) for name, module in watched]
    on_meta(trunk, torch.empty(1, channels, SIDE, SIDE, device="meta"))
    for handle in hooks:
        handle.remove()
    return found
