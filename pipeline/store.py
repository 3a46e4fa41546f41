"""Content-addressed stage results: what was computed once is not computed again.

A result lives in `<store>/<stage>-<key>/`, where the key is a hash of everything that decides it.
It is made in a temporary directory beside it and renamed when complete, so that a directory with
a final name is always whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

_KEY_LENGTH = 20
_RECORD = "stage.json"
_NO_SPACE = 256 * 1024
"""Bytes; with less than this left, a failed write failed for lack of space."""

Facts = dict[str, Any]
"""What a stage says about its result, for the report; plain JSON."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished stage: its files, its facts, and whether they were there already."""

    stage: str
    key: str
    directory: Path
    facts: Facts
    seconds: float
    reused: bool


def key_of(ingredients: Mapping[str, Any]) -> str:
    """Hash of what decides a result; equal mappings give equal keys."""
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def obtain(
    store: Path,
    stage: str,
    ingredients: Mapping[str, Any],
    make: Callable[[Path], Facts],
    *,
    made: set[str] | None = None,
) -> Result:
    """Return the stored result of a stage, or make and store it.

    Args:
        store: directory of all results.
        stage: name of the stage.
        ingredients: everything that decides the result, plain JSON.
        make: writes the stage's files into the directory it is given and returns its facts.
        made: where given, only results whose keys it holds are reused, and new ones are added:
            everything is computed once, and once only, per call of the program.
    """
    key = key_of(ingredients)
    final = store / f"{stage}-{key}"
    reuse = made is None or key in made
    if reuse and (found := _read(final)) is not None:
        return Result(stage=stage, key=key, directory=final, reused=True, **found)
    store.mkdir(parents=True, exist_ok=True)
    sweep(store)
    scratch = Path(tempfile.mkdtemp(prefix=f".{stage}-{os.getpid()}-", dir=store))
    try:
        started = time.perf_counter()
        facts = make(scratch)
        seconds = time.perf_counter() - started
        record = {"facts": facts, "seconds": seconds}
        text = json.dumps(record | {"ingredients": ingredients}, indent=1, sort_keys=True)
        (scratch / _RECORD).write_text(text, encoding="utf-8")
        publish(scratch, final)
    except Exception as error:
        if disk_full(error, store):
            raise InputError(
                f"no disk space left in {store.resolve()} for the stage {stage}; free some and run "
                "the same command again, finished stages are kept"
            ) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if made is not None:
        made.add(key)
    return Result(stage=stage, key=key, directory=final, facts=facts, seconds=seconds, reused=False)


def sweep(store: Path) -> None:
    """Remove the temporary directories of processes of this host that were killed."""
    for scratch in store.glob(".*-*-*"):
        owner = scratch.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists() and Path("/proc/self").exists():
            shutil.rmtree(scratch, ignore_errors=True)


def disk_full(error: BaseException, directory: Path) -> bool:
    """Whether `error` came of a full disk; libraries wrap that in exceptions of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        if "No space left on device" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    try:
        return shutil.disk_usage(directory).free < _NO_SPACE
    except OSError:
        return False


def _read(directory: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
        return {"facts": record["facts"], "seconds": record["seconds"]}
    except (OSError, ValueError, KeyError):
        return None


def publish(scratch: Path, final: Path) -> None:
    """Give a complete directory its final name, in place of what may be there.

    Files are flushed to disk before the rename, so that a crash cannot leave the name without
    the content.
    """
    for path in scratch.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    old: Path | None = None
    if final.exists():
        old = final.with_name(f".{final.name}.{os.getpid()}.old")
        final.rename(old)
    scratch.rename(final)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
