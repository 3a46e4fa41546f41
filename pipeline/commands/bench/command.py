"""`pocketnest bench`: time the files of runs again, in turn with the float network."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from pipeline.base.console import third_party_output_to, tracked
from pipeline.base.safe_files import refuse_link, refuse_to_write
from pipeline.commands.run import LOG


def bench(arguments: argparse.Namespace) -> bool:
    """Time the files of runs in turn with the float network and, if asked, other tools' files.

    Returns:
        Whether every bar that was given is met.

    Raises:
        InputError: no finished runs of one network, or bars that cannot be read.
    """
    from pipeline.stages.finished_run import open_runs

    runs = [run for directory in arguments.run_dirs for run in open_runs(directory)]
    first: Path = arguments.run_dirs[0]
    out: Path = arguments.out or (first if len(arguments.run_dirs) == 1 else first.parent)
    out.mkdir(parents=True, exist_ok=True)
    refuse_link(out / "peers")
    with third_party_output_to(out / LOG) as console:
        from pipeline.commands.bench.bars import load_bars
        from pipeline.commands.bench.benchmark import benchmark, write_json
        from pipeline.commands.bench.plot import write_plot
        from pipeline.commands.bench.table import show

        bars = [bar for file in arguments.bars for bar in load_bars(file)]
        found = benchmark(
            runs,
            rounds=arguments.rounds,
            peers=out / "peers" if arguments.peers else None,
            bars=bars,
            tracked=partial(tracked, console),
        )
        refuse_to_write(out / "bench.json")
        refuse_to_write(out / "bench.svg")
        write_json(found, out / "bench.json")
        write_plot(found, out / "bench.svg")
        show(found, console)
        console.print(f"{out / 'bench.json'}, {out / 'bench.svg'}", highlight=False)
    return found.passed
