"""Batches of a sensible size, from lengths alone: by length, by a budget of real steps, in bins, out of a stream.

A sampler iterates over lists of indices, as torch's `batch_sampler` does; torch is not needed. It is seeded, shares its batches
between ranks, and can be gone on with in mid-epoch.
"""

from fastpack.sampling.report import SamplerReport
from fastpack.sampling.rounds import Plan
from fastpack.sampling.samplers import BatchSampler, BinPackingBatchSampler, LengthGroupedBatchSampler, TokenBudgetBatchSampler
from fastpack.sampling.stream import TokenBudgetStream

__all__ = [
    "BatchSampler",
    "BinPackingBatchSampler",
    "LengthGroupedBatchSampler",
    "Plan",
    "SamplerReport",
    "TokenBudgetBatchSampler",
    "TokenBudgetStream",
]
