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
import time
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
    """

    make: Make
    share: int = 1


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


def draw(kinds: Mapping[str, Kind], number: int) -> str:
    """The kind of a case."""
    shares = [kind.share for kind in kinds.values()]
    return random.Random(f"kind {number}").choices(list(kinds), shares)[0]


def play(kinds: Mapping[str, Kind], kind: str, number: int, root: Path) -> tuple[Case, Outcome]:
    """Make and run one case in the folder `root`, which is removed before."""
    shutil.rmtree(root, ignore_errors=True)
    place = Place(root)
    place.make()
    case = kinds[kind].make(random.Random(f"{kind} {number}"), place)
    return case, sandbox.run(case, place)


def run(
    module: str, count: int, seed: int, workers: int, work: Path, only: str | None = None
) -> Found:
    """Run the cases of a share that have not been run, and count all of them.

    Args:
        module: of the fuzzer; its `KINDS` are drawn from, and `prepare` makes what they share.
        count: of all cases.
        seed: of the share.
        workers: processes at the same time.
        work: folder of the cases and their outcomes; kept.
        only: the kind of all cases; None draws it.
    """
    work.mkdir(parents=True, exist_ok=True)
    import_module(module).prepare(work)
    context = multiprocessing.get_context("spawn")
    together = [
        context.Process(target=_work, args=(module, count, seed, (part, workers), work, only))
        for part in range(workers)
    ]
    for process in together:
        process.start()
    for process in together:
        process.join()
    if failed := [process.exitcode for process in together if process.exitcode]:
        raise RuntimeError(f"{len(failed)} workers of {module} ended with {failed}; see above")
    return counted(module, work, seed, count)


def _work(
    module: str, count: int, seed: int, part: tuple[int, int], work: Path, only: str | None
) -> None:
    fuzzer = import_module(module)
    mine, workers = part
    root = work / f"case-{seed}-{mine}"
    done = {line["number"] for line in _lines(work)}
    left = [n for n in range(seed * _STRIDE, seed * _STRIDE + count) if n % workers == mine]
    left = [number for number in left if number not in done]
    if not left:
        return
    sandbox.warm()
    with (work / f"progress-{seed}-{mine}.jsonl").open("a", encoding="utf-8") as progress:
        for number in left:
            kind = only or draw(fuzzer.KINDS, number)
            case, outcome = play(fuzzer.KINDS, kind, number, root)
            line = {
                "number": number,
                "kind": kind,
                "outcome": outcome.kind,
                "code": outcome.code,
                "seconds": round(outcome.seconds, 3),
                "peak_bytes": outcome.peak_bytes,
                "command": list(case.argv),
                "detail": outcome.detail[-1500:],
            }
            progress.write(json.dumps(line) + "\n")
            progress.flush()
    shutil.rmtree(root, ignore_errors=True)


def _lines(work: Path) -> list[dict[str, object]]:
    found = []
    for file in sorted(work.glob("progress-*.jsonl")):
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:  # the end of one that was killed
                continue
    return found


def counted(module: str, work: Path, seed: int, count: int) -> Found:
    """Count the outcomes of a share that are there so far."""
    lines = [
        line
        for line in _lines(work)
        if seed * _STRIDE <= int(str(line["number"])) < seed * _STRIDE + count
    ]
    faults = [
        f"{line['outcome']}: python -m {module} --replay {line['kind']} {line['number']}"
        f"  ({str(line['detail']).strip().splitlines()[-1:]})"
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


def command_line(module: str, kinds: Mapping[str, Kind], argv: Sequence[str] | None = None) -> int:
    """Run a share, or one case again; 1 where there is a fault."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("artifacts/soak") / module.split(".")[-1])
    parser.add_argument("--only", choices=list(kinds), metavar="KIND")
    parser.add_argument("--replay", nargs=2, metavar=("KIND", "NUMBER"))
    arguments = parser.parse_args(argv)
    if arguments.replay is None:
        found = run(
            module,
            arguments.count,
            arguments.seed,
            arguments.workers,
            arguments.work.absolute(),
            arguments.only,
        )
        print(found.text())
        return 1 if found.faults else 0
    work: Path = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    import_module(module).prepare(work)
    sandbox.warm()
    kind, number = arguments.replay
    began = time.monotonic()
    case, outcome = play(kinds, kind, int(number), work / "replay")
    print(f"{work / 'replay'}: pocketnest {' '.join(map(repr, case.argv))}")
    print(outcome.text)
    print(f"exit {outcome.code}: {outcome.kind}, {time.monotonic() - began:.2f} s")
    print(f"{outcome.peak_bytes / 2**20:.0f} MiB\n{outcome.detail}", file=sys.stderr)
    return 0 if outcome.good else 1
