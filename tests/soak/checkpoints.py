"""Checkpoints: damaged, of other networks, and hostile."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.soak import base
from tests.soak.mutate import (
    TEXTS,
    changed_tree,
    damaged,
    hostile_value,
    replace_by_oddity,
    rubbish,
)
from tests.soak.sandbox import Case, Place

LAST = "train"


def weights(place: Place) -> dict[str, Tensor]:
    """Those of a network of the recipe's shape."""
    return load_file(place.base / base.WEIGHTS)


def command(place: Place, path: Path, *, must_refuse: bool = False) -> Case:
    """`run --until train` with this checkpoint."""
    setting = f"model.checkpoint={json.dumps(str(path))}"
    recipe = base.recipe(place.base, "onnx")
    argv = ["run", str(recipe), "--out", str(place.out), "--until", LAST, "--set", setting]
    return Case(argv=argv, names=(path.name,), must_refuse=must_refuse)


def packed(state: Any, form: str) -> bytes:
    """The bytes of a checkpoint: zip, legacy or safetensors."""
    content = io.BytesIO()
    if form == "safetensors":
        from safetensors.torch import save

        return save({key: value.contiguous() for key, value in state.items()})
    torch.save(state, content, _use_new_zipfile_serialization=form == "zip")
    return content.getvalue()


def _path(rng: random.Random, place: Place, form: str) -> Path:
    suffix = ".safetensors" if form == "safetensors" else rng.choice((".pt", ".pth", ".ckpt"))
    return place.given / f"given{suffix}"


def damaged_bytes(rng: random.Random, place: Place) -> Case:
    """Bytes of every form, changed."""
    form = rng.choice(("safetensors", "zip", "legacy"))
    path = _path(rng, place, form)
    path.write_bytes(damaged(packed(weights(place), form), rng))
    return command(place, path)


def damaged_header(rng: random.Random, place: Place) -> Case:
    """A safetensors header that lies, or is no header."""
    content = packed(weights(place), "safetensors")
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    for _ in range(rng.choice((1, 1, 3))):
        does = rng.randrange(4)
        if not isinstance(header, dict) or not header or does == 0:
            header = changed_tree(header, rng)
        elif does == 1:
            entry = header[rng.choice(list(header))]
            if isinstance(entry, dict):
                entry[rng.choice(("shape", "dtype", "data_offsets"))] = rng.choice(
                    ([2**40], [2**62, 4], [0, 2**63], [-1], [], "F64", "BF16", "I64", "BOOL")
                )
        elif does == 2:
            header["__metadata__"] = rng.choice(
                ({"classes": rng.choice(('["a"]', "[" * 9999, "3", '["\\u001b[2J"]'))}, 3, [])
            )
        else:
            header[rng.choice(TEXTS)] = header.pop(rng.choice(list(header)))
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    size = len(text) if rng.random() < 0.8 else rng.choice((0, 2**31, 2**40, 2**63, 2**64 - 1))
    path = _path(rng, place, "safetensors")
    path.write_bytes(struct.pack("<Q", size) + text + content[end:])
    return command(place, path)


def damaged_archive(rng: random.Random, place: Place) -> Case:
    """A zip file whose members are renamed, doubled, compressed, changed or missing."""
    path = _path(rng, place, "zip")
    with zipfile.ZipFile(io.BytesIO(packed(weights(place), "zip"))) as source:
        members = [(name, source.read(name)) for name in source.namelist()]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(members))
        if rng.random() < 0.4:
            at = next((i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")), at)
        name, content = members[at]
        does = rng.randrange(7)
        if does == 0:
            members[at] = (rng.choice(("../../canary/file", "/tmp/x", f"../{name}", "x")), content)
        elif does == 1:
            members.append((rng.choice(("archive/../../canary/file", name)), b"changed"))
        elif does == 2 and len(members) > 1:
            del members[at]
        elif does == 3:
            members[at] = (name, b"\0" * rng.choice((0, 100, 300 * 2**20)))
        elif does == 4:
            members[at] = (name, rubbish(rng))
        else:
            members[at] = (name, damaged(content, rng))
    with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as file:
        for name, content in members:
            file.writestr(name, content)
    return command(place, path)


def other_tensors(rng: random.Random, place: Place) -> Case:
    """Readable checkpoints of what is not this network."""
    state: dict[Any, Any] = dict(weights(place))
    form = rng.choice(("safetensors", "zip", "legacy"))
    for _ in range(rng.choice((1, 1, 2, 5))):
        key = rng.choice(list(state))
        state[key] = _other(rng, state[key], form) if rng.random() < 0.6 else state[key]
        if rng.random() < 0.5:
            value = state.pop(key)
            if rng.random() < 0.7:
                state[rng.choice((*TEXTS, f"module.{key}", key))] = value
    path = _path(rng, place, form)
    content: Any = rng.choice((state, state, {"state_dict": state}, {"model": state, "epoch": 3}))
    if form != "safetensors" and rng.random() < 0.1:
        content = rng.choice((list(state.items()), hostile_value(rng), {"model": {"model": state}}))
    if form == "safetensors":
        content = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    path.write_bytes(packed(content, form))
    return command(place, path)


def _other(rng: random.Random, tensor: Tensor, form: str) -> Any:
    kinds = [
        lambda: tensor.flatten()[:0],
        lambda: tensor.t().contiguous() if tensor.dim() == 2 else tensor[None].clone(),
        lambda: tensor.flatten().clone(),
        lambda: tensor.to(rng.choice((torch.float16, torch.float64, torch.int8, torch.bool))),
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor - 1,
        lambda: torch.full_like(tensor, 1e38) if tensor.is_floating_point() else tensor * 10**9,
        lambda: torch.zeros_like(tensor),
        lambda: tensor.to(torch.complex64),
    ]
    if form != "safetensors":
        kinds += [
            lambda: torch.zeros(1).expand(2**40),
            lambda: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape),
            lambda: torch.zeros(2**30, dtype=torch.int8, device="meta"),
            lambda: torch.eye(3).to_sparse(),
            lambda: hostile_value(rng),
            lambda: torch.nn.Parameter(tensor.float()),
        ]
    return rng.choice(kinds)()


class _Hostile:
    """Writes to the canary where it is unpickled."""

    def __init__(self, canary: Path, way: int) -> None:
        self.canary, self.way = str(canary / "ran"), way

    def __reduce__(self) -> Any:
        ways: tuple[Any, ...] = (
            (os.system, (f"touch {self.canary}",)),
            (os.mkdir, (self.canary,)),
            (eval, (f"__import__('os').mkdir({self.canary!r})",)),
            (exec, (f"open({self.canary!r}, 'w')",)),
            (open, (self.canary, "w")),
            (torch.load, (self.canary,)),
            (getattr, ("", "upper")),
        )
        return ways[self.way]


def hostile_pickle(rng: random.Random, place: Place) -> Case:
    """A pickle that would run code, wherever one can stand."""
    evil = _Hostile(place.canary, rng.randrange(7))
    state: dict[Any, Any] = dict(weights(place))
    form = rng.choice(("zip", "legacy", "bare", "safetensors"))
    where = rng.choice(("value", "wrapped", "beside", "whole", "in a list", "key"))
    content: Any = {
        "value": state | {rng.choice(list(state)): evil},
        "wrapped": {"state_dict": state | {"x": evil}},
        "beside": {"state_dict": state, "optimizer": evil},
        "whole": evil,
        "in a list": {"model": state, "rest": [[evil]]},
        "key": state | {("a", evil): 1},
    }[where]
    path = _path(rng, place, form)
    if form == "bare":
        path.write_bytes(pickle.dumps(evil, protocol=rng.choice((0, 1, 2, 3, 4, 5))))
    else:
        path.write_bytes(packed(content, "legacy" if form == "safetensors" else form))
    # Where the network has no such name it is data that is passed over.
    beside = form in ("zip", "legacy") and where in ("beside", "in a list", "wrapped")
    return command(place, path, must_refuse=not beside)


def odd_file(rng: random.Random, place: Place) -> Case:
    """No file at all in the checkpoint's place."""
    form = rng.choice(("safetensors", "zip"))
    path = _path(rng, place, form)
    path.write_bytes(packed(weights(place), form))
    what = replace_by_oddity(path, place.canary, rng)
    return command(place, path, must_refuse=what != "moved out and linked")
