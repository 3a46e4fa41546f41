"""The project's sessions. They share one environment a Python, made once: it holds 7.5 GB."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PYTHONS = ("3.11", "3.12")
"""The versions that pyproject.toml allows; the figures of the documentation are of the first."""
RECIPES = ROOT / "recipes" / "resnest50"
AXE = "4.14.1"
ONNXRUNTIME = "0.4.9"
"""Of the npm package com.github.asus4.onnxruntime: library, headers and Android's classes."""
MOST_WORKERS = 4
"""Test processes; each may hold 3 GB."""

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests", "lint", "types"]
# nox gives every session an environment of its own; ours is made by `prepare`.
nox.options.default_venv_backend = "none"


def version_of(python: str) -> str | None:
    """Such as 3.12.1; None of an interpreter that does not start, as pyenv's shims may not."""
    code = "import platform; print(platform.python_version())"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def pythons() -> Iterator[str]:
    """Every interpreter that may do: the one that runs nox, those on the path, those of pyenv."""
    yield sys.executable
    yield from filter(None, (shutil.which(f"python{wanted}") for wanted in PYTHONS))
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for wanted in PYTHONS:
        yield from map(str, sorted(root.glob(f"versions/{wanted}.*/bin/python")))


def interpreter() -> tuple[str, str] | None:
    """The first of `pythons` that is of one of PYTHONS, and its version."""
    for python in pythons():
        version = version_of(python)
        if version is not None and version.rpartition(".")[0] in PYTHONS:
            return python, version
    return None


def environment(version: str, nox_folder: Path = ROOT / ".nox") -> Path:
    """Where a Python's environment is: `pocketnest`, or beside another's `pocketnest-3.12`."""
    folder = nox_folder / "pocketnest"
    minor = version.rpartition(".")[0]
    made_for = folder / "pyvenv.cfg"
    if not made_for.is_file() or f"version = {minor}." in made_for.read_text():
        return folder
    return folder.with_name(f"pocketnest-{minor}")


@functools.cache
def programs() -> Path | None:
    """Folder of the programs of the shared environment; None where no Python fits."""
    found = interpreter()
    if found is None:
        return None
    return environment(found[1]) / ("Scripts" if os.name == "nt" else "bin")


def prepare(session: nox.Session) -> None:
    """Make the shared environment, unless it holds this very pyproject.toml already."""
    found = interpreter()
    if found is None:
        needed = " or ".join(PYTHONS)
        session.error(
            f"PocketNest needs Python {needed}; nox runs on {sys.version.split()[0]} and finds "
            f"neither: install one, such as with `pyenv install {PYTHONS[-1]}`"
        )
    python, version = found
    folder = environment(version)
    content = (ROOT / "pyproject.toml").read_bytes()
    wanted = f"{ROOT} {version} {hashlib.sha256(content).hexdigest()}"
    marker = folder / "installed-for"
    if marker.is_file() and marker.read_text() == wanted:
        return
    session.run(python, "-m", "venv", str(folder), external=True)
    install = ["-m", "pip", "install", "--disable-pip-version-check", "--editable", f"{ROOT}[dev]"]
    run(session, "python", *install)
    marker.write_text(wanted)


def run(
    session: nox.Session,
    program: str,
    *arguments: str,
    variables: dict[str, str] | None = None,
    **options: object,
) -> None:
    """Run a program of the shared environment."""
    folder = programs()
    assert folder is not None, "prepare comes first"
    path = os.pathsep.join([str(folder), os.environ.get("PATH", "")])
    env = {"PATH": path, "VIRTUAL_ENV": str(folder.parent), **(variables or {})}
    session.run(str(folder / program), *arguments, external=True, env=env, **options)


def device_recipes(folder: Path) -> list[str]:
    """Every recipe of a folder but the base they extend."""
    return [str(p.relative_to(ROOT)) for p in sorted(folder.glob("*.yaml")) if p.stem != "base"]


@nox.session(name="compress-resnest50")
def compress_resnest50(session: nox.Session) -> None:
    """Compress a ResNeSt-50 for every device; arguments after -- go to `pocketnest run`."""
    prepare(session)
    arguments = list(session.posargs)
    if not any(a.endswith((".yaml", ".yml")) for a in arguments):
        arguments = device_recipes(RECIPES) + arguments
    run(session, "pocketnest", "run", *arguments)


@nox.session
def compress(session: nox.Session) -> None:
    """Compress networks; after -- come recipes, folders of recipes, options of `pocketnest run`."""
    prepare(session)
    arguments: list[str] = []
    for given in session.posargs:
        arguments += device_recipes(ROOT / given) if (ROOT / given).is_dir() else [given]
    if not arguments:
        folders = sorted({p.parent.name for p in (ROOT / "recipes").glob("*/*.yaml")})
        session.error(f"give a recipe or a folder of them, such as recipes/{folders[-1]}")
    run(session, "pocketnest", "run", *arguments)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, as many at a time as there are cores; arguments after -- go to pytest."""
    prepare(session)
    if session.posargs:
        run(session, "python", "-m", "pytest", *session.posargs)
        return
    together(session, "-m", "not alone and not networks", "tests")
    run(session, "python", "-m", "pytest", "-m", "alone")


@nox.session
def quick(session: nox.Session) -> None:
    """Style, types and the unit tests, for use while writing; arguments after -- go to pytest.

    The rule: a test is quick unless it is marked `slow`, since it trains for long, writes or runs
    real model files, or runs a whole command, or `alone`. The marks stand in the tests; a file
    with `pytestmark = pytest.mark.slow` is not imported (tests/conftest.py).
    """
    prepare(session)
    check_style(session)
    run(session, "mypy")
    together(session, "--quick", *(session.posargs or ["tests"]))


def together(session: nox.Session, *arguments: str) -> None:
    """Run pytest in as many processes as there are cores, with as many threads in all."""
    cores = os.cpu_count() or 1
    workers = min(cores, MOST_WORKERS)
    threads = {"OMP_NUM_THREADS": str(cores // workers)}
    # Files stay whole, since their tests share what they made; tests/conftest.py says their order.
    spread = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    run(session, "python", "-m", "pytest", *spread, *arguments, variables=threads)


@nox.session
def browser(session: nox.Session) -> None:
    """Open the report's page in Chromium: layout, accessibility, no request that leaves."""
    prepare(session)
    chromium = installed(session, "chromium", "chromium", "chromium-browser", "google-chrome")
    variables = {"POCKETNEST_CHROMIUM": chromium, "POCKETNEST_AXE": axe(session)}
    run(session, "python", "-m", "pytest", "tests/browser", *session.posargs, variables=variables)


def installed(session: nox.Session, package: str, *names: str) -> str:
    """Path of a program; Debian's package of it is installed where there is none and we may."""
    for attempt in range(2):
        for name in names:
            if (found := shutil.which(name)) is not None:
                return found
        if attempt == 0 and shutil.which("apt-get") is not None and os.geteuid() == 0:
            session.run("apt-get", "update", "--quiet", external=True)
            session.run("apt-get", "install", "--yes", "--quiet", package, external=True)
    session.error(f"no {names[0]} found; install it, such as with `apt-get install {package}`")


def axe(session: nox.Session) -> str:
    """Path of axe-core, which tells what of a page not everybody can use."""
    return str(npm_package(session, "browser", "axe-core", AXE) / "axe.min.js")


def npm_package(session: nox.Session, name: str, package: str, version: str) -> Path:
    """Folder of an npm package, installed for the session `name` where it is not there."""
    folder = ROOT / ".nox" / name
    found = folder / "node_modules" / package
    if not (found / "package.json").is_file():
        npm = installed(session, "npm", "npm")
        wanted = f"{package}@{version}"
        session.run(npm, "install", "--prefix", str(folder), wanted, external=True)
    return found


@nox.session
def snippets(session: nox.Session) -> None:
    """Compile and run the bundle's Kotlin and C++, against ONNX Runtime itself (150 MB)."""
    prepare(session)
    for package, name in (("g++", "c++"), ("default-jdk-headless", "javac"), ("kotlin", "kotlinc")):
        installed(session, package, name)
    folder = npm_package(session, "snippets", "com.github.asus4.onnxruntime", ONNXRUNTIME)
    library = folder / "Plugins" / "Linux" / "x64" / "libonnxruntime.so"
    # The name that programs linked with it ask for.
    (library.with_name("libonnxruntime.so.1")).unlink(missing_ok=True)
    library.with_name("libonnxruntime.so.1").symlink_to(library.name)
    variables = {"POCKETNEST_ONNXRUNTIME": str(folder)}
    run(session, "python", "-m", "pytest", "tests/snippets", *session.posargs, variables=variables)


@nox.session
def swift(session: nox.Session) -> None:
    """Build and test the bundle's Swift package with Debian's compiler (550 MB fetched; root)."""
    prepare(session)
    if os.geteuid() != 0 or not all(map(shutil.which, ("apt-get", "unshare"))):
        session.error("it takes root, apt and unshare, such as in a container of Debian's")
    root = ROOT / ".nox" / "swift"
    run(session, "python", "-m", "tests.snippets.swift_root", str(root))
    variables = {"POCKETNEST_SWIFT": str(root)}
    chosen = ["tests/snippets/test_swift.py", *session.posargs]
    run(session, "python", "-m", "pytest", *chosen, variables=variables)


@nox.session(name="arm64-setup")
def arm64_setup(session: nox.Session) -> None:
    """Make the emulated ARM64 machine of the lane `arm64`, in the user's cache (70 MB fetched)."""
    prepare(session)
    run(session, "python", "-m", "pipeline.measure.lanes.arm64")


@nox.session
def arm64(session: nox.Session) -> None:
    """Run the main job's files on emulated ARM64 processors; makes those that are not there.

    Arguments after -- go to `pocketnest arm64`. A number that is rounded otherwise there fails
    nothing here: the table names it, and the tests hold every layer to the program.
    """
    prepare(session)
    run(session, "python", "-m", "pipeline.measure.lanes.arm64")
    run(session, "python", "-m", "pytest", "tests/measure/test_arm64_real.py")
    run(session, "pocketnest", "run", *device_recipes(RECIPES), success_codes=[0, 3])
    given = session.posargs or ["artifacts/combined"]
    run(session, "pocketnest", "arm64", *given, success_codes=[0, 3])


ADB = (
    *("adb", "adbd", "android-libbase", "android-libboringssl", "android-libcutils"),
    *("android-liblog", "android-libziparchive", "libprotobuf32", "libusb-1.0-0"),
)
"""Debian's packages of Android's daemon, with the libraries that a server may lack."""
APT = """\
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Acquire::Languages "none";
APT::Update::Post-Invoke "";
APT::Sandbox::User "root";
"""
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"


@nox.session
def device(session: nox.Session) -> None:
    """Measure on "phones" that are Android's own daemon on this machine; needs Debian 12 and root.

    Fetches adb and adbd from Debian's backports (5 MB) and unpacks them below .nox: nothing is
    installed. Arguments after -- go to pytest.
    """
    prepare(session)
    variables = {"POCKETNEST_ADB": str(adb_folder(session)), "POCKETNEST_KILLS": "50"}
    run(session, "python", "-m", "pytest", "tests/device", *session.posargs, variables=variables)


def adb_folder(session: nox.Session) -> Path:
    """Folder with Debian's packages of adb and adbd, unpacked, made where it is not there.

    The suite bookworm alone has no adbd. apt works in a state of its own, so that the machine's
    sources and packages stay as they are.
    """
    folder = ROOT / ".nox" / "device"
    if (folder / "root/usr/lib/android-sdk/platform-tools/adbd").is_file():
        return folder / "root"
    if shutil.which("apt-get") is None or not Path(KEYS).is_file():
        session.error(f"adbd is fetched by Debian's apt-get with the keys {KEYS}: not here")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("state/lists/partial", "cache/archives/partial", "root"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    suites = ("bookworm", "bookworm-backports")
    lines = [f"deb [signed-by={KEYS}] {MIRROR} {suite} main\n" for suite in suites]
    (folder / "sources.list").write_text("".join(lines))
    (folder / "apt.conf").write_text(APT.format(folder=folder))
    env = {"APT_CONFIG": str(folder / "apt.conf")}
    session.run("apt-get", "--quiet", "update", env=env, external=True)
    with session.chdir(folder):
        wanted = ["--target-release", "bookworm-backports", *ADB]
        session.run("apt-get", "--quiet", "download", *wanted, env=env, external=True)
        for package in sorted(folder.glob("*.deb")):
            session.run("dpkg", "-x", str(package), "root", external=True)
            package.unlink()
    return folder / "root"


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and the direction of imports."""
    prepare(session)
    check_style(session)


def check_style(session: nox.Session) -> None:
    """What the sessions `lint` and `quick` check of the style."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of pipeline/, strictly."""
    prepare(session)
    run(session, "mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into .nox/site; a link that leads nowhere fails it."""
    prepare(session)
    quiet = {"NO_MKDOCS_2_WARNING": "1"}  # a word on the next version of mkdocs
    run(session, "mkdocs", "build", "--strict", "--quiet", *session.posargs, variables=quiet)
    session.log("open .nox/site/index.html; its search needs a server, such as")
    session.log("python3 -m http.server --directory .nox/site")


@nox.session
def soak(session: nox.Session) -> None:
    """Faults by the hundred and rubbish by the thousand; arguments after -- go to tests.soak."""
    prepare(session)
    run(session, "python", "-m", "tests.soak", *session.posargs)


@nox.session
def runtimes(session: nox.Session) -> None:
    """Run files in the oldest runtimes that bundles name; installs those below .nox."""
    prepare(session)
    run(session, "python", "-m", "tests.oldest", str(ROOT / ".nox" / "runtimes"))


@nox.session
def networks(session: nox.Session) -> None:
    """Write networks of the literature, and every operation, in every format, untrained.

    Without arguments, also the tests that go over networks of full depth. After -- come some of
    the networks.
    """
    prepare(session)
    run(session, "python", "-m", "tests.networks.table", *session.posargs)
    if not session.posargs:
        run(session, "python", "-m", "tests.networks.operations")
        run(session, "python", "-m", "pytest", "-m", "networks")


@nox.session
def pretrained(session: nox.Session) -> None:
    """Quantize pretrained networks without training, beside other tools' files; takes an hour."""
    prepare(session)
    run(session, "python", "-m", "tests.pretrained", *session.posargs)


@nox.session
def scale(session: nox.Session) -> None:
    """Measure a part where there is much of everything, such as `-- report`; fails a missed bar."""
    prepare(session)
    variables = {}
    if session.posargs[:1] == ["report"]:
        chromium = installed(session, "chromium", "chromium", "chromium-browser", "google-chrome")
        variables = {"POCKETNEST_CHROMIUM": chromium}
    run(session, "python", "-m", "tests.scale", *session.posargs, variables=variables)


@nox.session
def bench(session: nox.Session) -> None:
    """Time 224 x 224 files of a ResNeSt-50 beside torch and other tools' files of the same network.

    Fails where a bar of recipes/bench/bars.yml is missed. Arguments after -- go to `pocketnest
    bench`.
    """
    prepare(session)
    out = "artifacts/bench"
    recipes = device_recipes(ROOT / "recipes" / "bench")
    # A file that rounds otherwise than its program is as fast: it is timed, and marked.
    options = ["--out", out, "--allow-mismatch"]
    run(session, "pocketnest", "run", *recipes, *options, success_codes=[0, 3])
    folders = [f"{out}/{Path(recipe).stem}" for recipe in recipes]
    bars = ["--peers", "--bars", "recipes/bench/bars.yml", "--rounds", "20", "--out", out]
    bars += [option for python in newest_runtimes(session) for option in ("--newer", str(python))]
    run(session, "pocketnest", "bench", *folders, *bars, *session.posargs)


def newest_runtimes(session: nox.Session) -> list[Path]:
    """The Python of an environment for each runtime, with its newest version; offline as it is."""
    found = interpreter()
    assert found is not None, "prepare comes first"
    pythons = []
    for package in ("onnxruntime", "ai-edge-litert"):
        folder = ROOT / ".nox" / "newest" / package
        python = folder / "bin" / "python"
        if not python.is_file():
            session.run(found[0], "-m", "venv", str(folder), external=True)
        pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
        done = subprocess.run([str(python), *pip, package], check=False)
        there = subprocess.run([str(python), "-m", "pip", "show", "--quiet", package], check=False)
        if there.returncode == 0:
            pythons.append(python)
        if done.returncode != 0:
            session.warn(f"{package}: its newest version could not be fetched")
    return pythons
