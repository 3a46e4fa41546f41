"""`pocketnest verify`: hash every file of a run again."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.errors import printable


def verify(directory: Path) -> bool:
    """Say which files of a run are not as they were written; True where all are."""
    from pipeline.commands.upkeep import verify as check

    places, faults = check(directory)
    for fault in faults:
        print(f"damaged: {printable(fault)}")
    print(f"{len(places) - len(faults)} of {len(places)} directories are as they were written")
    return not faults
