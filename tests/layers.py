"""What the tests of recurrent layers share: pairs of torch's layer and ours, batches and states, and how results are compared."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastpack.torch as fp
from fastpack.torch import by_torch

F, H = 4, 7
LENGTHS = [2, 5, 1, 5]
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}
CELLS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"proj_size": 3}),
    ("GRU", {}),
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
]


def every_kind() -> list[tuple[str, dict[str, Any]]]:
    """Return each cell with each number of layers, directions, biases and order of dimensions."""
    found = []
    for (cell, own), num_layers, bidirectional, bias, batch_first in product(CELLS, (1, 2, 3), *[(False, True)] * 3):
        options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
        found.append((cell, options | own))
    return found


def pair(cell: str, dtype: torch.dtype = torch.float32, sizes: tuple[int, int] = (F, H), **options: Any) -> tuple[nn.RNNBase, nn.RNNBase]:
    """Return a layer of torch's and one of ours with the same weights."""
    torch.manual_seed(0)
    theirs = getattr(nn, cell)(*sizes, dtype=dtype, **options)
    ours = getattr(fp, cell)(*sizes, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def packed(
    dtype: torch.dtype = torch.float32, lengths: Sequence[int] = LENGTHS, is_sorted: bool = False, features: int = F
) -> PackedSequence:
    """Return a packed batch of random rows; sequences may be empty."""
    generator = torch.Generator().manual_seed(1)
    lengths = sorted(lengths, reverse=True) if is_sorted else lengths
    rows = [torch.randn(length, features, dtype=dtype, generator=generator) for length in lengths]
    return fp.pack_sequence(rows, enforce_sorted=is_sorted, allow_empty=True)


def inputs(layer: nn.RNNBase) -> dict[str, Any]:
    """Return batches of every form that a layer takes."""
    dtype, sizes = layer.weight_ih_l0.dtype, (3, 5) if layer.batch_first else (5, 3)
    return {
        "packed": packed(dtype),
        "packed and sorted": packed(dtype, is_sorted=True),
        "padded": torch.randn(*sizes, F, dtype=dtype),
        "a single sequence": torch.randn(6, F, dtype=dtype),
    }


def states(layer: nn.RNNBase, batch: Any, seed: int = 2) -> Any:
    """Return initial states, all different and none 0, in the form in which a layer takes them with `batch`."""
    if isinstance(batch, PackedSequence):
        B = [len(batch.sorted_indices) if batch.sorted_indices is not None else int(batch.batch_sizes[0])]
    else:
        B = [] if batch.dim() == 2 else [batch.shape[0 if layer.batch_first else 1]]
    count, generator = layer.num_layers * (2 if layer.bidirectional else 1), torch.Generator().manual_seed(seed)
    widths = [layer.proj_size or layer.hidden_size] + [layer.hidden_size] * (layer.mode == "LSTM")
    made = [torch.randn(count, *B, width, dtype=layer.weight_ih_l0.dtype, generator=generator) for width in widths]
    return tuple(made) if layer.mode == "LSTM" else made[0]


def flat(result: Any) -> list[Tensor]:
    """Return the tensors of a layer's result: the output's rows, h_n and, of an LSTM, c_n."""
    output, after = result
    return [output.data if isinstance(output, PackedSequence) else output, *(after if isinstance(after, tuple) else [after])]


def assert_close(found: Any, expected: Any, tolerance: float | None = None) -> None:
    """Compare two results in kind, shape and strides, and in values by the dtype's tolerance, relative to the largest."""
    assert type(found) is type(expected)
    if isinstance(found[0], PackedSequence):
        assert all(one is other for one, other in zip(found[0][1:], expected[0][1:], strict=True))
    assert isinstance(found[1], tuple) == isinstance(expected[1], tuple)
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert (one.shape, one.dtype, one.requires_grad) == (other.shape, other.dtype, other.requires_grad)
        assert one.stride() == other.stride() or 1 in one.shape or not one.numel()
        difference = (one - other).abs().max().item() if one.numel() else 0.0
        assert difference <= (tolerance or TOLERANCES.get(one.dtype, 0.0)) * max(1.0, other.abs().max().item() if one.numel() else 0.0)


def assert_same_bits(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compare tensors bit by bit."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        integer = torch.int32 if one.dtype is torch.float32 else torch.int64
        assert torch.equal(one.detach().contiguous().view(integer), other.detach().contiguous().view(integer))


@contextmanager
def torch_called() -> Iterator[list[str]]:
    """Collect the modes of layers whose calls are given to torch's own functions."""
    called: list[str] = []
    original = by_torch.forward

    def spy(layer: nn.RNNBase, *arguments: Any) -> Any:
        called.append(layer.mode)
        return original(layer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_torch, "forward", spy)
        yield called


@contextmanager
def kernels_alone() -> Iterator[None]:
    """Fail where a call is given to torch's own functions."""
    with torch_called() as called:
        yield
    assert called == []
