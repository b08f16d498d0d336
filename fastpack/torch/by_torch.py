"""Recurrent layers by torch's own functions, for calls that the kernels do not take; with torch's checks for packed input as well.

torch skips its checks there, or some: an input of the wrong size is met by a message of a matrix product's, surplus rows of a
state are passed over, rows that no batch size counts are left out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import _VF, Tensor
from torch.nn import RNNBase
from torch.nn.utils.rnn import PackedSequence

from fastpack.torch.bridge import is_eager
from fastpack.torch.layout import check_batch_sizes, lacks_memory
from fastpack.torch.panels import Settings

FUNCTIONS: dict[str, Any] = {"LSTM": _VF.lstm, "GRU": _VF.gru, "RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu}


def forward(layer: RNNBase, theirs: type[RNNBase], input: Any, hx: Any) -> Any:
    """Return what the class `theirs` of torch's makes of a call; its arguments are checked where operations run right now.

    Raises
    ------
    RuntimeError, ValueError
        As torch; and for a packed batch whose batch sizes grow, are negative, or do not add up to its rows.
    """
    if not is_eager():
        return theirs.forward(layer, input, hx)
    layer._update_flat_weights()
    _check_memory(layer, input, hx)
    if not isinstance(input, PackedSequence):
        return theirs.forward(layer, input, hx)
    _check_packed(layer, input, hx)
    batch_sizes, order = input[1:3]
    if order is None or count_full(batch_sizes) == order.shape[0]:
        # torch reads batch sizes as if they lay side by side
        output, after = theirs.forward(layer, input._replace(batch_sizes=batch_sizes.contiguous()), hx)
        return output._replace(batch_sizes=batch_sizes), after
    states = () if hx is None else hx if layer.mode == "LSTM" else (hx,)
    dropout = layer.dropout if layer.training else 0.0
    output, after = run(settings_of(layer), layer._flat_weights, input.data, input[1:], states, dropout)
    return input._replace(data=output), tuple(after) if layer.mode == "LSTM" else after[0]


def settings_of(layer: RNNBase) -> Settings:
    """Return a layer's settings."""
    sizes = layer.input_size, layer.hidden_size, layer.proj_size
    return Settings(layer.mode, *sizes, layer.num_layers, layer.bias, layer.bidirectional)


def state_shapes(settings: Settings, B: int) -> list[tuple[int, int, int]]:
    """Return the shapes of a layer's h and, of an LSTM, c."""
    count = settings.num_layers * (2 if settings.bidirectional else 1)
    h, c = (count, B, settings.proj_size or settings.hidden_size), (count, B, settings.hidden_size)
    return [h, c] if settings.mode == "LSTM" else [h]


def run(
    settings: Settings, weights: Sequence[Any], data: Tensor, layout: Sequence[Any] | None, states: Sequence[Tensor], dropout: float
) -> tuple[Tensor, list[Tensor]]:
    """Return the output, and h_n and c_n, or h_n.

    Parameters
    ----------
    settings : Settings
    weights : sequence of Tensor
    data : Tensor (N, F), or (T, B, F)
    layout : batch_sizes, sorted_indices and unsorted_indices of a packed batch, or None
        Sequences without rows, which torch does not know, keep their initial states.
    states : sequence of Tensor
        h_0 and c_0, or h_0; or nothing, for zeros.
    dropout : float
        Between layers.
    """
    batch_sizes, order, places = layout or (None, None, None)
    full = data.shape[1] if batch_sizes is None else count_full(batch_sizes)
    B = full if order is None else order.shape[0]
    before = list(states) or [data.new_zeros(shape) for shape in state_shapes(settings, B)]
    if order is not None:
        before = [state.index_select(1, order) for state in before]
    if full:
        begun = [state[:, :full] for state in before]
        batch = (data,) if batch_sizes is None else (data, batch_sizes)
        options: list[Any] = [settings.bias, settings.num_layers, dropout, bool(dropout), settings.bidirectional]
        hx = begun if settings.mode == "LSTM" else begun[0]
        output, *after = FUNCTIONS[settings.mode](*batch, hx, list(weights), *options, *([False] if batch_sizes is None else []))
        if full < B:
            after = [torch.cat([new, old[:, full:]], 1) for new, old in zip(after, before, strict=True)]
    else:
        width = before[0].shape[2] * (2 if settings.bidirectional else 1)
        output, after = data.new_empty(*data.shape[:-1], width), [state.clone() for state in before]
    return output, [state.index_select(1, places) for state in after] if places is not None else after


def count_full(batch_sizes: Tensor) -> int:
    """Return how many sequences have rows."""
    return int(batch_sizes[0]) if batch_sizes.shape[0] else 0


def _check_memory(layer: RNNBase, input: Any, hx: Any) -> None:
    """Check that tensors have the memory that their shapes say: torch reads it without asking, and would not survive."""
    states = hx if isinstance(hx, (tuple, list)) else [hx]
    fields = input if isinstance(input, PackedSequence) else (input,)
    named = dict(zip(("input", "batch_sizes", "sorted_indices", "unsorted_indices"), fields, strict=False))
    named |= {f"hx[{k}]": state for k, state in enumerate(states)}
    for name, tensor in (named | dict(zip(layer._flat_weights_names, layer._flat_weights, strict=False))).items():
        if lacks_memory(tensor):
            raise RuntimeError(f"{name} has no memory: its storage was emptied")


def _check_packed(layer: RNNBase, sequence: PackedSequence, hx: Any) -> None:
    data, batch_sizes, order, _ = sequence
    layer.check_input(data, batch_sizes)
    check_batch_sizes(data, batch_sizes, exactly=True)
    full = count_full(batch_sizes)
    B = full if order is None else order.shape[0]
    if B == 0:
        raise RuntimeError("batch_sizes can not be empty")
    if full > B:
        raise RuntimeError(f"batch_sizes[0] is {full}, but sorted_indices has {B} entries")
    shapes = state_shapes(settings_of(layer), B)
    if isinstance(hx, Tensor) and len(shapes) == 1:
        layer.check_hidden_size(hx, shapes[0])
    elif isinstance(hx, (tuple, list)) and len(hx) == len(shapes) == 2:
        for k, (state, shape) in enumerate(zip(hx, shapes, strict=True)):
            layer.check_hidden_size(state, shape, f"Expected hidden[{k}] size {{}}, got {{}}")
