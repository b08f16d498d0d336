"""Many sequences in memory: arrays, memory maps, Arrow's buffers; and where some of them are, by their numbers.

Storage may be larger than memory, so what is done when it is opened takes O(1) a chunk. A call reads the bounds of those
sequences that it is asked for, and checks them: kernels do not, and a wrong one would end the process.
"""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpack import blocks, checks
from fastpack.checks import Array, Int64Array, address
from fastpack.layout import ThreeNumbers
from fastpack.machine import run
from fastpack.moves import Grid, Located

PIECE = 1 << 20  # sequences looked at together where all are
Recipe = tuple[Callable[..., Any], tuple[Any, ...]]  # how to make a storage anew in another process


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


class Rows(_Chunked):
    """One row a sequence, as labels are: `chunks` are count, address of the first row, and what must live."""

    def __init__(self, grid: Grid, chunks: Sequence[tuple[int, int, Any]], recipe: Recipe) -> None:
        super().__init__(grid, [count for count, _, _ in chunks], [alive for _, _, alive in chunks], recipe)
        alone = chunks[0][2]
        self.array = alone if len(chunks) == 1 and isinstance(alone, np.ndarray) else None  # all rows, where they are one array
        self._rows = np.array([first for _, first, _ in chunks], np.int64) - self._firsts[:-1] * grid.step_bytes

    def collect(self, indices: Int64Array, target: int) -> None:
        """Write the rows of indices (B,), each from 0 to len - 1, at the address `target`, side by side."""
        chunks = np.searchsorted(self._firsts, indices, "right") - 1 if len(self._rows) > 1 else 0
        first_rows = self._rows[chunks] + indices * self.grid.step_bytes
        B = len(first_rows)
        order, sizes = np.arange(B), np.array([B])  # sequences of one row: packed, they are side by side
        run(self.grid.pack_block(address(first_rows), address(order), address(sizes), 1, target), 0, B)


class Ragged(_Chunked):
    """Sequences of rows: where each begins and ends is read from the `bounds` of its chunk, of one dtype of 4 or 8 bytes in all."""

    def __init__(self, grid: Grid, chunks: Sequence[Chunk], recipe: Recipe) -> None:
        pairs = [_pairs(chunk.bounds) for chunk in chunks]
        super().__init__(grid, list(map(len, pairs)), [(chunk.alive, chunk.bounds) for chunk in chunks], recipe)
        self._chunks, dtype = chunks, pairs[0].dtype
        self._values, self._rows, self._origins = (np.array([chunk[k] for chunk in chunks], np.int64) for k in range(3))
        self._bounds = np.array([address(chunk.bounds) for chunk in chunks], np.int64)
        self._places = (  # what Locate takes between the indices and its results
            *(address(self._firsts), len(chunks), address(self._bounds), pairs[0].strides[0], dtype.itemsize),
            -1 if dtype.kind == "i" or dtype.itemsize == 8 else 0xFFFFFFFF,
            *(address(self._origins), address(self._rows), address(self._values), grid.step_bytes),
        )

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
        B, facts = len(indices), ThreeNumbers()
        found = np.empty((2, B), np.int64)
        start = address(found)
        run(blocks.Locate(address(indices), B, *self._places, start, start + 8 * B, ctypes.addressof(facts)))
        longest, total, wrong = facts[:]
        if wrong >= 0:
            raise ValueError(self._complaint(int(indices[wrong])))
        return Located(found[0], found[1], longest, total, self._alive)

    def _complaint(self, i: int) -> str:
        k = int(np.searchsorted(self._firsts, i, "right")) - 1
        chunk = self._chunks[k]
        start, end = _pairs(chunk.bounds)[i - self._firsts[k]].tolist()
        return (
            f"offsets of sequence {i} are {start} and {end}, but offsets never decrease, "
            f"and there are rows {chunk.origin} to {chunk.origin + chunk.rows}"
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
    return Grid.of(array.shape[1:], [array.strides], array.itemsize)


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


def copied(found: Located, grid: Grid) -> Located:
    """Return where sequences are in new memory, `alive`, in which the bytes of their rows, of one piece, follow each other."""
    memory, ends = np.empty(found.total * grid.row_bytes, np.uint8), np.cumsum(found.lengths)
    places = address(memory) + (ends - found.lengths) * grid.row_bytes
    rows = address(found.first_rows), grid.step_bytes, address(places), grid.row_bytes, grid.row_bytes
    run(blocks.CopyListed(*rows, address(found.lengths), len(places), 1))
    return found._replace(first_rows=places, alive=memory)


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
