"""States of a training, kept so that one that was stopped goes on as if it had not been."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.base.checksums import damage, seal
from pipeline.base.passing import is_passing
from pipeline.base.safe_files import remove

State = dict[str, Any]
"""Tensors, numbers and texts, and lists and dictionaries of them."""

_FILE = "state.pt"
_KEPT = 2
_DAMAGED = ".damaged-"
_MOST_OF_THE_TIME = 0.02
"""Saving takes no larger share of the time than this, however slow the disk is."""


@dataclass(kw_only=True)
class Saves:
    """Where one training keeps its states, and how often.

    Attributes:
        directory: of these states alone.
        seconds: between two of them; more where writing one takes long.
        steps: between two of them at most; None counts seconds alone.
    """

    directory: Path
    seconds: float = 60.0
    steps: int | None = None
    _step: int = field(default=0, init=False)
    _time: float = field(default_factory=lambda: time.monotonic(), init=False)
    _took: float = field(default=0.0, init=False)

    def due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved."""
        if self.steps is not None and step - self._step >= self.steps:
            return True
        pause = max(self.seconds, self._took / _MOST_OF_THE_TIME)
        return time.monotonic() - self._time >= pause

    def save(self, step: int, state: State) -> None:
        """Keep the state after `step` steps, whole or not at all, and drop the oldest.

        Raises:
            OSError: it could not be written.
        """
        began = time.monotonic()
        scratch = self.directory / ".new"
        remove(scratch)
        scratch.mkdir(parents=True)
        torch.save(state, scratch / _FILE)
        seal(scratch)
        final = self.directory / f"{step:09}"
        remove(final)
        scratch.rename(final)
        for old in self._kept()[:-_KEPT]:
            remove(old)
        self._step, self._time = step, time.monotonic()
        self._took = self._time - began

    def latest(self) -> State | None:
        """The newest state that is whole; damaged ones are set aside. None where there is none.

        Raises:
            OSError: one cannot be read now; it stays, as it does where memory runs out.
        """
        for directory in reversed(self._kept()):
            if damage(directory) is None:
                try:
                    state: State = torch.load(directory / _FILE, weights_only=True)
                    self._step = int(directory.name)
                    return state
                except Exception as error:
                    # Whole, and yet none of ours: sealed by somebody else. No code in it runs.
                    if is_passing(error):
                        raise
            aside = self.directory / f"{_DAMAGED}{directory.name}"
            remove(aside)
            directory.rename(aside)
        return None

    def _kept(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*"))
