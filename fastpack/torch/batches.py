"""What a batch of a RaggedDataset is, and how its fields are gathered: one kernel call a field, no tensor a sequence."""

from collections import namedtuple
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastpack.checks import Int64Array, address
from fastpack.moves import Grid, Located
from fastpack.storage import Ragged, Rows, copied
from fastpack.torch import parallel, transit
from fastpack.torch.bridge import CPU
from fastpack.torch.layout import sorted_by_length


class Finished:
    """What a sample of several fields and a batch of them are, beside a named tuple of the fields.

    A batch is complete: a DataLoader's `collate_fn` has nothing to do to it.
    """

    __slots__ = ()
    names: tuple[str, ...]

    def __reduce__(self) -> Any:
        return _made, (self.names, *self)  # type: ignore[misc]


@cache
def batch_type(names: tuple[str, ...]) -> Callable[..., Any]:
    """Return the named tuple of these fields. Names that Python does not allow as an attribute are replaced by _0, _1, ..."""
    fields = namedtuple("RaggedBatch", names, rename=True)  # type: ignore[misc]
    return type("RaggedBatch", (Finished, fields), {"__slots__": (), "names": names, "__module__": __name__})


def _made(names: tuple[str, ...], *values: Any) -> Any:
    return batch_type(names)(*values)


class BatchLayout(NamedTuple):
    """The layout of one or more fields of a batch."""

    lengths: Int64Array  # (B,)
    indices: tuple[Tensor, Tensor, Tensor]  # batch_sizes, sorted_indices, unsorted_indices


class Storage(Protocol):
    """Where many sequences are: storage.Ragged, parquet.Decoded."""

    grid: Grid

    def __len__(self) -> int: ...
    def located(self, indices: Int64Array) -> Located:
        """Return where the sequences of some indices are."""

    def lengths(self) -> Int64Array:
        """Return the length of every sequence."""


class Sequences(NamedTuple):
    """A field of sequences."""

    storage: Storage
    dtype: torch.dtype

    def batch(self, indices: Int64Array, layouts: list[BatchLayout]) -> PackedSequence:
        """Return the sequences of some indices, packed; `layouts` are those that other fields of the batch have."""
        found, grid = self.storage.located(indices), self.storage.grid
        batch_sizes, order, places = _layout(found, layouts).indices
        data, moved = transit.empty((found.total, *grid.trailing), self.dtype), found.total * grid.row_bytes
        if moved:
            rows = order.data_ptr(), batch_sizes.data_ptr(), found.longest, data.data_ptr()
            parallel.run(grid.pack_block(address(found.first_rows), *rows), found.total, moved)
        return tuple.__new__(PackedSequence, (data, batch_sizes, order, places))

    def sample(self, indices: Int64Array) -> Tensor:
        """Return the one sequence of the index: packed alone, it is as it was."""
        data: Tensor = self.batch(indices, []).data
        return data


class Values(NamedTuple):
    """A field of one value, or one array of a fixed shape, a sequence."""

    storage: Rows
    dtype: torch.dtype

    def batch(self, indices: Int64Array, _layouts: list[BatchLayout]) -> Tensor:
        """Return the values of some indices, stacked."""
        if self.storage.array is not None:
            return torch.from_numpy(self.storage.array[indices])  # for one array, half of what the kernel's call takes
        stacked = torch.empty((len(indices), *self.storage.grid.trailing), dtype=self.dtype, device=CPU)
        if stacked.numel():
            self.storage.collect(indices, stacked.data_ptr())
        return stacked

    def sample(self, indices: Int64Array) -> Tensor:
        """Return the value of the one index."""
        return self.batch(indices, [])[0]


class Texts(NamedTuple):
    """A field of one string a sequence, kept in one piece of memory: objects of Python would be copied to each worker process."""

    storage: Ragged

    def batch(self, indices: Int64Array, _layouts: list[BatchLayout]) -> tuple[str, ...]:
        """Return the strings of some indices."""
        found = copied(self.storage.located(indices), self.storage.grid)
        content, ends = found.alive.tobytes(), np.cumsum(found.lengths).tolist()
        return tuple([content[start:end].decode() for start, end in pairwise([0, *ends])])  # as of default_collate

    def sample(self, indices: Int64Array) -> str:
        """Return the string of the one index."""
        return self.batch(indices, [])[0]


Field = Sequences | Values | Texts


def _layout(found: Located, layouts: list[BatchLayout]) -> BatchLayout:
    for layout in layouts:
        if np.array_equal(layout.lengths, found.lengths):
            return layout
    batch_sizes, order, places, _offsets = sorted_by_length(address(found.lengths), len(found.lengths), found.longest)
    layouts.append(BatchLayout(found.lengths, (batch_sizes, order, places)))
    return layouts[-1]
