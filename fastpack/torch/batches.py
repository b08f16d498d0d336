"""What a batch of a RaggedDataset is, and how its fields are gathered: one kernel call a field, no tensor a sequence."""

from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import get_worker_info

from fastpack import blocks
from fastpack.checks import Int64Array, address
from fastpack.moves import gather_block
from fastpack.storage import Grid, Located, Ragged, Rows, copied
from fastpack.torch import parallel
from fastpack.torch.layout import TensorLayout, from_lengths

SHARED_FROM = 1 << 15  # bytes from which on a worker process gathers straight into shared memory


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

    def batch(self, indices: Int64Array, layouts: list[TensorLayout]) -> PackedSequence:
        """Return the sequences of some indices, packed; `layouts` are those that other fields of the batch have."""
        found, grid = self.storage.located(indices), self.storage.grid
        layout, N = _layout(found, layouts), found.facts.total
        data = _empty((N, *grid.trailing), self.dtype)
        if data.numel():
            block: Any
            if grid.row_bytes > 0:
                rows = address(found.source.first_rows), int(found.source.strides[0, 0]), grid.row_bytes
                block = blocks.PackListed(*rows, *layout.addresses(), data.data_ptr())
            else:
                block, _alive = gather_block(found.source, found.lengths, *layout.addresses(), data.data_ptr())
            parallel.run(block, N, data.nbytes)
        return tuple.__new__(PackedSequence, (data, layout.batch_sizes, layout.sorted_indices, layout.unsorted_indices))

    def sample(self, indices: Int64Array) -> Tensor:
        """Return the one sequence of the index: packed alone, it is as it was."""
        data: Tensor = self.batch(indices, []).data
        return data


class Values(NamedTuple):
    """A field of one value, or one array of a fixed shape, a sequence."""

    storage: Rows
    dtype: torch.dtype

    def batch(self, indices: Int64Array, _layouts: list[TensorLayout]) -> Tensor:
        """Return the values of some indices, stacked."""
        if self.storage.array is not None:
            return torch.from_numpy(self.storage.array[indices])  # for one array, half of what the kernel's call takes
        stacked = torch.empty((len(indices), *self.storage.grid.trailing), dtype=self.dtype, device="cpu")
        if stacked.numel():
            self.storage.collect(indices, stacked.data_ptr())
        return stacked

    def sample(self, indices: Int64Array) -> Tensor:
        """Return the value of the one index."""
        return self.batch(indices, [])[0]


class Texts(NamedTuple):
    """A field of one string a sequence, kept in one piece of memory: objects of Python would be copied to each worker process."""

    storage: Ragged

    def batch(self, indices: Int64Array, _layouts: list[TensorLayout]) -> tuple[str, ...]:
        """Return the strings of some indices."""
        memory, found = copied(self.storage.located(indices))
        content, ends = memory.tobytes(), np.cumsum(found.lengths).tolist()
        return tuple([content[start:end].decode() for start, end in pairwise([0, *ends])])  # as of default_collate

    def sample(self, indices: Int64Array) -> str:
        """Return the string of the one index."""
        return self.batch(indices, [])[0]


Field = Sequences | Values | Texts


def _layout(found: Located, layouts: list[TensorLayout]) -> TensorLayout:
    lengths = torch.from_numpy(found.lengths)
    for layout in layouts:
        if torch.equal(layout.lengths, lengths):
            return layout
    layouts.append(from_lengths(lengths, found.facts.longest, found.facts.total))
    return layouts[-1]


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return new memory, which a worker process shares with the loader's: it is not copied there again."""
    size = torch.Size(shape)
    nbytes = size.numel() * dtype.itemsize
    if nbytes < SHARED_FROM or get_worker_info() is None:
        return torch.empty(size, dtype=dtype, device="cpu")
    storage: Any = torch.UntypedStorage._new_shared(nbytes)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage).view(size)
