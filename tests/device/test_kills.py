"""Killed at any moment, a measurement leaves nothing on the phone: no file, and no program."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.device.test_phone import plan, run, wait_until
from tests.making.phones import Phone
from tests.making.processes import is_alive

TIMES = int(os.environ.get("POCKETNEST_KILLS", "6"))
"""Of each signal; `nox -s device` has more."""
CHILDREN = """\
import os, sys
from pathlib import Path
from pipeline.base.signals import Interrupted, cleanly_interruptible
from tests.device.test_phone import plan, run
from tests.making.phones import Phone

# Everything is imported: every line of input is the number of a child, which is forked from here.
for line in sys.stdin:
    if (pid := os.fork()) == 0:
        os.setsid()
        folder = Path(sys.argv[1]) / line.strip()
        folder.mkdir()
        phone = Phone(serial=sys.argv[2], process=None, folder=None)
        code = 0
        try:
            with cleanly_interruptible():
                run(phone, plan(folder, seconds=0.02))
        except Interrupted as error:
            code = 128 + error.number
        os._exit(code)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(status, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_whenever_it_is_killed(
    phone: Phone, tmp_path: Path, number: signal.Signals
) -> None:
    began = time.monotonic()
    run(phone, plan(tmp_path, seconds=0.02))
    whole = time.monotonic() - began
    chance = random.Random(int(number))
    server = subprocess.Popen(
        [sys.executable, "-c", CHILDREN, str(tmp_path), phone.serial],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    seen = ended = 0
    longest = 0.0
    for turn in range(2 * TIMES):  # some have come to their end before they are killed
        server.stdin.write(f"{turn}\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())
        # Something is on the phone in most of the cases; the first moments are tried, too.
        time.sleep(chance.uniform(0, whole))
        seen += bool(phone.files())
        if is_alive(pid):
            os.kill(pid, number)
            ended += 1
        status = int(server.stdout.readline())
        assert number == signal.SIGKILL or os.waitstatus_to_exitcode(status) in (0, 128 + number)
        if number != signal.SIGKILL:
            assert phone.files() == [], "it cleans up before it ends"
        killed = time.monotonic()
        wait_until(lambda: not phone.files() and not phone.programs())
        longest = max(longest, time.monotonic() - killed)
        if ended == TIMES:
            break
    server.stdin.close()
    server.wait()
    print(
        f"{number.name}: {ended} killed, {seen} times with files on the phone; all gone after "
        f"{longest:.2f} s at most"
    )
    assert ended == TIMES
    assert seen > TIMES // 3
