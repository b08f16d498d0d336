"""Memory that shows what was read or written beside it: with canaries on both sides, or at the edge of forbidden pages."""

import ctypes
import mmap
from collections.abc import Callable

import numpy as np

Place = Callable[[np.ndarray, int], np.ndarray]  # an array to a copy in memory of some kind, at a multiple of so many bytes
PAGE = mmap.PAGESIZE
CANARY = 0xFF  # whose floats are NaN, and whose integers -1: read, they show as well


def as_it_is(array: np.ndarray, alignment: int) -> np.ndarray:
    """Return a copy in memory of its own."""
    memory = np.empty(array.nbytes + alignment, np.uint8)
    copy = np.ndarray(array.shape, array.dtype, memory, -memory.ctypes.data % alignment)
    copy[...] = array
    return copy


class Canaries:
    """Places arrays among canaries, and says whether they are still alive."""

    def __init__(self) -> None:
        self.placed: list[tuple[np.ndarray, int, int]] = []

    def __call__(self, array: np.ndarray, alignment: int) -> np.ndarray:
        """Return a copy at an address that is a multiple of `alignment`, and of no more."""
        memory = np.full(array.nbytes + 512, CANARY, np.uint8)
        start = 128 + (alignment - (memory.ctypes.data + 128)) % (2 * alignment)
        self.placed.append((memory, start, start + array.nbytes))
        copy = np.ndarray(array.shape, array.dtype, memory, start)
        copy[...] = array
        return copy

    def check(self) -> None:
        """Fail where a byte beside an array was written."""
        assert self.placed
        for memory, start, end in self.placed:
            assert (memory[:start] == CANARY).all(), "written before an array"
            assert (memory[end:] == CANARY).all(), "written behind an array"


class ForbiddenPages:
    """Places arrays so that a byte read or written before them, or behind them, ends the process."""

    def __init__(self, before: bool) -> None:
        self.before, self.mapped = before, []
        self.mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        self.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def __call__(self, array: np.ndarray, alignment: int) -> np.ndarray:
        """Return a copy whose first byte follows a forbidden page, or whose last comes before one."""
        assert self.before or array.nbytes % alignment == 0
        pages = max(1, -(-array.nbytes // PAGE))
        mapped = mmap.mmap(-1, (pages + 2) * PAGE)
        whole = np.frombuffer(mapped, np.uint8)
        copy = np.ndarray(array.shape, array.dtype, whole, PAGE if self.before else (pages + 1) * PAGE - array.nbytes)
        copy[...] = array
        for page in (0, pages + 1):
            assert self.mprotect(whole.ctypes.data + page * PAGE, PAGE, 0) == 0
        self.mapped.append((mapped, whole))
        return copy
