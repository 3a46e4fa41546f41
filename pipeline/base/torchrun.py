"""The processes that torchrun starts for one training; without it, this one by itself.

A part of the program in which they work on the same thing stands `with together():`. Only there do
they talk to each other; everywhere else a process is alone, and `count()` is 1.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from pipeline.base.machine import cpu_flags
from pipeline.base.replacing import Replacing

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
_PATIENCE = timedelta(days=7)
"""How long a process waits for the others, of which the first also times, exports and prunes."""


class _Now:
    """Whether the program is in a part that all processes work on."""

    together = False


@functools.cache
def _accelerator() -> Accelerator | None:
    """The processes, met with; None where this is the only one."""
    if not distributed.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        return None
    # It takes seconds to import.
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    on_cpu = not torch.cuda.is_available()
    return Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])


def started() -> int:
    """How many processes there are, on all machines."""
    met = _accelerator()
    return 1 if met is None else int(met.num_processes)


def on_this_machine() -> int:
    """How many of them share this machine."""
    return 1 if started() == 1 else int(os.environ["LOCAL_WORLD_SIZE"])


def is_first() -> bool:
    """Whether this is the one that writes, times and talks to people."""
    met = _accelerator()
    return met is None or bool(met.is_main_process)


@contextmanager
def together(*, apart: bool = False) -> Iterator[None]:
    """A part of the program that every process goes through, or (`apart`) this one alone."""
    before, _Now.together = _Now.together, not apart
    try:
        yield
    finally:
        _Now.together = before


def count() -> int:
    """How many processes work on this; 1 outside of `together`."""
    return started() if _Now.together else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    met = _accelerator()
    return 0 if met is None or not _Now.together else int(met.process_index)


def told_by_first(make: Callable[[], T]) -> T:
    """What the first process makes, by itself; the others are sent it."""
    if count() == 1:
        return make()
    if is_first():
        with together(apart=True):
            found = make()
        tell_others(found)
        return found
    return told()  # type: ignore[return-value]


def tell_others(word: object) -> None:
    """The first process's word to all the others, which wait for it in `told`."""
    if started() > 1:
        distributed.broadcast_object_list([word], src=0)


def told() -> object:
    """What the first process says next in `tell_others`."""
    said: list[Any] = [None]
    distributed.broadcast_object_list(said, src=0)
    return said[0]


def said_by_all(word: T) -> list[T]:
    """What every process says, in their order."""
    if count() == 1:
        return [word]
    words: list[Any] = [None] * count()
    distributed.all_gather_object(words, word)
    return words


@contextmanager
def first_before_others() -> Iterator[None]:
    """The first process goes through this before the others do."""
    met = _accelerator()
    with nullcontext() if met is None else met.main_process_first():
        yield


def summed(values: Tensor) -> Tensor:
    """The sum of the tensors that the processes hold; all have the same shape."""
    return _reduced(values, distributed.ReduceOp.SUM)


def least(values: Tensor) -> Tensor:
    """The smallest of every element."""
    return _reduced(values, distributed.ReduceOp.MIN)


def greatest(values: Tensor) -> Tensor:
    """The largest of every element."""
    return _reduced(values, distributed.ReduceOp.MAX)


def _reduced(values: Tensor, how: Any) -> Tensor:
    if count() == 1:
        return values
    values = values.detach().clone()
    distributed.all_reduce(values, how)
    return values


def own_rows(rows: int) -> Tensor:
    """Which of so many rows this process is to compute: int64, a part of them in order."""
    return torch.arange(rows).tensor_split(count())[rank()]


def all_rows(own: Tensor, rows: int) -> Tensor:
    """All rows, in order, of the parts (rows of it, ...) that the processes computed."""
    if count() == 1:
        return own
    met = _accelerator()
    assert met is not None
    sizes = [len(part) for part in torch.arange(rows).tensor_split(count())]
    padded = torch.zeros((max(sizes), *own.shape[1:]), dtype=own.dtype)
    padded[: len(own)] = own
    gathered = met.gather(padded.to(met.device)).cpu().split(max(sizes))
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def sharing_gradients(model: nn.Module) -> nn.Module:
    """A network whose gradients are the mean of those of all processes, in all of them.

    It starts with the first one's weights and statistics.
    """
    met = _accelerator()
    if met is None or count() == 1:
        return model
    shared: nn.Module = met.prepare_model(model)
    return shared


def take_buffers_of_first(model: nn.Module) -> None:
    """Give a network the statistics of the first process's, in all of them."""
    if count() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def gradients_later(model: nn.Module) -> AbstractContextManager[Any]:
    """Inside, `sharing_gradients` waits: there is more to come for this step."""
    met = _accelerator()
    return nullcontext() if met is None or count() == 1 else met.no_sync(model)


class SharedStatistics(Replacing):
    """Inside, batch normalisations in training use the statistics of all processes' images.

    As torch.nn.SyncBatchNorm, which is for modules on GPUs only; this is for exported graphs and
    CPUs as well.
    """

    def __init__(self) -> None:
        graphs = torch.ops.aten.batch_norm.default
        super().__init__({functional.batch_norm: _module_norm, graphs: _graph_norm})


def _module_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`."""
    given = (x, running_mean, running_var, weight, bias, training, momentum, eps)
    if not training or running_mean is None or running_var is None:
        return functional.batch_norm(*given)
    return _shared_norm(x, weight, bias, running_mean, running_var, momentum, eps)


def _graph_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """`aten.batch_norm`."""
    if not training:
        given = (x, weight, bias, running_mean, running_var, training, momentum, eps)
        plain: Tensor = torch.ops.aten.batch_norm.default(*given, cudnn_enabled)
        return plain
    return _shared_norm(x, weight, bias, running_mean, running_var, momentum, eps)


def _shared_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    """Batch normalisation over the images of all processes (Ioffe and Szegedy 2015)."""
    values = x if x.dtype == torch.float64 else x.float()
    number = summed(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
    mean = _Summed.apply(values.sum((0, 2, 3))) / number  # type: ignore[no-untyped-call]
    centred = values - mean[:, None, None]
    squares = centred.square().sum((0, 2, 3))
    var = _Summed.apply(squares) / number  # type: ignore[no-untyped-call]
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * number / (number - 1), momentum)
    scale = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
    y: Tensor = centred * scale[:, None, None]
    return (y if bias is None else y + bias[:, None, None]).to(x.dtype)


class _Summed(torch.autograd.Function):
    """The sum of all processes' tensors; what they do with it counts for each of the terms."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """As `summed`."""
        return summed(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The sum of all processes' gradients."""
        return summed(gradients[0])


_BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})
"""CPU flags of instructions that multiply bfloat16 numbers; a step takes two thirds of the time."""


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16() -> bool:
    """Whether the device multiplies bfloat16 numbers in hardware."""
    if device().type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return not _BFLOAT16_FLAGS.isdisjoint(cpu_flags() or ())
