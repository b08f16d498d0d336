"""Start-up, each in processes of its own: what fastpack adds to NumPy's and torch's import, and its first call.

Beside it, the same work by a plain Numba-jitted function whose cache is warm.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TIMED = """
import sys, time
sys.path.insert(0, {folder!r})
{before}
begin = time.perf_counter()
{timed}
print(time.perf_counter() - begin)
"""
NUMBA = """
import numba, numpy as np
@numba.njit(cache=True)
def pack(values, offsets, order, sizes, data):
    n = 0
    for t in range(len(sizes)):
        for k in range(sizes[t]):
            data[n] = values[offsets[order[k]] + t]
            n += 1
"""
CALL = "pack(np.ones((4, 2), np.float32), np.array([0, 3]), np.array([0, 1]), np.array([2, 1, 1]), np.empty((4, 2), np.float32))"
PACK = "fastpack.pack([np.ones((3, 2), np.float32), np.ones((1, 2), np.float32)])"

STEPS = {
    "import numpy": ("", "import numpy"),
    "import fastpack, beyond numpy (asked: under 20 ms)": ("import numpy", "import fastpack"),
    "first pack, beyond the import (asked: under 30 ms)": ("import numpy as np, fastpack", PACK),
    "import numba and define, beyond numpy": ("import numpy", "import jitted"),
    "first call of the jitted function, cache warm": ("import numpy as np; from jitted import pack", CALL),
    "import torch": ("", "import torch"),
    "import fastpack.torch, beyond torch (asked: under 60 ms)": ("import torch", "import fastpack.torch"),
}


def jitted(folder: Path) -> Path:
    """Write the jitted function into a folder, warm its cache, and return the folder."""
    (folder / "jitted.py").write_text(NUMBA)
    seconds(folder, "first call of the jitted function, cache warm")
    return folder


def seconds(folder: Path, step: str) -> float:
    """Return what a step takes in a new process."""
    before, timed = STEPS[step]
    code = TIMED.format(folder=str(folder), before=before, timed=timed)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the jitted function, its cache warm."""
    return jitted(tmp_path_factory.mktemp("jitted"))


@pytest.mark.parametrize("step", STEPS)
def bench_startup(benchmark: Any, folder: Path, step: str) -> None:
    """Take 7 fresh processes; the time is measured inside each."""
    benchmark.group, benchmark.name = "start-up", step
    taken = iter([seconds(folder, step) for _ in range(8)][1:])
    # pytest-benchmark measures by its timer: give it one that reports what the processes measured
    clock = [0.0]

    def advance() -> None:
        clock[0] += next(taken)

    benchmark._timer = lambda: clock[0]
    benchmark.pedantic(advance, rounds=7, iterations=1)
