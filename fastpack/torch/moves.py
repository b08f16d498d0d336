"""Moving rows between tensors by the kernels; autograd is elsewhere. Tensors are dense, layouts and lengths checked."""

from array import array
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from fastpack import blocks
from fastpack.checks import Int64Array, address
from fastpack.moves import Source, gather_block, is_contiguous
from fastpack.torch import parallel
from fastpack.torch.layout import TensorLayout


def pack_padded(padded: Tensor, layout: TensorLayout, batch_first: bool) -> Tensor:
    """Rows of `padded` (B, T, ...) or (T, B, ...) in packed order (N, ...)."""
    shape, strides, item_bytes = padded.shape, padded.stride(), padded.element_size()
    trailing = shape[2:]
    data = padded.new_empty((layout.num_rows, *trailing))
    row_bytes = prod(trailing) * item_bytes
    if not data.numel():
        return data
    sequence_stride, step_stride = strides[:2] if batch_first else strides[1::-1]
    if is_contiguous(trailing, strides[2:], 1):
        block = blocks.PackPadded(
            padded.data_ptr(),
            sequence_stride * item_bytes,
            step_stride * item_bytes,
            row_bytes,
            layout.sorted_indices.data_ptr(),
            layout.batch_sizes.data_ptr(),
            layout.batch_sizes.shape[0],
            data.data_ptr(),
        )
        parallel.run(block, layout.num_rows, layout.num_rows * row_bytes)
    else:
        first_rows = padded.data_ptr() + np.arange(layout.num_sequences) * (sequence_stride * item_bytes)
        _gather(Source(first_rows, np.array([(step_stride, *strides[2:])]) * item_bytes, trailing, item_bytes), layout, data)
    return data


def unpack_padded(data: Tensor, layout: TensorLayout, batch_first: bool, steps: int, padding_value: float) -> Tensor:
    """Packed rows as (B, steps, ...) or (steps, B, ...), with padding behind each sequence."""
    data = data.contiguous()
    B, trailing = layout.num_sequences, data.shape[1:]
    padded = data.new_empty((B, steps, *trailing) if batch_first else (steps, B, *trailing))
    if not padded.numel():
        return padded
    row_bytes = prod(trailing) * data.element_size()
    sequence_bytes, step_bytes = (steps * row_bytes, row_bytes) if batch_first else (row_bytes, B * row_bytes)
    if layout.num_rows:
        block = blocks.UnpackPadded(
            padded.data_ptr(),
            sequence_bytes,
            step_bytes,
            row_bytes,
            layout.sorted_indices.data_ptr(),
            layout.batch_sizes.data_ptr(),
            layout.batch_sizes.shape[0],
            data.data_ptr(),
        )
        parallel.run(block, layout.num_rows, layout.num_rows * row_bytes)
    if layout.num_rows < B * steps:
        _fill(padded, data.new_full(trailing, padding_value), layout.lengths, steps, sequence_bytes, step_bytes, after=1)
    return padded


def pack_listed(sequences: Sequence[Tensor], layout: TensorLayout) -> Tensor:
    """Rows of B tensors (T_i, ...) in packed order (N, ...)."""
    first = sequences[0]
    trailing, item_bytes = first.shape[1:], first.element_size()
    data = first.new_empty((layout.num_rows, *trailing))
    if data.numel():
        strides = {sequence.stride() for sequence in sequences}
        every = np.array(list(strides) if len(strides) == 1 else [sequence.stride() for sequence in sequences], np.int64)
        _gather(Source(_addresses(sequences), every * item_bytes, trailing, item_bytes), layout, data)
    return data


def unpack_listed(data: Tensor, layout: TensorLayout) -> tuple[Tensor, ...]:
    """Packed rows as B tensors (T_i, ...), parts of one block of memory.

    A block for each, as torch has it, was measured and lost: allocating took 1 to 2 us a sequence, parting takes 0.25.
    """
    return _parted(unpack_ragged(data, layout), layout.lengths)


def pack_ragged(values: Tensor, layout: TensorLayout) -> Tensor:
    """Rows of `values` (N, ...), one sequence after another, in packed order (N, ...)."""
    strides, item_bytes = np.array([values.stride()]) * values.element_size(), values.element_size()
    data = values.new_empty(values.shape)
    if data.numel():
        first_rows = values.data_ptr() + _starts(layout.lengths) * strides[0, 0]
        _gather(Source(first_rows, strides, values.shape[1:], item_bytes), layout, data)
    return data


def unpack_ragged(data: Tensor, layout: TensorLayout) -> Tensor:
    """Packed rows as (N, ...), one sequence after another."""
    data = data.contiguous()
    values = torch.empty_like(data)
    if data.numel():
        _scatter(data, layout, values.data_ptr() + _starts(layout.lengths) * (prod(data.shape[1:]) * data.element_size()))
    return values


def pad_listed(sequences: Sequence[Tensor], lengths: Tensor, batch_first: bool, steps: int, after: int, padding_value: float) -> Tensor:
    """B tensors (T_i, ...) as (B, steps, ...) or (steps, B, ...), with padding after each sequence or before it."""
    contiguous = [sequence.contiguous() for sequence in sequences]
    return _padded(_addresses(contiguous), sequences[0], lengths, batch_first, steps, after, padding_value)


def pad_ragged(values: Tensor, lengths: Tensor, batch_first: bool, steps: int, after: int, padding_value: float) -> Tensor:
    """Rows of `values` (N, ...), contiguous, one sequence after another, likewise."""
    first_rows = values.data_ptr() + _starts(lengths) * (prod(values.shape[1:]) * values.element_size())
    return _padded(first_rows, values, lengths, batch_first, steps, after, padding_value)


def unpad_listed(padded: Tensor, lengths: Tensor, batch_first: bool, after: int = 1) -> tuple[Tensor, ...]:
    """The sequences of (B, T, ...) or (T, B, ...), parts of one block of memory."""
    padded = padded if is_contiguous(padded.shape[2:], padded.stride()[2:], 1) else padded.contiguous()
    trailing, starts = padded.shape[2:], _starts(lengths)
    values = padded.new_empty((int(lengths.sum()), *trailing))
    if values.numel():
        row_bytes = prod(trailing) * padded.element_size()
        places, _sequence_bytes, step_bytes = _places(padded, lengths, batch_first, after)
        _copy(places, step_bytes, values.data_ptr() + starts * row_bytes, row_bytes, row_bytes, lengths)
    return _parted(values, lengths)


def _padded(
    first_rows: Int64Array, like: Tensor, lengths: Tensor, batch_first: bool, steps: int, after: int, padding_value: float
) -> Tensor:
    B, trailing = lengths.shape[0], like.shape[1:]
    padded = like.new_empty((B, steps, *trailing) if batch_first else (steps, B, *trailing))
    if padded.numel():
        places, sequence_bytes, step_bytes = _places(padded, lengths, batch_first, after)
        row_bytes = prod(trailing) * like.element_size()
        _copy(first_rows, row_bytes, places, step_bytes, row_bytes, lengths)
        _fill(padded, like.new_full(trailing, padding_value), lengths, steps, sequence_bytes, step_bytes, after)
    return padded


def _parted(values: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    # "unsafe" in that autograd does not see parts of one tensor in them, which is right here: each is an output of its own,
    # with a version of its own, and may be changed in place
    return tuple(torch.unsafe_split_with_sizes(values, lengths.tolist()))


def _addresses(sequences: Sequence[Tensor]) -> Int64Array:
    return np.frombuffer(array("q", map(Tensor.data_ptr, sequences)), np.int64)


def _gather(source: Source, layout: TensorLayout, data: Tensor) -> None:
    block, _alive = gather_block(
        source,
        layout.lengths.numpy(),
        layout.sorted_indices.data_ptr(),
        layout.batch_sizes.data_ptr(),
        layout.num_steps,
        data.data_ptr(),
    )
    parallel.run(block, layout.num_rows, layout.num_rows * source.row_bytes)


def _scatter(data: Tensor, layout: TensorLayout, first_rows: Int64Array) -> None:
    row_bytes = prod(data.shape[1:]) * data.element_size()
    order, sizes = layout.sorted_indices.data_ptr(), layout.batch_sizes.data_ptr()
    block = blocks.UnpackListed(address(first_rows), row_bytes, row_bytes, order, sizes, layout.num_steps, data.data_ptr())
    parallel.run(block, layout.num_rows, layout.num_rows * row_bytes)


def _copy(
    first_rows: Int64Array, step_bytes: int, target_rows: Int64Array, target_step_bytes: int, row_bytes: int, lengths: Tensor
) -> None:
    B, moved = lengths.shape[0], int(lengths.sum()) * row_bytes
    shares = parallel.threads(moved)
    parallel.run(
        blocks.CopyListed(
            address(first_rows), step_bytes, address(target_rows), target_step_bytes, row_bytes, lengths.data_ptr(), B, shares
        ),
        shares,
        moved,
    )


def _fill(padded: Tensor, padding_row: Tensor, lengths: Tensor, steps: int, sequence_bytes: int, step_bytes: int, after: int) -> None:
    moved = padded.numel() * padded.element_size()
    shares = parallel.threads(moved)
    parallel.run(
        blocks.FillPadding(
            padding_row=padding_row.data_ptr(),
            row_bytes=padding_row.numel() * padding_row.element_size(),
            lengths=lengths.data_ptr(),
            T=steps,
            after=after,
            padded=padded.data_ptr(),
            sequence_bytes=sequence_bytes,
            step_bytes=step_bytes,
            B=lengths.shape[0],
            shares=shares,
        ),
        shares,
        moved,
    )


def _places(padded: Tensor, lengths: Tensor, batch_first: bool, after: int) -> tuple[Int64Array, int, int]:
    """Where each sequence begins in `padded`, and the bytes from sequence to sequence and from step to step."""
    item_bytes = padded.element_size()
    sequence_dim, step_dim = (0, 1) if batch_first else (1, 0)
    sequence_bytes, step_bytes = padded.stride(sequence_dim) * item_bytes, padded.stride(step_dim) * item_bytes
    places = padded.data_ptr() + np.arange(lengths.shape[0]) * sequence_bytes
    if not after:
        places += (padded.shape[step_dim] - lengths.numpy()) * step_bytes
    return places, sequence_bytes, step_bytes


def _starts(lengths: Tensor) -> Int64Array:
    """Where each sequence begins in ragged order, in rows."""
    counts = lengths.numpy()
    starts: Int64Array = np.cumsum(counts) - counts
    return starts
