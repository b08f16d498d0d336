"""How long packing, padding, unpacking and an LSTM take, side by side with torch's own functions on the same batches."""

import copy
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

import fastpack.torch
from fastpack.demo.speakers import SETTINGS, Utterances

if TYPE_CHECKING:
    from rich.table import Table

CALLS = 200  # of each function, in turns


class Timing(NamedTuple):
    """The median seconds of a call."""

    function: str
    sequences: int  # in a batch
    torch: float
    fastpack: float


class Batch(NamedTuple):
    """A batch in each form that a function takes."""

    sequences: list[Tensor]  # B of (T_i, D)
    lengths: Tensor  # (B,)
    padded: Tensor  # (B, T, D)
    packed: PackedSequence


# how each function is called on a batch; `library` is torch.nn.utils.rnn or fastpack.torch
CALLED: dict[str, Callable[[Any, Batch], Any]] = {
    "pack_sequence": lambda library, batch: library.pack_sequence(batch.sequences, enforce_sorted=False),
    "unpack_sequence": lambda library, batch: library.unpack_sequence(batch.packed),
    "pack_padded_sequence": lambda library, batch: library.pack_padded_sequence(batch.padded, batch.lengths, True, enforce_sorted=False),
    "pad_packed_sequence": lambda library, batch: library.pad_packed_sequence(batch.packed, batch_first=True),
    "pad_sequence": lambda library, batch: library.pad_sequence(batch.sequences, batch_first=True),
    "unpad_sequence": lambda library, batch: library.unpad_sequence(batch.padded, batch.lengths, batch_first=True),
}


def batches(utterances: Utterances, size: int) -> list[list[Tensor]]:
    """Return the recordings in batches of `size`; a smaller rest is left out."""
    every = [utterances[k][0] for k in range(len(utterances))]
    return [every[k : k + size] for k in range(0, len(every) - size + 1, size)]


def compare(batches: list[list[Tensor]]) -> list[Timing]:
    """Time every function, and inference by an LSTM such as the speakers' model has, on the same batches; results are compared before.

    Raises
    ------
    RuntimeError
        fastpack's result is not torch's.
    """
    prepared = [prepare(batch) for batch in batches]
    for name, call in CALLED.items():
        for batch in prepared:
            if not same(call(rnn, batch), call(fastpack.torch, batch)):
                raise RuntimeError(f"{name} does not give torch's result")
    timings = [Timing(name, len(batches[0]), *medians(call, prepared)) for name, call in CALLED.items()]
    lstm = fastpack.torch.LSTM(batches[0][0].shape[1], SETTINGS.hidden_size, bidirectional=True)
    return [*timings, Timing("LSTM, inference", len(batches[0]), *through(lstm, [batch.packed for batch in prepared]))]


def through(ours: fastpack.torch.LSTM, batches: list[PackedSequence]) -> tuple[float, float]:
    """Return the median seconds that torch's LSTM and fastpack's, of the same weights, take for packed batches.

    Raises
    ------
    RuntimeError
        The outputs are not the same up to rounding.
    """
    theirs = fastpack.torch.restore(copy.deepcopy(ours))
    with torch.inference_mode():
        for packed in batches:
            if not torch.allclose(ours(packed)[0].data, theirs(packed)[0].data, rtol=1e-5, atol=1e-5):
                raise RuntimeError("LSTM does not give torch's result")
        first, second = cycle(batches), cycle(batches)
        return in_turns(lambda: theirs(next(first)), lambda: ours(next(second)))


def prepare(sequences: list[Tensor]) -> Batch:
    """Return a batch in all its forms, made by torch."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = rnn.pad_sequence(sequences, batch_first=True)
    return Batch(sequences, lengths, padded, rnn.pack_sequence(sequences, enforce_sorted=False))


def medians(call: Callable[[Any, Batch], Any], prepared: list[Batch]) -> tuple[float, float]:
    """Return the median seconds of torch's and of fastpack's function."""
    theirs, ours = cycle(prepared), cycle(prepared)
    return in_turns(lambda: call(rnn, next(theirs)), lambda: call(fastpack.torch, next(ours)))


def in_turns(theirs: Callable[[], Any], ours: Callable[[], Any]) -> tuple[float, float]:
    """Return the median seconds of two calls; they take turns, so that a disturbance meets both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(CALLS):
        for call, taken in zip((theirs, ours), seconds, strict=True):
            begin = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begin)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def same(expected: Any, found: Any) -> bool:
    """Whether two results are equal to the bit; packed ones sequence by sequence, as torch leaves the order of ties open."""
    if isinstance(expected, Tensor):
        return bool(torch.equal(expected, found))
    if isinstance(expected, PackedSequence):
        return torch.equal(expected.batch_sizes, found.batch_sizes) and same(rnn.unpack_sequence(expected), rnn.unpack_sequence(found))
    return len(expected) == len(found) and all(map(same, expected, found))


def table(timings: list[Timing]) -> "Table":
    """Return the timings as a table for the terminal."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("function")
    for name in ("sequences", "torch", "fastpack", "speed-up"):
        made.add_column(name, justify="right")
    for k, timing in enumerate(timings):
        ratio = timing.torch / timing.fastpack
        row = (timing.function, str(timing.sequences), microseconds(timing.torch), microseconds(timing.fastpack))
        last = k + 1 == len(timings) or timings[k + 1].sequences != timing.sequences
        made.add_row(*row, f"[bold {'green' if ratio >= 1 else 'red'}]{ratio:.1f}x[/]", end_section=last)
    return made


def microseconds(seconds: float) -> str:
    """Return a time in words of one width."""
    return f"{seconds * 1e6:,.1f} us"
