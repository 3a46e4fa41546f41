"""Child processes: how many at once, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.base import children
from pipeline.base.children import CHILD_BYTES, Children, Early, at_once, free_bytes
from tests.making import HOUR, ROOT
from tests.making.processes import SLEEP, is_alive, python, when, written


def test_the_exit_status_and_the_environment(tmp_path: Path) -> None:
    command = python("import os, sys; sys.exit(int(os.environ['STATUS']))")
    assert Children().run(command, os.environ | {"STATUS": "7"}) == 7
    assert Children().run(command, os.environ | {"STATUS": "0"}) == 0


def test_a_child_that_would_end_with_its_parent_ends_well_by_itself() -> None:
    code = (
        "import time; from pipeline.base.children import end_with_parent; "
        "end_with_parent(); time.sleep(.2)"
    )
    assert Children().run(python(code), os.environ | {"PYTHONPATH": str(ROOT)}) == 0


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    child = f"from pipeline.base.children import end_with_parent as end; end(); {SLEEP}"
    parent = "import os, sys; from pipeline.base.children import Children; "
    parent += "Children().run([sys.executable, '-c', *sys.argv[1:]], os.environ)"
    environment, mark = os.environ | {"PYTHONPATH": str(ROOT)}, tmp_path / "child"
    with subprocess.Popen(python(parent, child, mark), env=environment) as process:
        when(written(mark), process.kill).join()
    deadline = time.monotonic() + HOUR
    while is_alive(int(mark.read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(int(mark.read_text()))


def test_all_that_run_are_ended_and_no_more_are_started(tmp_path: Path) -> None:
    together, status = Children(), {}
    marks = [tmp_path / "a", tmp_path / "b"]

    def run(mark: Path) -> None:
        status[mark] = together.run(python(SLEEP, mark), os.environ)

    threads = [threading.Thread(target=run, args=(mark,)) for mark in marks]
    for thread in threads:
        thread.start()
    when(written(*marks), together.end).join()
    for thread in threads:
        thread.join(10)
    assert status == dict.fromkeys(marks, -signal.SIGTERM)
    with pytest.raises(RuntimeError, match="not started"):
        together.run(python(SLEEP, tmp_path / "c"), os.environ)
    assert not (tmp_path / "c").exists()


def test_one_that_is_ended_leaves_the_others_of_the_program_alone(tmp_path: Path) -> None:
    Children().end()
    assert Children().run(python("pass"), os.environ) == 0


def test_an_interrupted_wait_ends_the_child(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    thread = when(written(mark), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        Children().run(python(SLEEP, mark), os.environ)
    thread.join()
    assert not is_alive(int(mark.read_text()))


@pytest.mark.parametrize(
    ("count", "cores", "free", "expected"),
    [
        (3, 2, 100.0, 2),
        (3, 64, 100.0, 3),
        (9, 64, 2.5, 2),
        (9, 64, 0.5, 1),
        (9, 64, -1.0, 1),
        (9, 4, None, 4),
        (1, 64, 100.0, 1),
    ],
)
def test_as_many_as_cores_and_memory_allow(
    count: int, cores: int, free: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`free` counts in children."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    found = None if free is None else int(free * CHILD_BYTES)
    monkeypatch.setattr(children, "free_bytes", lambda: found)
    assert at_once(count) == expected


def machine(root: Path, available_kb: int, **group: str) -> Path:
    (root / "proc").mkdir()
    lines = ("MemTotal: 9000000 kB", f"MemAvailable: {available_kb} kB", "HugePages_Total: 0")
    (root / "proc" / "meminfo").write_text("\n".join(lines) + "\n")
    directory = root / "sys" / "fs" / "cgroup"
    directory.mkdir(parents=True)
    for name, text in group.items():
        (directory / f"memory.{name}").write_text(text)
    return root


def test_free_memory_is_what_the_kernel_can_give(tmp_path: Path) -> None:
    assert free_bytes(machine(tmp_path, 5_000)) == 5_000 * 1024


@pytest.mark.parametrize(("limit", "expected"), [("1000000\n", 700_000), ("max\n", 5_120_000)])
def test_a_container_has_its_own_limit(limit: str, expected: int, tmp_path: Path) -> None:
    stat = "anon 350000\ninactive_file 50000\n"
    assert (
        free_bytes(machine(tmp_path, 5_000, max=limit, current="350000\n", stat=stat)) == expected
    )


def test_a_limit_above_the_machine_is_none(tmp_path: Path) -> None:
    stat = "inactive_file 0\n"
    root = machine(tmp_path, 5_000, max=str(10**12), current="0", stat=stat)
    assert free_bytes(root) == 5_000 * 1024


def test_unknown_memory_is_said_to_be_so(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine() -> None:
    found = free_bytes()
    assert found is not None
    assert 0 < found < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_child_that_watches_its_parent_ends_as_any_other() -> None:
    code = (
        "import sys, time; from pipeline.base.children import end_with_parent; "
        "end_with_parent(); time.sleep(0.2); sys.stdin = None"
    )
    assert Children().run(python(code), os.environ | {"PYTHONPATH": str(ROOT)}) == 0


WAITS = (
    "import sys; from pathlib import Path; from pipeline.base.children import told_work; "
    "Path(sys.argv[1]).write_text('waits'); sys.exit(int(told_work()[0]))"
)


def early(mark: Path, code: str = WAITS) -> Early:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return Early(command=python(code, mark), environment=environment, stage="export")


def test_a_child_that_was_started_early_does_what_it_is_told(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Children() as together:
        together.early = {"a": early(mark)}
        together.start_early()
        when(written(mark), lambda: None).join()
        assert together.run(python("1 / 0"), os.environ, ("a", ["7"])) == 7
        # Its work was that alone; the next is another child's.
        assert together.run(python("pass"), os.environ, ("a", ["7"])) == 0
        assert together.run(python("pass"), os.environ, ("b", ["7"])) == 0


def test_where_a_child_that_was_started_early_has_ended_another_works(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Children() as together:
        together.early = {"a": early(mark, "import os, sys; open(sys.argv[1], 'w').write('x')")}
        together.start_early()
        when(written(mark), lambda: None).join()
        (process,) = together._waiting.values()
        process.wait()
        assert together.run(python("import sys; sys.exit(5)"), os.environ, ("a", ["7"])) == 5


def test_children_that_are_told_nothing_end_with_the_others(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with Children() as together:
        together.early = {"a": early(mark)}
        together.start_early()
        when(written(mark), lambda: None).join()
        (process,) = together._waiting.values()
        assert is_alive(process.pid)
    assert not is_alive(process.pid)
    together.start_early()
    assert not together._waiting


def test_a_child_that_is_told_nothing_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    child, pid = f"import os; open(os.environ['PID'], 'w').write(str(os.getpid())); {WAITS}", "pid"
    parent = (
        "import os, sys, time; from pipeline.base.children import Children, Early; "
        "together = Children(); "
        "together.early['a'] = Early(command=[sys.executable, '-c', *sys.argv[1:]], "
        "environment=os.environ, stage='export'); together.start_early(); time.sleep(3600)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PID": str(tmp_path / pid)}
    mark = tmp_path / "mark"
    with subprocess.Popen(python(parent, child, mark), env=environment) as process:
        when(written(mark), process.kill).join()
    deadline = time.monotonic() + HOUR
    while is_alive(int((tmp_path / pid).read_text())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(int((tmp_path / pid).read_text()))
