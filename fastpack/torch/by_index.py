"""The moves as torch's own indexing: for gradients that the kernels cannot take, such as a vmap's batch of gradients.

Slower, but every torch transform goes through it, to any order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastpack.packed import Layout
from fastpack.torch.layout import TensorLayout


def pack_padded(padded: Tensor, layout: TensorLayout, batch_first: bool) -> Tensor:
    """As moves.pack_padded."""
    maps = Layout(layout.lengths.numpy())
    sequences, steps = torch.from_numpy(maps.sequences), torch.from_numpy(maps.steps)
    B, T = padded.shape[:2] if batch_first else padded.shape[1::-1]
    rows = sequences * T + steps if batch_first else steps * B + sequences
    return padded.reshape(B * T, *padded.shape[2:]).index_select(0, rows)


def unpack_padded(data: Tensor, layout: TensorLayout, batch_first: bool, steps: int, padding_value: float) -> Tensor:
    """As moves.unpack_padded."""
    padding = data.new_full((1, *data.shape[1:]), padding_value)
    maps, B = Layout(layout.lengths.numpy()), layout.num_sequences
    rows = torch.full((B, steps), layout.num_rows)
    rows[torch.from_numpy(maps.sequences), torch.from_numpy(maps.steps)] = torch.arange(layout.num_rows)
    rows = rows if batch_first else rows.T
    return torch.cat([data, padding]).index_select(0, rows.flatten()).view(*rows.shape, *data.shape[1:])


def pack_ragged(values: Tensor, layout: TensorLayout) -> Tensor:
    """As moves.pack_ragged."""
    return values.index_select(0, torch.from_numpy(Layout(layout.lengths.numpy()).ragged_rows))


def unpack_ragged(data: Tensor, layout: TensorLayout) -> Tensor:
    """As moves.unpack_ragged."""
    return data.index_select(0, torch.from_numpy(Layout(layout.lengths.numpy()).packed_rows))


def pack_listed(sequences: Sequence[Tensor], layout: TensorLayout) -> Tensor:
    """As moves.pack_listed."""
    return pack_ragged(torch.cat(list(sequences)), layout)


def unpack_listed(data: Tensor, layout: TensorLayout) -> tuple[Tensor, ...]:
    """As moves.unpack_listed."""
    return torch.split(unpack_ragged(data, layout), layout.lengths.tolist())


def pad_listed(sequences: Sequence[Tensor], lengths: Tensor, batch_first: bool, steps: int, after: int, padding_value: float) -> Tensor:
    """As moves.pad_listed."""
    dimensions = sequences[0].dim()
    pads = [[0, 0] * (dimensions - 1) + ([0, steps - length] if after else [steps - length, 0]) for length in lengths.tolist()]
    padded = [torch.nn.functional.pad(sequence, pad, value=padding_value) for sequence, pad in zip(sequences, pads, strict=True)]
    return torch.stack(padded, 0 if batch_first else 1)


def unpad_listed(padded: Tensor, lengths: Tensor, batch_first: bool, after: int = 1) -> tuple[Tensor, ...]:
    """As moves.unpad_listed."""
    rows = padded if batch_first else padded.transpose(0, 1)
    T = rows.shape[1]
    return tuple(row[:length] if after else row[T - length :] for row, length in zip(rows, lengths.tolist(), strict=True))
