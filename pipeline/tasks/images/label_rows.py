"""Which table is of which images, and which of its rows is of which image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.base.errors import InputError, listed
from pipeline.recipe.data import ImageFolderData
from pipeline.tasks.images.folders import CALIBRATION
from pipeline.tasks.images.label_table import LAYOUTS, NAME, Row, Table, read_table
from pipeline.tasks.images.scan import Scan

_SHOWN = 10
Rows = dict[str, tuple[Table, Row]]
"""The row of every image, by `place` of its file."""


def place(file: Path) -> str:
    """Where a file lies, the same for every way to say it."""
    return os.path.abspath(file)


def tables_of(config: ImageFolderData, scans: Mapping[str, Scan]) -> dict[str, Table]:
    """The table of every set of images, by the key of the set.

    That is the file `labels` of a recipe; or else labels.csv in `path`, or else one in every
    folder. Images to calibrate on need none.

    Raises:
        InputError: there is none, or more than one, or one cannot be read at all.
    """
    own = {key: scan.root / NAME for key, scan in scans.items() if key != CALIBRATION}
    one, where = config.labels, "data.labels"
    if one is None and config.path is not None and (Path(config.path) / NAME).is_file():
        one, where = Path(config.path) / NAME, "data.path"
        if both := [str(path) for path in own.values() if path.is_file()]:
            raise InputError(
                f"{where}: {one} is a table of all images, and there are others: {listed(both)}; "
                "remove these or that one, or name the one that counts in data.labels"
            )
    if one is not None:
        return dict.fromkeys(scans, read_table(where, Path(one)))
    missing = [
        f"{key}: {path.parent} holds no {NAME}; put a table of labels there ({LAYOUTS}), or name "
        "one of all images in data.labels"
        for key, path in own.items()
        if not path.is_file()
    ]
    if missing:
        raise InputError("\n".join(missing))
    # Two sets may be of one folder.
    first = {path: key for key, path in reversed(own.items())}
    read = {path: read_table(key, path) for path, key in first.items()}
    return {key: read[path] for key, path in own.items()}


def matched(tables: Mapping[str, Table], scans: Mapping[str, Scan]) -> Rows:
    """The rows of images; one that is of none, or of one again, is noted as a problem."""
    found: Rows = {}
    for table in dict.fromkeys(tables.values()):
        of_table = [scans[key] for key, one in tables.items() if one is table]
        images = {place(file) for scan in of_table for file in scan.images}
        folders = dict.fromkeys([table.path.parent, *(scan.root for scan in of_table)])
        for row in table.rows:
            hits = list(_hits(row, folders, images))
            if len(hits) != 1:
                table.wrong(row.number, _not_one(row, hits, table, of_table))
            elif hits[0] in found:
                other, first = found[hits[0]]
                where = "" if other is table else f" of {other.path}"
                table.wrong(
                    row.number,
                    f"file {row.file!r} is in row {first.number}{where} too; remove one of them",
                )
            else:
                found[hits[0]] = (table, row)
    return found


def _hits(row: Row, folders: Mapping[Path, None], images: set[str]) -> dict[str, None]:
    """The images that a row may mean: its path is from the table, or from a folder of images."""
    text = row.file.replace("\\", "/")  # as Windows has it
    places = (place(folder / text) for folder in folders)
    return {one: None for one in places if one in images}


def _not_one(row: Row, hits: Sequence[str], table: Table, scans: Sequence[Scan]) -> str:
    if hits:
        return (
            f"file {row.file!r} may be {' or '.join(hits)}; write its path from {table.path.parent}"
        )
    folders = listed(scan.root for scan in scans)
    return (
        f"file {row.file!r} is none of the images in {folders}; correct it (it is a path from "
        f"{table.path.parent}), or remove the row"
    )


def without_row(
    tables: Mapping[str, Table], scans: Mapping[str, Scan], rows: Rows
) -> Iterator[str]:
    """Lines about images that have no row and need one."""
    for key, table in tables.items():
        if key == CALIBRATION:
            continue
        files = [file for file in scans[key].images if place(file) not in rows]
        none = "," + ",".join("0" for _ in table.columns or ())
        for file in files[:_SHOWN]:
            name = os.path.relpath(file, table.path.parent)
            yield (
                f"{key}: {file} has no row in {table.path}; add one (`{name}{none}` is an image "
                "without a label), or remove the image"
            )
        if len(files) > _SHOWN:
            yield f"{key}: and {len(files) - _SHOWN} more images without a row"
