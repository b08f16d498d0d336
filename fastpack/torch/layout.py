"""The layout of a packed batch as tensors: from lengths, and from a PackedSequence that anyone may have made."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastpack import blocks
from fastpack.layout import measure_layout
from fastpack.machine import run
from fastpack.torch.bridge import CPU, PLAIN_TYPES, has_memory, is_dense

VECTOR = {(torch.int64, True, 1)}

_facts = attrgetter("dtype", "is_cpu", "ndim")


class TensorLayout(NamedTuple):
    """int64 tensors of the CPU, contiguous; see fastpack.packed for what each means."""

    lengths: Tensor  # (B,)
    batch_sizes: Tensor  # (T,)
    sorted_indices: Tensor  # (B,)
    unsorted_indices: Tensor  # (B,)
    num_rows: int
    offsets: Tensor | None = None  # (B + 1,), where they came with the rest

    @property
    def num_sequences(self) -> int:
        """B."""
        return self.lengths.shape[0]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.batch_sizes.shape[0]

    def addresses(self) -> tuple[int, int, int]:
        """Return what every kernel along packed order takes: sorted_indices, batch_sizes, T."""
        return self.sorted_indices.data_ptr(), self.batch_sizes.data_ptr(), self.batch_sizes.shape[0]


def from_lengths(lengths: Tensor, longest: int, total: int) -> TensorLayout:
    """Return the layout of checked lengths, a contiguous int64 tensor."""
    batch_sizes, order, places, offsets = sorted_by_length(lengths.data_ptr(), lengths.shape[0], longest)
    return TensorLayout(lengths, batch_sizes, order, places, total, offsets)


def sorted_by_length(lengths: int, B: int, longest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return batch_sizes, sorted_indices, unsorted_indices and offsets of B checked lengths at the address `lengths`."""
    # one block of memory for all: allocating is what costs here
    block = torch.empty(longest + 3 * B + 1, dtype=torch.int64, device=CPU)
    start = block.data_ptr()
    addresses = start, start + 8 * longest, start + 8 * (longest + B), start + 8 * (longest + 2 * B)
    run(blocks.SortByLength(lengths, B, longest, *addresses))
    return torch.unsafe_split_with_sizes(block, (longest, B, B, B + 1))  # type: ignore[return-value]


def only_lengths(lengths: Tensor) -> TensorLayout:
    """Return what a move between padded and listed sequences needs of a layout, which is nothing of packed order."""
    nothing = lengths.new_empty(0)
    return TensorLayout(lengths, nothing, nothing, nothing, 0)


def from_packed(sequence: PackedSequence) -> TensorLayout | None:
    """Return the layout of a PackedSequence, or None where it is not a consistent one of the CPU.

    A batch without index tensors is in the caller's order already.
    """
    indices: Any = sequence[1:]
    if not _are_vectors(indices):
        # with gaps between their entries they are copied; what then is no vector is refused
        indices = [_copied(index) if isinstance(index, Tensor) and index.layout is torch.strided else index for index in indices]
        if not _are_vectors(indices):
            return None
    batch_sizes, order, places = indices
    if batch_sizes is None or sequence.data.dim() == 0:
        return None
    if order is None and places is None:
        B = int(batch_sizes[0]) if batch_sizes.shape[0] else 0
        if not 0 < B <= sequence.data.shape[0]:  # before so much memory is taken
            return None
        order = places = torch.arange(B, device="cpu")
    if order is None or places is None or order.shape != places.shape:
        return None
    B, T, N, lengths = places.shape[0], batch_sizes.shape[0], sequence.data.shape[0], torch.empty_like(places)
    addresses = order.data_ptr(), places.data_ptr(), B, lengths.data_ptr()
    facts = measure_layout(batch_sizes.data_ptr(), T, *addresses)
    if facts.bad_step >= 0 or facts.bad_index >= 0 or facts.total != N or B == 0:
        return None
    return TensorLayout(lengths, batch_sizes, order, places, N)


def check_batch_sizes(data: Any, sizes: Tensor, exactly: bool = False) -> None:
    """Check the batch sizes of a packed batch, where torch leaves rows of `data` out, or writes out of range.

    Raises
    ------
    RuntimeError
        Batch sizes grow, are negative, or add up to fewer rows than there are; or to more, where `exactly`.
    """
    if not is_dense(sizes) or sizes.dim() != 1 or not sizes.numel():
        return
    rises = torch.nonzero(sizes[1:] > sizes[:-1])
    if rises.numel():
        k = int(rises[0])
        raise RuntimeError(f"batch_sizes[{k + 1}] is {sizes[k + 1]}, but batch sizes never grow, and batch_sizes[{k}] is {sizes[k]}")
    if int(sizes[-1]) < 0:
        raise RuntimeError(f"batch_sizes[{len(sizes) - 1}] is {sizes[-1]}, but batch sizes are never negative")
    if type(data) in PLAIN_TYPES and data.dim():
        total = int(sizes.sum()) if int(sizes[0]) <= data.shape[0] else sum(sizes.tolist())  # which may be more than int64 holds
        if total < data.shape[0] or (exactly and total > data.shape[0]):
            raise RuntimeError(f"batch_sizes add up to {total}, but data has {data.shape[0]} rows")


def offsets_of(layout: TensorLayout) -> Tensor:
    """Return where each sequence begins in ragged order, and the number of rows: (B + 1,)."""
    if layout.offsets is not None:
        return layout.offsets
    lengths = layout.lengths
    offsets = lengths.new_empty(lengths.shape[0] + 1)
    run(blocks.OffsetsOf(lengths.data_ptr(), lengths.shape[0], offsets.data_ptr()))
    return offsets


def _copied(index: Tensor) -> Tensor | None:
    return index.contiguous() if type(index) not in PLAIN_TYPES or not index.is_cpu or is_whole(index) else None


def _are_vectors(indices: Sequence[Tensor | None]) -> bool:
    return are_vectors([index for index in indices if index is not None])


def are_vectors(indices: Sequence[Any]) -> bool:
    """Whether all are contiguous int64 vectors in memory of the CPU; each question is asked of all at once, in half the time."""
    try:
        return (
            set(map(type, indices)) <= PLAIN_TYPES
            and set(map(_facts, indices)) <= VECTOR
            and all(map(Tensor.is_contiguous, indices))
            and not any(map(Tensor.is_neg, indices))
            and all([has_room(index, index.shape[0]) for index in indices])
        )
    except (RuntimeError, NotImplementedError):  # a nested tensor has no dimensions, a sparse one no storage
        return False


def has_room(tensor: Tensor, extent: int) -> bool:
    """Whether there is memory for so many items from a tensor's first on: lazy zeros have none, nor has an emptied storage."""
    if extent == 0:
        return True
    storage = tensor.untyped_storage()
    return storage.data_ptr() != 0 and storage.nbytes() >= (tensor.storage_offset() + extent) * tensor.itemsize


def is_whole(tensor: Tensor) -> bool:
    """Whether there is memory for all items of a strided tensor: torch copies from where there is none, and does not survive it."""
    if tensor.numel() == 0:
        return True
    return has_room(tensor, 1 + sum([(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]))


def lacks_memory(tensor: Any) -> bool:
    """Whether a tensor of this process has less memory than its shape says, which torch's own functions would read without asking."""
    try:
        is_plain = type(tensor) in PLAIN_TYPES and tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_nested
        return is_plain and not tensor._is_zerotensor() and not is_whole(tensor)
    except RuntimeError:  # without memory of its own, as under some transforms, and what they left behind
        return False


def is_vector(tensor: Tensor) -> bool:
    """Whether a tensor is a contiguous int64 vector in memory of the CPU."""
    return (
        type(tensor) in PLAIN_TYPES
        and tensor.dtype is torch.int64
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.dim() == 1
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and (has_memory(tensor) or tensor.numel() == 0)
    )
