"""Checkpoints that would run code, claim what is not there, or nest without an end."""

from __future__ import annotations

import argparse
import builtins
import io
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.base.errors import InputError
from pipeline.networks import checkpoint_formats, checkpoint_pickles
from pipeline.networks.checkpoints import load_checkpoint, read_checkpoint
from tests.making.checkpoints import FORMS, KINDS, KNOWN, assert_same
from tests.making.networks import small


def resnest(seed: int) -> nn.Module:
    return small(seed=seed)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """The network that a file is of, and another one that stands beside it."""
    return resnest(1), resnest(2)


class Evil:
    """Would leave the sentinel where it is unpickled."""

    def __init__(self, sentinel: Path, way: str) -> None:
        self.sentinel, self.way = str(sentinel), way

    def __reduce__(self) -> Any:
        ways: dict[str, Any] = {
            "system": (os.system, (f"touch {self.sentinel}",)),
            "exec": (exec, (f"open({self.sentinel!r}, 'w').close()",)),
            "eval": (eval, (f"open({self.sentinel!r}, 'w').close()",)),
            "open": (builtins.open, (self.sentinel, "w")),
            "mkdir": (Path.mkdir, (Path(self.sentinel),)),
            "state": (argparse.Namespace, (), {"__setstate__": exec, "path": Path(self.sentinel)}),
        }
        return ways[self.way]


WAYS = ("system", "exec", "eval", "open", "mkdir")


@pytest.fixture(scope="module")
def lookups() -> Iterator[list[str]]:
    """What pickle looks up, and what is run of it."""
    seen: list[str] = []
    active = [True]  # a hook cannot be taken away

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active[0] and event in ("pickle.find_class", "os.system"):
            seen.append(f"{event} {arguments}")

    sys.addaudithook(hook)
    yield seen
    active[0] = False


def poisoned(content: Any, evil: list[Evil]) -> Any:
    """The content with hostile objects beside its own."""
    more = {"optimizer": {"state": {0: evil[0]}}, "z": [evil, (evil[1], {"b": evil[2]})]}
    return OrderedDict({**content, **more})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_one_runs_nothing(
    pair: tuple[nn.Module, nn.Module],
    kind: str,
    form: str,
    lookups: list[str],
    tmp_path: Path,
) -> None:
    sentinel = tmp_path / "ran"
    evil = [Evil(sentinel, way) for way in (*WAYS, "state")]
    content = poisoned(KINDS[kind](*pair), evil)
    torch.save(content, tmp_path / form, **FORMS[form])
    lookups.clear()
    model = resnest(3)
    load_checkpoint(model, tmp_path / form, KNOWN)
    assert_same(model.eval(), pair[0])
    assert not sentinel.exists()
    assert not lookups


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", [*WAYS, "state"])
def test_a_hostile_object_in_a_weights_place_is_named(
    pair: tuple[nn.Module, nn.Module], way: str, form: str, tmp_path: Path
) -> None:
    sentinel = tmp_path / "ran"
    content = {"model": {**pair[0].state_dict(), "fc.bias": Evil(sentinel, way)}}
    torch.save(content, tmp_path / form, **FORMS[form])
    with pytest.raises(InputError, match=r"holds [\w.]+, which is no weight .* was not loaded"):
        load_checkpoint(resnest(3), tmp_path / form, KNOWN)
    assert not sentinel.exists()


@pytest.mark.parametrize("way", WAYS)
def test_elsewhere_it_runs(way: str, lookups: list[str], tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    torch.save({"optimizer": Evil(sentinel, way)}, tmp_path / "a.pt")
    lookups.clear()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert sentinel.exists()
    assert lookups


def pickled(body: bytes, folder: Path) -> Path:
    """A zip file of torch with this pickle."""
    path = folder / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/data/0", bytes(16))
    return path


BOMBS = {
    "nested tuples as a key": b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
    "nested lists": b"\x80\x02" + b"](" * 200_000 + b"e" * 200_000 + b".",
    "nested dicts": b"\x80\x02"
    + b"}X\x05\x00\x00\x00model" * 100_000
    + b"N"
    + b"s" * 100_000
    + b".",
    "a long text": b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"x.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "a long bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "a long frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".",
    "a large memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "a long number": b"\x80\x02I" + b"9" * 100_000 + b"\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "an empty stack": b"\x80\x02R.",
    "no mark": b"\x80\x02e.",
    "a call of a call": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n" * 1
    + b"q\x00)"
    + b"h\x00\x86N\x86" * 10
    + b"R.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_as_an_error_of_the_file(name: str, tmp_path: Path) -> None:
    path = pickled(BOMBS[name], tmp_path)
    with pytest.raises(InputError, match=r"a\.pt: ") as caught:
        read_checkpoint(path)
    assert "read now" not in str(caught.value), "memory was asked for"


def test_a_pickle_of_too_many_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pickled(b"\x80\x02(" + b"]" * 1000 + b"l.", tmp_path)
    with pytest.raises(InputError, match="holds a list"):
        read_checkpoint(path)
    monkeypatch.setattr(checkpoint_pickles, "_MOST_STEPS", 1000)
    with pytest.raises(InputError, match=r"cannot be read; .*too many objects"):
        read_checkpoint(path)


def described(
    count: int = 4, size: Any = (4,), stride: Any = (1,), offset: int = 0, *, old: bool = False
) -> bytes:
    """The pickle of one tensor, as torch writes it, of a storage with four numbers."""

    class Call:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (
                None,
                offset,
                size,
                stride,
                False,
                OrderedDict(),
            )

    class Old:
        def __reduce__(self) -> Any:
            return OrderedDict, ([["a", Call()]],)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if value is None else None

    file = io.BytesIO()
    Pickler(file, 2).dump(Old() if old else {"a": Call()})
    return file.getvalue()


def test_a_tensor_as_it_is_described(tmp_path: Path) -> None:
    assert torch.equal(read_checkpoint(pickled(described(), tmp_path))["a"], torch.zeros(4))


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """Its text is bytes, and its ordered dicts are made of lists of pairs."""
    body = described(old=True).replace(b"X\x01\x00\x00\x00a", b"U\x01a")
    assert b"U\x01a" in body
    assert torch.equal(read_checkpoint(pickled(body, tmp_path))["a"], torch.zeros(4))


def test_an_archive_of_files_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"x")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.pth", "a.pth")
    with pytest.raises(InputError, match="an archive of files; unpack it"):
        read_checkpoint(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "lie",
    [
        {"count": 2**40},
        {"count": 2**70},
        {"size": (2**40,)},
        {"size": (2**70,)},
        {"size": (-1,)},
        {"offset": 1},
        {"offset": 2**61},
        {"size": [1] * 100, "stride": [1] * 100},
        {"size": (4, 4)},
        {"size": "four", "stride": "four"},
        {"size": 4},
    ],
)
def test_a_tensor_that_claims_what_is_not_there(lie: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.pt: cannot be read; "):
        read_checkpoint(pickled(described(**lie), tmp_path))


def test_members_that_claim_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", described(2**24, (2**24,)))
        archive.writestr("a/data/0", bytes(2**26))
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match="larger than the file"):
        read_checkpoint(path)


def test_a_member_that_is_not_where_it_should_be(tmp_path: Path) -> None:
    path = pickled(described(), tmp_path)
    content = path.read_bytes()
    at = content.index(b"a/data/0") - 30
    path.write_bytes(content[:at] + b"PK\x09\x09" + content[at + 4 :])
    with pytest.raises(InputError, match=r"cannot be read; .*data/0 is not where the zip file"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "cannot be read now"),
        (OSError(5, "Input/output error"), "cannot be read now (.*Input/output error)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "cannot be read now"),
        (PermissionError(13, "Permission denied"), "no permission to read it"),
        (ValueError("odd"), "truncated, damaged or of another format"),
    ],
)
def test_what_passes_is_not_told_as_damage(
    pair: tuple[nn.Module, nn.Module],
    error: Exception,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.save(pair[0].state_dict(), tmp_path / "a.pt")

    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(checkpoint_formats, "read_pickle", fails)
    with pytest.raises(InputError, match=said):
        read_checkpoint(tmp_path / "a.pt")
