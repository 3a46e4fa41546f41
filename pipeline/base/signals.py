"""SIGINT and SIGTERM: the first ends the program cleanly, what a training has done is saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SECONDS_TO_SAVE = 7
"""A training that has not come to the end of its step by then is stopped within it."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The program was asked to end. Not an Exception: nothing but the command line catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Asked:
    """The first signal that came, and whether it is taken up at the next step only."""

    number: int | None = None
    deferred = False


@contextmanager
def cleanly_interruptible() -> Iterator[None]:
    """Turn the first signal into `Interrupted`, and end the process at the second.

    Does nothing outside of the main thread, where no signal arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Asked.number, _Asked.deferred = None, False
    before = {number: signal.signal(number, _handle) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _Asked.number = None


@contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """Inside, a signal raises nothing for some seconds; what is yielded returns its number.

    Whoever defers looks after every step, and raises `Interrupted` once it has saved.
    """
    _Asked.deferred = True
    try:
        yield lambda: _Asked.number
    finally:
        _Asked.deferred = False
        signal.alarm(0)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, a signal waits for the end, `_SECONDS_TO_SAVE` at the most, and is raised there.

    For what begins or ends something outside of the program, and is short.

    Raises:
        Interrupted: the first signal came inside.
    """
    before = _Asked.number
    with deferred() as asked:
        yield
    if before is None and (number := asked()) is not None:
        raise Interrupted(number)


def _handle(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGALRM:  # saving took too long
        if _Asked.number is not None:
            raise Interrupted(_Asked.number)
        return
    if _Asked.number is not None:
        os._exit(128 + number)
    _Asked.number = number
    if not _Asked.deferred:
        raise Interrupted(number)
    signal.alarm(_SECONDS_TO_SAVE)
