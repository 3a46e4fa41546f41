"""What a page of the documentation assumes: a folder with photos, and the commands on the path.

The commands of the pages are the real command line, with overrides that make the network tiny
(`settings_for`). They are forked from one process that has everything imported (as in
tests.soak), which saves seconds of each:

    python -m tests.making.documented SOCKET
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.making import ROOT
from tests.making.cli import environment
from tests.making.recipes import settings

DOCS = ROOT / "docs"
SHAPE = "model={name: resnest14, width_multiplier: 0.25, layers: [1, 1, 1, 1], input_size: 32}"
TINY = (
    SHAPE,
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


_CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = {{"name": {name!r}, "arguments": sys.argv[1:], "folder": os.getcwd()}}
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    sys.exit(int(server.recv(16) or 70))
"""


@contextmanager
def workplaces(folder: Path, count: int) -> Iterator[list[Path]]:
    """Folders as the pages assume them, and a path on which their programs are the shims.

    Yields the folders to run in; `run_in` runs commands there.
    """
    programs = folder / "bin"
    programs.mkdir()
    places = [folder / f"work-{number}" for number in range(count)]
    for place in places:
        place.mkdir()
        shutil.copytree(ROOT / "recipes", place / "recipes")
        _photos(place)
    address = str(folder / "socket")
    for name in ("pocketnest", "python3", "python"):
        client = programs / f".{name}.py"
        client.write_text(_CLIENT.format(address=address, name=name))
        shim = programs / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{client}" "$@"\n')
        shim.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.making.documented", address],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "ready\n"
        for place in places:
            shutil.copy(folder / "resnest50.pth", place)
        yield places
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


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
        timeout=300,
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


def _weights(file: Path) -> None:
    """Weights of a tiny network of two classes, as a training elsewhere would have saved them."""
    import torch

    from pipeline.networks.resnest.build import build
    from pipeline.recipe.model import ModelConfig

    torch.manual_seed(0)
    model = ModelConfig(name="resnest14", width_multiplier=0.25, input_size=32, layers=(1, 1, 1, 1))
    torch.save(build(model, len(CLASSES)).state_dict(), file)


def _serve(address: str) -> None:
    """Run commands, each in a process forked from this one."""
    from tests.soak.sandbox import warm

    warm()
    _weights(Path(address).parent / "resnest50.pth")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            with client:
                message, files, _, _ = socket.recv_fds(client, 2**20, 3)
                if os.fork() == 0:
                    _be(json.loads(message), files, client)
                for file in files:
                    os.close(file)
            with suppress(ChildProcessError):  # those that have ended
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _be(request: dict[str, object], files: Sequence[int], client: socket.socket) -> None:
    """Be a command, with the streams of the one who asked for it, and tell its exit code."""
    from tests.soak.sandbox import command_line

    code = 70
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        name, folder = str(request["name"]), str(request["folder"])
        given = [str(argument) for argument in list(request["arguments"])]  # type: ignore[call-overload]
        os.chdir(folder)
        if name == "python":
            exec(compile(sys.stdin.read(), "page", "exec"), {"__name__": "__main__"})
            code = 0
        elif (arguments := real_command(name, given, Path(folder))) is None:
            print(f"{name} {' '.join(given)}: no command of the documentation", file=sys.stderr)
            code = UNKNOWN
        else:
            code = command_line(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        client.sendall(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
