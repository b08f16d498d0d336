"""Gathering rows from anywhere into packed order: what both levels do with rows that are not simply padded."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from fastpack import blocks
from fastpack.checks import Int64Array, address


class Located(NamedTuple):
    """Where B sequences are, for as long as `alive` lives, and how long."""

    first_rows: Int64Array  # (B,) addresses
    lengths: Int64Array  # (B,)
    longest: int
    total: int
    alive: Any


class Pieces(NamedTuple):
    """How rows lie whose bytes are not side by side, or whose steps are not the same for all sequences."""

    shape: Int64Array  # (D,), D >= 1: a row's pieces, of bytes that lie side by side
    strides: Int64Array  # (B or 1, 1 + D) bytes: from row to row, then along each dimension of the pieces
    arguments: tuple[int, int, int, int, int, int]  # what PackScattered is told of this, from `strides` to `row_bytes`


class Grid(NamedTuple):
    """How the items of rows lie, and one row after another."""

    trailing: tuple[int, ...]  # a row's shape
    row_bytes: int  # of a packed row
    step_bytes: int  # from row to row, of the first sequence
    pieces: Pieces | None  # None where a row is one piece, and all steps are the same

    @classmethod
    def of(cls, trailing: tuple[int, ...], strides: Any, item_bytes: int, lengths: Int64Array | None = None) -> "Grid":
        """Return the grid of rows of a shape.

        `strides` (B or 1, 1 + len(trailing)) are in bytes, from row to row and along each dimension of a row; `lengths` (B,) are
        those of the sequences, where each has its own.
        """
        strides, row_bytes = np.asarray(strides, np.int64), prod(trailing) * item_bytes
        step_bytes = int(strides[0, 0])
        if len(strides) == 1 and is_contiguous(trailing, strides[0, 1:].tolist(), item_bytes):
            return cls(trailing, row_bytes, step_bytes, None)
        contiguous = np.cumprod([item_bytes, *trailing[::-1]], dtype=np.int64)[::-1]  # strides of packed rows
        if lengths is not None and len(strides) > 1:
            # one step or none: whatever the stride says, it is never taken
            strides = np.where((lengths <= 1)[:, None] & (np.arange(len(contiguous)) == 0), contiguous, strides)
        strides = np.where([False, *(size == 1 for size in trailing)], contiguous, strides)
        together = (strides == contiguous).all(axis=0)[:0:-1]  # along which dimensions, from the last, items lie side by side
        inner = len(together) if together.all() else int(np.argmin(together))
        outer = len(trailing) - inner
        if outer == 0 and (strides[:, 0] == strides[0, 0]).all():
            return cls(trailing, row_bytes, int(strides[0, 0]), None)
        apart = np.zeros((len(strides), 1 + max(outer, 1)), np.int64)
        apart[:, : 1 + outer] = strides[:, : 1 + outer]
        shape = np.array(trailing[:outer] or [1], np.int64)
        piece_bytes, strides_apart = prod(trailing[outer:]) * item_bytes, apart.shape[1] if len(apart) > 1 else 0
        arguments = address(apart), strides_apart, address(shape), len(shape), piece_bytes, row_bytes
        return cls(trailing, row_bytes, step_bytes, Pieces(shape, apart, arguments))

    def pack_block(
        self, first_rows: int, sorted_indices: int, batch_sizes: int, T: int, packed: int
    ) -> blocks.PackListed | blocks.PackScattered:
        """Return the block that packs the rows of sequences whose first rows are at `first_rows` (B,); all but T are addresses."""
        rows = sorted_indices, batch_sizes, T, packed
        if self.pieces is None:
            return blocks.PackListed(first_rows, self.step_bytes, self.row_bytes, *rows)
        return blocks.PackScattered(first_rows, *self.pieces.arguments, *rows)


def is_contiguous(trailing: Sequence[int], strides: Sequence[int], item: int) -> bool:
    """Whether a row of this shape lies side by side, `item` being the stride from one item to the next where it does."""
    for size, stride in zip(reversed(trailing), reversed(strides), strict=True):
        if size != 1 and stride != item:
            return False
        item *= size
    return True
