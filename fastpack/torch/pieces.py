"""Pieces of a batch's steps, of which the backward pass finds all gradients before those of others.

The gradients of a piece's sums, 4 * H items a row of an LSTM, are still in a cache when the products with them read them, and the next
piece uses the same memory.
"""

import ctypes
from typing import NamedTuple

from fastpack.blocks import SUMMED
from fastpack.torch.rows import Rows

PIECE = 1 << 21  # bytes of gradients of sums in a piece, at least those of SUMMED rows; whole, or 8 MB, took 6 % longer on 8 MB
Place = tuple[int, int, int]  # of rows: the address of the first, the bytes from row to row and from step to step


class Piece(NamedTuple):
    """Steps that follow each other, of which all gradients are found before those of others."""

    first: int  # step
    last: int
    row: int  # the packed row with which the first one begins
    N: int

    def place(self, rows: Place) -> Place:
        """Return where the piece's rows are."""
        start, row, step = rows
        return start + (self.first * step if step else self.row * row), row, step


def pieces_of(rows: Rows, row_bytes: int) -> list[Piece]:
    """Return pieces about as large as each other, of whole steps, where a row's gradients of sums take so many bytes."""
    most = max(SUMMED, PIECE // row_bytes)
    if most >= rows.N:
        return [Piece(0, rows.T, 0, rows.N)]
    target = -(-rows.N // -(-rows.N // most))
    pieces, first, row, end = [], 0, 0, 0
    for t, size in enumerate((ctypes.c_int64 * rows.T).from_address(rows.layout[1])):
        if end > row and end + size - row > target:
            pieces.append(Piece(first, t, row, end - row))
            first, row = t, end
        end += size
    return [*pieces, Piece(first, rows.T, row, end - row)]
