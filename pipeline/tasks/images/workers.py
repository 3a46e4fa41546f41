"""Processes that decode the next images while a network works on these.

Everything that is drawn at random is drawn where the images are used, in the order in which they
are used: a worker only decodes. So any number of workers, and none, give the same images, and a
training that was stopped goes on without a word about them in its state.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.base import torchrun
from pipeline.base.errors import InputError
from pipeline.base.machine import cores
from pipeline.tasks.images.kept import KeptImages
from pipeline.tasks.images.pixels import Images

_MOST, _WORTH_IMAGES = 16, 2048
"""Workers where a recipe does not say how many, and the images from which on they are begun."""
_AHEAD = 2
"""Parts of batches that a worker has ready."""
_SHARED_MEMORY = "/dev/shm"
_SHARE_OF_MEMORY = 0.5


def pixels_in_turn(
    images: Images, wanted: Sequence[NDArray[np.int64]], *, margin: bool
) -> Iterator[Tensor]:
    """The pixels of some images after the other: uint8 [B, C, H, W].

    Args:
        images: of which some are wanted.
        wanted: rows of them, [B] each time.
        margin: whether what lies around the images is wanted too.

    Raises:
        InputError: a file cannot be read, or a worker ended.
    """
    asked = _Asked(images, margin)
    if (workers := workers_for(images, wanted)) == 0:
        for rows in wanted:
            yield asked.pixels(rows)
        return
    loader: DataLoader[Tensor | str] = DataLoader(
        asked,  # type: ignore[arg-type]  # it needs no more than __getitem__
        sampler=wanted,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        worker_init_fn=_left_to_the_parent,
        # The index of millions of files is shared, not sent.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        generator=torch.Generator(),  # else it draws from the one that training draws from
    )
    found = iter(loader)
    try:
        for _ in wanted:
            try:
                pixels = next(found)
            except RuntimeError as error:
                raise InputError(
                    "data.workers: a process that decodes images ended "
                    f"({' '.join(str(error).split())[:200]}); free memory, or lower it"
                ) from error
            if isinstance(pixels, str):
                raise InputError(pixels)
            yield pixels
    finally:
        del found  # ends the workers


def workers_for(images: Images, wanted: Sequence[NDArray[np.int64]]) -> int:
    """How many processes decode: none where nothing is decoded, or there is nothing to wait for."""
    if isinstance(images.source, Tensor | KeptImages) or len(wanted) < 2:
        return 0
    count = images.workers
    if count is None:
        if sum(map(len, wanted)) < _WORTH_IMAGES:
            return 0
        count = min(_MOST, cores() // torchrun.on_this_machine())
    # What they decode lies in shared memory, of which a container may have little.
    part = len(wanted[0]) * int(np.prod(images.preparation.whole.batch(1)))
    room = _free_shared_memory()
    if room is not None:
        count = min(count, int(room * _SHARE_OF_MEMORY) // (part * (_AHEAD + 1)))
    return min(count, len(wanted))


def _free_shared_memory() -> int | None:
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize // torchrun.on_this_machine()


class _Asked:
    """What a worker does: from rows to pixels, or to the words of what is wrong."""

    def __init__(self, images: Images, margin: bool) -> None:
        self._images, self._margin = images, margin

    def pixels(self, rows: NDArray[np.int64]) -> Tensor:
        indices = torch.from_numpy(rows)
        return self._images.with_margin(indices) if self._margin else self._images.pixels(indices)

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor | str:
        try:
            return self.pixels(rows).contiguous()
        except InputError as error:
            return str(error)


def _left_to_the_parent(worker: int) -> None:
    """Leave what is typed at the terminal to the process that trains; it ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
