"""Start-up, each in processes of its own: what fastpack adds to NumPy's and torch's import, and its first call.

Beside it, the same work by a plain Numba-jitted function whose cache is warm.
"""

from pathlib import Path
from typing import Any

import pytest

from bench.children import output_of, report

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
SHAPES = {"weight_ih_l0": (20, 2), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,), "bias_hh_l0": (20,)}
WEIGHTS = f"weights = {{name: np.ones(shape, np.float32) for name, shape in {SHAPES}.items()}}"
LAYER = "layer = fastpack.torch.LSTM(2, 5).requires_grad_(False)"
PACKED = "packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])"

STEPS = {
    "import numpy": ("", "import numpy"),
    "import fastpack, beyond numpy (asked: under 20 ms)": ("import numpy", "import fastpack"),
    "first pack, beyond the import (asked: under 30 ms)": ("import numpy as np, fastpack", PACK),
    "first LSTM from a state dict, and its first call (asked: under 30 ms)": (
        f"import numpy as np, fastpack; {WEIGHTS}",
        f"fastpack.LSTM.from_state_dict(weights)({PACK})",
    ),
    "import numba and define, beyond numpy": ("import numpy", "import jitted"),
    "first call of the jitted function, cache warm": ("import numpy as np; from jitted import pack", CALL),
    "import torch": ("", "import torch"),
    "import fastpack.torch, beyond torch (asked: under 60 ms)": ("import torch", "import fastpack.torch"),
    "first call of an LSTM, beyond the imports (asked: under 30 ms)": (f"import torch, fastpack.torch; {LAYER}; {PACKED}", "layer(packed)"),
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
    return float(output_of("-c", code))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the jitted function, its cache warm."""
    return jitted(tmp_path_factory.mktemp("jitted"))


@pytest.mark.parametrize("step", STEPS)
def bench_startup(benchmark: Any, folder: Path, step: str) -> None:
    """Take 7 fresh processes; the time is measured inside each."""
    benchmark.group, benchmark.name = "start-up", step
    report(benchmark, [seconds(folder, step) for _ in range(8)][1:])
