"""A campaign: one run of the pipeline that is disturbed again and again, and must end as if not.

Every attempt runs the same command. The first is killed or meets a fault, the next goes on from
what that one left, and so on; the last is left alone. What lies under a final name is checked
after every attempt, the artifacts after the last.
"""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.checksums import MANIFEST, damage, hash_of
from tests.making.recipes import DEVICE_RECIPES, settings
from tests.soak import faults
from tests.soak.attempts import Attempt, attempt, orphans_left, two_at_once
from tests.soak.faults import Plan
from tests.soak.tiny import FORMATS, RUNS

_NEVER_ALIKE = {
    "stage.json",
    "report.json",
    "report.md",
    "report.html",
    "program.pt2",
    "float.pt2",
    MANIFEST,
}
_NEVER_ALIKE |= {"run.log"}
"""What holds times, dates or random names, and the hashes of those."""

_DISK_MEGABYTES = 400
_SLACK_BYTES = 64 * 1024
_TWO_AT_ONCE = 1 / 3
_SECONDS_TO_END = 10.0
"""A signal must have ended the program by then."""


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """What a run makes that nothing disturbs.

    Attributes:
        files: SHA-256 of every file that every run makes alike, by its path in the output.
        seconds: the whole takes.
        writes: operations that write, make or rename a file.
        reads: operations that read.
        opens: files that are opened.
        size_bytes: of the output.
    """

    files: dict[str, str]
    seconds: float
    writes: int
    reads: int
    opens: int
    size_bytes: int


@dataclass(kw_only=True)
class Disturbed:
    """A fault that struck, and what came of it."""

    kind: str
    formats: str
    seed: int
    number: int
    status: int
    seconds: float
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the attempts of one campaign share."""

    formats: str
    out: Path
    folder: Path
    plan: Plan
    on_tmpfs: bool
    known: Undisturbed
    dice: random.Random
    share: float

    def moment(self) -> float:
        """Seconds until something happens; the mean brings a campaign's faults over its run."""
        return self.dice.uniform(0.0, 2.0) * self.known.seconds * self.share

    def operation(self, count: int) -> int:
        """Number of the operation at which something happens."""
        return int(self.dice.uniform(0.0, 2.0) * count * self.share)

    def command(self, *flags: str) -> list[str]:
        """The command of every attempt."""
        recipes = [str(DEVICE_RECIPES[name]) for name in FORMATS[self.formats]]
        return ["run", *recipes, "--out", str(self.out), *settings(*RUNS[self.formats]), *flags]

    def run(self, *signals: tuple[float, signal.Signals]) -> Attempt:
        """One attempt of that command."""
        return attempt(self.command(), self.folder, self.plan, signals)


# One function for each kind of fault: it makes an attempt and says whether the fault has struck.

Struck = tuple[Attempt, bool]


def _kill_at_a_moment(scene: Scene) -> Struck:
    done = scene.run((scene.moment(), signal.SIGKILL))
    return done, done.status == -signal.SIGKILL


def _kill_at_an_operation(scene: Scene) -> Struck:
    scene.plan.arm(scene.out, faults.KILL, after=scene.operation(scene.known.writes))
    done = scene.run()
    return done, scene.plan.struck


def _disk_full(scene: Scene) -> Struck:
    """A disk that is too small, where one can be mounted; else writes that say so."""
    if not scene.on_tmpfs:
        return _failing(scene, faults.FAIL_WRITES, scene.known.writes, errno.ENOSPC)
    used = shutil.disk_usage(scene.out.parent).used
    left = max(0, scene.known.size_bytes - used)
    size = used + int(_SLACK_BYTES + scene.dice.uniform(0.0, 2.0) * scene.share * left)
    faults.resize_disk(scene.out.parent, size)
    try:
        done = scene.run()
    finally:
        faults.resize_disk(scene.out.parent, _DISK_MEGABYTES * 2**20)
    return done, done.status != 0


def _disk_full_suddenly(scene: Scene) -> Struck:
    return _failing(scene, faults.FAIL_WRITES, scene.known.writes, errno.ENOSPC)


def _write_error(scene: Scene) -> Struck:
    return _failing(scene, faults.FAIL_WRITES, scene.known.writes, errno.EIO)


def _read_error(scene: Scene) -> Struck:
    return _failing(scene, faults.FAIL_READS, scene.known.reads, errno.EIO)


def _no_permission(scene: Scene) -> Struck:
    return _failing(scene, faults.FAIL_OPENS, scene.known.opens, errno.EACCES)


def _failing(scene: Scene, kind: int, count: int, error: int) -> Struck:
    once = error == errno.EIO and scene.dice.random() < 0.5
    after = scene.operation(count)
    scene.plan.arm(scene.out, kind, after=after, error=error, lasting=not once)
    done = scene.run()
    return done, scene.plan.struck


def _short_transfers(scene: Scene) -> Struck:
    scene.plan.arm(scene.out, faults.SHORT, lasting=True)
    done = scene.run((scene.moment(), signal.SIGKILL))
    return done, scene.plan.struck and done.status == -signal.SIGKILL


def _newest_truncated(scene: Scene) -> Struck:
    done, struck = _kill_at_a_moment(scene)
    files = [path for path in scene.out.rglob("*") if path.is_file() and path.stat().st_size]
    files = [path for path in files if path.name not in {"run.log", ".mutex"}]
    if not struck or not files:
        return done, False
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    with newest.open("r+b") as file:
        file.truncate(scene.dice.randrange(newest.stat().st_size))
    return done, True


def _terminated(scene: Scene) -> Struck:
    done = scene.run((scene.moment(), signal.SIGTERM))
    return done, done.reaction is not None and done.status != 0


def _interrupted(scene: Scene) -> Struck:
    done = scene.run((scene.moment(), signal.SIGINT))
    return done, done.reaction is not None and done.status != 0


def _interrupted_twice(scene: Scene) -> Struck:
    pause = scene.dice.uniform(0.0, 0.5)
    done = scene.run((scene.moment(), signal.SIGINT), (pause, signal.SIGINT))
    return done, done.reaction is not None and done.status != 0


KINDS: dict[str, Callable[[Scene], Struck]] = {
    "killed at a moment": _kill_at_a_moment,
    "killed at a file operation": _kill_at_an_operation,
    "disk full": _disk_full,
    "disk full, suddenly": _disk_full_suddenly,
    "EIO on a write": _write_error,
    "EIO on a read": _read_error,
    "no permission": _no_permission,
    "short reads and writes": _short_transfers,
    "newest file truncated": _newest_truncated,
    "SIGTERM": _terminated,
    "SIGINT": _interrupted,
    "SIGINT twice": _interrupted_twice,
}
_KILLS = {"killed at a moment", "killed at a file operation", "short reads and writes"}
_KILLS |= {"newest file truncated"}
_SIGNALS = {"SIGTERM": 128 + signal.SIGTERM, "SIGINT": 128 + signal.SIGINT}


def campaign(
    kinds: list[str], formats: str, seed: int, known: Undisturbed, folder: Path
) -> list[Disturbed]:
    """Disturb one run by faults of `kinds`, in turn, until it is done or they are through.

    Returns:
        The faults that struck. What was wrong at the end is a problem of each of them.
    """
    struck: list[Disturbed] = []
    with _stage(formats, seed, known, folder, 1 / (len(kinds) + 1)) as scene:
        spoiled: set[Path] = set()
        for number, kind in enumerate(kinds):
            done, hit = KINDS[kind](scene)
            scene.plan.disarm()
            problems = [f"attempt {number}, {kind}: {text}" for text in wrong_end(kind, done)]
            if kind == "newest file truncated" and hit:
                spoiled = damaged(scene.out)
            problems += [f"{path} is not whole" for path in damaged(scene.out) - spoiled]
            disturbed = Disturbed(
                kind=kind,
                formats=formats,
                seed=seed,
                number=number,
                status=done.status,
                seconds=done.seconds,
                problems=problems,
            )
            if hit or problems:
                struck.append(disturbed)
            if done.status == 0:
                break
        at_the_end = [text for last in _undisturbed_end(scene) for text in wrong_end("", last)]
        at_the_end += differences(scene) + _upkeep(scene)
        if orphans_left(_SECONDS_TO_END):
            at_the_end.append("a child process still runs")
    for disturbed in struck:
        disturbed.problems += at_the_end
    return struck


def undisturbed(formats: str, folder: Path) -> Undisturbed:
    """Run once without a fault, and measure."""
    nothing = Undisturbed(files={}, seconds=0, writes=0, reads=0, opens=0, size_bytes=0)
    with _stage(formats, 0, nothing, folder, 0) as scene:
        scene.plan.arm(scene.out, faults.COUNT)
        done = scene.run()
        assert done.status == 0, done.stdout + done.stderr
        files = {name: scene.out / name for name in _files(scene.out)}
        reads, writes, opens = scene.plan.counted
        return Undisturbed(
            files={n: hash_of(file) for n, file in files.items() if file.name not in _NEVER_ALIKE},
            seconds=done.seconds,
            writes=writes,
            reads=reads,
            opens=opens,
            size_bytes=sum(file.stat().st_size for file in files.values()),
        )


def _files(out: Path) -> Iterator[str]:
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        if path.is_file() and not name.parts[-1].startswith(".") and ".locks" not in name.parts:
            yield name.as_posix()


@contextmanager
def _stage(
    formats: str, seed: int, known: Undisturbed, folder: Path, share: float
) -> Iterator[Scene]:
    disk = folder / "disk"
    shutil.rmtree(folder, ignore_errors=True)
    disk.mkdir(parents=True, exist_ok=True)
    with faults.small_disk(disk, _DISK_MEGABYTES) as on_tmpfs:
        yield Scene(
            formats=formats,
            out=disk / "out",
            folder=folder,
            plan=Plan(folder / "plan"),
            on_tmpfs=on_tmpfs,
            known=known,
            dice=random.Random(seed),
            share=share,
        )
    shutil.rmtree(folder, ignore_errors=True)


def _undisturbed_end(scene: Scene) -> list[Attempt]:
    """Run to the end; one time in three, two commands do that on the same store at once."""
    if scene.dice.random() < _TWO_AT_ONCE:
        return two_at_once(scene.command(), scene.folder, scene.plan)
    return [scene.run()]


def wrong_end(kind: str, done: Attempt) -> list[str]:
    """What is wrong with how an attempt ended."""
    problems = []
    if done.status == -signal.SIGKILL and kind in _KILLS:
        return []
    if "Traceback" in done.stderr:
        problems.append(f"traceback: {done.stderr.strip().splitlines()[-1]}")
    elif done.status not in {0, 1, 2, 3, *_SIGNALS.values()}:
        problems.append(f"ended with {done.status}: {done.stderr[-300:]}")
    elif done.status in {1, 2} and not done.stderr.startswith("error: "):
        problems.append(f"ended with {done.status} and says {done.stderr[-300:]!r}")
    elif kind == "" and done.status != 0:
        problems.append(f"left alone it ended with {done.status}: {done.stderr[-300:]}")
    if kind in _SIGNALS and done.reaction is not None and done.status not in {0, _SIGNALS[kind]}:
        problems.append(f"ended with {done.status}, not {_SIGNALS[kind]}: {done.stderr[-300:]}")
    if kind in _SIGNALS and done.reaction is not None and done.reaction > _SECONDS_TO_END:
        problems.append(f"took {done.reaction:.1f} s to end")
    return problems


def damaged(out: Path) -> set[Path]:
    """Everything under a final name that is not whole."""
    found = {
        place
        for place in [*out.glob(".store/[a-z]*-*"), *out.glob("[a-z]*/")]
        if place.is_dir() and place.name != "combined" and damage(place, more_allowed=True)
    }
    for report in out.glob("*/report.json"):
        try:
            json.loads(report.read_text())
        except ValueError:
            found.add(report)
    return found


def differences(scene: Scene) -> list[str]:
    """What differs from the run that nothing disturbed."""
    problems = []
    for name, value in scene.known.files.items():
        path = scene.out / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif hash_of(path) != value:
            problems.append(f"{name} is another file")
    return problems


def _upkeep(scene: Scene) -> list[str]:
    """What is wrong after everything was verified and garbage was collected."""
    problems = []
    names = [DEVICE_RECIPES[name].stem for name in FORMATS[scene.formats]]
    for arguments in (
        *(["verify", str(scene.out / name)] for name in names),
        ["gc", str(scene.out)],
        *(["verify", str(scene.out / name)] for name in names),
    ):
        done = attempt(arguments, scene.folder, scene.plan)
        if done.status != 0:
            problems.append(f"{' '.join(arguments)}: {done.status} {done.stdout[-200:]}")
    left = [path.name for path in scene.out.glob(".store/.[mdo]*")]
    left += [path.name for path in scene.out.glob(".store/.partial/*")]
    return problems + [f"{name} was not collected" for name in left]


def elapsed(began: float) -> str:
    """Minutes and seconds since `began`, of time.monotonic."""
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    return f"{minutes} min {seconds} s"
