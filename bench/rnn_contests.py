"""Recurrent layers against the best that torch does on the same batch, in inference. Results are compared before anything is timed.

`torch, packed` is torch's layer on the PackedSequence; `torch, padded` the same on the padded batch, made beforehand: an LSTM of
float32 is oneDNN's there, and wastes the padding; `torch, stretches` on each stretch of steps with the same active rows, as
padded batches without padding, the states carried along by hand. Backwards a padded batch begins in the padding, and a stretch
with states that are not there yet: such layers have `packed` alone as a rival.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastpack
import fastpack.torch
from bench.contests import Contender, Contest
from bench.rnn_cases import LayerCase

RIVALS = ["torch, packed", "torch, padded", "torch, stretches"]
CLOSE = {torch.float32: 2e-5, torch.float64: 1e-12}


def contenders(case: LayerCase) -> list[str]:
    """Return who can run a case."""
    same_lengths = len(set(case.batch.lengths.tolist())) == 1
    return ["fastpack", "fastpack, NumPy", *RIVALS[: 1 if case.D > 1 else 2 if same_lengths else 3]]


@contextmanager
def inference(threads: int) -> Iterator[None]:
    """Have torch compute without gradients, on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def layer_contest(case: LayerCase, threads: int) -> Contest:
    """Return the contest on a case, to be run under :func:`inference` on as many threads. Contenders return the rows of all steps."""
    weights = case.weights()
    ours, theirs = (getattr(module, case.cell)(**case.arguments, dtype=getattr(torch, case.dtype)) for module in (fastpack.torch, nn))
    for layer in (ours, theirs):
        layer.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    options = {"nonlinearity": "tanh"} if case.cell == "RNN" else {}
    on_arrays = getattr(fastpack, case.cell).from_state_dict(weights, **options)
    packed = fastpack.torch.pack_sequence([torch.from_numpy(item) for item in case.batch.sequences()], enforce_sorted=False)
    arrays, (padded, _) = fastpack.torch.as_numpy(packed), fastpack.torch.pad_packed_sequence(packed)
    run: dict[str, Contender] = {
        "fastpack": lambda: ours(packed)[0],
        "fastpack, NumPy": lambda: on_arrays(arrays, num_threads=threads)[0],
        "torch, packed": lambda: theirs(packed)[0],
        "torch, padded": lambda: theirs(padded)[0],
        "torch, stretches": lambda: by_stretches(theirs, packed),
    }
    return Contest(case.name, {name: run[name] for name in contenders(case)}, lambda a, b: close(rows_of(a, packed), rows_of(b, packed)))


def by_stretches(layer: nn.Module, packed: PackedSequence) -> PackedSequence:
    """Run a layer of one direction on each stretch of steps with the same active rows."""
    sizes, steps = torch.unique_consecutive(packed.batch_sizes, return_counts=True)
    outputs: list[Tensor] = []
    state: Any = None
    for rows, size in zip(packed.data.split((sizes * steps).tolist()), sizes.tolist(), strict=True):
        if state is not None:  # those of the sequences that go on
            state = tuple(s[:, :size].contiguous() for s in state) if isinstance(state, tuple) else state[:, :size].contiguous()
        output, state = layer(rows.view(-1, size, rows.shape[1]), state)
        outputs.append(output.flatten(0, 1))
    return packed._replace(data=torch.cat(outputs))


def rows_of(output: Any, packed: PackedSequence) -> Tensor:
    """Return the packed rows of an output, which may be padded: (T, B, ...)."""
    if isinstance(output, fastpack.Packed):
        return torch.from_numpy(output.data)
    if isinstance(output, PackedSequence):
        return output.data
    return torch.cat([step[packed.sorted_indices[:size]] for step, size in zip(output, packed.batch_sizes.tolist(), strict=True)])


def close(a: Tensor, b: Tensor) -> bool:
    """Whether outputs, none of which is beyond 1, differ by rounding alone."""
    return a.dtype == b.dtype and a.shape == b.shape and bool((a - b).abs().max() <= CLOSE[a.dtype])
