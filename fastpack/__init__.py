"""Sequences of unequal length on the CPU, packed: only real steps, time-major, longest sequence first.

This is the NumPy level, which imports NumPy alone. `fastpack.torch` speaks torch's names and tensors.
"""

from fastpack.packed import Layout, Packed
from fastpack.packing import pack, pack_padded, pack_ragged, pad, unpack, unpack_ragged

__version__ = "0.1.0"
__all__ = ["Layout", "Packed", "pack", "pack_padded", "pack_ragged", "pad", "unpack", "unpack_ragged"]
