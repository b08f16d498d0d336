"""Recurrent layers in training, forward and backward, on 1 and 2 threads: every case, every contender; and a sweep over shapes.

fastpack's rows show GFLOP/s and, on one thread, which share that is of the peak of `bench.peak`: three times the operations of
inference, as the gradients of the rows and of the weights take as many each. Cases that lose stay in.
"""

import statistics
from typing import Any

import pytest

from bench.children import report
from bench.peak import peak
from bench.rnn_cases import GATES, LayerCase
from bench.sweep import RIVALS, SLOW, sweep
from bench.training_contests import TRAINED, trainers, training, training_contest

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
RUNS = [(case, threads, contender) for case in TRAINED for threads in (1, 2) for contender in trainers(case)]


@pytest.mark.benchmark(max_time=0.2, min_rounds=3)
@pytest.mark.parametrize(("case", "threads", "contender"), RUNS, ids=lambda value: getattr(value, "name", str(value)))
def bench_training(benchmark: Any, case: LayerCase, threads: int, contender: str) -> None:
    """Time a layer's forward and backward pass."""
    contest = training_contest(case)
    benchmark.group, benchmark.name = f"training: {case.name}, {threads} threads", contender
    with training(threads):
        if contender == "fastpack":
            contest.check()
        benchmark(contest.contenders[contender])
    if contender == "fastpack":
        rate = 3 * case.flops / benchmark.stats.stats.median
        share = f", {rate / peak():.0%} of peak" if case.dtype == "float32" and threads == 1 else ""
        benchmark.stats.name = f"{contender}: {rate / 1e9:.0f} GFLOP/s{share}"


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("cell", GATES)
def bench_training_sweep(benchmark: Any, cell: str, rival: str) -> None:
    """Find the shape on which fastpack does worst. Asked: no slower than 1.1 times torch, a ratio of 0.91 or more."""
    found = sweep(cell, rival)
    worst, median, slow = found[0], statistics.median(item.ratio for item in found), sum(item.ratio < SLOW for item in found)
    benchmark.group = (
        f"training on {len(found)} shapes, {cell}: fastpack's time where torch's is 1 s, and how many times as long torch takes"
    )
    benchmark.name = f"{rival}: median {median:.1f}x, worst {worst.ratio:.2f}x ({worst.case.name}), {slow} slow"
    report(benchmark, [1 / item.ratio for item in found])
