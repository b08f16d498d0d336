"""Peak memory of packing from a list, as a multiple of the packed result: B = 256, T = 500, 40 floats a row."""

import tracemalloc
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch

import fastpack
import fastpack.torch

LENGTHS = np.random.default_rng(0).integers(1, 501, 256)


def bench_peak_memory_numpy(benchmark: Any) -> None:
    """By tracemalloc, which sees NumPy's allocations. Asked: under 1.05."""
    sequences = [np.ones((length, 40), np.float32) for length in LENGTHS]
    benchmark.group = "peak memory of packing a list"
    tracemalloc.start()
    packed = fastpack.pack(sequences)
    ratio = tracemalloc.get_traced_memory()[1] / packed.data.nbytes
    tracemalloc.stop()
    benchmark.extra_info["peak / packed"] = ratio
    benchmark.name = f"fastpack.pack: {ratio:.3f} of the packed result"
    if ratio >= 1.05:
        raise MemoryError(benchmark.name)
    benchmark.pedantic(fastpack.pack, (sequences,), rounds=7)


@pytest.mark.parametrize("module", [fastpack.torch, torch.nn.utils.rnn], ids=["fastpack.torch", "torch"])
def bench_peak_memory_torch(benchmark: Any, module: Any) -> None:
    """By torch's profiler, which sees torch's allocations. Asked of fastpack: under 1.05."""
    sequences = [torch.ones(int(length), 40) for length in LENGTHS]
    benchmark.group = "peak memory of packing a list"
    with torch.profiler.profile(profile_memory=True) as profile:
        packed = module.pack_sequence(sequences, enforce_sorted=False)
    peak = max(accumulate(_allocations(profile)))
    ratio = peak / (packed.data.numel() * packed.data.element_size())
    benchmark.extra_info["peak / packed"] = ratio
    benchmark.name = f"{module.__name__}.pack_sequence: {ratio:.3f} of the packed result"
    if module is fastpack.torch and ratio >= 1.05:
        raise MemoryError(benchmark.name)
    benchmark.pedantic(module.pack_sequence, (sequences, False), rounds=7)


def _allocations(profile: Any) -> list[int]:
    """Return the bytes allocated, or freed where negative, in the order of time."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
