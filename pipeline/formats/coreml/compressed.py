"""Operations of MIL that make weights of what a package stores: scaled, sparse, or looked up.

Meanings are those of coremltools' definitions (`iOS18/compression.py`); names as in `ops`, of which
these are a part.
"""

from __future__ import annotations

import torch
from torch import Tensor


def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """`scale * (data - offset)`, a number of either for every block of the data."""

    def blocks(values: Tensor) -> Tensor:
        """One value for every element of the data."""
        for axis, size in enumerate(data.shape):
            values = values.repeat_interleave(size // values.shape[axis], axis)
        return values

    steps = data.float()
    if offset is not None:
        steps = steps - blocks(offset)
    return steps * blocks(scale)


def sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same of the elements that a mask has; the mask, and they."""
    data = sparse_to_dense(nonzero_data, data_mask)
    return data_mask, blockwise_shift_scale(data, scale, offset)[data_mask]


def sparse_to_dense(nonzero_data: Tensor, mask: Tensor) -> Tensor:
    """The elements at the places that a mask has, and 0 elsewhere."""
    dense = nonzero_data.new_zeros(mask.shape)
    dense[mask] = nonzero_data
    return dense


def lut_to_dense(indices: Tensor, lut: Tensor) -> Tensor:
    """What tables have at indices; `lut` is (..., entries, 1), a table for every block of them.

    Raises:
        NotImplementedError: the entries are vectors.
    """
    if lut.shape[-1] != 1:
        raise NotImplementedError(f"vectors of {lut.shape[-1]} numbers in a table")
    # The table of every element, axis by axis: its place divided by the size of a block.
    tables = [
        (torch.arange(size) // (size // count)).reshape(
            [-1 if other == axis else 1 for other in range(indices.dim())]
        )
        for axis, (size, count) in enumerate(zip(indices.shape, lut.shape[:-2], strict=True))
    ]
    return lut[..., 0][(*tables, indices.long())]


def lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor
) -> tuple[Tensor, Tensor]:
    """The same of the elements that a mask has; the mask, and they."""
    indices = sparse_to_dense(indices_nonzero_data, indices_mask)
    return indices_mask, lut_to_dense(indices, lut)[indices_mask]
