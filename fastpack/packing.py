"""pack, pad and unpack on NumPy arrays: validate, allocate, call the kernel, return.

Each row moves once, straight between the caller's memory and the result; beyond the result, memory is O(B + T). Only what is
no array is converted first, and a `packed.data` whose rows are not C-contiguous copied.
An array whose address is given to a kernel is bound to a name here until the kernel has returned.
"""

from collections.abc import Iterable
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from fastpack import blocks, checks
from fastpack.checks import Array, Int64Array, address
from fastpack.machine import run
from fastpack.moves import Grid, Located
from fastpack.packed import Packed, checked, offsets_of, sort_by_length


def pack(sequences: Iterable[Any]) -> Packed:
    """Pack a list of sequences.

    Parameters
    ----------
    sequences : iterable of B arrays (T_i, ...)
        Of one dtype, any that has a fixed size, and one trailing shape, which may be none; with any strides. In any order
        of lengths; a sequence of length 0 has no row and sorts last. Nothing is changed.

    Returns
    -------
    Packed
        `data` is (N, ...) with N the sum of the lengths, in the sequences' dtype.

    Raises
    ------
    TypeError
        `sequences` is no iterable of arrays, the members are of different dtypes (named by index), or of Python objects.
    ValueError
        There is no sequence, one has no dimension, or the trailing shapes differ (named by index).

    Examples
    --------
    >>> packed = pack([np.array(list("abc")), np.array(["x"])])
    >>> "".join(packed.data), packed.batch_sizes.tolist(), packed.sorted_indices.tolist()
    ('axbc', [2, 1, 1], [0, 1])
    """
    arrays, (first_rows, shapes, strides) = checks.sequences(sequences)
    first = arrays[0]
    if (strides == strides[0]).all():
        strides = strides[:1]
    vector, facts = checks.lengths(np.ascontiguousarray(shapes[:, 0]))
    grid = Grid.of(first.shape[1:], strides, first.itemsize, vector)
    return pack_located(Located(first_rows, vector, facts.longest, facts.total, arrays), grid, first.dtype)


def pack_padded(padded: Any, lengths: Any, batch_first: bool = True) -> Packed:
    """Drop the padding of a batch.

    Parameters
    ----------
    padded : array (B, T, ...), or (T, B, ...) where `batch_first` is False
        Of any dtype that has a fixed size, with any strides. Rows at and beyond a sequence's length are never read.
    lengths : array of int (B,)
        0 <= lengths[i] <= T, in any order.
    batch_first : bool
        Whether the batch is `padded`'s first dimension, or its second.

    Returns
    -------
    Packed
        `data` is (N, ...) with N = lengths.sum(), in padded's dtype.

    Raises
    ------
    TypeError
        `lengths` is not of integers, or `padded` holds Python objects.
    ValueError
        `padded` has fewer than two dimensions, B is 0, `lengths` has not B entries, or one is outside 0..T.

    Examples
    --------
    >>> packed = pack_padded(np.array([list("abc"), list("x  ")]), [3, 1])
    >>> "".join(packed.data), packed.batch_sizes.tolist()
    ('axbc', [2, 1, 1])
    """
    batch = checks.rows(padded, "padded", 2)
    if not batch_first:
        batch = batch.swapaxes(0, 1)
    B, T = batch.shape[:2]
    if B == 0:
        raise ValueError(f"padded has the shape {batch.shape} and no sequence: a batch needs at least one")
    vector, facts = checks.lengths(lengths, B, T)
    first_rows = address(batch) + np.arange(B, dtype=np.int64) * batch.strides[0]
    grid = Grid.of(batch.shape[2:], [batch.strides[1:]], batch.itemsize)
    return pack_located(Located(first_rows, vector, facts.longest, facts.total, batch), grid, batch.dtype)


def pack_ragged(values: Any, offsets: Any) -> Packed:
    """Pack sequences that follow each other in one array.

    Parameters
    ----------
    values : array (N, ...)
        The rows of all sequences, one sequence after another; of any dtype that has a fixed size, with any strides.
    offsets : array of int (B + 1,)
        Sequence i is `values[offsets[i]:offsets[i + 1]]`: the first is 0, the last N, and they never decrease.

    Returns
    -------
    Packed
        `data` is (N, ...), in values' dtype.

    Raises
    ------
    TypeError
        `offsets` is not of integers, or `values` holds Python objects.
    ValueError
        `offsets` has fewer than two entries, does not start at 0, decreases, or does not end at N.

    Examples
    --------
    >>> packed = pack_ragged(np.array(list("abcx")), [0, 3, 4])
    >>> "".join(packed.data), packed.batch_sizes.tolist()
    ('axbc', [2, 1, 1])
    """
    flat = checks.rows(values, "values")
    bounds = checks.offsets(offsets, len(flat))
    first_rows = address(flat) + bounds[:-1] * flat.strides[0]
    vector, facts = checks.lengths(bounds[1:] - bounds[:-1])
    grid = Grid.of(flat.shape[1:], [flat.strides], flat.itemsize)
    return pack_located(Located(first_rows, vector, facts.longest, facts.total, flat), grid, flat.dtype)


def pad(
    packed: Packed,
    *,
    batch_first: bool = True,
    padding_value: Any = 0,
    total_length: int | None = None,
    padding_side: str = "right",
    multiple_of: int = 1,
) -> tuple[Array, Int64Array]:
    """Lay a packed batch out with padding, in the caller's order.

    Parameters
    ----------
    packed : Packed
    batch_first : bool
        Whether the result is (B, T, ...) or (T, B, ...).
    padding_value : scalar
        A value that data's dtype can hold; 0 is any dtype's zero, as in np.zeros.
    total_length : int, optional
        The number of steps of the result, at least that of the longest sequence, which it is otherwise.
    padding_side : 'right' or 'left'
        Where the padding goes: behind each sequence, or before it.
    multiple_of : int
        Round the number of steps up to a multiple of this.

    Returns
    -------
    padded : array (B, T, ...) or (T, B, ...)
        In data's dtype, C-contiguous.
    lengths : int64 array (B,)

    Raises
    ------
    TypeError
        `total_length` or `multiple_of` is not an integer.
    ValueError
        `packed` is inconsistent, the padding value does not fit the dtype, `total_length` is too small, `multiple_of` is
        below 1, or `padding_side` is neither side.

    Examples
    --------
    >>> packed = pack([np.array(list("abc")), np.array(["x"])])
    >>> padded, lengths = pad(packed, padding_value="-", multiple_of=4)
    >>> ["".join(row) for row in padded], lengths.tolist()
    (['abc-', 'x---'], [3, 1])
    """
    data, sizes, order, lengths = checked(packed)
    T = _padded_steps(len(sizes), total_length, checks.count(multiple_of, "multiple_of", 1))
    after = int(checks.choice(padding_side, "padding_side", ("right", "left")) == "right")
    padding_row = np.frombuffer(checks.padding(padding_value, data.dtype).tobytes() * prod(data.shape[1:]), np.uint8)
    B, row_bytes = len(order), padding_row.nbytes
    padded = checks.empty((B, T, *data.shape[1:]) if batch_first else (T, B, *data.shape[1:]), data.dtype, "the padded batch")
    if padded.nbytes:
        sequence_bytes, step_bytes = (T * row_bytes, row_bytes) if batch_first else (row_bytes, B * row_bytes)
        before = 0 if after else (T - lengths) * step_bytes
        first_rows = address(padded) + np.arange(B, dtype=np.int64) * sequence_bytes + before
        _unpack(data, order, sizes, first_rows, step_bytes)
        run(
            blocks.FillPadding(
                padding_row=address(padding_row),
                row_bytes=row_bytes,
                lengths=address(lengths),
                T=T,
                after=after,
                padded=address(padded),
                sequence_bytes=sequence_bytes,
                step_bytes=step_bytes,
                B=B,
                shares=1,
            )
        )
    return padded, lengths


def unpack(packed: Packed) -> list[Array]:
    """Return the sequences of a packed batch, in the caller's order.

    Parameters
    ----------
    packed : Packed

    Returns
    -------
    list of B arrays (T_i, ...)
        Parts of one new block of memory; copy one that should outlive the others.

    Raises
    ------
    ValueError, TypeError
        `packed` is inconsistent.

    Examples
    --------
    >>> packed = pack([np.array(list("abc")), np.array(["x"])])
    >>> ["".join(sequence) for sequence in unpack(packed)]
    ['abc', 'x']
    """
    values, offsets = unpack_ragged(packed)
    return [values[start:end] for start, end in pairwise(offsets.tolist())]


def unpack_ragged(packed: Packed) -> tuple[Array, Int64Array]:
    """Return the sequences of a packed batch one after another, in the caller's order.

    Parameters
    ----------
    packed : Packed

    Returns
    -------
    values : array (N, ...)
        In data's dtype, C-contiguous.
    offsets : int64 array (B + 1,)
        Sequence i is `values[offsets[i]:offsets[i + 1]]`.

    Raises
    ------
    ValueError, TypeError
        `packed` is inconsistent.

    Examples
    --------
    >>> values, offsets = unpack_ragged(pack([np.array(list("abc")), np.array(["x"])]))
    >>> "".join(values), offsets.tolist()
    ('abcx', [0, 3, 4])
    """
    data, sizes, order, lengths = checked(packed)
    offsets = offsets_of(lengths)
    values = checks.empty(data.shape, data.dtype, "values")
    if values.nbytes:
        row_bytes = values.strides[0]
        _unpack(data, order, sizes, address(values) + offsets[:-1] * row_bytes, row_bytes)
    return values, offsets


def pack_located(found: Located, grid: Grid, dtype: np.dtype[Any]) -> Packed:
    """Pack sequences of checked lengths from where they are."""
    sizes, order, places, _offsets = sort_by_length(found.lengths, found.longest)
    data = checks.empty((found.total, *grid.trailing), dtype, "the packed batch")
    if data.nbytes:
        run(grid.pack_block(address(found.first_rows), address(order), address(sizes), len(sizes), address(data)), 0, found.total)
    return Packed(data, sizes, order, places)


def _unpack(data: Array, order: Int64Array, batch_sizes: Int64Array, first_rows: Int64Array, step_bytes: int) -> None:
    """Move the rows of `data` (N, ...) to sequences that begin at `first_rows`."""
    data = np.ascontiguousarray(data)
    T, N = len(batch_sizes), len(data)
    row_bytes = data.nbytes // N if N else 0  # not a stride: that of a single row may be anything
    run(blocks.UnpackListed(address(first_rows), step_bytes, row_bytes, address(order), address(batch_sizes), T, address(data)), 0, N)


def _padded_steps(longest: int, total_length: int | None, multiple_of: int) -> int:
    steps = longest
    if total_length is not None:
        steps = checks.count(total_length, "total_length", 0)
        if steps < longest:
            raise ValueError(f"total_length is {steps}, but the longest sequence has {longest} steps")
    return -(-steps // multiple_of) * multiple_of
