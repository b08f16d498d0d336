"""Every function on every case, against its contenders and a plain copy: `make bench`.

Rows are grouped by function and case. Cases that lose are in the table like the others.
"""

from typing import Any

import pytest
import torch

from bench.cases import Case, cases
from bench.contests import numpy_contests, torch_contests

CASES = [case for case in cases() if case.lengths.sum() and case.row_bytes * case.B * int(case.lengths.max()) < 2**26]
WITHOUT_EMPTY = [case for case in CASES if case.lengths.min() > 0]  # torch takes no others
NUMPY = ["pack", "pack_padded", "pack_ragged", "pad", "unpack"]
TORCH = ["pack_padded_sequence", "pack_sequence", "pad_packed_sequence", "unpack_sequence", "pad_sequence", "unpad_sequence"]
TINY = Case("sentences", 3, (4,), "float32")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Time on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _time(benchmark: Any, contests: dict[str, Any], function: str, contender: str, case: Case) -> None:
    contests[function].check()
    benchmark.group = f"{function} {case.name}"
    benchmark.name = contender
    benchmark(contests[function].contenders[contender])


@pytest.mark.benchmark(max_time=0.05, min_rounds=7)
@pytest.mark.parametrize("contender", ["fastpack", "numpy", "copy"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("function", NUMPY)
def bench_numpy_level(benchmark: Any, function: str, case: Case, contender: str) -> None:
    """Time the NumPy level against NumPy alone."""
    _time(benchmark, numpy_contests(case), function, contender, case)


@pytest.mark.benchmark(max_time=0.05, min_rounds=7)
@pytest.mark.parametrize("contender", ["fastpack", "torch", "copy"])
@pytest.mark.parametrize("case", WITHOUT_EMPTY, ids=lambda case: case.name)
@pytest.mark.parametrize("function", TORCH)
def bench_torch_level(benchmark: Any, function: str, case: Case, contender: str) -> None:
    """Time the torch level against torch.nn.utils.rnn."""
    _time(benchmark, torch_contests(case), function, contender, case)


@pytest.mark.benchmark(max_time=0.05, min_rounds=7)
@pytest.mark.parametrize("contender", ["fastpack", "torch", "copy"])
@pytest.mark.parametrize("case", [case for case in WITHOUT_EMPTY if case.dtype in ("float32", "float64")], ids=lambda case: case.name)
def bench_backward(benchmark: Any, case: Case, contender: str) -> None:
    """Forward and backward through pack_padded_sequence."""
    _time(benchmark, torch_contests(case), "pack, backward", contender, case)


@pytest.mark.benchmark(max_time=0.5, min_rounds=50)
@pytest.mark.parametrize("contender", ["fastpack", "torch"])
@pytest.mark.parametrize("function", TORCH)
def bench_call_overhead(benchmark: Any, function: str, contender: str) -> None:
    """Time a batch so small that the call is all that costs: 3 short sequences, 4 floats a row."""
    _time(benchmark, torch_contests(TINY), function, contender, TINY)
