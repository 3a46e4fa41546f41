"""`pocketnest gc`: remove what no run of a folder needs, and no recipe will ask for next."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import InputError, printable
from pipeline.base.locks import is_held, remove_lock
from pipeline.base.safe_files import json_of, real, remove
from pipeline.base.store import (
    IMAGES,
    INDEX,
    LATEST,
    LOCKS,
    MAKING,
    OLD,
    PARTIAL,
    RUN,
    STAGES_FILE,
    STORE,
    refuse_links,
)
from pipeline.commands.arguments import number
from pipeline.commands.command import OK, Command
from pipeline.stages.latest import Latest, latest_runs

_WEEK = 7.0
_DAY_SECONDS = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of runs, and from which age on what nobody needs is removed."""
    parser.add_argument("out", type=Path, nargs="?", default=Path("artifacts"), metavar="DIR")
    parser.add_argument(
        "--older-than",
        type=number,
        default=_WEEK,
        metavar="DAYS",
        help="results, saved trainings and decoded images that are younger stay (default 7)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def run(arguments: argparse.Namespace) -> int:
    """Remove what no run of a folder needs; say of everything why it stays or goes.

    Raises:
        InputError: it is no folder of runs, or a run does not say what it needs.
    """
    dry_run: bool = arguments.dry_run
    store = arguments.out / STORE
    found = looked_at(arguments.out, store, _note, older_than=arguments.older_than)
    for one in sorted(found, key=lambda one: one.goes):
        does = "goes" if one.goes else "stays"
        size = f"{one.size_bytes / 1e6:8.1f} MB"
        print(f"{size}  {does:<5}  {printable(one.path.name)}: {printable(one.why)}")
    going = [one for one in found if one.goes]
    if not dry_run:
        remove_all(going)
    freed, left = (
        sum(one.size_bytes for one in found if one.goes is goes) / 1e6 for goes in (True, False)
    )
    print(f"{freed:.1f} MB {'could be freed' if dry_run else 'freed'}, {left:.1f} MB stay")
    return OK


def _note(line: str) -> None:
    print(f"note: {printable(line)}", file=sys.stderr)


_ENDED = "of a process that has ended"
_AT_WORK = "a run is at work"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Something in a store.

    Attributes:
        path: of it.
        size_bytes: of all its files.
        why: it stays or goes, in words.
        goes: whether it is to be removed.
    """

    path: Path
    size_bytes: int
    why: str
    goes: bool


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What decides whether something in a store stays.

    Attributes:
        by: who needs it, in words, by where it really lies.
        used: when it was last made or used, in seconds since 1970, where that is known.
        now: likewise.
        older_than: days; what is younger stays.
        at_work: whether a run is.
    """

    by: dict[Path, str]
    used: dict[Path, float]
    now: float
    older_than: float
    at_work: bool

    def judged(self, path: Path, name: Path, unneeded: str) -> Found:
        """Whether something stays.

        Args:
            path: of it.
            name: under which it is needed; links are followed.
            unneeded: what it is where nobody needs it, in words.
        """
        if (needed := self.by.get(name)) is not None:
            return _found(path, needed, goes=False)
        if self.at_work:
            return _found(path, _AT_WORK, goes=False)
        last = max(path.lstat().st_mtime, self.used.get(name, 0.0))
        days = max(0.0, (self.now - last) / _DAY_SECONDS)
        aged = "less than a day old" if days < 1 else f"{days:.0f} days old"
        if days < self.older_than:
            return _found(path, f"{unneeded}, but {aged}", goes=False)
        return _found(path, f"{unneeded}, {aged}", goes=True)


def removable(
    out: Path,
    store: Path,
    tell: Callable[[str], None] = lambda line: None,
    *,
    older_than: float = 0.0,
) -> list[Found]:
    """What of a store goes; as `looked_at`."""
    return [one for one in looked_at(out, store, tell, older_than=older_than) if one.goes]


def looked_at(
    out: Path, store: Path, tell: Callable[[str], None], *, older_than: float
) -> list[Found]:
    """Everything in a store, and whether it stays.

    What a run of `out` was made from stays, and so does what the latest run of a recipe has made,
    or begun, if the recipe is still on the disk: it may have been stopped, or told to end early.
    Of the rest, what is younger stays, and goes later: removing it costs time, never a right
    result. While a run is at work, all results and images stay. What killed processes left, and
    damaged results, go at once.

    Args:
        out: folder of runs.
        store: theirs.
        tell: is given a line where it is not known what is needed.
        older_than: days.

    Raises:
        InputError: there is no store, or a run does not say what it needs.
    """
    if not store.is_dir():
        raise InputError(f"{store}: not a folder of runs; give the folder that `run --out` named")
    refuse_links(store)
    locks = {lock: is_held(lock) for lock in sorted((store / LOCKS).glob("*.json"))}
    busy = {lock.stem for lock, at_work in locks.items() if at_work}
    latest = list(latest_runs(store, tell))
    wanted = _Wanted(
        by=_needed(out, latest),
        used={result: one.time for one in latest for result in one.results},
        now=time.time(),
        older_than=older_than,
        at_work=any(name.startswith(f"{RUN}-") for name in busy),
    )
    found = [_found(lock, _ENDED) for lock, at_work in locks.items() if not at_work]
    for path in sorted(store.iterdir()):
        if path.name in {LOCKS, PARTIAL, IMAGES, LATEST}:
            continue
        if not path.name.startswith("."):
            found.append(wanted.judged(path, real(path), "no run was made from it"))
        elif path.is_dir() and not any(name in path.name for name in busy):
            found.append(_found(path, "left over or set aside"))
    for path in sorted((store / PARTIAL).glob("*")):
        done = store / path.name
        if path.name in busy:
            continue
        if done.is_dir():
            found.append(_found(path, "of a stage that is done"))
        else:
            found.append(wanted.judged(path, real(done), "of a stage that was stopped"))
    found += [wanted.judged(one.folder, one.file, _gone(one)) for one in latest if not one.there]
    found += _images(out, store / IMAGES, latest, wanted, tell)
    for path in sorted([*out.glob(f"{MAKING}-*"), *out.glob(f"{OLD}-*")]):
        if not any(name.startswith("publish-") for name in busy):
            found.append(_found(path, "left over"))
    return found


def _gone(latest: Latest) -> str:
    return f"what the latest run of {latest.file.name} had made, which is gone"


def _images(
    out: Path,
    cache: Path,
    latest: Iterable[Latest],
    wanted: _Wanted,
    tell: Callable[[str], None],
) -> list[Found]:
    """Decoded images, which runs of `out` and recipes may look for, and what was left there."""
    locks = {lock: is_held(lock) for lock in sorted((cache / LOCKS).glob("*.json"))}
    busy = {lock.stem for lock, at_work in locks.items() if at_work}
    entries = [path for path in sorted(cache.glob("*")) if path.name not in {LOCKS, INDEX}]
    entries += sorted((cache / INDEX).glob("*"))
    entries = [path for path in entries if not any(name in path.name for name in busy)]
    kept = [path for path in entries if not path.name.startswith(".")]
    if wanted.at_work:
        return [_found(path, _AT_WORK, goes=False) for path in kept]
    found = [_found(lock, _ENDED) for lock, at_work in locks.items() if not at_work]
    found += [_found(path, "left over") for path in entries if path not in kept]
    if not kept:
        return found
    files = [file.with_name("recipe.yaml") for file in sorted(out.glob(f"*/{STAGES_FILE}"))]
    files += [one.folder / "recipe.yaml" for one in latest if one.there]
    try:
        needed = _needed_images(files, cache)
    except (InputError, OSError) as error:
        tell(f"decoded images all stay, since it is not known which are needed: {error}")
        return found + [_found(path, "it is not known who needs it", goes=False) for path in kept]
    for path in kept:
        if path in needed:
            found.append(_found(path, f"{_what(path)} of a run, or of a recipe", goes=False))
        else:
            found.append(wanted.judged(path, path, f"{_what(path)} that no run would look for"))
    return found


def _what(path: Path) -> str:
    return "hashes of images" if path.parent.name == INDEX else "decoded images"


def _needed_images(files: list[Path], cache: Path) -> set[Path]:
    """Where the runs of some recipes find their images decoded.

    Raises:
        InputError: a recipe cannot be read, or its images cannot be looked at.
    """
    found: set[Path] = set()
    if not files:
        return found
    # Imported here: it takes torch along, and most stores hold no images.
    from pipeline.recipe.recipe import load_recipes
    from pipeline.stages.known import KNOWN
    from pipeline.tasks.tasks import task_of

    # One by one: no two of a call may have the same name, and a run has that of its recipe.
    recipes = [recipe for file in files for recipe in load_recipes([file], known=KNOWN)]
    asked = {
        (recipe.task.kind, recipe.data.model_dump_json(), recipe.model.input_shape): recipe
        for recipe in recipes
    }
    for recipe in asked.values():
        found |= task_of(recipe).decoded_places(recipe.data, recipe.model.input_shape, cache)
    return found


def remove_all(found: Iterable[Found]) -> None:
    """Remove what `removable` found."""
    for one in found:
        if one.path.parent.name == LOCKS and one.path.is_file():
            remove_lock(one.path)  # somebody may have taken it since
        else:
            remove(one.path)


def _needed(out: Path, latest: Iterable[Latest]) -> dict[Path, str]:
    """Who needs a result, by where it really lies: a run, else the recipe of the latest run."""
    found: dict[Path, str] = {}
    for one in latest:
        if one.there:
            found |= dict.fromkeys(one.results, f"of the latest run of {one.file.name}")
    for file in sorted(out.glob(f"*/{STAGES_FILE}")):
        try:
            places = json_of(file)
            results = [real(file.parent / str(place)) for place in places.values()]
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(
                f"{file}: cannot be read ({error}), so that it is not known which results its run "
                "needs; remove that run's folder or run the recipe again"
            ) from error
        found |= dict.fromkeys(results, f"of the run {file.parent.name}")
    return found


def _found(path: Path, why: str, *, goes: bool = True) -> Found:
    files = [path] if path.is_symlink() or not path.is_dir() else path.rglob("*")
    size = sum(file.lstat().st_size for file in files if file.is_symlink() or not file.is_dir())
    return Found(path=path, size_bytes=size, why=why, goes=goes)


GC = Command(
    help="remove stage results and decoded images that no run needs, left-overs, damaged results",
    examples=("pocketnest gc artifacts --dry-run", "pocketnest gc artifacts --older-than 0"),
    add_arguments=add_arguments,
    run=run,
)
