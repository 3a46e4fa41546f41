"""Signals end the program cleanly, once; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.base.signals import (
    Interrupted,
    cleanly_interruptible,
    deferred,
    uninterrupted,
)
from tests.making import HOUR, ROOT

SIGNALS = [signal.SIGINT, signal.SIGTERM]

IGNORES = """
import os, signal, time
from pipeline.base.signals import cleanly_interruptible, deferred
from pipeline.base import signals
signals._SECONDS_TO_SAVE = 2 * 3600
with cleanly_interruptible(), deferred() as asked:
    print("ready", flush=True)
    while not asked():
        time.sleep(0.01)
    print("asked", flush=True)
    while True:
        time.sleep(0.01)
"""


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_raised_where_the_program_is(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name) as caught, cleanly_interruptible():
        send(number)
    assert caught.value.number == number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_raises_nothing(number: signal.Signals) -> None:
    with cleanly_interruptible(), deferred() as asked:
        assert asked() is None
        send(number)
        assert asked() == number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_end_of_what_is_not_to_be_interrupted(
    number: signal.Signals,
) -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            send(number)
            done.append("inside")
        done.append("behind")

    with pytest.raises(Interrupted, match=number.name), cleanly_interruptible():
        work()
    assert done == ["inside"]


def test_a_signal_that_was_raised_is_not_raised_again_by_what_cleans_up() -> None:
    done = []
    with cleanly_interruptible():
        try:
            send(signal.SIGINT)
        except Interrupted:
            with uninterrupted():
                done.append("inside")
            done.append("behind")
    assert done == ["inside", "behind"]


def test_what_was_deferred_for_too_long_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.base.signals._SECONDS_TO_SAVE", 1)
    began = time.monotonic()

    def busy() -> None:
        send(signal.SIGTERM)
        while time.monotonic() < began + HOUR:
            time.sleep(0.01)

    with pytest.raises(Interrupted), cleanly_interruptible(), deferred():
        busy()
    assert time.monotonic() < began + HOUR


def test_signals_after_the_deferral_are_raised_again() -> None:

    def deferral_then_signal() -> None:
        with deferred():
            pass
        send(signal.SIGINT)

    with pytest.raises(Interrupted), cleanly_interruptible():
        deferral_then_signal()


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", IGNORES],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"asked\n"
    assert process.poll() is None
    process.send_signal(second)
    assert process.wait(timeout=HOUR) == 128 + second
    process.stdout.close()


def test_other_threads_leave_signals_alone() -> None:
    failures = []

    def work() -> None:
        try:
            with cleanly_interruptible():
                pass
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
