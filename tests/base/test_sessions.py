"""The sessions of nox: which Python they take, where its environment lies; what is quick."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.making import ROOT


class Ended(Exception):
    """What a session raises at its error."""


@pytest.fixture
def noxfile(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The noxfile, without nox, which is no part of the environment."""

    def session(function: Any = None, **_: object) -> Any:
        return function or (lambda decorated: decorated)

    stand_in = SimpleNamespace(session=session, options=SimpleNamespace(), Session=object)
    monkeypatch.setitem(sys.modules, "nox", stand_in)
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_python(file: Path, version: str, code: int = 0) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\necho {version}\nexit {code}\n")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def elsewhere(noxfile: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine where nox runs on Python 3.13 and no other Python is found."""
    (tmp_path / "path").mkdir()
    own = fake_python(tmp_path / "own" / "python", "3.13.0")
    monkeypatch.setattr(sys, "executable", own)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return tmp_path


def test_the_python_that_runs_nox_is_taken(noxfile: ModuleType) -> None:
    found = noxfile.interpreter()
    assert found == (sys.executable, ".".join(map(str, sys.version_info[:3])))


def test_one_on_the_path_is_taken_where_nox_runs_on_another(
    noxfile: ModuleType, elsewhere: Path
) -> None:
    wanted = fake_python(elsewhere / "path" / "python3.12", "3.12.3")
    assert noxfile.interpreter() == (wanted, "3.12.3")


def test_one_of_pyenv_is_taken_where_its_shim_does_not_start(
    noxfile: ModuleType, elsewhere: Path
) -> None:
    fake_python(elsewhere / "path" / "python3.11", "", code=127)
    wanted = fake_python(elsewhere / "pyenv" / "versions" / "3.11.7" / "bin" / "python", "3.11.7")
    assert noxfile.interpreter() == (wanted, "3.11.7")


def test_a_line_says_what_to_do_where_none_is(noxfile: ModuleType, elsewhere: Path) -> None:
    def error(text: str) -> None:
        raise Ended(text)

    with pytest.raises(Ended) as caught:
        noxfile.prepare(SimpleNamespace(error=error))
    (line,) = str(caught.value).splitlines()
    assert "needs Python 3.11 or 3.12" in line
    assert "install one, such as with `pyenv install 3.12`" in line


def test_two_pythons_have_two_environments(noxfile: ModuleType, tmp_path: Path) -> None:
    first = noxfile.environment("3.11.7", tmp_path)
    assert first == tmp_path / "pocketnest"
    first.mkdir()
    (first / "pyvenv.cfg").write_text("home = x\nversion = 3.11.7\n")
    assert noxfile.environment("3.11.9", tmp_path) == first
    assert noxfile.environment("3.12.1", tmp_path) == tmp_path / "pocketnest-3.12"


def test_the_versions_are_those_of_the_package(noxfile: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert tuple(named) == noxfile.PYTHONS
    assert project["requires-python"] == ">=3.11,<3.13"


def test_what_is_marked_slow_is_not_quick(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    mark = "import pytest\npytestmark = pytest.mark.slow\nraise AssertionError('imported')\n"
    (tmp_path / "test_whole.py").write_text(mark)
    tests = "@pytest.mark.slow\ndef test_a(): ...\n@pytest.mark.alone\ndef test_b(): ...\n"
    (tmp_path / "test_part.py").write_text(f"import pytest\n{tests}def test_c(): ...\n")
    ini = "[pytest]\nmarkers =\n  slow: x\n  alone: y\n"
    (tmp_path / "pytest.ini").write_text(ini)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--quick", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "1 passed, 2 deselected" in done.stdout, done.stdout + done.stderr
