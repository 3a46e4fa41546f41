"""`pocketnest gc`: remove what no run of a folder needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import InputError, printable
from pipeline.base.locks import is_held, remove_lock
from pipeline.base.safe_files import json_of, real, remove
from pipeline.base.store import (
    IMAGES,
    LOCKS,
    MAKING,
    OLD,
    PARTIAL,
    RUN,
    STAGES_FILE,
    STORE,
    refuse_links,
)
from pipeline.commands.command import OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of runs."""
    parser.add_argument("out", type=Path, nargs="?", default=Path("artifacts"), metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def run(arguments: argparse.Namespace) -> int:
    """Remove what no run of a folder needs, and say what it was.

    Raises:
        InputError: it is no folder of runs, or a run does not say what it needs.
    """
    dry_run: bool = arguments.dry_run
    found = removable(arguments.out, arguments.out / STORE, _note)
    for one in found:
        print(f"{one.size_bytes / 1e6:8.1f} MB  {printable(one.path.name)}: {one.why}")
    total = sum(one.size_bytes for one in found) / 1e6
    if not dry_run:
        remove_all(found)
    print(f"{total:.1f} MB {'could be freed' if dry_run else 'freed'}")
    return OK


def _note(line: str) -> None:
    print(f"note: {printable(line)}", file=sys.stderr)


_ENDED = "of a process that has ended"
_UNSEEN = "decoded images that no run would look for"


@dataclass(frozen=True, kw_only=True)
class Removable:
    """Something in a store that no run needs.

    Attributes:
        path: of it.
        size_bytes: of all its files.
        why: it is not needed, in words.
    """

    path: Path
    size_bytes: int
    why: str


def removable(
    out: Path, store: Path, tell: Callable[[str], None] = lambda line: None
) -> list[Removable]:
    """What a store holds that no run of `out` was made from and no living process works on.

    Results of runs that were stopped before they had a report count as not needed, too, and so do
    decoded images of folders that have changed since: removing them costs time, never a right
    result. While a run is at work, all results and images stay.

    Args:
        out: folder of runs.
        store: theirs.
        tell: is given a line where it is not known what is needed.

    Raises:
        InputError: there is no store.
    """
    if not store.is_dir():
        raise InputError(f"{store}: not a folder of runs; give the folder that `run --out` named")
    refuse_links(store)
    used = set(_used(out))
    locks = {lock: is_held(lock) for lock in sorted((store / LOCKS).glob("*.json"))}
    busy = {lock.stem for lock, at_work in locks.items() if at_work}
    running = any(name.startswith(f"{RUN}-") for name in busy)
    found = [_removable(lock, _ENDED) for lock, at_work in locks.items() if not at_work]
    for path in sorted(store.iterdir()):
        if path.name in {LOCKS, PARTIAL, IMAGES}:
            continue
        if path.name.startswith("."):
            if path.is_dir() and not any(name in path.name for name in busy):
                found.append(_removable(path, "left over or set aside"))
        elif real(path) not in used and not running:  # of any result that is there already
            found.append(_removable(path, "no run was made from it"))
    for path in sorted((store / PARTIAL).glob("*")):
        if path.name not in busy:
            found.append(_removable(path, "of a stage that was stopped"))
    if not running:
        found += _images(out, store / IMAGES, tell)
    for path in sorted([*out.glob(f"{MAKING}-*"), *out.glob(f"{OLD}-*")]):
        if not any(name.startswith("publish-") for name in busy):
            found.append(_removable(path, "left over"))
    return found


def _images(out: Path, cache: Path, tell: Callable[[str], None]) -> list[Removable]:
    """Decoded images that no run of `out` would look for now, and what was left among them."""
    locks = {lock: is_held(lock) for lock in sorted((cache / LOCKS).glob("*.json"))}
    busy = {lock.stem for lock, at_work in locks.items() if at_work}
    found = [_removable(lock, _ENDED) for lock, at_work in locks.items() if not at_work]
    entries = [path for path in sorted(cache.glob("*")) if path.name != LOCKS]
    entries = [path for path in entries if not any(name in path.name for name in busy)]
    kept = [path for path in entries if not path.name.startswith(".")]
    found += [_removable(path, "left over") for path in entries if path not in kept]
    if not kept:
        return found
    try:
        needed = _needed_images(out, cache)
    except (InputError, OSError) as error:
        tell(f"decoded images all stay, since it is not known which are needed: {error}")
        return found
    return found + [_removable(path, _UNSEEN) for path in kept if path not in needed]


def _needed_images(out: Path, cache: Path) -> set[Path]:
    """Where the runs of `out` find their images decoded.

    Raises:
        InputError: a recipe cannot be read, or its images cannot be looked at.
    """
    files = [file.with_name("recipe.yaml") for file in sorted(out.glob(f"*/{STAGES_FILE}"))]
    if not files:
        return set()
    # Imported here: it takes torch along, and most stores hold no images.
    from pipeline.recipe.recipe import load_recipes
    from pipeline.stages.known import KNOWN
    from pipeline.tasks.tasks import task_of

    asked = {
        (recipe.task.kind, recipe.data.model_dump_json(), recipe.model.input_shape): recipe
        for recipe in load_recipes(files, known=KNOWN)
    }
    found = (
        task_of(recipe).decoded_places(recipe.data, recipe.model.input_shape, cache)
        for recipe in asked.values()
    )
    return {place for places in found for place in places}


def remove_all(found: list[Removable]) -> None:
    """Remove what `removable` found."""
    for one in found:
        if one.path.parent.name == LOCKS and one.path.is_file():
            remove_lock(one.path)  # somebody may have taken it since
        else:
            remove(one.path)


def _used(out: Path) -> Iterator[Path]:
    for file in out.glob(f"*/{STAGES_FILE}"):
        try:
            places = json_of(file)
            yield from (real(file.parent / str(place)) for place in places.values())
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(
                f"{file}: cannot be read ({error}), so that it is not known which results its run "
                "needs; remove that run's folder or run the recipe again"
            ) from error


def _removable(path: Path, why: str) -> Removable:
    files = [path] if path.is_symlink() or not path.is_dir() else path.rglob("*")
    size = sum(file.lstat().st_size for file in files if file.is_symlink() or not file.is_dir())
    return Removable(path=path, size_bytes=size, why=why)


GC = Command(
    help="remove stage results and decoded images that no run needs, left-overs, damaged results",
    examples=("pocketnest gc artifacts --dry-run",),
    add_arguments=add_arguments,
    run=run,
)
