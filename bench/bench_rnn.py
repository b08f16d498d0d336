"""Recurrent layers in inference, on 1 and 2 threads: every case of `bench.rnn_cases`, every contender, and what a call costs.

fastpack's rows show GFLOP/s and, on one thread, which share that is of the peak of `bench.peak`. Cases that lose stay in.
"""

import statistics
from typing import Any

import pytest

from bench.children import output_of, report
from bench.peak import peak
from bench.rnn_cases import LAYERS, MIDDLE, TINY, LayerCase
from bench.rnn_contests import contenders, inference, layer_contest
from fastpack import machine

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
RUNS = [(case, threads, contender) for case in LAYERS for threads in (1, 2) for contender in contenders(case)]
AT_LEVEL = """
import time
import fastpack
from bench.rnn_cases import MIDDLE as case
layer, packed = fastpack.LSTM.from_state_dict(case.weights()), fastpack.pack(case.batch.sequences())
def once():
    begin = time.perf_counter()
    layer(packed)
    return time.perf_counter() - begin
once()
print(*(once() for _ in range(9)))
"""


@pytest.mark.benchmark(max_time=0.2, min_rounds=3)
@pytest.mark.parametrize(("case", "threads", "contender"), RUNS, ids=lambda value: getattr(value, "name", str(value)))
def bench_layers(benchmark: Any, case: LayerCase, threads: int, contender: str) -> None:
    """Time a layer."""
    contest = layer_contest(case, threads)
    benchmark.group, benchmark.name = f"{case.name}, {threads} threads", contender
    with inference(threads):
        if contender == "fastpack":
            contest.check()
        benchmark(contest.contenders[contender])
    if contender.startswith("fastpack"):
        rate = case.flops / benchmark.stats.stats.median
        share = f", {rate / peak():.0%} of peak" if case.dtype == "float32" and threads == 1 else ""
        benchmark.stats.name = f"{contender}: {rate / 1e9:.0f} GFLOP/s{share}"


@pytest.mark.benchmark(max_time=0.5, min_rounds=50)
@pytest.mark.parametrize("contender", ["fastpack", "fastpack, NumPy", "torch, packed"])
def bench_call_overhead(benchmark: Any, contender: str) -> None:
    """Time a batch so small that the call is all that costs: 3 sentences, 1 feature, 2 hidden units. Asked: under 25 us."""
    contest = layer_contest(TINY, 1)
    benchmark.group, benchmark.name = f"overhead of a call: {TINY.name}", contender
    with inference(threads=1):
        contest.check()
        benchmark(contest.contenders[contender])


@pytest.mark.parametrize("level", machine.supported_levels())
def bench_cpu_level(benchmark: Any, level: str) -> None:
    """Time the code of a CPU level against the peak of the same level's registers. Asked of x86-64-v3: 75 %."""
    seconds = seconds_at(level)
    share = MIDDLE.flops / statistics.median(seconds) / peak(level)
    benchmark.group, benchmark.name = f"CPU levels: {MIDDLE.name}", f"{level}: {share:.0%} of {peak(level) / 1e9:.0f} GFLOP/s"
    report(benchmark, seconds)


def seconds_at(level: str) -> list[float]:
    """Return what calls of `MIDDLE` take in a process at a CPU level."""
    return [float(word) for word in output_of("-c", AT_LEVEL, FASTPACK_CPU=level).split()]
