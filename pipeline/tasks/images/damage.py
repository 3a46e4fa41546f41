"""Image files that cannot be decoded, where a recipe says to go on without them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.errors import InputError, listed
from pipeline.tasks.images.dataset import others
from pipeline.tasks.images.scan import Scanned


def undamaged(scan: Scanned, digests: NDArray[np.uint8], most: float) -> Tensor:
    """Which files of a folder could be decoded: int64 [M], in order.

    Args:
        scan: of the folder.
        digests: of every file, [N, 32]; zeros where it could not be.
        most: share of the files that may be damaged.

    Raises:
        InputError: more are, or every image of a class is.
    """
    sound = digests.any(1)
    rows = torch.from_numpy(sound.nonzero()[0])
    lost = len(digests) - len(rows)
    if lost == 0:
        return rows
    if lost > most * len(digests):
        raise InputError(
            f"{scan.key}: {lost} of {len(digests)} image files in {scan.root} are damaged, and "
            f"data.damaged_share allows {most:g} of them ({_names(scan, rows)}); replace or remove "
            "them, or raise it"
        )
    for name, having in scan.by_class():
        if not sound[having].any():
            raise InputError(
                f"{scan.key}: class '{name}' has damaged images only; replace them, or remove the "
                "class from every set"
            )
    return rows


def skipped(scan: Scanned, rows: Tensor) -> list[str]:
    """A line for the user about the files that are left out, if there are any."""
    files = len(scan.images)
    if len(rows) == files:
        return []
    names = _names(scan, rows)
    return [f"{scan.key}: {files - len(rows)} of {files} image files are damaged, skipped: {names}"]


def _names(scan: Scanned, rows: Tensor) -> str:
    lost = others(len(scan.images), rows).tolist()
    return listed(scan.images.name(row) for row in lost)
