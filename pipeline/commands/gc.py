"""`pocketnest gc`: remove what no run needs."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.errors import printable


def gc(out: Path, *, dry_run: bool) -> None:
    """Remove what no run of a folder needs, and say what it was."""
    from pipeline.base.store import STORE
    from pipeline.commands.upkeep import removable, remove_all

    found = removable(out, out / STORE)
    for one in found:
        print(f"{one.size_bytes / 1e6:8.1f} MB  {printable(one.path.name)}: {one.why}")
    total = sum(one.size_bytes for one in found) / 1e6
    if not dry_run:
        remove_all(found)
    print(f"{total:.1f} MB {'could be freed' if dry_run else 'freed'}")
