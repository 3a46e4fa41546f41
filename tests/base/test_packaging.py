"""What an installation holds: every module of `pipeline`, and the files that they read."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.making import ROOT

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_with_modules_is_a_package() -> None:
    """Others are not found: an installation that is not editable would lack their modules."""
    assert SETUPTOOLS["packages"]["find"]["include"] == ["pipeline", "pipeline.*"]
    folders = {module.parent for module in (ROOT / "pipeline").rglob("*.py")}
    assert len(folders) > 10
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_file_that_is_no_module_is_package_data() -> None:
    named: set[Path] = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        for pattern in patterns:
            found = {path for path in folder.glob(pattern) if path.is_file()}
            assert found, f"{package}: {pattern}"
            named |= found
    files = {path for path in (ROOT / "pipeline").rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix not in {".py", ".pyc"}}
    assert others == named
