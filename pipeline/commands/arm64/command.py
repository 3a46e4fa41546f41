"""`pocketnest arm64`: run the files of runs on emulated ARM64 processors, and compare."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from pipeline.commands.arguments import add_data, completes_folders, positive, some_of
from pipeline.commands.command import BUDGET_MISSED, OK, Command
from pipeline.measure.lanes.arm64.lane import CPUS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of a run, the processors, and how many images."""
    completes_folders(parser.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    parser.add_argument(
        "--cpu",
        type=some_of(CPUS),
        default=tuple(CPUS),
        metavar="NAMES",
        help=f"some of {','.join(CPUS)}; all where it is not given",
    )
    parser.add_argument("--images", type=positive, metavar="N", help="images to run; 50")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for arm64.json; the run's folder")
    add_data(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare the answers of a run's files on each processor with those of this machine.

    Raises:
        InputError: no finished run, a format without a runtime for ARM64 Linux, a machine that
            cannot be set up, or a result that cannot be written.
    """
    from pipeline.base.console import LOG, third_party_output_to, tracked
    from pipeline.base.safe_files import refuse_outputs
    from pipeline.measure.arm64.record import ARM64
    from pipeline.measure.lanes.arm64 import machine
    from pipeline.stages.finished_run import open_runs

    runs = open_runs(arguments.run_dir, data=arguments.data)
    out: Path = arguments.out or arguments.run_dir
    out.mkdir(parents=True, exist_ok=True)
    path = out / ARM64
    refuse_outputs(folders=[out], files=[path])
    with third_party_output_to(out / LOG) as console:
        from pipeline.commands.arm64.check import checked, write
        from pipeline.commands.arm64.table import show
        from pipeline.measure.arm64.compare import IMAGES

        made = machine.set_up(partial(console.print, highlight=False, markup=False))
        images = arguments.images or IMAGES
        found = checked(runs, arguments.cpu, images, made, partial(tracked, console))
        write(found, path)
        show(found, console)
        console.print(f"{path}", highlight=False, markup=False)
    return OK if found.alike else BUDGET_MISSED


ARM64_COMMAND = Command(
    help="does a run's file answer on ARM64 processors, emulated, as it does here?",
    examples=(
        "pocketnest arm64 artifacts/android-litert-int8",
        "pocketnest arm64 artifacts/combined --cpu cortex-a76 --images 200",
    ),
    add_arguments=add_arguments,
    run=run,
)
