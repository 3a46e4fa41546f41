"""How a call on a Mac ends: what is missing there, what breaks, and who is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import InputError
from pipeline.measure.device.mac import archive, measured
from pipeline.measure.lanes.apple import session
from pipeline.measure.lanes.apple.session import opened
from tests.making.mac import Mac as StandIn
from tests.making.mac import mac
from tests.making.mac_plans import THERE, plan, run
from tests.making.processes import is_alive

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: names of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="mac") as name:
        yield Path(name)


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with mac(folder, monkeypatch) as found:
        yield found


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (
            "echo 'ssh: Could not resolve hostname mac' >&2; exit 255",
            r"me@mac: no connection by ssh \(ssh: Could not resolve hostname mac\); it must work "
            "without a password",
        ),
        (
            "echo 'zsh:1: command not found: python3' >&2; exit 127",
            r"me@mac: no python3 there \(zsh:1: command not found: python3\); name one with",
        ),
        ("exit 3", r"me@mac: python3 failed there \(it says no more\)"),
        (
            "export POCKETNEST_TEST_NO_COREMLTOOLS=1",
            "me@mac: .*No module named 'coremltools'; install it there with 'python3 -m pip",
        ),
    ],
)
def test_what_is_missing_is_one_line(
    before: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mac(folder, monkeypatch, before=before) as there:
        with pytest.raises(InputError, match=said) as caught:
            run(plan("cpu"))
        assert "\n" not in str(caught.value)
        assert there.left() == []


def test_no_ssh_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"ssh: cannot be started \(No such file"):
        run(plan("cpu"))


def test_an_archive_that_is_cut_is_refused(there: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __init__(self, content: bytes) -> None:
            pass

        def hexdigest(self) -> str:
            return "0" * 64

    monkeypatch.setattr(session.hashlib, "sha256", Wrong)
    with opened(THERE) as found, pytest.raises(InputError, match="did not arrive whole"):
        list(found.run(b"something else"))
    assert there.left() == []


def test_a_full_disk_there_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a limit on the size of files, which is what a script can set here."""
    with mac(folder, monkeypatch, before="ulimit -f 8; trap '' XFSZ") as there:
        with pytest.raises(InputError, match="me@mac: File too large; nothing was measured"):
            run(plan("cpu"))
        assert there.left() == []


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def held_at_an_inference(there: StandIn) -> threading.Event:
    """Every inference of the stand-in waits; the event is set when one does."""
    waiting = threading.Event()

    def before(question: dict[str, Any]) -> dict[str, Any] | None:
        if question["what"] == "predict":
            waiting.set()
            time.sleep(600)
        return None

    there.before = before
    return waiting


def test_a_connection_that_breaks_leaves_nothing(there: StandIn) -> None:
    waiting = held_at_an_inference(there)

    def cut() -> None:
        waiting.wait(120)
        # The other side goes on: it learns of it by the end of its input.
        os.kill(int((there.folder / "cat.pid").read_text()), signal.SIGKILL)

    # Between here and the script stands a process that can be killed, as a network can fail.
    program = there.folder / "bin" / "ssh"
    program.rename(there.folder / "bin" / "there")
    place = there.folder
    program.write_text(
        f'#!/bin/sh\nmkfifo "{place}/in"\n"{place}/bin/there" "$@" < "{place}/in" &\n'
        f'echo $$ > "{place}/cat.pid"\nexec cat > "{place}/in"\n'
    )
    program.chmod(0o755)
    threading.Thread(target=cut, daemon=True).start()
    broke = pytest.raises(InputError, match="the connection broke")
    with opened(THERE) as found, broke:
        measured(found, plan("cpu"), lambda done, text: None)
    until(lambda: there.left() == [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_asks_may_be_killed(there: StandIn, number: int, tmp_path: Path) -> None:
    waiting, content = held_at_an_inference(there), archive(plan("cpu"))
    (tmp_path / "archive.tar").write_bytes(content)
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.base.signals import cleanly_interruptible\n"
        "from pipeline.measure.lanes.apple.session import Mac, opened\n"
        "with cleanly_interruptible(), opened(Mac(host='me@mac', python='python3')) as there:\n"
        "    for event in there.run(Path(sys.argv[1]).read_bytes()):\n"
        "        print(event['pocketnest'], flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "archive.tar")])
    assert waiting.wait(120)
    assert there.left() != []
    process.send_signal(number)
    process.wait(60)
    until(lambda: there.left() == [])


def test_the_script_may_be_killed_and_the_next_call_removes_it(there: StandIn) -> None:
    waiting, pids = held_at_an_inference(there), list[int]()

    def kill() -> None:
        waiting.wait(120)
        (name,) = there.left()
        pids.append(int(name.split("-")[2]))
        children = Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()
        pids.extend(map(int, children))
        os.kill(pids[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    ended = pytest.raises(InputError, match="the connection broke, or the script there was ended")
    with opened(THERE) as found, ended:
        measured(found, plan("cpu"), lambda done, text: None)
    assert found.left is not None
    assert "or else by the next call" in found.left
    thread.join()
    until(lambda: not alive(pids))
    there.before = lambda question: None
    assert there.left() != []
    run(plan("cpu", rounds=1, count=1))
    assert there.left() == []


def test_silence_ends_the_script(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The network is gone and nobody says so: no byte comes, and no end of the input either."""
    text = session.SCRIPT.read_text().replace("SILENCE_SECONDS = 120.0", "SILENCE_SECONDS = 2.0")
    (script := tmp_path / "on_mac.py").write_text(text)
    monkeypatch.setattr(session, "SCRIPT", script)
    monkeypatch.setattr(session, "BEAT_SECONDS", 3600.0)
    with mac(folder, monkeypatch) as there:
        held_at_an_inference(there)
        ended = pytest.raises(
            InputError, match="the connection broke, or the script there was ended"
        )
        with opened(THERE) as found, ended:
            measured(found, plan("cpu"), lambda done, text: None)
        assert there.left() == []
