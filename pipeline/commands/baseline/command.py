"""`pocketnest baseline`: measure the float network here, and keep it for reports."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from pipeline.commands.arguments import add_overrides, completes_files, completes_folders
from pipeline.commands.command import OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take a recipe, and the folder of the runs that will use the baseline."""
    completes_files(parser.add_argument("recipe", type=Path, metavar="RECIPE"))
    completes_folders(
        parser.add_argument(
            "--out",
            type=Path,
            default=Path("artifacts"),
            metavar="DIR",
            help="the file lies in DIR/baselines; default artifacts",
        )
    )
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure a recipe's float network on this machine and save it for later reports.

    Raises:
        InputError: data, checkpoint or a figure of the recipe that turns out impossible.
    """
    from pipeline.base.console import LOG, third_party_output_to, tracked
    from pipeline.base.safe_files import refuse_outputs
    from pipeline.measure.baseline.record import BASELINES
    from pipeline.recipe.recipe import load_recipes
    from pipeline.stages.known import KNOWN

    (recipe,) = load_recipes([arguments.recipe], arguments.overrides, KNOWN)
    out: Path = arguments.out
    refuse_outputs(folders=[out / BASELINES])
    with third_party_output_to(out / LOG) as console:
        from pipeline.commands.baseline.table import show
        from pipeline.measure.baseline.files import save
        from pipeline.measure.baseline.measuring import measured
        from pipeline.measure.timing import size_bytes
        from pipeline.networks.checkpoints import WEIGHTS
        from pipeline.stages.context import float_model
        from pipeline.stages.run import begun

        with begun(recipe, arguments.recipe, out, console, until="train") as started:
            trained = started.results["train"].directory
            model = float_model(started.context, {"train": trained})
            weights = trained / WEIGHTS
            shown = partial(tracked, console)
            dataset = started.context.dataset
            recipe = started.context.recipe
            folder = out / recipe.name
            found = measured(recipe, model, dataset, size_bytes(weights), shown, folder)
        path = save(found, out)
        show(found, console)
        for title, file in (("weights", weights), ("baseline", path)):
            console.print(f"{title}: {file}", highlight=False, markup=False)
    return OK


BASELINE = Command(
    help="measure the float model here, on the GPU if there is one, and keep it for reports",
    examples=(
        "pocketnest baseline recipes/resnest50/android-litert-int8.yaml",
        "pocketnest baseline my-phone.yaml --set measure.rounds=100",
    ),
    add_arguments=add_arguments,
    run=run,
)
