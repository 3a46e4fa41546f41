"""`pocketnest apple`: run a run's packages on a Mac, check their answers, and time them."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.arguments import add_data, completes_folders, positive, some_of
from pipeline.commands.command import BUDGET_MISSED, OK, Command

UNITS = ("cpu", "gpu", "ne")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of a run, the Mac and what is timed."""
    completes_folders(parser.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    parser.add_argument(
        "--host", type=host, metavar="USER@MAC", help="by ssh; this Mac where it is not given"
    )
    parser.add_argument(
        "--python", metavar="PATH", help="with coremltools and numpy, on that Mac; python3"
    )
    parser.add_argument(
        "--units",
        type=some_of(UNITS),
        default=UNITS,
        metavar="NAMES",
        help=f"some of {','.join(UNITS)}; all where it is not given",
    )
    parser.add_argument(
        "--rounds",
        type=positive,
        default=50,
        metavar="N",
        help="in which the packages take turns; 50",
    )
    add_data(parser)


def host(text: str) -> str:
    """What ssh takes as the name of a machine, and not as an option.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text or text.startswith("-") or any(c.isspace() or not c.isprintable() for c in text):
        raise argparse.ArgumentTypeError(f"got {text!r}; must be a name for ssh, such as me@mac")
    return text


def run(arguments: argparse.Namespace) -> int:
    """Measure a run's packages on a Mac.

    Raises:
        InputError: no Mac, no finished run, no Core ML package, no connection, or no coremltools
            there.
    """
    import platform

    from pipeline.base.console import LOG, third_party_output_to
    from pipeline.base.errors import InputError
    from pipeline.measure.lanes.apple.session import Mac, this_python
    from pipeline.stages.finished_run import open_runs

    system = platform.system()
    if arguments.host is None and system != "Darwin":
        raise InputError(
            f"Core ML runs on Apple systems only, not on {system}; give a Mac with --host user@mac"
        )
    default = this_python() if arguments.host is None else "python3"
    mac = Mac(host=arguments.host, python=arguments.python or default)
    runs = open_runs(arguments.run_dir, data=arguments.data)
    with third_party_output_to(arguments.run_dir / LOG) as console:
        from pipeline.commands.apple.measure import measure

        return OK if measure(arguments, runs, mac, console) else BUDGET_MISSED


APPLE_COMMAND = Command(
    help="a run's Core ML packages on a Mac: golden images first, then times; over ssh",
    examples=(
        "pocketnest apple artifacts/iphone-coreml-w8a8 --host me@mac",
        "pocketnest apple artifacts/iphone-coreml-w8a8 --units cpu,ne",
    ),
    add_arguments=add_arguments,
    run=run,
)
