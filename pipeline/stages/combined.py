"""The folder of the report of several recipes: current, or not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.profile import span
from pipeline.base.safe_files import json_of, refuse_link
from pipeline.report.records import COMBINED, Report
from pipeline.report.write import FILES, combine, write_report


def refuse_other_folder(out: Path) -> None:
    """Refuse to write into a folder of that name which is something else.

    Raises:
        InputError: it is a link, or the folder of a run that an older version let be called so.
    """
    directory = out / COMBINED
    refuse_link(directory)
    if (directory / "recipe.yaml").exists():
        raise InputError(
            f"{directory}: is the folder of a run, and the report of several recipes would be "
            "written into it; move it elsewhere, and give its recipe another name"
        )


def withdraw(out: Path, name: str, report: Report | None = None) -> bool:
    """Remove an earlier combined report that a run now makes out of date.

    Args:
        out: the folder of all runs.
        name: of the recipe whose run is published anew.
        report: of that run; where the earlier one says the same of it, it stays.

    Returns:
        Whether there was one of this run.
    """
    directory = out / COMBINED
    if directory.is_symlink() or (directory / "recipe.yaml").exists():
        return False
    try:
        earlier = json_of(directory / "report.json")
        said = {one["name"]: one for one in earlier["targets"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if name not in said:
        return False
    if report is not None:
        now = report.model_dump(mode="json")
        same = all(now[part] == earlier.get(part) for part in ("model", "data", "baseline"))
        if same and now["targets"] == [said[name]]:
            return False
    # The one that is read by programs last: while it is there, this is tried again.
    for file in reversed(FILES):
        (directory / file).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()
    return True


@span("render", "the report of all")
def write_combined(
    reports: Sequence[Report], out: Path, tell: Callable[[str], None]
) -> tuple[Report, Path] | None:
    """Write the report of several recipes; None, and a line that says why, where there is none."""
    try:
        whole = combine(reports)
    except ValueError as error:
        tell(f"no combined report: {error}")
        return None
    refuse_other_folder(out)
    directory = out / COMBINED
    write_report(whole, directory)
    return whole, directory
