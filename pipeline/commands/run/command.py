"""`pocketnest run`: run recipes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipeline.commands.arguments import add_overrides, completes_files
from pipeline.commands.command import BUDGET_MISSED, OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take recipes, a folder for the results, and how far to go."""
    completes_files(parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE"))
    parser.add_argument("--out", type=Path, default=Path("artifacts"), metavar="DIR")
    parser.add_argument("--fresh", action="store_true", help="compute every stage again")
    parser.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="go on where a file does not answer as its program; the report says so",
    )
    parser.add_argument("--until", metavar="STAGE", help="stop after a stage, such as prune")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="run nothing: say which stages would be reused, and what changed for the others",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="show where the seconds and the memory go, and leave profile.html and profile.json",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    output.add_argument(
        "--json", action="store_true", help="print a summary of the files as JSON, nothing else"
    )
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run recipes and show the result.

    Raises:
        InputError: a recipe, data, a checkpoint, or a figure that turns out impossible.
        MismatchError: a result is not what went into it.
    """
    from pipeline.base.console import LOG, third_party_output_to
    from pipeline.base.safe_files import refuse_outputs
    from pipeline.commands.run.profile import profiled
    from pipeline.recipe.recipe import load_recipes
    from pipeline.report.records import COMBINED
    from pipeline.stages.known import KNOWN

    loaded = load_recipes(arguments.recipes, arguments.overrides, KNOWN)
    out: Path = arguments.out
    refuse_outputs(folders=[out / COMBINED] if len(loaded) > 1 else [])
    # torchrun started it to help another process, which says what there is to say.
    helps = "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0"
    quiet = arguments.quiet or arguments.json or helps
    with (
        third_party_output_to(out / LOG, quiet=quiet and not arguments.explain) as console,
        profiled(out, console, wanted=arguments.profile),
    ):
        # Imported here: torch and what it loads print while they load.
        from pipeline.commands.run.table import as_json, show, show_stages
        from pipeline.stages.run import explain_recipes, run_recipes

        if arguments.explain:
            for name, stages in explain_recipes(loaded, out, console).items():
                show_stages(name, stages, console)
            return OK
        reports = run_recipes(
            loaded,
            out,
            console,
            fresh=arguments.fresh,
            allow_mismatch=arguments.allow_mismatch,
            until=arguments.until,
            files=arguments.recipes,
        )
        if helps:
            return OK
        combined = len(reports) > len(loaded)
        shown = reports[-1:] if combined else reports
        for report, directory in shown:
            show(report, directory, console)
    if arguments.json:
        print(as_json(shown))
    return OK if all(report.passed for report, _ in reports) else BUDGET_MISSED


RUN = Command(
    help="run recipes; finished stages are reused",
    examples=(
        "pocketnest run recipes/resnest50/android-litert-int8.yaml --set budgets.size_mb=14",
        "pocketnest run my-phone.yaml my-tablet.yaml --out artifacts",
        "pocketnest run my-phone.yaml --explain",
    ),
    add_arguments=add_arguments,
    run=run,
)
