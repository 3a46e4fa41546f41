"""Locks: one process at a time, dead ones lose theirs."""

from __future__ import annotations

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
from pipeline.base.locks import Owner, held, is_dead, owner_of, this_process
from tests.making.cli import ROOT

HOLD = """
import sys, time
from pathlib import Path
from pipeline.locks import held
lock, mark, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
with held(lock, lambda owner: None):
    mark.touch()
    time.sleep(seconds)
"""

COUNT = """
import sys, time
from pathlib import Path
from pipeline.locks import held
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
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def never(owner: Owner) -> None:
    raise AssertionError(f"waited for {owner}")


def test_a_lock_is_there_while_it_is_held(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "train.json"
    with held(lock, never):
        assert owner_of(lock) == this_process()
    assert not lock.exists()


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
    other = python(HOLD, lock, mark, 1.5)
    wait_for(mark)
    owners: list[Owner] = []
    with held(lock, owners.append):
        assert other.wait(timeout=5) == 0
    assert [owner.pid for owner in owners] == [other.pid]


def test_a_killed_process_loses_its_lock(tmp_path: Path) -> None:
    lock, mark = tmp_path / "train.json", tmp_path / "mark"
    other = python(HOLD, lock, mark, 60)
    wait_for(mark)
    other.send_signal(signal.SIGKILL)
    time.sleep(0.1)  # not waited for: it is a zombie now
    with held(lock, never):
        assert owner_of(lock) == this_process()
    other.wait()


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    mine = this_process()
    assert not is_dead(mine)
    assert is_dead(replace(mine, started=mine.started - 60))
    assert is_dead(replace(mine, space="another-boot " + mine.space.split(" ")[1]))


def test_nothing_is_known_of_other_machines_and_containers() -> None:
    mine = this_process()
    assert not is_dead(replace(mine, host="elsewhere", pid=2**30))
    assert not is_dead(replace(mine, space=mine.space.split(" ")[0] + " pid:[1]", pid=2**30))


def test_a_lock_that_cannot_be_read_is_nobodys(tmp_path: Path) -> None:
    lock = tmp_path / "train.json"
    for text in ("", "{", "[]", "null", json.dumps({"pid": 1}), json.dumps("x")):
        lock.write_text(text)
        with held(lock, never):
            assert owner_of(lock) == this_process()


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
    dead = replace(this_process(), started=0.0)
    lock.write_text(json.dumps(asdict(dead)))
    others = [python(COUNT, lock, count) for _ in range(4)]
    assert [other.wait(timeout=60) for other in others] == [0] * 4
    assert count.read_text() == "80"


def test_a_lock_that_cannot_be_read_belongs_to_nobody(tmp_path: Path) -> None:
    lock = tmp_path / "a.json"
    whole = asdict(this_process())
    odd = [whole | {"pid": "3"}, whole | {"pid": 2**70}, whole | {"pid": -1}, whole | {"host": 3}]
    odd += [whole | {"space": None}, whole | {"started": "x"}, whole | {"more": 1}, [], 3]
    for content in [*map(json.dumps, odd), "[" * 100_000, "\0"]:
        lock.write_text(content)
        assert owner_of(lock) is None
        with held(lock, lambda owner: None):
            assert owner_of(lock) == this_process()


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "locks").symlink_to(outside)
    with pytest.raises(InputError, match="is a link"), held(tmp_path / "locks" / "a", print):
        pass
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / ".mutex").symlink_to(outside / "made")
    with pytest.raises(InputError, match="is a link"), held(tmp_path / "own" / "a", print):
        pass
    assert list(outside.iterdir()) == []
