"""`pocketnest bundle`: pack what app teams need."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.arguments import add_data, completes_folders
from pipeline.commands.command import BUDGET_MISSED, OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of a run, and one for the archives."""
    completes_folders(parser.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    completes_folders(
        parser.add_argument(
            "--out", type=Path, metavar="DIR", help="for the archives; default: each run's folder"
        )
    )
    parser.add_argument(
        "--float16",
        action="store_true",
        help="also a file of the same weights in float16, for GPUs; of int8 targets",
    )
    add_data(parser)


def run(arguments: argparse.Namespace) -> int:
    """Pack every run of a directory.

    Raises:
        InputError: a run cannot be read, or cannot be handed over, or an archive cannot be
            written.
    """
    from pipeline.base.console import LOG, third_party_output_to
    from pipeline.base.safe_files import refuse_outputs
    from pipeline.stages.finished_run import open_runs

    out: Path | None = arguments.out
    archives = {
        (out or finished.directory) / f"{finished.recipe.name}.zip": finished
        for finished in open_runs(arguments.run_dir, data=arguments.data)
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    refuse_outputs(files=archives)
    passed = True
    with third_party_output_to(arguments.run_dir / LOG) as console:
        from pipeline.commands.bundle.float16 import why_none
        from pipeline.commands.bundle.write import write_bundle

        for path, finished in archives.items():
            write_bundle(finished, path, half=arguments.float16)
            size = f"{path.stat().st_size / 1e6:.1f} MB"
            met = finished.report().passed
            passed = passed and met
            note = "" if met else "; a budget is missed, the model card says which"
            if arguments.float16 and (why := why_none(finished)) is not None:
                note += f"; no float16 file: {why}"
            console.print(f"{path}  {size}{note}", highlight=False)
    return OK if passed else BUDGET_MISSED


BUNDLE = Command(
    help="pack what app teams need: model, contract, golden vectors, code; as a zip",
    examples=("pocketnest bundle artifacts/combined --out hand-over",),
    add_arguments=add_arguments,
    run=run,
)
