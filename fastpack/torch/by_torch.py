"""Recurrent layers by torch's own functions, for calls that the kernels do not take; with torch's checks for packed input as well.

torch skips its checks there, or some: an input of the wrong size is met by a message of a matrix product's, surplus rows of a
state are passed over, rows that no batch size counts are left out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from fastpack.torch.bridge import is_eager
from fastpack.torch.layout import check_batch_sizes


def forward(layer: RNNBase, theirs: type[RNNBase], input: Any, hx: Any) -> Any:
    """Return what the class `theirs` of torch's makes of a call; its arguments are checked where operations run right now.

    Raises
    ------
    RuntimeError, ValueError
        As torch; and for a packed batch whose batch sizes grow, are negative, or do not add up to its rows.
    """
    if not isinstance(input, PackedSequence) or not is_eager():
        return theirs.forward(layer, input, hx)
    _check_packed(layer, input, hx)
    batch_sizes, order = input[1:3]
    full = int(batch_sizes[0]) if batch_sizes.shape[0] else 0
    if order is None or full == order.shape[0]:
        return theirs.forward(layer, input, hx)
    return _with_empty(layer, theirs, input, hx, full)


def _check_packed(layer: RNNBase, sequence: PackedSequence, hx: Any) -> None:
    data, batch_sizes, order, places = sequence
    layer._update_flat_weights()
    layer.check_input(data, batch_sizes)
    check_batch_sizes(data, batch_sizes)
    if batch_sizes.shape[0] == 0 and order is None:
        raise RuntimeError("batch_sizes can not be empty")
    B = order.shape[0] if order is not None else int(batch_sizes[0])
    if batch_sizes.shape[0] and int(batch_sizes[0]) > B:
        raise RuntimeError(f"batch_sizes[0] is {batch_sizes[0]}, but sorted_indices has {B} entries")
    shapes = [(shape[0], B, shape[2]) for shape in state_shapes(layer, 0)]
    if len(shapes) == 1 and isinstance(hx, Tensor):
        layer.check_hidden_size(hx, shapes[0])
    elif isinstance(hx, (tuple, list)) and len(hx) == len(shapes) == 2:
        for k, (state, shape) in enumerate(zip(hx, shapes, strict=True)):
            layer.check_hidden_size(state, shape, f"Expected hidden[{k}] size {{}}, got {{}}")


def state_shapes(layer: RNNBase, B: int) -> list[tuple[int, int, int]]:
    """Return the shapes of a layer's h and, of an LSTM, c."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    h, c = (count, B, layer.proj_size or layer.hidden_size), (count, B, layer.hidden_size)
    return [h, c] if layer.mode == "LSTM" else [h]


def _with_empty(layer: RNNBase, theirs: type[RNNBase], sequence: PackedSequence, hx: Any, full: int) -> Any:
    """Have the `full` sequences that have rows done; torch knows no others, which keep their initial states."""
    data, batch_sizes, order, places = sequence
    if hx is None:
        given = [data.new_zeros(shape) for shape in state_shapes(layer, order.shape[0])]
    else:
        given = [state.index_select(1, order) for state in (hx if isinstance(hx, (tuple, list)) else [hx])]
    after = [state[:, :full] for state in given]
    if full:
        packed = PackedSequence(data, batch_sizes)
        output, states = theirs.forward(layer, packed, tuple(after) if layer.mode == "LSTM" else after[0])
        data, after = output.data, states if layer.mode == "LSTM" else [states]
    else:
        data = data.new_empty(0, (2 if layer.bidirectional else 1) * (layer.proj_size or layer.hidden_size))
    whole = [torch.cat([new, old[:, full:]], 1).index_select(1, places) for new, old in zip(after, given, strict=True)]
    return PackedSequence(data, batch_sizes, order, places), tuple(whole) if layer.mode == "LSTM" else whole[0]
