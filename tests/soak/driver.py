"""Thousands of cases in a row: drawn by kind, run in the sandbox, counted, and gone on with.

Every outcome is a line of `progress-*.jsonl`, so that a second call of an interrupted share does
what is left.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tests.soak import sandbox
from tests.soak.sandbox import Case, Outcome, Place

Make = Callable[[random.Random, Place], Case]
"""Draws a case: writes what the command is given and returns the command."""

_STRIDE = 1_000_000
"""Cases of one seed have the numbers seed * stride, seed * stride + 1, ..."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of input.

    Attributes:
        make: draws a case.
        share: how often, against the other kinds.
        quick: whether it needs no finished run, and so is part of the quick share.
    """

    make: Make
    share: int = 1
    quick: bool = True


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of a share.

    Attributes:
        table: cases by kind of input and outcome.
        faults: a line for each outcome that is a fault, with the command that shows it again.
        seconds: of all cases together.
        slowest: the longest case.
        peak_bytes: the most memory of a case.
    """

    table: dict[tuple[str, str], int]
    faults: list[str]
    seconds: float
    slowest: float
    peak_bytes: int

    def text(self) -> str:
        """For people: a row for each kind, a column for each outcome, then the faults."""
        outcomes = sorted({outcome for _, outcome in self.table})
        kinds = sorted({kind for kind, _ in self.table})
        rows = [f"{'kind':<24}" + "".join(f"{outcome:>15}" for outcome in outcomes)]
        for kind in (*kinds, "all"):
            counts = [
                sum(n for (k, o), n in self.table.items() if o == outcome and kind in (k, "all"))
                for outcome in outcomes
            ]
            rows.append(f"{kind:<24}" + "".join(f"{count:>15}" for count in counts))
        number = max(1, sum(self.table.values()))
        rows.append(
            f"{self.seconds / number:.2f} s a case, {self.slowest:.1f} s the longest, "
            f"{self.peak_bytes / 2**30:.2f} GiB the most memory"
        )
        return "\n".join([*rows, *self.faults])


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which cases to run.

    Attributes:
        module: of the fuzzer: its `KINDS` are drawn from, `prepare` makes what all cases share,
            and `warm` imports what their commands need.
        count: of cases.
        seed: they differ from those of any other seed.
        only: the kind of all cases; None draws it.
        quick: only kinds that need no finished run.
    """

    module: str
    count: int
    seed: int
    only: str | None = None
    quick: bool = False

    def numbers(self) -> range:
        """Of the cases; each decides all of its case."""
        return range(self.seed * _STRIDE, self.seed * _STRIDE + self.count)

    def kinds(self) -> dict[str, Kind]:
        """Those that are drawn from, by name."""
        kinds: dict[str, Kind] = import_module(self.module).KINDS
        return {name: kind for name, kind in kinds.items() if kind.quick or not self.quick}


def draw(kinds: Mapping[str, Kind], number: int) -> str:
    """The kind of a case."""
    shares = [kind.share for kind in kinds.values()]
    return random.Random(f"kind {number}").choices(list(kinds), shares)[0]


def play(share: Share, kind: str, number: int, root: Path) -> tuple[Case, Outcome]:
    """Make and run one case in the folder `root`, which is removed before."""
    shutil.rmtree(root, ignore_errors=True)
    place, kinds = Place(root, share.quick), share.kinds()
    place.make()
    case = kinds[kind].make(random.Random(f"{kind} {number}"), place)
    return case, sandbox.run(case, place)


def run(share: Share, workers: int, work: Path, scratch: Path | None = None) -> Found:
    """Run the cases of a share that have not been run, and count all of them.

    Args:
        share: the cases.
        workers: processes at the same time.
        work: folder of the outcomes; kept.
        scratch: folder of the cases, best one in memory; None takes `work`.
    """
    scratch = scratch or work
    for folder in (work, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    import_module(share.module).prepare(scratch, share.quick)
    context = multiprocessing.get_context("spawn")
    together = [
        context.Process(target=_work, args=(share, (part, workers), work, scratch))
        for part in range(workers)
    ]
    for process in together:
        process.start()
    for process in together:
        process.join()
    if failed := [process.exitcode for process in together if process.exitcode]:
        raise RuntimeError(f"{len(failed)} workers of {share.module} ended with {failed}")
    return counted(share, work)


def _work(share: Share, part: tuple[int, int], work: Path, scratch: Path) -> None:
    mine, workers = part
    root = scratch / f"case-{share.seed}-{mine}"
    done = {line["number"] for line in _lines(work)}
    left = [n for n in share.numbers() if n % workers == mine and n not in done]
    if not left:
        return
    import_module(share.module).warm(share.quick)
    with (work / f"progress-{share.seed}-{mine}.jsonl").open("a", encoding="utf-8") as progress:
        for number in left:
            if (parent := multiprocessing.parent_process()) and not parent.is_alive():
                return  # killed; playing on, this would be in the way of the run that goes on
            kind = share.only or draw(share.kinds(), number)
            line = {"number": number, "kind": kind, **_played(share, kind, number, root)}
            progress.write(json.dumps(line) + "\n")
            progress.flush()
    shutil.rmtree(root, ignore_errors=True)


def _played(share: Share, kind: str, number: int, root: Path) -> dict[str, object]:
    try:
        case, outcome = play(share, kind, number, root)
    except Exception:  # a fault of the fuzzer, which is counted and ends nothing
        detail = traceback.format_exc()
        return {"outcome": "not made", "seconds": 0.0, "peak_bytes": 0, "detail": detail}
    return {
        "outcome": outcome.kind,
        "code": outcome.code,
        "seconds": round(outcome.seconds, 3),
        "peak_bytes": outcome.peak_bytes,
        "command": list(case.argv),
        "detail": outcome.detail[-4000:],
    }


def _lines(work: Path) -> list[dict[str, object]]:
    found = []
    for file in sorted(work.glob("progress-*.jsonl")):
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:  # the end of one that was killed
                continue
    return found


def counted(share: Share, work: Path) -> Found:
    """Count the outcomes of a share that are there so far."""
    numbers = share.numbers()
    lines = [line for line in _lines(work) if line["number"] in numbers]
    again = f"python -m {share.module} --work {work}{' --quick' * share.quick} --replay"
    faults = [
        f"{line['outcome']}: {again} '{line['kind']}' {line['number']}"
        f"  ({(str(line['detail']).strip().splitlines() or [''])[-1][:200]})"
        for line in lines
        if line["outcome"] not in sandbox.GOOD
    ]
    return Found(
        table=dict(Counter((str(line["kind"]), str(line["outcome"])) for line in lines)),
        faults=faults,
        seconds=sum(float(str(line["seconds"])) for line in lines),
        slowest=max((float(str(line["seconds"])) for line in lines), default=0.0),
        peak_bytes=max((int(str(line["peak_bytes"])) for line in lines), default=0),
    )


def command_line(module: str, argv: Sequence[str] | None = None) -> int:
    """Run a share, or one case again; 1 where there is a fault."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("artifacts/soak") / module.split(".")[-1])
    parser.add_argument("--scratch", type=Path, help="folder of the cases; --work if left out")
    parser.add_argument("--quick", action="store_true", help="kinds that need no finished run")
    parser.add_argument("--only", metavar="KIND")
    parser.add_argument("--replay", nargs=2, metavar=("KIND", "NUMBER"))
    given = parser.parse_args(argv)
    work: Path = given.work.absolute()
    scratch: Path = (given.scratch or work).absolute()
    share = Share(
        module=module, count=given.count, seed=given.seed, only=given.only, quick=given.quick
    )
    if given.replay is None:
        found = run(share, given.workers, work, scratch)
        print(found.text())
        return 1 if found.faults else 0
    scratch.mkdir(parents=True, exist_ok=True)
    import_module(module).prepare(scratch, share.quick)
    import_module(module).warm(share.quick)
    kind, number = given.replay
    case, outcome = play(share, kind, int(number), scratch / "replay")
    print(f"in {scratch / 'replay'}: pocketnest {' '.join(map(repr, case.argv))}")
    print(outcome.text)
    print(f"exit {outcome.code}: {outcome.kind}, {outcome.seconds:.2f} s")
    print(f"{outcome.peak_bytes / 2**20:.0f} MiB\n{outcome.detail}", file=sys.stderr)
    return 0 if outcome.good else 1
