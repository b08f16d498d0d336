"""Where the rows of sequences are: their *home*, a tuple that a walk is compiled for.

`first_row(home, i)` is where sequence i begins, `step_bytes_of(home, i)` how far its rows are apart.
"""

from typing import Any, NamedTuple

from numba.extending import overload

from fastpack.kernels.memory import advance


class Padded(NamedTuple):
    """The home of sequences in a padded batch: row (i, t) is at i * sequence_bytes + t * step_bytes."""

    padded: Any
    sequence_bytes: int
    step_bytes: int


class Listed(NamedTuple):
    """The home of sequences in separate places."""

    first_rows: Any  # (B,) pointers
    step_bytes: int


class Ragged(NamedTuple):
    """The home of sequences that follow each other."""

    values: Any
    offsets: Any  # (B + 1,) rows
    step_bytes: int


class Scattered(NamedTuple):
    """The home of sequences whose rows' items lie apart, or each with strides of its own."""

    first_rows: Any  # (B,) pointers
    strides: Any  # (B or 1, 1 + D) bytes: from row to row, then along each dimension of a row
    strides_apart: int  # 1 + D, or 0
    row_shape: Any  # (D,)
    D: int
    item_bytes: int
    lines: int  # in a row, of row_shape[D - 1] items each: dividing by each row anew took a tenth of the time


def first_row(home: Any, i: int) -> Any:
    """Return where sequence `i` of `home` begins; `_first_row` is what is compiled."""
    raise TypeError("kernels are compiled, never called from Python")


@overload(first_row)
def _first_row(home, i):
    if home.instance_class is Padded:
        return lambda home, i: advance(home.padded, i * home.sequence_bytes)
    if home.instance_class is Ragged:
        return lambda home, i: advance(home.values, home.offsets[i] * home.step_bytes)
    return lambda home, i: home.first_rows[i]


def step_bytes_of(home: Any, i: int) -> int:
    """Return the bytes from a row of sequence `i` to its next; `_step_bytes_of` is what is compiled."""
    raise TypeError("kernels are compiled, never called from Python")


@overload(step_bytes_of)
def _step_bytes_of(home, i):
    if home.instance_class is Scattered:
        return lambda home, i: home.strides[i * home.strides_apart]
    return lambda home, i: home.step_bytes
