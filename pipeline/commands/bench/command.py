"""`pocketnest bench`: time the files of runs again, in turn with the float network."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.commands.arguments import add_data, completes_folders, positive
from pipeline.commands.command import BUDGET_MISSED, OK, Command
from pipeline.measure.lanes.lanes import HOST, LANES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take folders of runs, what to time beside them, and what must come out."""
    completes_folders(parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR"))
    parser.add_argument("--rounds", type=positive, default=50, metavar="N")
    parser.add_argument(
        "--peers",
        action="store_true",
        help="make and time what other tools make of the same network",
    )
    parser.add_argument(
        "--bars",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="YAML list of what must hold; exit code 3 where it does not",
    )
    parser.add_argument(
        "--newer",
        type=Path,
        action="append",
        default=[],
        metavar="PYTHON",
        help="of an environment with a newer onnxruntime or ai-edge-litert, to time the same files",
    )
    parser.add_argument(
        "--lane",
        default=HOST,
        metavar="NAME",
        help=f"where files are timed, or their instructions are counted: {', '.join(LANES)}",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="for bench.json and bench.svg")
    add_data(parser)


def run(arguments: argparse.Namespace) -> int:
    """Time the files of runs in turn with the float network and, if asked, other tools' files.

    Raises:
        InputError: no finished runs of one network, bars that cannot be read, or results that
            cannot be written.
    """
    from pipeline.base.console import LOG, third_party_output_to, tracked
    from pipeline.base.errors import InputError
    from pipeline.base.safe_files import refuse_outputs
    from pipeline.commands.bench.peers.plans import KEPT
    from pipeline.stages.finished_run import open_runs

    if arguments.lane not in LANES:
        raise InputError(f"--lane: got {arguments.lane!r}; must be one of {', '.join(LANES)}")
    if arguments.newer and not LANES[arguments.lane].takes_calls:
        raise InputError(f"--newer: is timed on this machine; leave out --lane {arguments.lane}")
    directories: list[Path] = arguments.run_dirs
    data: Path | None = arguments.data
    runs = [one for directory in directories for one in open_runs(directory, data=data)]
    first = directories[0]
    out: Path = arguments.out or (first if len(directories) == 1 else first.parent)
    out.mkdir(parents=True, exist_ok=True)
    table, picture, peers = out / "bench.json", out / "bench.svg", out / "peers"
    refuse_outputs(folders=[peers], files=[table, picture])
    if arguments.peers:
        peers.mkdir(exist_ok=True)
        refuse_outputs(files=[peers / KEPT])
    with third_party_output_to(out / LOG) as console:
        from pipeline.commands.bench import newer
        from pipeline.commands.bench.bars import load_bars
        from pipeline.commands.bench.benchmark import benchmark, write_json
        from pipeline.commands.bench.plot import write_plot
        from pipeline.commands.bench.table import show

        bars = [bar for file in arguments.bars for bar in load_bars(file)]
        with TemporaryDirectory() as scratch, newer.opened(arguments.newer, Path(scratch)) as other:
            found = benchmark(
                runs,
                rounds=arguments.rounds,
                peers=peers if arguments.peers else None,
                bars=bars,
                lane=arguments.lane,
                tracked=partial(tracked, console),
                newer=other,
            )
        write_json(found, table)
        show(found, console)
        written = [table]
        if found.timed:
            write_plot(found, picture)
            written.append(picture)
        console.print(", ".join(map(str, written)), highlight=False)
    return OK if found.passed else BUDGET_MISSED


BENCH = Command(
    help="time the files of runs again, in turn with the float model",
    examples=(
        "pocketnest bench artifacts/android-litert-int8",
        "pocketnest bench artifacts/android-litert-int8 --peers --rounds 100",
    ),
    add_arguments=add_arguments,
    run=run,
)
