"""What a device is timed with: CUDA graphs, and batches that its memory holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.measure.timing import TimedCall

WARMUP = 3
"""The least: cuDNN tries its algorithms in the first runs, and a graph wants them settled."""

_MOST_APART = 0.02
"""Of the largest logit, between a CUDA graph's answer and the network's own."""


def largest_batch(attempt: Callable[[int], object], batch: int) -> int:
    """The first of batch, batch / 2, batch / 4, ... that `attempt` has the memory for.

    Raises:
        OutOfMemoryError, RuntimeError, MemoryError: there is none for a single image.
    """
    while True:
        try:
            attempt(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch == 1:
                raise
        else:
            return batch
        # Outside of the handler, whose error holds what the attempt had taken.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        batch //= 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or this machine had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error)  # torch's CPU allocator
    )


def captured(run: Callable[[], Tensor]) -> TimedCall:
    """The call as a CUDA graph: its kernels are started by one command in place of hundreds.

    What `run` reads must stay where it is as long as the graph is replayed.

    Raises:
        RuntimeError: it cannot be captured, or answers otherwise.
    """
    expected = run().clone()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch asks for, before a capture
        for _ in range(WARMUP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = run()
    graph.replay()
    torch.cuda.synchronize()
    apart = float((answer.float() - expected.float()).abs().max() / expected.float().abs().max())
    if not apart <= _MOST_APART:
        raise RuntimeError(f"the graph's answer is {apart:.1%} of the largest logit off")
    return graph.replay
