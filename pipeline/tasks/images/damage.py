"""Image files that cannot be decoded, where a recipe says to go on without them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.base.errors import InputError, listed
from pipeline.tasks.images.pixels import DAMAGED
from pipeline.tasks.images.scan import Scan


def undamaged(scan: Scan, digests: Sequence[bytes], most: float) -> Tensor:
    """Which files of a folder could be decoded: int64 [M], in order.

    Args:
        scan: of the folder.
        digests: of every file; `DAMAGED` where it could not be.
        most: share of the files that may be damaged.

    Raises:
        InputError: more are, or every image of a class is.
    """
    rows = [row for row, digest in enumerate(digests) if digest != DAMAGED]
    lost = len(digests) - len(rows)
    if lost > most * len(digests):
        raise InputError(
            f"{scan.key}: {lost} of {len(digests)} image files in {scan.root} are damaged, and "
            f"data.damaged_share allows {most:g} of them ({_names(scan, rows)}); replace or remove "
            "them, or raise it"
        )
    left, begin = set(rows), 0
    for name, files in scan.files.items():
        if left.isdisjoint(range(begin, begin + len(files))):
            raise InputError(
                f"{scan.key}: class '{name}' has damaged images only; replace them, or remove the "
                "folder from every set"
            )
        begin += len(files)
    return torch.tensor(rows, dtype=torch.int64)


def skipped(scan: Scan, rows: Tensor) -> list[str]:
    """A line for the user about the files that are left out, if there are any."""
    files = sum(map(len, scan.files.values()))
    if len(rows) == files:
        return []
    names = _names(scan, rows.tolist())
    return [f"{scan.key}: {files - len(rows)} of {files} image files are damaged, skipped: {names}"]


def _names(scan: Scan, rows: Sequence[int]) -> str:
    kept = set(rows)
    files = [file for group in scan.files.values() for file in group]
    lost = [file for row, file in enumerate(files) if row not in kept]
    return listed(file.relative_to(scan.root) for file in lost)
