"""Packed and its Layout: the one data structure.

The size letters, the same everywhere: B sequences, T steps of the longest, N packed rows, D features of a row.

What always holds: `batch_sizes` (T,) is at least 1 and never grows, and adds up to N; the rows of step t are
`data[offsets[t]:offsets[t + 1]]`; row r of a step and row r of the step before belong to one sequence, the r-th longest,
which is sequence `sorted_indices[r]` of the caller; `unsorted_indices` is the inverse permutation.
"""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fastpack import blocks, checks
from fastpack.checks import Array, Int64Array, address
from fastpack.machine import run


class Packed(NamedTuple):
    """A batch of sequences without padding, time-major, longest sequence first.

    Made by :func:`pack`, :func:`pack_padded` and :func:`pack_ragged`. The fields are those of
    ``torch.nn.utils.rnn.PackedSequence``, as NumPy arrays.

    Attributes
    ----------
    data : array (N, ...)
        The rows: first every sequence's step 0, longest sequence first, then every step 1, and so on.
    batch_sizes : int64 array (T,)
        How many sequences have a row at each step.
    sorted_indices : int64 array (B,)
        The sequences in packed order: `sorted_indices[0]` is the longest. Equal lengths keep the caller's order.
    unsorted_indices : int64 array (B,)
        The inverse: where each sequence of the caller stands in packed order.

    Examples
    --------
    >>> import numpy as np, fastpack
    >>> packed = fastpack.pack([np.array(list("abc")), np.array(["x"])])
    >>> "".join(packed.data), packed.batch_sizes.tolist(), packed.sorted_indices.tolist()
    ('axbc', [2, 1, 1], [0, 1])
    """

    data: Array
    batch_sizes: Int64Array
    sorted_indices: Int64Array
    unsorted_indices: Int64Array

    @property
    def num_sequences(self) -> int:
        """The number B of sequences, those without any row included."""
        return len(self.sorted_indices)

    @property
    def lengths(self) -> Int64Array:
        """int64 array (B,): each sequence's number of steps, in the caller's order."""
        return checks.layout(self.batch_sizes, self.sorted_indices, self.unsorted_indices, len(self.data))[3]

    @property
    def offsets(self) -> Int64Array:
        """int64 array (T + 1,): step t's rows are `data[offsets[t]:offsets[t + 1]]`."""
        return offsets_of(self.batch_sizes)

    def __repr__(self) -> str:
        if not all(isinstance(field, np.ndarray) and field.ndim for field in self):  # made by hand: shown as it is
            return f"Packed{tuple(self)!r}"
        B, T, N = self.num_sequences, len(self.batch_sizes), len(self.data)
        fill = f", {N / (B * T):.0%} filled" if B and T else ""
        return f"Packed({B} sequences, up to {T} steps, {N} rows{fill}; data {self.data.dtype} {self.data.shape})"

    def _repr_html_(self) -> str:
        from fastpack.show import html

        return html(self)


class Layout:
    """Where each row of a packed batch belongs, from the lengths alone.

    Parameters
    ----------
    lengths : array of int (B,)
        Each sequence's number of steps, 0 or more, in any order.

    Attributes
    ----------
    lengths, sorted_indices, unsorted_indices : int64 array (B,)
    batch_sizes : int64 array (T,)
    num_rows : int
        The number N of packed rows.

    Raises
    ------
    TypeError
        `lengths` is not of integers.
    ValueError
        `lengths` is empty, not one-dimensional, or has a negative entry.
    OverflowError
        The lengths add up to more than int64 holds.

    Examples
    --------
    >>> layout = Layout([3, 1])
    >>> layout.batch_sizes.tolist(), layout.offsets.tolist()
    ([2, 1, 1], [0, 2, 3, 4])
    >>> layout.sequences.tolist(), layout.steps.tolist()
    ([0, 1, 0, 0], [0, 0, 1, 2])
    >>> values = np.array(list("abcx"))  # ragged order: one sequence after another
    >>> data = values[layout.ragged_rows]  # packed order
    >>> "".join(data), "".join(data[layout.packed_rows])
    ('axbc', 'abcx')
    """

    def __init__(self, lengths: Any) -> None:
        checked, facts = checks.lengths(lengths)
        self.lengths = checked.copy()  # the caller may change an array of theirs later
        self.batch_sizes, self.sorted_indices, self.unsorted_indices, self._ragged = sort_by_length(self.lengths, facts.longest)
        self.num_rows = facts.total

    @property
    def num_sequences(self) -> int:
        """The number B of sequences."""
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        """The number T of steps of the longest sequence."""
        return len(self.batch_sizes)

    @cached_property
    def offsets(self) -> Int64Array:
        """int64 array (T + 1,): step t's packed rows are `offsets[t]` to `offsets[t + 1]`."""
        return offsets_of(self.batch_sizes)

    @cached_property
    def sequences(self) -> Int64Array:
        """int64 array (N,): the sequence, in the caller's order, of each packed row."""
        from fastpack.packing import pack_ragged

        return pack_ragged(np.repeat(np.arange(self.num_sequences), self.lengths), self._ragged).data

    @cached_property
    def steps(self) -> Int64Array:
        """int64 array (N,): the step of each packed row."""
        return np.repeat(np.arange(self.num_steps), self.batch_sizes)

    @cached_property
    def ragged_rows(self) -> Int64Array:
        """int64 array (N,): for each packed row, its row in ragged order; `data = values[layout.ragged_rows]`."""
        from fastpack.packing import pack_ragged

        return pack_ragged(np.arange(self.num_rows), self._ragged).data

    @cached_property
    def packed_rows(self) -> Int64Array:
        """int64 array (N,): for each row in ragged order, its packed row; `values = data[layout.packed_rows]`."""
        from fastpack.packing import unpack_ragged

        return unpack_ragged(Packed(np.arange(self.num_rows), self.batch_sizes, self.sorted_indices, self.unsorted_indices))[0]

    def rows(self, sequence: Any, step: Any) -> Any:
        """Return the packed row of a step of a sequence.

        Parameters
        ----------
        sequence, step : int or array of int, broadcast against each other
            0 <= sequence < B, 0 <= step < lengths[sequence].

        Returns
        -------
        int64 scalar or array

        Raises
        ------
        TypeError
            `sequence` or `step` is not of integers.
        IndexError
            One is out of range.

        Examples
        --------
        >>> Layout([3, 1]).rows([0, 1], 0).tolist()
        [0, 1]
        """
        i, t = np.broadcast_arrays(_indices(sequence, "sequence"), _indices(step, "step"))
        if np.any(i < 0) or np.any(i >= self.num_sequences):
            bad = i[(i < 0) | (i >= self.num_sequences)].flat[0]
            raise IndexError(f"sequence {bad} is out of range: there are {self.num_sequences}")
        wrong = (t < 0) | (t >= self.lengths[i])
        if np.any(wrong):
            raise IndexError(
                f"step {t[wrong].flat[0]} is out of range: sequence {i[wrong].flat[0]} has {self.lengths[i[wrong].flat[0]]} steps"
            )
        return self.offsets[t] + self.unsorted_indices[i]

    def __repr__(self) -> str:
        return f"Layout({self.num_sequences} sequences, up to {self.num_steps} steps, {self.num_rows} rows)"


def checked(packed: Packed) -> tuple[Array, Int64Array, Int64Array, Int64Array]:
    """Return data, batch_sizes, sorted_indices and lengths of what is a packed batch indeed."""
    if not isinstance(packed, Packed):
        raise TypeError(f"packed is a {type(packed).__name__}, not a Packed: make one by pack, pack_padded or pack_ragged")
    data = checks.rows(packed.data, "data")
    sizes, order, _, lengths = checks.layout(packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices, len(data))
    return data, sizes, order, lengths


def sort_by_length(lengths: Int64Array, T: int) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
    """Return batch_sizes (T,), sorted_indices (B,), unsorted_indices (B,) and ragged offsets (B + 1,) of checked lengths."""
    batch_sizes = checks.empty((T,), np.int64, "batch_sizes")
    order, places = np.empty_like(lengths), np.empty_like(lengths)
    offsets = np.empty(len(lengths) + 1, np.int64)
    addresses = map(address, (batch_sizes, order, places, offsets))
    run(blocks.SortByLength(address(lengths), len(lengths), T, *addresses))
    return batch_sizes, order, places, offsets


def offsets_of(counts: Int64Array) -> Int64Array:
    """Return where each of `counts` begins in their sum, and the sum: int64 array (len(counts) + 1,)."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _indices(value: Any, name: str) -> Array:
    found = np.asarray(value, None if np.size(value) else np.int64)  # of an empty list NumPy makes float64
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name} is of dtype {found.dtype}, not of an integer dtype")
    return found
