"""What a page of the documentation assumes: a folder with photos, and the commands on the path.

The commands of the pages are the real command line, with overrides that make the network tiny
(`settings_for`), run by `tests.making.server`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.making import HOUR, ROOT, server
from tests.making.cli import environment, main
from tests.making.recipes import PLAIN_MODEL, settings

DOCS = ROOT / "docs"
TINY = (
    PLAIN_MODEL,
    "threads=1",
    "train.epochs=2",
    "train.batch_size=64",
    "train.warmup_epochs=0",
    "train.augment=null",
    "prune.round_to=8",
    "prune.finetune.epochs=1",
    "qat.train.epochs=1",
    "measure.rounds=2",
    "measure.warmup=1",
    "guard.accuracy_drop_pt=null",
    "budgets=null",
)
"""A run of seconds; its files answer as their programs, whatever they have learned."""
DIGITS = (*TINY, "data.calibration_images=32", "data.test_images=64")
PHOTOS = (*TINY, "data.calibration_images=8", "target.format=onnx")
"""Of photos one ONNX file is enough: the digits make the others, which take longer."""

CLASSES = ("cat", "dog")
UNKNOWN = 97
"""Exit code of a command that the documentation may not use."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: path from the top of the repository.
        line: of its fence.
        language: such as `sh`.
        text: inside.
    """

    page: str
    line: int
    language: str
    text: str


def pages() -> list[Path]:
    """The pages in the order of the navigation, those of no entry and the README last."""
    order = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    found = sorted(DOCS.rglob("*.md"))
    place = {name: number for number, name in enumerate(order)}
    found.sort(key=lambda page: place.get(page.relative_to(DOCS).as_posix(), len(place)))
    return [*found, ROOT / "README.md"]


def blocks() -> list[Block]:
    """Every fenced block of every page."""
    found = []
    for page in pages():
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
            if token.type == "fence":
                assert token.map is not None
                found.append(
                    Block(
                        page=page.relative_to(ROOT).as_posix(),
                        line=token.map[0] + 1,
                        language=token.info.strip(),
                        text=token.content,
                    )
                )
    return found


def commands(block: Block) -> list[str]:
    """The commands of a block, comments left out; what `&&` joins are several."""
    lines = block.text.replace("\\\n", " ").splitlines()
    plain = [re.sub(r"(^|\s+)#.*", "", line) for line in lines]
    return [part.strip() for line in plain for part in line.split(" && ") if part.strip()]


def real_command(name: str, given: Sequence[str], folder: Path) -> list[str] | None:
    """The arguments of `pocketnest` that a command stands for; None for one that is not known.

    Args:
        name: of the program, `pocketnest` or `python3`.
        given: its arguments.
        folder: that it runs in.
    """
    arguments = list(given)
    if name == "python3":
        session = ["-m", "nox", "-s", "compress-resnest50"]
        if arguments[:4] != session:
            return None
        arguments = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
        # As the session does.
        if not any(argument.endswith((".yaml", ".yml")) for argument in arguments):
            recipes = sorted((folder / "recipes" / "resnest50").glob("*.yaml"))
            arguments = [str(p) for p in recipes if p.stem != "base"] + arguments
        arguments = ["run", *arguments]
    files = [folder / one for one in arguments[1:] if one.endswith(".yaml")]
    if arguments[:1] in (["run"], ["inspect"], ["baseline"]) and files:
        # Before what the command itself sets, which so has the last word.
        arguments[1:1] = settings(*settings_for(files))
    return arguments


def settings_for(recipes: Sequence[Path]) -> Sequence[str]:
    """The overrides of a call with these recipes."""
    there = [recipe for recipe in recipes if recipe.is_file()]
    photos = any("image_folder" in recipe.read_text(encoding="utf-8") for recipe in there)
    return PHOTOS if photos else DIGITS


def workplaces(folder: Path, count: int) -> list[Path]:
    """Folders as the pages assume them, and a path on which their programs are the shims.

    `run_in` runs commands there.
    """
    programs = folder / "bin"
    programs.mkdir()
    places = [folder / f"work-{number}" for number in range(count)]
    for place in places:
        place.mkdir()
        shutil.copytree(ROOT / "recipes", place / "recipes")
        _photos(place)
    for name in ("pocketnest", "python3", "python"):
        client = programs / f".{name}.py"
        be = f"{__name__}:be_{name}"
        client.write_text(server.CLIENT.format(address=server.address(), be=be))
        shim = programs / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{client}" "$@"\n')
        shim.chmod(0o755)
    made = server.become(
        f"{__name__}:weights", [str(folder / "resnest50.pth")], ROOT, environment()
    )
    assert made.returncode == 0, made.stderr
    for place in places:
        shutil.copy(folder / "resnest50.pth", place)
    return places


def run_in(place: Path, command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does, in a folder of `workplaces`."""
    path = os.pathsep.join([str(place.parent / "bin"), os.environ.get("PATH", "")])
    return subprocess.run(
        ["bash", "-c", command],
        cwd=place,
        env=environment() | {"PATH": path},
        input=given,
        capture_output=True,
        text=True,
        timeout=HOUR,
    )


def _photos(place: Path) -> None:
    """Photos of two classes that differ in colour, and the weights of a tiny network for them."""
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(0)

    def photo(file: Path, warm: bool) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        colour = np.array([170, 110, 80] if warm else [80, 110, 170]) + dice.integers(-40, 40, 3)
        pixels = colour + dice.normal(0, 40, (40, 48, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)

    for number, name in enumerate(CLASSES):
        for folder, count in (("train", 24), ("test", 8), ("test-night", 8)):
            for index in range(count):
                photo(place / "photos" / folder / name / f"{index}.png", number == 0)
    photo(place / "photo.jpg", True)


def weights(arguments: list[str]) -> int:
    """Save weights of a tiny network of two classes, as a training elsewhere would have."""
    import torch

    from tests.making.plain_net import plain

    torch.manual_seed(0)
    torch.save(plain(len(CLASSES)).state_dict(), arguments[0])
    return 0


def be_python(arguments: list[str]) -> int:
    """Be `python`, which runs what is on its standard input."""
    exec(compile(sys.stdin.read(), "page", "exec"), {"__name__": "__main__"})
    return 0


def be_pocketnest(arguments: list[str]) -> int:
    """Be `pocketnest`."""
    return _be("pocketnest", arguments)


def be_python3(arguments: list[str]) -> int:
    """Be `python3`, which runs sessions of nox."""
    return _be("python3", arguments)


def _be(name: str, given: list[str]) -> int:
    arguments = real_command(name, given, Path.cwd())
    if arguments is None:
        print(f"{name} {' '.join(given)}: no command of the documentation", file=sys.stderr)
        return UNKNOWN
    return main(arguments)
