"""The documentation is true: its commands run, its messages exist, its links lead somewhere."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.__main__ import parser as whole_parser
from pipeline.recipe.recipe import load_recipes
from tests.making import ROOT
from tests.making.cli import environment
from tests.making.documented import (
    DOCS,
    UNKNOWN,
    Block,
    blocks,
    commands,
    pages,
    real_command,
    run_in,
    workplaces,
)
from tests.making.recipes import DEVICE_RECIPES

pytestmark = pytest.mark.slow

BLOCKS = blocks()
COMMANDS = [
    (f"{block.page}:{block.line}", command)
    for block in BLOCKS
    if block.language == "sh"
    for command in commands(block)
]
NOT_RUN = {
    "python3 -m pip install nox": "installs a package",
    "python3 -m nox -s tests": "these tests would run themselves; an hour",
}
"""Commands of the pages that no test can run, and why."""

OWN = "my-phone"
"""What a command on one's own network names."""
LANGUAGES = {"sh", "yaml", "python", "text"}
TEXT = {page: page.read_text(encoding="utf-8") for page in pages()}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return workplaces(tmp_path_factory.mktemp("docs"), 2)


@pytest.fixture(scope="module")
def work(places: list[Path]) -> Path:
    """Where all commands run but those on one's own network."""
    return places[0]


@pytest.fixture(scope="module")
def ran(places: list[Path]) -> list[str]:
    """Every command, run in the order of the pages; those that failed, with what they said.

    Those on one's own network need no other, and are run beside them.
    """
    run = [(where, command) for where, command in COMMANDS if command not in NOT_RUN]
    with ThreadPoolExecutor() as pool:
        others = pool.submit(failures, [one for one in run if OWN not in one[1]], places[0])
        return failures([one for one in run if OWN in one[1]], places[1]) + others.result()


def failures(run: list[tuple[str, str]], place: Path) -> list[str]:
    found = []
    for where, command in run:
        done = run_in(place, f"set -o pipefail; {command}")
        if done.returncode != 0:
            said = f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
            found.append(f"{where}: {command}\nexit {done.returncode}\n{said}")
    return found


def test_every_command_runs(ran: list[str]) -> None:
    assert not ran, "\n\n".join(ran)


def test_the_commands_leave_what_the_pages_say(places: list[Path], ran: list[str]) -> None:
    """The table of quick-start.md, and the file that own-network.md makes."""
    (table,) = re.findall(
        r"## What lies in `artifacts/`\n(.*?)\n## ", text_of("quick-start.md"), re.S
    )
    named = re.findall(r"^\| `([^`]*)`", table, re.M)
    assert len(named) >= 9
    for name in named:
        assert (places[0] / "artifacts" / name).exists(), name
    assert (places[0] / "layers.csv").is_file()
    assert (places[1] / "artifacts" / "my-phone" / "report.html").is_file()


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: f"{b.page}:{b.line}"
)
def test_programs_of_the_pages_run(work: Path, ran: list[str], block: Block) -> None:
    done = run_in(work, "python", block.text)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command", ["pocketnest shrink", "pocketnest run --fast x.yaml", "python3 -m nox -s fly", "fly"]
)
def test_a_command_that_is_none_fails(work: Path, command: str) -> None:
    assert run_in(work, command).returncode in {2, UNKNOWN, 127}


def test_the_shims_run_what_the_sessions_run() -> None:
    nox = ["-m", "nox", "-s", "compress-resnest50"]
    every = real_command("python3", nox, ROOT)
    assert every is not None
    assert [one for one in every if one.endswith(".yaml")] == sorted(
        map(str, DEVICE_RECIPES.values())
    )
    assert real_command("python3", ["-m", "pip", "install", "x"], ROOT) is None
    assert real_command("pocketnest", ["verify", "artifacts"], ROOT) == ["verify", "artifacts"]


def test_what_is_not_run_is_in_the_pages_and_exists() -> None:
    written = {command for _, command in COMMANDS}
    sessions = re.findall(
        r'@nox\.session(?:\(name="([\w-]+)"\))?\ndef (\w+)', (ROOT / "noxfile.py").read_text()
    )
    names = {name or function for name, function in sessions}
    assert "compress-resnest50" in names
    for command, why in NOT_RUN.items():
        assert command in written, command
        assert why
        if " nox -s " in command:
            assert set(command.partition(" nox -s ")[2].split()) <= names


def test_blocks_are_of_kinds_that_are_tested() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES
    assert len(COMMANDS) > 25


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda b: f"{b.page}:{b.line}"
)
def test_recipes_of_the_pages_load(tmp_path: Path, block: Block) -> None:
    """A part of a recipe, one that names no target, changes a shipped one."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    text = block.text
    if "extends:" not in text and "target:" not in text:
        text = f"extends: {DEVICE_RECIPES['tflite']}\n{text}"
    file = tmp_path / "page.yaml"
    file.write_text(text)
    load_recipes([file])


def parsers() -> dict[str, argparse.ArgumentParser]:
    (found,) = [a for a in whole_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found.choices)


def test_every_command_and_option_of_the_program_is_documented() -> None:
    whole = "\n".join(TEXT.values())
    for name, parser in parsers().items():
        assert f"pocketnest {name}" in whole, name
        for action in parser._actions:
            for option in action.option_strings[-1:]:
                assert option == "--help" or option in whole, f"{name} {option}"


def test_no_option_is_documented_that_does_not_exist() -> None:
    options = {
        option
        for parser in (whole_parser(), *parsers().values())
        for action in parser._actions
        for option in action.option_strings
    }
    of_others = {"--check", "--golden", "--patch-from"}  # sha256sum, a bundle's code, zstd
    for page, text in TEXT.items():
        if page.name == "measurements.md":  # other tools are measured there
            continue
        for span in re.findall(r"`([^`\n]*)`", text):
            found = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", span))
            assert found <= options | of_others, f"{page.name}: {span}"


def text_of(name: str) -> str:
    return TEXT[DOCS / name]


def constants() -> str:
    """All text of the code, strings that are written over several lines in one piece."""
    found = []
    for file in [*(ROOT / "pipeline").rglob("*.py"), ROOT / "noxfile.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_is_one_of_the_code() -> None:
    """Each part between the dots of a message stands in a text of the program."""
    code = constants()
    lines = [
        line
        for block in BLOCKS
        if block.language == "text" and block.page.endswith("troubleshooting.md")
        for line in block.text.splitlines()
    ]
    assert len(lines) >= 40
    parts = [(part.strip(" ;,.:"), line) for line in lines for part in line.split("…")]
    assert not [f"{part!r} of {line!r}" for part, line in parts if part not in code]


def test_symptoms_are_many() -> None:
    assert len(re.findall(r"^### ", text_of("troubleshooting.md"), re.M)) >= 20


def test_links_between_files_lead_somewhere() -> None:
    """Those of README.md, which is no page of the site, and of the pages."""
    for page, text in TEXT.items():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """`--strict` refuses links and anchors that lead nowhere, and pages outside the navigation."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    done = subprocess.run(
        [*command, tmp_path / "site"],
        cwd=ROOT,
        env=environment() | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = sorted((tmp_path / "site").rglob("*.html"))
    assert len(built) >= len(TEXT) - 1
    for page in built:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\s\">]+)", text)
        links = re.findall(r"<link\b[^>]*>", text)
        loaded += [
            re.findall(r"href=\"?([^\s\">]+)", link)[0] for link in links if "canonical" not in link
        ]
        assert loaded
        assert not [place for place in loaded if place.startswith(("http:", "https:", "//"))], page
        assert "fonts.googleapis" not in text


def test_commands_of_the_shell_are_split_as_shells_do() -> None:
    block = Block(page="x", line=1, language="sh", text="a 1  # d\n\n# e\na \\\n  b && c\n")
    assert commands(block) == ["a 1", "a    b", "c"]
    assert all(shlex.split(command) for _, command in COMMANDS)
