"""Content-addressed stage results: what was computed once is not computed again.

A result lives in `<store>/<stage>-<key>/`, where the key is a hash of everything that decides it.
It is made in a directory of its own, sealed with the hash of every file, and renamed when
complete: what has a final name is whole. Before it is used again, its hashes are compared.

What else lies in the store: `.locks/` says which process makes which result now, `.partial/` what
unfinished stages go on from, `.making-*` what is being written, `.damaged-*` results that are no
longer what was written, `.latest/` what the latest run of every recipe has made. None of it is
needed for a right result.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from pipeline.base import disk
from pipeline.base.checksums import damage, flush, seal
from pipeline.base.errors import InputError
from pipeline.base.locks import held
from pipeline.base.passing import is_passing
from pipeline.base.record import Record
from pipeline.base.safe_files import json_of, refuse_link, remove

_KEY_LENGTH = 20
_RECORD = "stage.json"
STORE = ".store"
"""Name of the store, beside the directories of the runs."""
STAGES_FILE = "stages.json"
"""In a run's directory: where the store keeps the result of every stage."""
LOCKS, PARTIAL, IMAGES, LATEST = ".locks", ".partial", "images", ".latest"
INDEX = ".index"
"""In the folder of images: what is known of the files of every folder."""
RUN = "run"
"""What the names of the locks begin with that a run holds from its first stage to its last."""
MAKING, OLD = ".making", ".old"
_DAMAGED = ".damaged"


class Facts(Record):
    """What a stage says of its result; kept as JSON beside its files. Every stage has its type."""


F = TypeVar("F", bound=Facts)


@dataclass(frozen=True, kw_only=True)
class Result(Generic[F]):
    """A finished stage: its files, its facts, and whether they were there already."""

    stage: str
    key: str
    directory: Path
    facts: F
    seconds: float
    reused: bool


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a stage writes.

    Attributes:
        result: a new directory for its files.
        partial: a directory that is there again when the stage is begun anew after it was
            stopped; removed when it is done. It may not exist yet.
    """

    result: Path
    partial: Path


def key_of(ingredients: Mapping[str, Any]) -> str:
    """Hash of what decides a result; equal mappings give equal keys."""
    text = json.dumps(ingredients, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


@dataclass(frozen=True, kw_only=True)
class Store:
    """The results of all stages.

    Attributes:
        directory: of all results.
        tell: shows a line to the person at the terminal.
        fresh: whether results of earlier calls of the program are made again.
        known: names of the results that were made or compared with their hashes in this call.
    """

    directory: Path
    tell: Callable[[str], None]
    fresh: bool = False
    known: set[str] = field(default_factory=set)

    def obtain(
        self,
        stage: str,
        ingredients: Mapping[str, Any],
        make: Callable[[Place], F],
        kind: type[F],
    ) -> Result[F]:
        """Return the stored result of a stage, or make and store it.

        Where another process is making it, waits for that one.

        Args:
            stage: name of the stage.
            ingredients: everything that decides the result, plain JSON.
            make: writes the stage's files where it is told and returns its facts.
            kind: their type. A stored result whose facts are not of it is made again.

        Raises:
            InputError: the disk is full.
        """
        key = key_of(ingredients)
        name = f"{stage}-{key}"
        if (found := self._read(stage, key, kind)) is not None:
            return found
        lock = self.directory / LOCKS / f"{name}.json"
        with held(lock, lambda owner: self.tell(f"  {stage}: waiting for {owner}")):
            if (found := self._read(stage, key, kind)) is not None:
                return found
            return self._make(stage, key, ingredients, make)

    def _make(
        self, stage: str, key: str, ingredients: Mapping[str, Any], make: Callable[[Place], F]
    ) -> Result[F]:
        """Make a result and store it, while the lock on it is held."""
        name = f"{stage}-{key}"
        for left in self.directory.glob(f"{MAKING}-{name}-*"):
            remove(left)  # of a process that was killed
        scratch = Path(tempfile.mkdtemp(prefix=f"{MAKING}-{name}-", dir=self.directory))
        try:
            started = time.perf_counter()
            partial = _without_links(self.directory / PARTIAL / name)
            facts = make(Place(result=scratch, partial=partial))
            seconds = time.perf_counter() - started
            record = {
                "facts": facts.model_dump(mode="json"),
                "seconds": seconds,
                "ingredients": ingredients,
            }
            text = json.dumps(record, indent=1, sort_keys=True)
            (scratch / _RECORD).write_text(text, encoding="utf-8")
            publish(scratch, self.directory / name)
            remove(partial)
        except Exception as error:
            if disk.is_full(error, self.directory):
                raise InputError(
                    f"no disk space left in {self.directory.resolve()} for the stage {stage}; "
                    "free some and run the same command again, finished stages are kept"
                ) from error
            raise
        finally:
            remove(scratch)
        self.known.add(name)
        return Result(
            stage=stage,
            key=key,
            directory=self.directory / name,
            facts=facts,
            seconds=seconds,
            reused=False,
        )

    def ingredients(self, stage: str) -> dict[str, dict[str, Any]]:
        """The ingredients of every stored result of a stage, by key; damaged ones left out."""
        found = {}
        for directory in self.directory.glob(f"{stage}-*"):
            try:
                record = json_of(directory / _RECORD)
                found[directory.name.removeprefix(f"{stage}-")] = dict(record["ingredients"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def _read(self, stage: str, key: str, kind: type[F]) -> Result[F] | None:
        """A stored result that is as it was written; one that is not is set aside.

        Raises:
            OSError: it cannot be read now; it stays.
        """
        name = f"{stage}-{key}"
        directory = self.directory / name
        if not directory.exists() or (self.fresh and name not in self.known):
            return None
        fault = None if name in self.known else damage(directory)
        if fault is None:
            try:
                record = json_of(directory / _RECORD)
                # As JSON, in which a tuple is a list.
                facts = kind.model_validate_json(json.dumps(record["facts"]))
                seconds = float(record["seconds"])
            except ValidationError as error:
                fault = f"its facts are not those of this version ({error.error_count()} problems)"
            except (OSError, ValueError, KeyError, TypeError) as error:
                if is_passing(error):
                    raise
                fault = f"{_RECORD} cannot be read ({error})"
        if fault is not None:
            aside = Path(tempfile.mkdtemp(prefix=f"{_DAMAGED}-{name}-", dir=self.directory))
            directory.rename(aside / name)
            self.tell(f"  {directory}: {fault}; set aside in {aside.name}, made again")
            return None
        self.known.add(name)
        return Result(
            stage=stage, key=key, directory=directory, facts=facts, seconds=seconds, reused=True
        )


def publish(
    scratch: Path, final: Path, *, beside: Iterable[Path] = (), unsealed: Collection[str] = ()
) -> None:
    """Seal a complete directory and give it its final name, in place of what may be there.

    Everything is flushed to the disk before the rename, so that a crash cannot leave the name
    without the content. Whoever may read the folder around it may read it.

    Args:
        scratch: the directory.
        final: its name from now on.
        beside: files that are moved into it and are no part of what is sealed, such as a log.
        unsealed: names of files in it whose hashes are not listed.
    """
    _open_as_around(scratch, final.parent)
    seal(scratch, unsealed)
    for path in beside:
        path.rename(scratch / path.name)
    old: Path | None = None
    if os.path.lexists(final):
        old = final.with_name(f"{OLD}-{final.name}-{os.getpid()}")
        final.rename(old)
    scratch.rename(final)
    flush(final.parent)
    if old is not None:
        remove(old)


def _open_as_around(directory: Path, folder: Path) -> None:
    """Have everything in a directory be as readable as `folder` is.

    Temporary directories, and files of safetensors, are their owner's alone: what one user made, as
    in a container, could not be used by the one that it was made for.
    """
    around = stat.S_IMODE(folder.stat().st_mode)
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            read = 0o555 if path.is_dir() else 0o444
            path.chmod(stat.S_IMODE(path.stat().st_mode) | (around & read))


def refuse_links(directory: Path) -> None:
    """Refuse a store, or one of the folders that all stages share, that lies somewhere else.

    Raises:
        InputError: one is a link.
    """
    refuse_link(directory)
    for name in (LOCKS, PARTIAL, IMAGES, LATEST):
        refuse_link(directory / name)


def _without_links(partial: Path) -> Path:
    """A directory of unfinished work; one that leads elsewhere is begun anew."""
    if partial.is_symlink() or any(path.is_symlink() for path in partial.rglob("*")):
        remove(partial)
    return partial
