"""The soak: every kind of fault hundreds of times, every kind of input thousands of times.

    python -m tests.soak --seed 1 --work soak

Prints a table of what was done and what came of it; exit code 1 where anything was wrong. What
was done is kept in the work folder: the same command again goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.soak import faults, fuzz_files, fuzz_recipes
from tests.soak.attempts import adopt_orphans
from tests.soak.campaign import KINDS, Disturbed, Undisturbed, campaign, elapsed, undisturbed
from tests.soak.sandbox import warm
from tests.soak.tiny import FORMATS

_KILLS = ("killed at a moment", "killed at a file operation")
_SIGNALS = ("SIGTERM", "SIGINT", "SIGINT twice")
_FAULTS = {
    "disk full": 4,
    "disk full, suddenly": 4,
    "EIO on a write": 3,
    "EIO on a read": 3,
    "no permission": 2,
    "short reads and writes": 2,
    "newest file truncated": 2,
}
"""How many of twenty."""
_SHARES = {"onnx": 13, "tflite": 4, "coreml": 2, "all": 1}
"""How many of twenty campaigns; others only where `--formats` asks for them."""
_FAULTS_PER_CAMPAIGN = 12


def wanted(kills: int, others: int, signals: int) -> Counter[str]:
    """How often every kind of fault is to strike."""
    of_twenty = [kind for kind, count in _FAULTS.items() for _ in range(count)]
    random.Random(0).shuffle(of_twenty)  # a few are of every kind, too
    return Counter(
        [_KILLS[i % len(_KILLS)] for i in range(kills)]
        + [of_twenty[i % len(of_twenty)] for i in range(others)]
        + [_SIGNALS[i % len(_SIGNALS)] for i in range(signals)]
    )


def disturb(
    count: Counter[str], formats: tuple[str, ...], seed: int, workers: int, work: Path
) -> list[Disturbed]:
    """Run campaigns until every kind of fault has struck as often as it is to.

    Those that run at the same time share what is missing, so that a few faults end sooner, too.
    """
    known = {name: _known(name, work) for name in formats}
    log = work / f"disturbed-{seed}.jsonl"
    done = [Disturbed(**json.loads(line)) for line in _lines(log)]
    begun = max((one.seed for one in done), default=seed * 10_000)
    running: dict[int, tuple[int, Counter[str]]] = {}
    while True:
        under_way = sum((kinds for _, kinds in running.values()), Counter[str]())
        missing = count - Counter(one.kind for one in done) - under_way
        if missing and len(running) < workers:
            begun += 1
            share = math.ceil(missing.total() / (workers - len(running)))
            number, kinds = _started(begun, missing, share, known, work)
            running[number] = begun, Counter(kinds)
            continue
        if not running:
            return done
        number, status = os.wait()
        if number not in running:
            continue
        struck = _struck(running.pop(number)[0], status, work)
        with log.open("a") as file:
            file.writelines(json.dumps(asdict(one)) + "\n" for one in struck)
        done += struck
        for one in struck:
            for problem in one.problems:
                print(f"seed {one.seed}: {problem}", flush=True)
        left = (count - Counter(one.kind for one in done)).total()
        print(f"{count.total() - left} of {count.total()} faults have struck", flush=True)


def _known(formats: str, work: Path) -> Undisturbed:
    file = work / f"undisturbed-{formats}.json"
    if not file.exists():
        found = undisturbed(formats, work / "reference")
        file.write_text(json.dumps(asdict(found)))
    return Undisturbed(**json.loads(file.read_text()))


def _started(
    seed: int, missing: Counter[str], share: int, known: Mapping[str, Undisturbed], work: Path
) -> tuple[int, list[str]]:
    """Start a campaign of at most `share` faults; its process and the kinds of its faults."""
    dice = random.Random(seed)
    kinds = dice.sample(sorted(missing.elements()), min(share, _FAULTS_PER_CAMPAIGN))
    formats = dice.choices(list(known), [_SHARES.get(name, 1) for name in known])[0]
    number = os.fork()
    if number == 0:
        status = 1
        try:
            adopt_orphans()
            folder = work / f"campaign-{seed}"
            struck = campaign(kinds, formats, seed, known[formats], folder)
            _result(seed, work).write_text(json.dumps([asdict(one) for one in struck]))
            status = 0
        finally:
            os._exit(status)
    return number, kinds


def _struck(seed: int, status: int, work: Path) -> list[Disturbed]:
    file = _result(seed, work)
    if status != 0 or not file.exists():
        raise RuntimeError(f"campaign {seed} itself failed with {status}")
    found = [Disturbed(**one) for one in json.loads(file.read_text())]
    file.unlink()
    return found


def _result(seed: int, work: Path) -> Path:
    return work / f"campaign-{seed}.json"


def _lines(file: Path) -> Iterator[str]:
    if file.exists():
        yield from file.read_text().splitlines()


def table(done: list[Disturbed]) -> Table:
    """Counts by kind of fault and outcome."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("fault", "struck", "same artifacts", "wrong", "ended with"):
        shown.add_column(heading, justify="left" if heading in {"fault", "ended with"} else "right")
    for kind in [kind for kind in KINDS if any(one.kind == kind for one in done)]:
        those = [one for one in done if one.kind == kind]
        wrong = sum(bool(one.problems) for one in those)
        ends = Counter(one.status for one in those)
        how = ", ".join(f"{status}: {times}" for status, times in sorted(ends.items()))
        shown.add_row(kind, str(len(those)), str(len(those) - wrong), str(wrong), how)
    wrong = sum(bool(one.problems) for one in done)
    shown.add_row("all", str(len(done)), str(len(done) - wrong), str(wrong), "")
    return shown


def main(argv: list[str] | None = None) -> int:
    """Run the soak; 0 where everything ended as it must."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--signals", type=int, default=30)
    parser.add_argument("--recipes", type=int, default=20_000)
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(_SHARES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("soak"))
    arguments = parser.parse_args(argv)
    arguments.work = arguments.work.absolute()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not faults.is_preloaded():
        faults.preload(arguments.work)
    console = Console(width=120, highlight=False)
    ended = [_faults(arguments, console)] if _asked(arguments).total() else []
    for name, module in (("recipes", fuzz_recipes), ("files", fuzz_files)):
        if count := getattr(arguments, name):
            began = time.monotonic()
            workers, seed = arguments.workers, arguments.seed
            found = module.run(count, seed, workers, arguments.work / name)
            console.print(f"{count} {name}\n{found.text()}\nseed {seed}, {elapsed(began)}")
            ended.append(not found.faults)
    return int(not all(ended))


def _asked(arguments: argparse.Namespace) -> Counter[str]:
    return wanted(arguments.kills, arguments.faults, arguments.signals)


def _faults(arguments: argparse.Namespace, console: Console) -> bool:
    """Have every fault strike, show what came of it; True where nothing was wrong."""
    began = time.monotonic()
    warm()
    adopt_orphans()
    count, formats = _asked(arguments), tuple(arguments.formats)
    done = disturb(count, formats, arguments.seed, arguments.workers, arguments.work)
    console.print(table(done))
    console.print(f"seed {arguments.seed}, {elapsed(began)}")
    return not any(one.problems for one in done)


if __name__ == "__main__":
    sys.exit(main())
