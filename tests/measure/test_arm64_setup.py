"""Setting up the emulated ARM64 machine, with stand-ins for apt: no network is needed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.measure.lanes.arm64 import apt, machine, packages, wheels
from pipeline.measure.lanes.arm64.machine import MADE, Machine
from pipeline.measure.lanes.arm64.packages import Package
from tests.making import ROOT

CONTENT = "what is in a package\n"
HASH = hashlib.sha256(CONTENT.encode()).hexdigest()

# Says what it was given, and makes the files that `download` asks for.
APT_GET = """\
#!/bin/sh
echo "$APT_CONFIG $*" >> "$LOG"
case "$2" in download) shift 2; for one in "$@"; do
  name=${one%%:*}; rest=${one#*:}; architecture=${rest%%=*}
  version=$(echo "${rest#*=}" | sed 's/:/%3a/')
  echo "what is in a package" > "${name}_${version}_${architecture}.deb"
done ;; esac
"""
APT_CACHE = """\
#!/bin/sh
cat "$OFFERED"
"""


def package(version: str = "1:2.36-9", sha256: str = HASH) -> Package:
    return Package(name="libc6", architecture="arm64", version=version, sha256=sha256)


def record(one: Package) -> str:
    """As `apt-cache show` writes it."""
    return (
        f"Package: {one.name}\nArchitecture: {one.architecture}\nVersion: {one.version}\n"
        f"Description: a library\n Version: of the text\nSHA256: {one.sha256}\n\n"
    )


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of what the mirrors have; apt is a stand-in that reads it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, content in (("apt-get", APT_GET), ("apt-cache", APT_CACHE)):
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("OFFERED", str(tmp_path / "offered"))
    return tmp_path / "offered"


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_pinned_packages_are_taken(offered: Path, tmp_path: Path) -> None:
    newer = package("1:2.36-10", "0" * 64)
    offered.write_text(record(newer) + record(package()))
    said: list[str] = []
    taken = apt.fetch([package()], new(tmp_path / "debs"), "bookworm", said.append)
    assert (taken, said) == ([package()], [])
    assert (tmp_path / "debs" / "libc6_arm64.deb").read_text() == CONTENT


def test_apt_works_in_a_folder_of_its_own(offered: Path, tmp_path: Path) -> None:
    offered.write_text(record(package()))
    folder = new(tmp_path / "debs")
    apt.fetch([package()], folder, "bookworm", print)
    for line in (tmp_path / "log").read_text().splitlines():
        assert line.startswith(f"{folder}/apt.conf ")
    said = (folder / "apt.conf").read_text()
    for key in ("Dir::State", "Dir::State::status", "Dir::Cache"):
        assert f'\n{key} "{folder}/' in said
    assert 'APT::Architectures { "amd64"; "arm64"; };' in said


def test_what_has_left_the_mirrors_is_replaced_and_told(offered: Path, tmp_path: Path) -> None:
    newer = package("1:2.36-10")
    offered.write_text(record(newer) + record(package("1:2.36-8")))
    said: list[str] = []
    taken = apt.fetch([package(sha256="0" * 64)], new(tmp_path / "debs"), "bookworm", said.append)
    assert taken == [newer]
    assert said == ["  libc6:arm64 1:2.36-9 is pinned and has left the mirrors: 1:2.36-10 is taken"]


def test_a_file_that_is_not_what_its_hash_says_is_refused(offered: Path, tmp_path: Path) -> None:
    offered.write_text(record(package(sha256="0" * 64)))
    with pytest.raises(InputError, match=r"libc6_1%3a2.36-9_arm64.deb: its SHA-256 is "):
        apt.fetch([package(sha256="0" * 64)], new(tmp_path / "debs"), "bookworm", print)


def test_mirrors_of_another_suite_are_named(offered: Path, tmp_path: Path) -> None:
    offered.write_text("")
    with pytest.raises(InputError, match=r"have no libc6:arm64; they must be those of .*bookworm"):
        apt.fetch([package()], new(tmp_path / "debs"), "bookworm", print)


def test_what_apt_says_last_is_told(offered: Path, tmp_path: Path) -> None:
    broken = Path(os.environ["PATH"].split(os.pathsep)[0]) / "apt-get"
    broken.write_text("#!/bin/sh\necho first >&2; echo 'E: no network' >&2; exit 100\n")
    with pytest.raises(InputError, match="apt-get -qq update: E: no network; is the network there"):
        apt.fetch([package()], new(tmp_path / "debs"), "bookworm", print)


def test_wheels_that_pip_cannot_get_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$*" > "$0.log"; echo "ERROR: no such wheel" >&2; exit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(InputError, match="pip download: ERROR: no such wheel"):
        wheels.fetch(packages.pinned().wheels, tmp_path / "wheels")
    asked = (tmp_path / "python.log").read_text()
    assert "--require-hashes" in asked
    assert "--python-version 3.11" in asked
    lines = (tmp_path / "wheels" / "requirements.txt").read_text().splitlines()
    assert len(lines) == len(packages.pinned().wheels)


def test_runtimes_are_those_that_files_are_checked_with_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = dict(line.split("==") for line in project["dependencies"] if "==" in line)
    there = {wheel.name: wheel.version for wheel in packages.pinned().wheels}
    for name in ("ai-edge-litert", "onnxruntime", "numpy"):
        assert there[name] == ours[name]


# The machine as a whole, its parts stood in for


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that a machine was made in; nothing but `made.json` is in it."""
    made: list[Path] = []

    def make(wanted: packages.Packages, scratch: Path, tell: apt.Tell) -> Machine:
        made.append(scratch)
        (scratch / MADE).write_text(json.dumps(asdict(wanted)))
        return Machine(folder=scratch, made_of=wanted)

    monkeypatch.setattr(machine, "_make", make)
    monkeypatch.setattr(machine, "cannot_be_made", lambda: None)
    return made


def test_a_machine_is_made_once(making: list[Path], tmp_path: Path) -> None:
    assert machine.found(tmp_path / "arm64") is None
    first = machine.set_up(print, tmp_path / "arm64")
    again = machine.set_up(print, tmp_path / "arm64")
    assert first == again == machine.found(tmp_path / "arm64")
    assert first.folder == tmp_path / "arm64" / packages.pinned().key
    assert len(making) == 1
    assert [path.name for path in (tmp_path / "arm64").iterdir()] == [first.folder.name]


def test_two_at_once_make_one(making: list[Path], tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=machine.set_up, args=(lambda line: None, tmp_path))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(making) == 1


def test_one_that_cannot_be_read_is_made_anew(making: list[Path], tmp_path: Path) -> None:
    made = machine.set_up(print, tmp_path)
    for broken in ("", "{}", '{"suite": "x", "debian": [{}], "wheels": []}'):
        (made.folder / MADE).write_text(broken)
        assert machine.found(tmp_path) is None
    assert machine.set_up(print, tmp_path) == made


def test_what_was_left_half_made_has_no_name(
    making: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = packages.pinned().key
    (tmp_path / f".making-{key}-killed").mkdir()

    def fail(wanted: packages.Packages, scratch: Path, tell: apt.Tell) -> Machine:
        (scratch / "root").mkdir()
        raise InputError("no network")

    monkeypatch.setattr(machine, "_make", fail)
    with pytest.raises(InputError, match="no network"):
        machine.set_up(print, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_packages_are_another_machine() -> None:
    ours = packages.pinned()
    assert replace(ours, debian=ours.debian[1:]).key != ours.key


def test_the_place_is_the_user_s_cache(tmp_path: Path) -> None:
    assert machine.place({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "pocketnest" / "arm64"
    assert machine.place({}) == Path.home() / ".cache" / "pocketnest" / "arm64"
    assert machine.place({"XDG_CACHE_HOME": "relative"}) == machine.place({})


def test_machines_that_cannot_have_one_are_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(InputError, match=r"Linux on x86_64, and this is .* on riscv64; work there"):
        machine.set_up(print, tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no apt-get; it comes with Debian's package apt"):
        machine.set_up(print, tmp_path)


def test_python_is_started_by_the_emulator_s_own_loader() -> None:
    made = Machine(folder=Path("/cache/it"), made_of=packages.pinned())
    command = made.command("cortex-a76", ["child.py"], ["-plugin", "x.so"])
    assert command[0] == "/cache/it/qemu/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    assert command[command.index("-cpu") + 1] == "cortex-a76"
    assert command[-4:] == ["-plugin", "x.so", "/cache/it/root/usr/bin/python3.11", "child.py"]
    assert made.environment()["PYTHONPATH"] == "/cache/it/site"
    assert "PATH" not in made.environment()
    assert made.emulator == "QEMU 7.2"
