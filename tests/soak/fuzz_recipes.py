"""Recipes that nobody should write, given to `check`, `inspect` and `run --explain`.

python -m tests.soak.fuzz_recipes --count 20000 --seed 1
"""

from __future__ import annotations

import os
import random
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.making import ROOT
from tests.soak import driver, sandbox
from tests.soak.driver import Found, Kind, Share
from tests.soak.mutate import TEXTS, damaged, hostile_value
from tests.soak.sandbox import Case, Place

_MODULE = "tests.soak.fuzz_recipes"
_WORK = Path("artifacts/soak/fuzz_recipes")
_FILE = "fuzzed.yaml"
_WORDS = (
    *(".nan", ".inf", "-.inf", "1e400", "0x" + "f" * 50, "9" * 120, "0o17", "1_000", "1:30"),
    *("2026-01-01", "~", "yes", "off", "=", "<<", "!!python/object:os.system", "!!python/name:os"),
    *("!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!local x", "&a [*a]", "*missing", "? [a]: b"),
    *("|", ">-", "'", '"', "[", "{", "]", "}", ": :", "- - -", "\t", "%YAML 1.1", "---", "..."),
    *('"\\ud800"', '"\\0"', '"\\Uffffffff"', '"\\x1b[2J"', "!!float nan", "!!int x", "!!null x"),
)


@cache
def shipped() -> tuple[str, ...]:
    """The text of every recipe of the project, its bases beside it by absolute path."""
    files = [
        *(ROOT / "recipes" / "resnest50").rglob("*.yaml"),
        *(ROOT / "recipes/bench").glob("*.yaml"),
    ]
    found = []
    for file in sorted(files):
        text = file.read_text(encoding="utf-8")
        found.append(
            re.sub(
                r"(?m)^extends: (.*)$",
                lambda match, at=file.parent: f"extends: {(at / match[1]).resolve()}",
                text,
            )
        )
    return tuple(found)


@cache
def whole() -> str:
    """A recipe of its own, every key written out."""
    from pipeline.recipe.recipe import load_recipes, resolved_yaml

    (recipe,) = load_recipes([ROOT / "recipes/resnest50/linux-arm-onnxruntime-int8.yaml"])
    return resolved_yaml(recipe)


def some_text(rng: random.Random) -> str:
    """A valid recipe."""
    return rng.choice((whole(), rng.choice(shipped())))


def check(rng: random.Random, place: Place, content: bytes, *more: str) -> Case:
    """`check` of one recipe with this content; now and then another command."""
    path = place.given / _FILE
    if not os.path.lexists(path):
        path.write_bytes(content)
    return _command(rng, place, str(path), *more)


def _command(rng: random.Random, place: Place, path: str, *more: str) -> Case:
    names = (os.path.basename(os.path.normpath(path)), "--set", *_KEYS)
    chance = rng.random() + place.quick
    if chance < 0.03:
        return Case(argv=["inspect", path, *more], names=names)
    if chance < 0.08:
        return Case(argv=["run", path, "--explain", "--out", str(place.out), *more], names=names)
    return Case(argv=["check", path, *more], names=names)


_KEYS = ("model: ", "model.", "data.")
"""What is found out only when the data is there is named by its key."""


def _bytes(rng: random.Random, place: Place) -> Case:
    content = some_text(rng).encode()
    content = (
        rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"")) * (rng.random() < 0.1) + content
    )
    return check(rng, place, damaged(content, rng))


def _lines(rng: random.Random, place: Place) -> Case:
    lines = some_text(rng).split("\n")
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(lines))
        does = rng.randrange(7)
        if does == 0:
            lines[at : at + 1] = []
            lines = lines or [""]
        elif does == 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif does == 2:
            lines[at] = " " * rng.randrange(9) + lines[at].lstrip()
        else:
            key = lines[at].split(":")[0]
            value = rng.choice((rng.choice(_WORDS), _written(hostile_value(rng))))
            lines[at] = f"{key}: {value}"
    return check(rng, place, "\n".join(lines).encode("utf-8", "surrogatepass"))


def _written(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).strip().removesuffix("...")


def _tree(rng: random.Random, place: Place) -> Case:
    tree = yaml.safe_load(whole())
    for _ in range(rng.choice((1, 1, 1, 2, 6))):
        at: Any = tree
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.8:
                at = at[key]
                continue
            at[key] = rng.choice((hostile_value(rng), _likely(rng, key)))
            break
        if isinstance(at, dict) and rng.random() < 0.2:
            at[rng.choice((*TEXTS, "extends", "name", "prune", "kind"))] = hostile_value(rng)
    return check(rng, place, yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5).encode())


def _likely(rng: random.Random, key: object) -> Any:
    """A value that could be meant, at the edge of what is allowed or far above it."""
    numbers = (0, 1, 2, 3, 32, 64, 1000, 1024, 10**5, 10**9, 0.5, 1.0, 1e-9, -0.0, 1e30)
    texts = ("resnest269", "resnest50_fast_4s1x64d", "basic", "float", "tflite", "coreml", "30 ms")
    return rng.choice((*numbers, *texts, [1, 1, 1, 1], [1000] * 4, [32] * 1000, str(key), True))


def _odd_yaml(rng: random.Random, place: Place) -> Case:
    depth = rng.choice((3, 30, 300, 30_000))
    levels = "\n".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else '1'}]"
        for i in range(rng.choice((4, 9)))
    )
    content = rng.choice(
        (
            "[" * depth,
            "{a: " * depth,
            "a:\n" + "".join(f"{' ' * i}- \n" for i in range(min(depth, 1000))),
            "- " * depth,
            "&a [*a]",
            "a: &a {b: *a}",
            levels,
            f"{whole()}\n{levels}",
            "a: 1\n" * depth,
            "\n".join(f"k{i}: {i}" for i in range(depth)),
            f"# {'x' * 2**20}\n{whole()}",
            f"{whole()}\n<<: {{name: x}}\n",
            f"{whole()}\n---\n{whole()}",
            f"%YAML 9.9\n---\n{whole()}",
            f"%TAG ! tag:evil,2026:\n---\n{whole()}",
            f"description: {'x' * rng.choice((100, 10**5, 10**6))}\n{whole()}",
            whole().replace("\n", rng.choice(("\r", "\r\n", "\x85", "\u2028"))),
            f"? {rng.choice(_WORDS)}\n: {rng.choice(_WORDS)}\n{whole()}",
            f"{rng.choice(_WORDS)}: {rng.choice(_WORDS)}",
            rng.choice(_WORDS),
            f"model: {rng.choice(_WORDS)} {rng.choice(_WORDS)}\n{whole()}",
            whole().replace("name:", f"name: &n {rng.choice(_WORDS)}\nq:", 1),
        )
    )
    return check(rng, place, content.encode("utf-8", "surrogatepass"))


def _extends(rng: random.Random, place: Place) -> Case:
    given, path = place.given, place.given / _FILE
    (given / "base.yaml").write_text(whole())
    target = rng.choice(
        (
            "base.yaml",
            "./base.yaml",
            "../given/base.yaml",
            str(given / "base.yaml"),
            _FILE,
            "b.yaml",
            "folder",
            "pipe",
            "link",
            "loop",
            "large",
            "device",
            "missing.yaml",
            "",
            ".",
            "..",
            "/",
            "~/x",
            "/dev/zero",
            "/dev/stdin",
            "/proc/self/mem",
            "/proc/self/environ",
            "/etc/shadow",
            "base.yaml/x",
            "/dev/fd/0",
            "a" * 300,
            "a/" * 3000,
            rng.choice(TEXTS),
            "chain0.yaml",
        )
    )
    (given / "b.yaml").write_text(f"extends: {rng.choice((_FILE, 'b.yaml', 'base.yaml'))}\n")
    (given / "folder").mkdir()
    os.mkfifo(given / "pipe")
    (given / "link").symlink_to(rng.choice(("base.yaml", "../canary/file", "missing", "pipe")))
    (given / "loop").symlink_to("loop")
    (given / "device").symlink_to(rng.choice(("/dev/zero", "/dev/urandom", "/dev/full")))
    with (given / "large").open("wb") as file:
        file.truncate(6 * 2**30)
    if target == "chain0.yaml":
        for i in range(300):
            (given / f"chain{i}.yaml").write_text(f"extends: chain{i + 1}.yaml\n")
        (given / "chain300.yaml").write_text(whole())
    if rng.random() < 0.2:
        try:
            path.symlink_to(target or "loop")
        except (OSError, ValueError):  # no name, or one that is too long
            path.symlink_to("loop")
        return _command(rng, place, str(path))
    if rng.random() < 0.1 and target and "\0" not in target:
        return _command(rng, place, target)
    quoted = _written(target)
    text = f"extends: {rng.choice((quoted, quoted, f'[{quoted}]', 'null', '{a: b}', '3'))}\n"
    return check(rng, place, text.encode("utf-8", "surrogatepass"))


def _names(rng: random.Random, place: Place) -> Case:
    text = rng.choice((*TEXTS, "../x", "a/../b", "a..b", "A", "a.", "con", "a" * 101, "combined"))
    if rng.random() < 0.5:
        content = re.sub(
            r"(?m)^name: .*$", lambda match: f"name: {_written(text)}", whole(), count=1
        )
        return check(rng, place, content.encode("utf-8", "surrogatepass"))
    name = text.replace("/", "_").replace("\0", "0").encode("utf-8", "surrogatepass")[:250]
    path = place.given / os.fsdecode(name or b"_")
    if path.is_dir():
        path = place.given / "_"
    content = re.sub(r"(?m)^name: .*\n", "", whole(), count=1)
    path.write_text(content)
    argument = rng.choice((str(path), text)) or "_"
    return _command(rng, place, argument)


def _set(rng: random.Random, place: Place) -> Case:
    keys = [".".join(part) for part in _paths(yaml.safe_load(whole()))]
    settings: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        key = rng.choice((*keys, *keys, *TEXTS, "extends", "a.b.c", ".", "a.", "a..b", "." * 3000))
        word = rng.choice((rng.choice(_WORDS), _written(hostile_value(rng)), rng.choice(TEXTS)))
        setting = rng.choice((f"{key}={word}", f"{key}={word}", f"{key}={word}", key, f"={word}"))
        settings += ["--set", setting.replace("\0", "")]
    settings = [
        part if not part.startswith("-") or part == "--set" else f"={part}" for part in settings
    ]
    (place.given / _FILE).write_text(whole())
    return check(rng, place, b"", *settings)


def _paths(tree: Any) -> Any:
    for key, value in tree.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *rest) for rest in _paths(value))


def _networks(rng: random.Random, place: Place) -> Case:
    """Networks of any shape that the types allow, which must be refused or shown in time."""
    pick = rng.choice
    model = {
        "name": pick(("resnest14", "resnest26", "resnest50", "resnest269", "resnest50_basic")),
        "input_size": pick((32, 64, 224, 1024)),
        "layers": pick(
            (None, [1, 1, 1, 1], [1000] * 4, [rng.randrange(1, 1001) for _ in range(4)])
        ),
        "radix": pick((None, 1, 2, 4)),
        "cardinality": pick((None, 1, 2, 4)),
        "base_width": pick((None, 1, 3, 64, 1024)),
        "stem": pick((None, "deep", "small")),
        "stem_width": pick((None, 1, 7, 32, 1024)),
        "width_multiplier": pick((0.001, 0.25, 1.0, 1.7, 2.0)),
    }
    tree = yaml.safe_load(whole()) | {"model": {k: v for k, v in model.items() if v is not None}}
    tree["data"] = {"kind": "digits", **pick(({}, {"tile": 32}, {"calibration_images": 1000}))}
    path = place.given / _FILE
    path.write_text(yaml.safe_dump(tree))
    if rng.random() < 0.7:
        return Case(argv=["inspect", str(path)], names=(_FILE, *_KEYS))
    return Case(
        argv=["run", str(path), "--explain", "--out", str(place.out)], names=(_FILE, *_KEYS)
    )


KINDS = {
    "bytes": Kind(make=_bytes, share=20),
    "lines": Kind(make=_lines, share=25),
    "tree": Kind(make=_tree, share=25),
    "yaml": Kind(make=_odd_yaml, share=8),
    "extends": Kind(make=_extends, share=8),
    "names": Kind(make=_names, share=5),
    "set": Kind(make=_set, share=8),
    "networks": Kind(make=_networks, share=1, quick=False),
}


def prepare(work: Path, quick: bool) -> None:
    """Nothing is shared between these cases."""


def warm(quick: bool) -> None:
    """Import what the commands need; `check` needs no torch."""
    if quick:
        import pipeline.commands.run.table  # noqa: F401

        whole(), shipped()
    else:
        sandbox.warm()


def run(
    count: int, seed: int, workers: int = 2, work: Path = _WORK, *, quick: bool = False
) -> Found:
    """Fuzz `count` recipes; `work` keeps the outcomes, so that a second call goes on."""
    share = Share(module=_MODULE, count=count, seed=seed, quick=quick)
    return driver.run(share, workers, work.absolute())


if __name__ == "__main__":
    sys.exit(driver.command_line(_MODULE))
