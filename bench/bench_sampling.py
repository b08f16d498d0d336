"""Samplers on 10 million lengths: how long an epoch's batches take (asked: under 3 s each), and how much memory beyond the lengths.

The budget is of 4,096 real steps, the batch size 17, which is as many film reviews; all in one process, which is one rank or one of 8.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from bench.bench_memory import numpy_peak
from bench.cases import LENGTHS
from fastpack import BinPackingBatchSampler, LengthGroupedBatchSampler, TokenBudgetBatchSampler, TokenBudgetStream
from fastpack.sampling import BatchSampler

MANY = 10_000_000
BYTES = 80  # asked: the most a sequence, ten numbers
KINDS = ("reviews", "speech", "sentences")
SAMPLERS: dict[str, Callable[..., BatchSampler]] = {
    "LengthGroupedBatchSampler": lambda lengths, **who: LengthGroupedBatchSampler(lengths, 17, **who),
    "TokenBudgetBatchSampler": lambda lengths, **who: TokenBudgetBatchSampler(lengths, 4096, **who),
    "BinPackingBatchSampler": lambda lengths, **who: BinPackingBatchSampler(lengths, 4096, **who),
}

HARD: dict[str, Callable[[np.random.Generator], tuple[np.ndarray, int]]] = {  # lengths, and a budget
    "speech in samples at 16 kHz": lambda random: (lengths_of("speech") * 640 + random.integers(0, 640, MANY), 5_000_000),
    "all lengths different": lambda random: (random.permutation(MANY) + 1, 10 * MANY),
    "all lengths different, one or two a batch": lambda random: (random.permutation(MANY) + 1, MANY),
    "all lengths equal, one a batch": lambda random: (np.full(MANY, 7), 7),
    "a heavy tail": lambda random: (np.minimum(random.pareto(1.1, MANY) * 10 + 1, 10**9).astype(np.int64), 10**9),
}


@cache
def lengths_of(kind: str, B: int = MANY) -> np.ndarray:
    """Return B lengths of a kind that `bench.cases` knows."""
    lengths: np.ndarray = LENGTHS[kind](B, np.random.default_rng(0))
    return lengths


def planned(name: str, lengths: np.ndarray, W: int = 1) -> BatchSampler:
    """Return a new sampler that has made its epoch's batches."""
    sampler = SAMPLERS[name](lengths, rank=0, world_size=W)
    sampler.plan()
    return sampler


def streamed(lengths: np.ndarray) -> int:
    """Return the number of batches of a stream."""
    return sum(1 for _ in TokenBudgetStream(lengths, 4096, length=int))


@pytest.mark.parametrize("W", [1, 8])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def bench_plan(benchmark: Any, kind: str, name: str, W: int) -> None:
    """Time a sampler from its lengths to the batches of an epoch."""
    benchmark.group, benchmark.name = f"batches of {MANY:,} {kind}", f"{name}, {W} rank{'s' * (W > 1)}"
    benchmark.pedantic(planned, (name, lengths_of(kind), W), rounds=3)


@pytest.mark.parametrize("W", [1, 8])
@pytest.mark.parametrize("name", ["TokenBudgetBatchSampler", "BinPackingBatchSampler"])
@pytest.mark.parametrize("kind", HARD)
def bench_hard(benchmark: Any, kind: str, name: str, W: int) -> None:
    """Time what has the most batches, different lengths or exchanges between ranks for its number of sequences."""
    lengths, max_tokens = HARD[kind](np.random.default_rng(1))
    sampler = {"TokenBudgetBatchSampler": TokenBudgetBatchSampler, "BinPackingBatchSampler": BinPackingBatchSampler}[name]
    benchmark.group, benchmark.name = f"batches of {MANY:,}: {kind}", f"{name}, {W} rank{'s' * (W > 1)}"
    benchmark.pedantic(lambda: sampler(lengths, max_tokens, rank=0, world_size=W).plan(), rounds=3)


def bench_stream(benchmark: Any) -> None:
    """Time batches of a stream, all of them, the reading of the samples included."""
    benchmark.group, benchmark.name = f"batches of {MANY:,} reviews", "TokenBudgetStream"
    benchmark.pedantic(streamed, (lengths_of("reviews"),), rounds=2)


@pytest.mark.parametrize("B", [MANY // 10, MANY])
@pytest.mark.parametrize("name", SAMPLERS)
def bench_memory(benchmark: Any, name: str, B: int) -> None:
    """Asked: linear in the number of sequences."""
    lengths = lengths_of("reviews", B)
    _, peak = numpy_peak(lambda: planned(name, lengths))
    benchmark.group = "peak memory of making batches"
    benchmark.name = f"{name}: {peak / B:.0f} bytes a sequence, of {B:,}"
    if peak > BYTES * B:
        raise MemoryError(benchmark.name)
    benchmark.pedantic(planned, (name, lengths), rounds=1)
