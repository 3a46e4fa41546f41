"""`pocketnest device`: run the files of a run on a phone, check their answers, and time them.

With `--import`, take the times that a device service or another tool has written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.arguments import (
    add_data,
    completes_files,
    completes_folders,
    positive,
    some_of,
)
from pipeline.commands.command import BUDGET_MISSED, OK, Command
from pipeline.measure.lanes.adb.runner import UNITS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of a run, the phone, the runner and what is timed; or a file of times."""
    completes_folders(parser.add_argument("run_dir", type=Path, nargs="?", metavar="RUN_DIR"))
    completes_files(
        parser.add_argument(
            "--import",
            type=Path,
            dest="imported",
            metavar="FILE",
            help="of times: of a profile job of Qualcomm AI Hub, of benchmark_model or of ONNX "
            "Runtime; no phone is needed",
        )
    )
    parser.add_argument("--name", help="of the device that an imported file is of")
    parser.add_argument(
        "--serial", metavar="S", help="of the phone, as `adb devices` lists it, where there are two"
    )
    completes_files(
        parser.add_argument(
            "--runner",
            type=Path,
            metavar="PATH",
            help="LiteRT's benchmark_model for the phone's processor",
        )
    )
    parser.add_argument(
        "--units",
        type=some_of(UNITS),
        default=("cpu",),
        metavar="NAMES",
        help=f"some of {','.join(UNITS)}; cpu where it is not given",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=10,
        metavar="N",
        help="in which the files take turns; 10",
    )
    add_data(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure a run's files on a phone, or import times.

    Raises:
        InputError: no finished run, no file that runs on a phone, no phone or several, a runner
            that does not run there, or a connection that broke; or a file that cannot be imported.
    """
    if arguments.imported is not None:
        return _import(arguments)
    from pipeline.base.console import LOG, third_party_output_to
    from pipeline.base.errors import InputError
    from pipeline.measure.lanes.adb import phones
    from pipeline.stages.finished_run import open_runs

    if arguments.run_dir is None or arguments.runner is None:
        raise InputError(
            "give RUN_DIR and --runner PATH to measure on a phone, or --import FILE with times"
        )
    phone = phones.chosen(arguments.serial)
    runs = open_runs(arguments.run_dir, data=arguments.data)
    with third_party_output_to(arguments.run_dir / LOG) as console:
        from pipeline.commands.device.measure import measure

        return OK if measure(arguments, runs, phone, console) else BUDGET_MISSED


def _import(arguments: argparse.Namespace) -> int:
    import os

    from pipeline.base.console import LOG, third_party_output_to
    from pipeline.stages.finished_run import open_runs

    folder: Path | None = arguments.run_dir
    runs = [] if folder is None else open_runs(folder, data=arguments.data)
    with third_party_output_to(Path(os.devnull) if folder is None else folder / LOG) as console:
        from pipeline.commands.device.importing import import_file

        return OK if import_file(arguments, runs, console) else BUDGET_MISSED


DEVICE_COMMAND = Command(
    help="a run's files on a phone: golden images first, then times; over adb",
    examples=(
        "pocketnest device artifacts/combined --runner benchmark_model",
        "pocketnest device artifacts/android-litert-int8 --runner benchmark_model --units cpu,gpu",
        "pocketnest device artifacts/android-litert-int8 --import job.json --name 'Galaxy S24'",
    ),
    add_arguments=add_arguments,
    run=run,
)
