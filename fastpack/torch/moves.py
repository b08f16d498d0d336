"""Moving rows between tensors by the kernels; autograd is elsewhere. Tensors are dense, layouts and lengths checked."""

from array import array
from collections.abc import Sequence
from functools import cache
from math import copysign, prod

import numpy as np
import torch
from torch import Tensor

from fastpack import blocks
from fastpack.checks import Int64Array, address
from fastpack.moves import Grid, is_contiguous
from fastpack.torch import parallel, transit
from fastpack.torch.bridge import has_memory
from fastpack.torch.layout import TensorLayout, offsets_of, only_lengths

ZEROS = 4096  # bytes
ZERO_BYTES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}
LOWEST = 1 << 16  # no memory of a process lies below; an empty tensor's address is 0


def pack_padded(padded: Tensor, layout: TensorLayout, batch_first: bool) -> Tensor:
    """Rows of `padded` (B, T, ...) or (T, B, ...) in packed order (N, ...)."""
    strides, item_bytes, trailing = padded.stride(), padded.element_size(), padded.shape[2:]
    data = padded.new_empty((layout.num_rows, *trailing))
    moved = data.numel() * item_bytes
    if not moved:
        return data
    sequence_bytes, step_bytes = strides[0] * item_bytes, strides[1] * item_bytes
    if not batch_first:
        sequence_bytes, step_bytes = step_bytes, sequence_bytes
    if padded.is_contiguous() or is_contiguous(trailing, strides[2:], 1):
        home = padded.data_ptr(), sequence_bytes, step_bytes, moved // layout.num_rows
        parallel.run(blocks.PackPadded(*home, *layout.addresses(), data.data_ptr()), layout.num_rows, moved)
    else:
        first_rows = padded.data_ptr() + np.arange(layout.num_sequences) * sequence_bytes
        each = [(step_bytes, *(stride * item_bytes for stride in strides[2:]))]
        _gather(first_rows, Grid.of(trailing, each, item_bytes), layout, data)
    return data


def unpack_padded(data: Tensor, layout: TensorLayout, batch_first: bool, steps: int, padding_value: float) -> Tensor:
    """Packed rows as (B, steps, ...) or (steps, B, ...), with padding behind each sequence."""
    data = data.contiguous()
    padded, sequence_bytes, step_bytes, row_bytes = _empty_padded(data, layout.num_sequences, steps, batch_first)
    filled, N, B = padded.numel() * data.element_size(), layout.num_rows, layout.num_sequences
    if filled:
        padding_row, lengths = _padding_row(data, padding_value, row_bytes), layout.lengths.data_ptr()
        home = padded.data_ptr(), sequence_bytes, step_bytes, row_bytes, padding_row.data_ptr(), lengths, B, steps
        if N:
            parallel.run(blocks.PadPacked(*home, *layout.addresses(), data.data_ptr(), N), N, filled)
        else:
            batch = padded.data_ptr(), sequence_bytes, step_bytes, B, 1
            parallel.run(blocks.FillPadding(padding_row.data_ptr(), row_bytes, lengths, steps, 1, *batch), 1, filled)
    return padded


def pack_listed(sequences: Sequence[Tensor], layout: TensorLayout, addresses: "array[int] | None" = None) -> Tensor:
    """Rows of B tensors (T_i, ...) in packed order (N, ...)."""
    first = sequences[0]
    trailing, item_bytes = first.shape[1:], first.element_size()
    data = transit.empty((layout.num_rows, *trailing), first.dtype)
    moved = data.numel() * item_bytes
    if moved and all(map(Tensor.is_contiguous, sequences)):
        first_rows, row_bytes = addresses or addresses_of(sequences), moved // layout.num_rows
        block = blocks.PackListed(first_rows.buffer_info()[0], row_bytes, row_bytes, *layout.addresses(), data.data_ptr())
        parallel.run(block, layout.num_rows, moved)
    elif moved:
        first_rows, strides = addresses or addresses_of(sequences), np.array([sequence.stride() for sequence in sequences], np.int64)
        grid = Grid.of(trailing, strides * item_bytes, item_bytes, layout.lengths.numpy())
        _gather(np.frombuffer(first_rows, np.int64), grid, layout, data)
    return data


def unpack_listed(data: Tensor, layout: TensorLayout) -> tuple[Tensor, ...]:
    """Packed rows as B tensors (T_i, ...), parts of one block of memory.

    A block for each, as torch has it, was measured and lost: allocating took 1 to 2 us a sequence, parting takes 0.25.
    """
    return _parted(unpack_ragged(data, layout), layout.lengths)


def pack_ragged(values: Tensor, layout: TensorLayout) -> Tensor:
    """Rows of `values` (N, ...), one sequence after another, in packed order (N, ...)."""
    if not values.is_contiguous() and not is_contiguous(values.shape[1:], values.stride()[1:], 1):
        values = values.contiguous()
    data, moved = transit.empty(tuple(values.shape), values.dtype), values.nbytes
    if moved:
        offsets = offsets_of(layout)  # held until the kernel has read them
        home = values.data_ptr(), offsets.data_ptr(), values.stride(0) * values.itemsize, moved // layout.num_rows
        parallel.run(blocks.PackRagged(*home, *layout.addresses(), data.data_ptr()), layout.num_rows, moved)
    return data


def unpack_ragged(data: Tensor, layout: TensorLayout) -> Tensor:
    """Packed rows as (N, ...), one sequence after another."""
    data = data.contiguous()
    values, offsets = torch.empty_like(data), offsets_of(layout)
    moved = data.numel() * data.element_size()
    if moved:
        row_bytes = moved // layout.num_rows
        home = values.data_ptr(), offsets.data_ptr(), row_bytes, row_bytes
        parallel.run(blocks.UnpackRagged(*home, *layout.addresses(), data.data_ptr()), layout.num_rows, moved)
    return values


def pad_listed(sequences: Sequence[Tensor], lengths: Tensor, batch_first: bool, steps: int, after: int, padding_value: float) -> Tensor:
    """B tensors (T_i, ...) as (B, steps, ...) or (steps, B, ...), with padding after each sequence or before it."""
    first = sequences[0]
    B, contiguous = len(sequences), sequences if all(map(Tensor.is_contiguous, sequences)) else list(map(Tensor.contiguous, sequences))
    padded, sequence_bytes, step_bytes, row_bytes = _empty_padded(first, B, steps, batch_first)
    filled = padded.numel() * padded.element_size()
    if filled:
        padding_row, shares = _padding_row(first, padding_value, row_bytes), parallel.threads(filled)
        first_rows, start = addresses_of(contiguous), padded.data_ptr()
        places = array("q", range(start, start + B * sequence_bytes, sequence_bytes))
        if not after:
            places = array("q", [row + (steps - count) * step_bytes for row, count in zip(places, lengths.tolist(), strict=True)])
        rows = first_rows.buffer_info()[0], row_bytes, places.buffer_info()[0], step_bytes, row_bytes
        parallel.run(blocks.CopyListed(*rows, lengths.data_ptr(), B, shares), shares, filled)
        home = start, sequence_bytes, step_bytes, B, shares
        parallel.run(blocks.FillPadding(padding_row.data_ptr(), row_bytes, lengths.data_ptr(), steps, after, *home), shares, filled)
    return padded


def pad_ragged(values: Tensor, lengths: Tensor, batch_first: bool, steps: int, after: int, padding_value: float) -> Tensor:
    """Rows of `values` (N, ...), contiguous, one sequence after another, likewise."""
    B, offsets = lengths.shape[0], offsets_of(only_lengths(lengths))
    padded, sequence_bytes, step_bytes, row_bytes = _empty_padded(values, B, steps, batch_first)
    filled = padded.numel() * values.element_size()
    if filled:
        padding_row, shares = _padding_row(values, padding_value, row_bytes), parallel.threads(filled)
        rows = values.data_ptr(), offsets.data_ptr(), padding_row.data_ptr(), row_bytes, steps, after
        parallel.run(blocks.PadRagged(*rows, padded.data_ptr(), sequence_bytes, step_bytes, B, shares), shares, filled)
    return padded


def unpad_listed(padded: Tensor, lengths: Tensor, batch_first: bool, after: int = 1) -> tuple[Tensor, ...]:
    """Sequences of (B, T, ...) or (T, B, ...), parts of one block of memory."""
    padded = padded if is_contiguous(padded.shape[2:], padded.stride()[2:], 1) else padded.contiguous()
    B, offsets, item_bytes = lengths.shape[0], offsets_of(only_lengths(lengths)), padded.element_size()
    values = padded.new_empty((int(offsets[-1]), *padded.shape[2:]))
    moved = values.numel() * item_bytes
    if moved:
        sequence_dim, step_dim = (0, 1) if batch_first else (1, 0)
        strides, shares = padded.stride(), parallel.threads(moved)
        rows = values.data_ptr(), offsets.data_ptr(), moved // values.shape[0], padded.shape[step_dim], after
        home = padded.data_ptr(), strides[sequence_dim] * item_bytes, strides[step_dim] * item_bytes
        parallel.run(blocks.UnpadRagged(*rows, *home, B, shares), shares, moved)
    return _parted(values, lengths)


def _empty_padded(like: Tensor, B: int, steps: int, batch_first: bool) -> tuple[Tensor, int, int, int]:
    """Return a new padded batch and, in bytes, the distance of its sequences, of its steps, and a row."""
    trailing = like.shape[1:]
    row_bytes = prod(trailing) * like.element_size()
    if batch_first:
        return like.new_empty((B, steps, *trailing)), steps * row_bytes, row_bytes, row_bytes
    return like.new_empty((steps, B, *trailing)), row_bytes, B * row_bytes, row_bytes


def _padding_row(like: Tensor, padding_value: float, row_bytes: int) -> Tensor:
    """Return a row of padding for rows of `like` (N, ...); most are zero bytes, which need not be made."""
    if padding_value == 0 and row_bytes <= ZEROS and like.dtype in ZERO_BYTES and copysign(1.0, padding_value) > 0:
        return _zeros()
    return like.new_full(like.shape[1:], padding_value)


@cache
def _zeros() -> Tensor:
    # not at import, which may happen under a mode that makes tensors without memory
    return torch.zeros(ZEROS, dtype=torch.uint8, device="cpu")


def _parted(values: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    # "unsafe" in that autograd does not see parts of one tensor in them, which is right here: each is an output of its own,
    # with a version of its own, and may be changed in place
    return tuple(torch.unsafe_split_with_sizes(values, lengths.tolist()))


def addresses_of(sequences: Sequence[Tensor]) -> "array[int]":
    """Return where each tensor's first item is, of tensors that have such a place (others raise torch's RuntimeError)."""
    return array("q", map(Tensor.data_ptr, sequences))


def check_memory(sequences: Sequence[Tensor], addresses: "array[int]") -> None:
    """Check that there is memory at the sequences' addresses, where torch's own functions would not survive.

    Raises
    ------
    RuntimeError
        A storage was emptied, or a tensor is a lazy zero.
    """
    if min(addresses) < LOWEST:  # rare enough to ask every tensor only here
        for k, sequence in enumerate(sequences):
            if sequence.numel() and not has_memory(sequence):
                raise RuntimeError(f"sequences[{k}] has no memory: its storage was emptied, or it is a lazy zero")


def _gather(first_rows: Int64Array, grid: Grid, layout: TensorLayout, data: Tensor) -> None:
    parallel.run(grid.pack_block(address(first_rows), *layout.addresses(), data.data_ptr()), layout.num_rows, data.nbytes)
