"""`pocketnest bundle`: pack what app teams need."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.console import third_party_output_to
from pipeline.commands.run import LOG


def bundle(directory: Path, out: Path | None) -> bool:
    """Pack every run of a directory; True where all of them meet their budgets.

    Raises:
        InputError: a run cannot be read, or cannot be handed over.
    """
    from pipeline.stages.finished_run import open_runs

    runs = open_runs(directory)
    passed = True
    with third_party_output_to(directory / LOG) as console:
        from pipeline.commands.bundle.write import write_bundle

        for run in runs:
            path = write_bundle(run, out)
            size = f"{path.stat().st_size / 1e6:.1f} MB"
            met = run.report().passed
            passed = passed and met
            note = "" if met else "; a budget is missed, the model card says which"
            console.print(f"{path}  {size}{note}", highlight=False)
    return passed
