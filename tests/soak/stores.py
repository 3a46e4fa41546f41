"""Stores: results, states of trainings, locks and manifests that are not what was written."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

from pipeline.base.checksums import MANIFEST, seal
from tests.soak import base, runs
from tests.soak.checkpoints import _Hostile, packed
from tests.soak.mutate import changed_tree, damaged, replace_by_oddity, rubbish, spoil
from tests.soak.sandbox import Case, Place


def _command(rng: random.Random, place: Place, until: str = "prune") -> Case:
    recipe = str(base.recipe(place.base, "onnx"))
    out = str(place.out)
    commands = (
        *(["run", recipe, "--out", out, "--until", until],) * 3,
        ["run", recipe, "--out", out, "--explain"],
        ["verify", str(base.run_of(place.out, "onnx"))],
        ["gc", out],
        ["gc", out, "--dry-run"],
    )
    return Case(argv=rng.choice(commands), names=(place.out.name, ".store"))


def _change(file: Path, rng: random.Random) -> None:
    spoil(file, rng, wholly=0.1)


def result(rng: random.Random, place: Place) -> Case:
    """A file of a stage's result; half of the times sealed again."""
    store = runs.copied(place) / ".store"
    files = [
        p for p in store.glob("[a-z]*/*") if p.is_file() and not p.parent.name.startswith("images")
    ]
    soon = [p for p in files if p.parent.name.split("-")[0] in ("train", "baseline", "prune")]
    file = rng.choice(sorted(rng.choice((files, soon, soon))))
    _change(file, rng)
    if file.name != MANIFEST and rng.random() < 0.5:
        seal(file.parent)
    return _command(rng, place)


def partial(rng: random.Random, place: Place) -> Case:
    """The states of a stopped training, taken up again."""
    shutil.copytree(place.base / "stopped", place.out, dirs_exist_ok=True)
    states = sorted((place.out / ".store" / ".partial").rglob("state.pt"))
    file = rng.choice(states)
    chance = rng.random()
    if chance < 0.2:
        evil = _Hostile(place.canary, rng.randrange(7))
        file.write_bytes(packed({"model": evil}, rng.choice(("zip", "legacy"))))
    elif chance < 0.35:
        file.write_bytes(packed(_other_state(file, rng), "zip"))
    elif chance < 0.5:
        path = rng.choice((file, *list(file.parents)[:4], file.with_name(MANIFEST)))
        replace_by_oddity(path, place.canary, rng)
    else:
        _change(rng.choice((file, file, file.with_name(MANIFEST))), rng)
    whole = file.is_file() and not file.parent.is_symlink()
    # Nothing can be written where the manifest has become a pipe or a link that leads nowhere.
    manifest = file.with_name(MANIFEST)
    writable = manifest.is_file() or not os.path.lexists(manifest)
    if whole and writable and not manifest.is_symlink() and rng.random() < 0.6:
        seal(file.parent)
    recipe = str(base.recipe(place.base, "onnx"))
    argv = ["run", recipe, "--out", str(place.out), "--until", "train"]
    argv = rng.choice((argv, argv, argv, ["gc", str(place.out)]))
    return Case(argv=argv, names=(place.out.name, ".store"))


def _other_state(file: Path, rng: random.Random) -> object:
    """A state that can be read, and is of another training."""
    import torch

    state = torch.load(file, weights_only=True)
    keys = list(state)
    key = rng.choice(keys)
    state[key] = rng.choice(
        (None, -1, 10**12, "x", [], {}, torch.zeros(3), state[rng.choice(keys)])
    )
    if rng.random() < 0.2:
        del state[key]
    return state


def lock(rng: random.Random, place: Place) -> Case:
    """A file that says who makes what."""
    from dataclasses import asdict

    from pipeline.base.locks import this_process

    out = runs.copied(place)
    stage = next((out / ".store").glob(f"{rng.choice(('train', 'prune'))}-*"))
    locks = out / ".store" / ".locks"
    locks.mkdir(exist_ok=True)
    file = locks / f"{rng.choice((stage.name, 'publish-onnx'))}.json"
    owner = asdict(this_process()) | {"host": "gone", "pid": 2**22 + 5}
    does = rng.randrange(5)
    if does == 0:
        file.write_bytes(damaged(json.dumps(owner).encode(), rng))
    elif does == 1:
        file.write_bytes(json.dumps(changed_tree(owner, rng)).encode())
    elif does == 2:
        file.write_bytes(rubbish(rng))
    else:
        file.write_text(json.dumps(owner))
        replace_by_oddity(rng.choice((file, locks)), place.canary, rng)
    shutil.rmtree(stage)
    return _command(rng, place, until=stage.name.split("-")[0])


def odd_place(rng: random.Random, place: Place) -> Case:
    """Something else where the store, or an output folder, has a file or a folder."""
    out = runs.copied(place)
    store = out / ".store"
    stage = rng.choice(sorted(store.glob("[a-z]*-*")))
    soon = next(store.glob(f"{rng.choice(('train', 'baseline', 'prune'))}-*"))
    inside = rng.choice(sorted(path for path in soon.rglob("*")))
    special = [
        store / name for name in (".locks", ".partial", ".latest", "images", ".locks/x.json")
    ]
    special += [out / "run.log", out / "onnx", out / "combined", out / ".making-onnx"]
    special += [store / ".partial" / soon.name, store, out / ".old-x", store / ".making-x"]
    path = rng.choice((stage, soon, inside, rng.choice(special), rng.choice(special)))
    replace_by_oddity(path, place.canary, rng)
    if rng.random() < 0.4 and soon.is_dir() and path not in (stage, soon, inside, store):
        shutil.rmtree(soon)
    case = _command(rng, place)
    if rng.random() < 0.15:
        recipes = [str(base.recipe(place.base, form)) for form in base.FORMATS]
        return Case(argv=["run", *recipes, "--out", str(out)], names=case.names)
    return case
