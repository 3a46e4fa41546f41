"""Child processes of tests: what they run, and when something is done to them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.making import HOUR

SLEEP = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(3600)"


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def when(condition: Callable[[], bool], then: Callable[[], object]) -> threading.Thread:
    """Do something in another thread as soon as a condition holds, or after an hour."""

    def wait() -> None:
        deadline = time.monotonic() + HOUR
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def written(*paths: Path) -> Callable[[], bool]:
    return lambda: all(path.exists() and path.read_text() for path in paths)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
