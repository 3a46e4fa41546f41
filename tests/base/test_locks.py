"""Locks: one process at a time, dead ones lose theirs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.base.locks import Owner, held, is_held, owner_of, remove_lock, this_process
from tests.making import HOUR, ROOT

HOLD = """
import socket, sys, time
from pathlib import Path
from pipeline.base import locks
lock, mark, seconds, host = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
if host:
    locks.socket.gethostname = lambda: host
with locks.held(lock, lambda owner: None):
    mark.touch()
    time.sleep(seconds)
"""

COUNT = """
import sys, time
from pathlib import Path
from pipeline.base.locks import held
lock, count = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(20):
    with held(lock, lambda owner: None):
        before = int(count.read_text())
        time.sleep(0.001)
        count.write_text(str(before + 1))
"""


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + HOUR
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def never(owner: Owner) -> None:
    raise AssertionError(f"waited for {owner}")


def belongs_here(lock: Path) -> bool:
    owner = owner_of(lock)
    assert owner is not None
    return replace(owner, since="") == replace(this_process(), since="")


def test_a_lock_is_there_while_it_is_held(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "train.json"
    with held(lock, never):
        assert belongs_here(lock)
        assert is_held(lock)
    assert not lock.exists()
    assert not is_held(lock)


def test_a_lock_is_let_go_when_the_work_fails(tmp_path: Path) -> None:
    lock = tmp_path / "train.json"
    try:
        with held(lock, never):
            raise ValueError
    except ValueError:
        pass
    with held(lock, never):
        pass


def test_a_living_process_is_waited_for_and_named_once(tmp_path: Path) -> None:
    lock, mark = tmp_path / "train.json", tmp_path / "mark"
    other = python(HOLD, lock, mark, 1.5, "")
    wait_for(mark)
    owners: list[Owner] = []
    with held(lock, owners.append):
        assert other.wait(timeout=HOUR) == 0
    assert [owner.pid for owner in owners] == [other.pid]


@pytest.mark.parametrize("host", ["", "a-container-that-is-gone"])
def test_a_killed_process_loses_its_lock(tmp_path: Path, host: str) -> None:
    lock, mark = tmp_path / "train.json", tmp_path / "mark"
    other = python(HOLD, lock, mark, 600, host)
    wait_for(mark)
    assert is_held(lock)
    owner = owner_of(lock)
    assert owner is not None
    assert owner.pid == other.pid
    assert host in ("", owner.host)
    other.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # not waited for: a zombie now
    assert not is_held(lock)
    with held(lock, never):
        assert belongs_here(lock)
    other.wait()


def test_what_a_lock_says_holds_nothing(tmp_path: Path) -> None:
    lock, mine = tmp_path / "train.json", this_process()
    for owner in (mine, replace(mine, host="elsewhere", pid=2**30), replace(mine, pid=1)):
        lock.write_text(json.dumps(asdict(owner)))
        assert not is_held(lock)
        with held(lock, never):
            assert belongs_here(lock)


def test_the_lock_of_an_older_version_is_taken(tmp_path: Path) -> None:
    lock = tmp_path / "train.json"
    older = {"host": "elsewhere", "space": "boot pid:[1]", "pid": 7, "started": 1.5e9}
    lock.write_text(json.dumps(older))
    with held(lock, never):
        assert belongs_here(lock)


def test_a_lock_that_cannot_be_read_is_nobodys(tmp_path: Path) -> None:
    lock = tmp_path / "train.json"
    for text in ("", "{", "[]", "null", json.dumps({"pid": 1}), json.dumps("x")):
        lock.write_text(text)
        with held(lock, never):
            assert belongs_here(lock)


def test_threads_of_one_process_wait_for_each_other(tmp_path: Path) -> None:
    lock, inside, most = tmp_path / "train.json", [], []

    def work() -> None:
        with held(lock, lambda owner: None):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_many_processes_never_hold_it_together(tmp_path: Path) -> None:
    lock, count = tmp_path / "count.json", tmp_path / "count"
    count.write_text("0")
    # A dead process's lock, so that all of them take over at once.
    lock.write_text(json.dumps(asdict(replace(this_process(), host="gone"))))
    others = [python(COUNT, lock, count) for _ in range(4)]
    assert [other.wait(timeout=HOUR) for other in others] == [0] * 4
    assert count.read_text() == "80"


def test_a_lock_that_cannot_be_read_belongs_to_nobody(tmp_path: Path) -> None:
    lock = tmp_path / "a.json"
    whole = asdict(this_process())
    odd = [whole | {"pid": "3"}, whole | {"pid": 2**70}, whole | {"pid": -1}, whole | {"host": 3}]
    odd += [whole | {"since": None}, whole | {"since": 1.5}, whole | {"more": 1}, [], 3]
    for content in [*map(json.dumps, odd), "[" * 100_000, "\0"]:
        lock.write_text(content)
        assert owner_of(lock) is None
        with held(lock, lambda owner: None):
            assert belongs_here(lock)


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "locks").symlink_to(outside)
    with pytest.raises(InputError, match="is a link"), held(tmp_path / "locks" / "a", print):
        pass
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a").symlink_to(outside / "made")
    with pytest.raises(InputError, match="is a link"), held(tmp_path / "own" / "a", print):
        pass
    assert not is_held(tmp_path / "own" / "a")
    assert list(outside.iterdir()) == []


def test_only_a_lock_that_nobody_holds_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / "train.json"
    with held(lock, never):
        remove_lock(lock)
        assert lock.exists()
    remove_lock(lock)  # gone already
    lock.write_text("{}")
    remove_lock(lock)
    assert not lock.exists()


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(number: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    lock = tmp_path / "train.json"
    with pytest.raises(InputError, match=r"train\.json: .* keeps no locks"), held(lock, never):
        pass
