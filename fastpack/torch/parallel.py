"""Kernels on torch's own thread pool: torch.set_num_threads is the only knob, and fastpack starts no thread of its own.

`torch_parallel_for`, in torch's stable C interface since 2.10, takes a kernel's address as its callback.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastpack import machine

# Below so many bytes a second thread costs more than it brings: waking it takes about 3 us, in which one core moves 100 KB.
WORTH_A_THREAD = 1 << 18
# The same in floating-point operations, of which one core does 100 a nanosecond where there are many, and 20 where steps are small
OPERATIONS_WORTH_A_THREAD = 1 << 20

_may_share = True


def _stay_serial() -> None:
    """Keep a forked child out of torch's OpenMP pool: the fork did not bring its threads along, and it would hang."""
    global _may_share
    _may_share = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stay_serial)


def threads(moved_bytes: int) -> int:
    """Return how many threads are worth it for moving so many bytes."""
    if moved_bytes < WORTH_A_THREAD or not _may_share:
        return 1
    return torch.get_num_threads()


def threads_to_compute(operations: int) -> int:
    """Return how many threads are worth it for so many floating-point operations."""
    if operations < 2 * OPERATIONS_WORTH_A_THREAD or not _may_share:
        return 1
    return min(torch.get_num_threads(), operations // OPERATIONS_WORTH_A_THREAD)


def run(block: NamedTuple, shares: int, moved_bytes: int) -> None:
    """Have the kernel of `block` do its `shares`, on as many of torch's threads as are worth it."""
    run_on(block, shares, threads(moved_bytes))


def run_on(block: NamedTuple, shares: int, many: int) -> None:
    """Have the kernel of `block` do its `shares`, on so many of torch's threads."""
    call, encode, address = machine.kernel(type(block))
    if many == 1:
        call(0, shares, encode(*block))
    else:
        _parallel_for()(0, shares, -(-shares // many), address, encode(*block))


@cache
def _parallel_for() -> Callable[..., Any]:
    folder = Path(torch.__file__).parent / "lib"
    names = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")
    library = ctypes.CDLL(str(next(folder / name for name in names if (folder / name).exists())))
    function = library.torch_parallel_for
    function.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p]
    function.restype = ctypes.c_int
    return function
