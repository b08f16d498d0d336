"""Many sequences in memory: arrays, memory maps, Arrow's buffers; and where some of them are, by their numbers.

Storage may be larger than memory, so what is done when it is opened takes O(1) a chunk. A call reads the bounds of those
sequences that it is asked for, and checks them: kernels do not, and a wrong one would end the process.
"""

import mmap
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpack import blocks, checks, headers
from fastpack.checks import LARGEST, Array, Int64Array, address
from fastpack.layout import LengthFacts, measure_lengths
from fastpack.machine import run
from fastpack.moves import Source, gather_block, is_contiguous

PIECE = 1 << 20  # sequences looked at together where all are
Recipe = tuple[Callable[..., Any], tuple[Any, ...]]  # how to make a storage anew in another process


class Grid(NamedTuple):
    """How the items of a row lie, and one row after another."""

    trailing: tuple[int, ...]  # (D,) a row's shape
    strides: Int64Array  # (1, 1 + D) bytes
    item_bytes: int
    step_bytes: int  # from row to row
    row_bytes: int  # of a row whose items lie side by side; else -1

    @classmethod
    def of(cls, trailing: tuple[int, ...], strides: Sequence[int], item_bytes: int) -> "Grid":
        """Return the grid of rows of a shape, from the strides, in bytes, of the array that they are in."""
        row_bytes = prod(trailing) * item_bytes if is_contiguous(trailing, strides[1:], item_bytes) else -1
        return cls(trailing, np.array([strides], np.int64), item_bytes, strides[0], row_bytes)


class Located(NamedTuple):
    """Where B sequences are, for as long as `alive` lives."""

    source: Source
    lengths: Int64Array  # (B,)
    facts: LengthFacts
    alive: Any


class Chunk(NamedTuple):
    """Sequences whose rows are in one piece of memory."""

    first_row: int  # its address
    rows: int  # the number of rows
    origin: int  # what the bounds call the first row
    bounds: Array  # where each sequence begins and ends: (B + 1,), or (B, 2) of each its own
    alive: Any


class _Chunked:
    """What is numbered through, chunk after chunk."""

    def __init__(self, grid: Grid, counts: Sequence[int], alive: Any, recipe: Recipe) -> None:
        self.grid, self._alive, self._recipe = grid, alive, recipe
        self._firsts = np.cumsum([0, *counts], dtype=np.int64)  # number of each chunk's first

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __reduce__(self) -> Recipe:
        return self._recipe

    def _chunks_of(self, indices: Int64Array) -> Any:
        """Return the chunk of each index, or 0 where there is one alone."""
        return np.searchsorted(self._firsts, indices, "right") - 1 if len(self._firsts) > 2 else 0


class Rows(_Chunked):
    """One row a sequence, as labels are: `chunks` are count, address of the first row, and what must live."""

    def __init__(self, grid: Grid, chunks: Sequence[tuple[int, int, Any]], recipe: Recipe) -> None:
        super().__init__(grid, [count for count, _, _ in chunks], [alive for _, _, alive in chunks], recipe)
        alone = chunks[0][2]
        self.array = alone if len(chunks) == 1 and isinstance(alone, np.ndarray) else None  # all rows, where they are one array
        self._step = grid.step_bytes
        self._rows = np.array([first for _, first, _ in chunks], np.int64) - self._firsts[:-1] * self._step

    def collect(self, indices: Int64Array, target: int) -> None:
        """Write the rows of indices (B,), each from 0 to len - 1, at the address `target`, side by side."""
        first_rows = self._rows[self._chunks_of(indices)] + indices * self._step
        gather_rows(Source(first_rows, self.grid.strides, self.grid.trailing, self.grid.item_bytes), target)


class Ragged(_Chunked):
    """Sequences of rows: where each begins and ends is read from the `bounds` of its chunk, of one dtype of 4 or 8 bytes in all."""

    def __init__(self, grid: Grid, chunks: Sequence[Chunk], recipe: Recipe) -> None:
        counts = [len(chunk.bounds) + chunk.bounds.ndim - 2 for chunk in chunks]
        super().__init__(grid, counts, [(chunk.alive, chunk.bounds) for chunk in chunks], recipe)
        self._first_row, self._rows, self._origin = (np.array([chunk[k] for chunk in chunks], np.int64) for k in range(3))
        self._is_shifted = bool(self._origin.any())
        self._pairs, self._limit = _pairs(chunks[0].bounds), chunks[0].rows  # of the only chunk, if there is one
        self._step = self._pairs.strides[0]
        self._bounds = np.array([address(chunk.bounds) for chunk in chunks], np.int64) - self._firsts[:-1] * self._step

    @property
    def has_rows(self) -> bool:
        """Whether there is any row."""
        return bool(self._rows.any())

    def located(self, indices: Int64Array) -> Located:
        """Return where the sequences of indices (B,), each from 0 to len - 1, are.

        Raises
        ------
        ValueError
            The bounds of one are not within the rows that there are.
        """
        chunks, B = self._chunks_of(indices), len(indices)
        if isinstance(chunks, int):
            pairs, limit = self._pairs[indices], self._limit  # a third of the time that the addresses take
        else:
            dtype, limit = self._pairs.dtype, LARGEST
            pairs = headers.gather(self._bounds[chunks] + indices * self._step, dtype.itemsize // 4).view(dtype)
        pairs = pairs.astype(np.int64, order="C", copy=False)
        if self._is_shifted:
            pairs -= self._origin[chunks].reshape(-1, 1)
        lengths = pairs[:, 1] - pairs[:, 0]
        facts, ends = measure_lengths(address(lengths), B, LARGEST), measure_lengths(address(pairs), 2 * B, limit)
        is_wrong = facts.negative >= 0 or ends.negative >= 0 or ends.too_long >= 0
        if is_wrong or (limit == LARGEST and (pairs[:, 1] > self._rows[chunks]).any()):
            raise ValueError(self._complaint(indices, pairs, lengths))
        first_rows = self._first_row[chunks] + pairs[:, 0] * self.grid.step_bytes
        return Located(Source(first_rows, self.grid.strides, self.grid.trailing, self.grid.item_bytes), lengths, facts, self._alive)

    def _complaint(self, indices: Int64Array, pairs: Int64Array, lengths: Int64Array) -> str:
        rows, origins = (np.broadcast_to(each[self._chunks_of(indices)], len(indices)) for each in (self._rows, self._origin))
        k = int(np.argmax((lengths < 0) | (pairs < 0).any(axis=1) | (pairs > rows[:, None]).any(axis=1)))
        start, end = (pairs[k] + origins[k]).view(np.uint64 if self._pairs.dtype == np.uint64 else np.int64).tolist()
        return (
            f"offsets of sequence {indices[k]} are {start} and {end}, but offsets never decrease, "
            f"and there are rows {origins[k]} to {origins[k] + rows[k]}"
        )

    def lengths(self) -> Int64Array:
        """Return the length of every sequence."""
        pieces = (np.arange(start, min(start + PIECE, len(self))) for start in range(0, len(self), PIECE))
        return np.concatenate([self.located(piece).lengths for piece in pieces])


def _pairs(bounds: Array) -> Array:
    """Return where each sequence begins and ends side by side (B, 2), without copying."""
    item_bytes = bounds.itemsize
    return bounds if bounds.ndim == 2 else np.lib.stride_tricks.as_strided(bounds, (len(bounds) - 1, 2), (item_bytes, item_bytes))


def grid_of(array: Array) -> Grid:
    """Return how the items of an array's rows lie."""
    return Grid.of(array.shape[1:], array.strides, array.itemsize)


def rows_of(array: Any) -> Rows:
    """Return the rows of an array (B, ...) of a dtype of fixed size, or of where it is in a file."""
    array = array.opened() if isinstance(array, Mapped) else array
    return Rows(grid_of(array), [(len(array), address(array), array)], (rows_of, (portable(array),)))


def ragged_of(values: Any, offsets: Any) -> Ragged:
    """Return the sequences of values (N, ...) between offsets (B + 1,), or of where they are in files."""
    values, offsets = (item.opened() if isinstance(item, Mapped) else item for item in (values, offsets))
    chunk = Chunk(address(values), len(values), 0, offsets, values)
    return Ragged(grid_of(values), [chunk], (ragged_of, (portable(values), portable(offsets))))


def checked_offsets(value: Any, N: int, name: str = "offsets") -> Array:
    """Return offsets of sequences that follow each other in N rows, of 4 or 8 bytes each. Only the first and the last are looked at.

    Raises
    ------
    TypeError, ValueError
        As checks.offsets, for what these two can tell.
    """
    found = checks.array(value, name, checks.INTEGERS) if not isinstance(value, (list, tuple)) else checks.integers(value, name)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        checks.integers(found, name)
    if len(found) < 2:
        raise ValueError(f"{name} has {len(found)} entries, but needs B + 1, at least 2: 0, then where each sequence ends")
    if np.iinfo(found.dtype).max < N:
        raise ValueError(
            f"{name} is of dtype {found.dtype}, which cannot count the {N} rows of values: "
            "make it of int64, as by np.cumsum(lengths, dtype=np.int64)"
        )
    if found[0] != 0:
        raise ValueError(f"{name}[0] is {found[0]}, but offsets start at 0: cut values and offsets to the part that you mean")
    if found[-1] != N:
        raise ValueError(f"{name}[{len(found) - 1}] is {found[-1]}, but offsets end at the number of rows, and values has {N}")
    if found.itemsize in (4, 8) and found.dtype.isnative and found.strides == (found.itemsize,):
        return found
    return np.ascontiguousarray(found, found.dtype.newbyteorder("=") if found.itemsize in (4, 8) else np.int64)


def gather_rows(source: Source, target: int) -> None:
    """Write one row of each of B sources at the address `target`, side by side."""
    B = len(source.first_rows)
    order, sizes = np.arange(B), np.array([B])
    block, _alive = gather_block(source, np.ones(B, np.int64), address(order), address(sizes), 1, target)
    run(block, 0, B)


def copied(found: Located) -> tuple[Array, Located]:
    """Return the bytes of sequences whose rows are contiguous one after another in new memory, and where they are then."""
    row_bytes = found.source.row_bytes
    memory, ends = np.empty(found.facts.total * row_bytes, np.uint8), np.cumsum(found.lengths)
    places = address(memory) + (ends - found.lengths) * row_bytes
    step = int(found.source.strides[0, 0])
    rows = address(found.source.first_rows), step, address(places), row_bytes, row_bytes
    run(blocks.CopyListed(*rows, address(found.lengths), len(places), 1))
    strides = np.concatenate([np.array([[row_bytes]], np.int64), found.source.strides[:, 1:]], 1)
    return memory, found._replace(source=found.source._replace(first_rows=places, strides=strides), alive=memory)


class Stamp(NamedTuple):
    """A file as it was when it was opened."""

    path: str
    size: int
    modified: int  # nanoseconds

    @classmethod
    def of(cls, path: Any) -> "Stamp":
        """Return the stamp of a file as it is now."""
        found = Path(path).stat()
        return cls(str(Path(path).absolute()), found.st_size, found.st_mtime_ns)

    def check(self) -> None:
        """Check that the file is still the same.

        Raises
        ------
        ValueError
            Its size, or the time of its last change, is another.
        """
        now = Stamp.of(self.path)
        if now.size != self.size:
            raise ValueError(f"{self.path} has {now.size} bytes, but had {self.size} when the data set was opened: open it again")
        if now.modified != self.modified:
            raise ValueError(f"{self.path} has been changed since the data set was opened: open it again")


class Mapped(NamedTuple):
    """A memory-mapped array as what to pickle in its place: where in which file."""

    path: str
    position: int  # of the lowest byte
    nbytes: int
    first: int  # of the first item, from there
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def opened(self) -> Array:
        """Return the array, mapped again.

        Raises
        ------
        ValueError
            The file ends before the array does.
        """
        size, end = Path(self.path).stat().st_size, self.position + self.nbytes
        if size < end:
            raise ValueError(f"{self.path} has {size} bytes, but had {end} or more when the data set was opened: it was truncated")
        memory = np.memmap(self.path, np.uint8, "r", self.position, (self.nbytes,))
        return np.ndarray(self.shape, self.dtype, memory, self.first, self.strides)


def portable(array: Array) -> Any:
    """Return what to pickle for an array: where it is in its file if it is memory-mapped, else itself."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and not (isinstance(owner, np.memmap) and owner.filename is not None):
        owner = owner.base
    if not isinstance(owner, np.memmap) or owner.mode == "c" or not array.nbytes:  # changes under mode "c" are in memory alone
        return array
    low, high = np.lib.array_utils.byte_bounds(array)
    start = np.frombuffer(owner._mmap, np.uint8).ctypes.data  # type: ignore[attr-defined]
    position = owner.offset - owner.offset % mmap.ALLOCATIONGRANULARITY + low - start  # a slice has its whole's offset
    path = str(Path(str(owner.filename)).absolute())
    return Mapped(path, position, high - low, address(array) - low, array.dtype, array.shape, array.strides)
