"""The project's sessions. They share one environment, made once: it holds 7.5 GB."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nox

ROOT = Path(__file__).parent
ENVIRONMENT = ".nox/pocketnest"
RECIPES = ROOT / "recipes" / "resnest50"

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests", "lint", "types"]

# The interpreter that runs nox makes it, so a machine needs no second Python.
SHARED = {"venv_backend": "virtualenv", "venv_location": ENVIRONMENT, "reuse_venv": True}


def prepare(session: nox.Session) -> None:
    """Install the project and its tools, unless this very pyproject.toml is installed already."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    marker = Path(session.virtualenv.location, "pocketnest-installed")
    if marker.exists() and marker.read_text() == f"{ROOT}\n{wanted}":
        return
    session.install("--editable", ".[dev]")
    marker.write_text(f"{ROOT}\n{wanted}")


def device_recipes(folder: Path) -> list[str]:
    """Every recipe of a folder but the base they extend."""
    return [str(p.relative_to(ROOT)) for p in sorted(folder.glob("*.yaml")) if p.stem != "base"]


@nox.session(name="compress-resnest50", **SHARED)
def compress_resnest50(session: nox.Session) -> None:
    """Compress a ResNeSt-50 for every device; arguments after -- go to `pocketnest run`."""
    prepare(session)
    arguments = list(session.posargs)
    if not any(a.endswith((".yaml", ".yml")) for a in arguments):
        arguments = device_recipes(RECIPES) + arguments
    session.run("pocketnest", "run", *arguments)


@nox.session(**SHARED)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after -- go to pytest."""
    prepare(session)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(**SHARED)
def lint(session: nox.Session) -> None:
    """Style, formatting and the direction of imports."""
    prepare(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-cache")


@nox.session(**SHARED)
def types(session: nox.Session) -> None:
    """Check the types of pipeline/, strictly."""
    prepare(session)
    session.run("mypy")


@nox.session(**SHARED)
def bench(session: nox.Session) -> None:
    """Time 224 x 224 files of a ResNeSt-50 beside the float model, one and two threads."""
    prepare(session)
    out = "artifacts/bench"
    folder = ROOT / "recipes" / "bench"
    session.run("pocketnest", "run", *device_recipes(folder), "--out", out, success_codes=[0, 3])
    for recipe in device_recipes(folder):
        session.run("pocketnest", "bench", f"{out}/{Path(recipe).stem}", *session.posargs)
