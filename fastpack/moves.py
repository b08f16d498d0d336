"""Gathering rows from anywhere into packed order: what both levels do with rows that are not simply padded."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from fastpack import blocks
from fastpack.checks import Array, Int64Array, address


class Source(NamedTuple):
    """Where the rows of B sequences are."""

    first_rows: Int64Array  # (B,) addresses
    strides: Int64Array  # (B or 1, 1 + D) bytes: from row to row, then along each dimension of a row
    trailing: tuple[int, ...]  # (D,) a row's shape
    item_bytes: int

    @property
    def row_bytes(self) -> int:
        """The bytes of one packed row."""
        return prod(self.trailing) * self.item_bytes


def gather_block(
    source: Source, lengths: Int64Array, sorted_indices: int, batch_sizes: int, T: int, packed: int
) -> tuple[blocks.PackListed | blocks.PackScattered, tuple[Array, ...]]:
    """Return the block that packs the rows of `source`, and the arrays that must live until its kernel has returned.

    `lengths` (B,) is in the caller's order; `sorted_indices`, `batch_sizes` and `packed` are addresses.
    """
    rows, strides = (sorted_indices, batch_sizes, T, packed), source.strides
    if len(strides) == 1 and is_contiguous(source.trailing, strides[0, 1:].tolist(), source.item_bytes):
        return blocks.PackListed(address(source.first_rows), int(strides[0, 0]), source.row_bytes, *rows), (source.first_rows,)
    contiguous = np.cumprod([source.item_bytes, *source.trailing[::-1]], dtype=np.int64)[::-1]  # strides of packed rows
    if len(strides) > 1:
        # one step or none: whatever the stride says, it is never taken
        strides = np.where((lengths <= 1)[:, None] & (np.arange(len(contiguous)) == 0), contiguous, strides)
    strides = np.where([False, *(size == 1 for size in source.trailing)], contiguous, strides)
    together = (strides == contiguous).all(axis=0)[:0:-1]  # along which dimensions, from the last, items lie side by side
    inner = len(together) if together.all() else int(np.argmin(together))
    outer = len(source.trailing) - inner
    if outer == 0 and (strides[:, 0] == strides[0, 0]).all():
        return blocks.PackListed(address(source.first_rows), int(strides[0, 0]), source.row_bytes, *rows), (source.first_rows,)
    shape = np.array(source.trailing[:outer] or [1], np.int64)  # of the items of a row
    every = np.zeros((len(lengths), 1 + len(shape)), np.int64)
    every[:, : 1 + outer] = strides[:, : 1 + outer]
    block = blocks.PackScattered(
        first_rows=address(source.first_rows),
        strides=address(every),
        row_shape=address(shape),
        D=len(shape),
        item_bytes=prod(source.trailing[outer:]) * source.item_bytes,
        row_bytes=source.row_bytes,
        sorted_indices=sorted_indices,
        batch_sizes=batch_sizes,
        T=T,
        packed=packed,
    )
    return block, (source.first_rows, every, shape)


def is_contiguous(trailing: Sequence[int], strides: Sequence[int], item: int) -> bool:
    """Whether a row of this shape lies side by side, `item` being the stride from one item to the next where it does."""
    for size, stride in zip(reversed(trailing), reversed(strides), strict=True):
        if size != 1 and stride != item:
            return False
        item *= size
    return True
