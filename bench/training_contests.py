"""Recurrent layers in training against the best that torch does on the same batch: forward and backward, for all gradients.

The rivals are those of :mod:`bench.rnn_contests`. A contender's result is the gradients of input, weights and biases, from the same
gradients of the output; they are compared before anything is timed. torch's packed layer takes time quadratic in the steps, so
film reviews are not among the cases: see :mod:`bench.bench_long_sequences`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastpack.torch
from bench.contests import Contender, Contest
from bench.rnn_cases import LAYERS, LayerCase
from bench.rnn_contests import RIVALS, by_stretches, contenders, rows_of

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-10}  # of the largest entry
TRAINED = [case for case in LAYERS if case.kind != "reviews"]
TRAINED[4:4] = [LayerCase(cell, 128, 256, 64, "sentences") for cell in ("LSTM", "GRU", "RNN")]


class Gradients(NamedTuple):
    """What a step of training gives."""

    packed: PackedSequence  # the batch
    input: Tensor  # packed, or padded: (T, B, F)
    weights: list[Tensor]


@contextmanager
def training(threads: int) -> Iterator[None]:
    """Have torch compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def training_contest(case: LayerCase) -> Contest:
    """Return the contest on a case, to be run under :func:`training`."""
    weights = case.weights()
    ours, theirs = (getattr(module, case.cell)(**case.arguments, dtype=getattr(torch, case.dtype)) for module in (fastpack.torch, nn))
    for layer in (ours, theirs):
        layer.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    packed = fastpack.torch.pack_sequence([torch.from_numpy(item) for item in case.batch.sequences()], enforce_sorted=False)
    padded, _ = fastpack.torch.pad_packed_sequence(packed)
    random = torch.Generator().manual_seed(0)
    width = case.D * (case.proj_size or case.H)
    upstream = torch.randn(len(packed.data), width, generator=random, dtype=packed.data.dtype)
    upstream_padded, _ = fastpack.torch.pad_packed_sequence(packed._replace(data=upstream))
    leaf, leaf_padded = packed.data.requires_grad_(), padded.requires_grad_()

    def step(layer: nn.Module, rows: Tensor, run: Callable[[], Tensor], gradient: Tensor) -> Gradients:
        layer.zero_grad()
        rows.grad = None
        run().backward(gradient)
        return Gradients(packed, rows.grad, [weight.grad for weight in layer.parameters()])

    run: dict[str, Contender] = {
        "fastpack": lambda: step(ours, leaf, lambda: ours(packed)[0].data, upstream),
        "torch, packed": lambda: step(theirs, leaf, lambda: theirs(packed)[0].data, upstream),
        "torch, padded": lambda: step(theirs, leaf_padded, lambda: theirs(leaf_padded)[0], upstream_padded),
        "torch, stretches": lambda: step(theirs, leaf, lambda: by_stretches(theirs, packed).data, upstream),
    }
    return Contest(case.name, {name: run[name] for name in trainers(case)}, same_gradients)


def trainers(case: LayerCase) -> list[str]:
    """Return who can train a case."""
    return [name for name in contenders(case) if name == "fastpack" or name in RIVALS]


def same_gradients(a: Any, b: Any) -> bool:
    """Whether gradients differ by rounding alone."""
    first, second = ([rows_of(x.input, x.packed) if x.input.dim() == 3 else x.input, *x.weights] for x in (a, b))
    return all(close(x, y) for x, y in zip(first, second, strict=True))


def close(a: Tensor, b: Tensor) -> bool:
    """Whether a gradient's entries differ by rounding of the largest of them alone."""
    return a.dtype == b.dtype and a.shape == b.shape and bool((a - b).abs().max() <= CLOSE[a.dtype] * b.abs().max().clamp(min=1e-3))
