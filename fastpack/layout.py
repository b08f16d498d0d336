"""From lengths to the layout of a packed batch and back, by the kernels: what both the NumPy and the torch level build on.

Everything here takes and gives addresses of int64 memory; who owns it, a NumPy array or a tensor, does not matter.
"""

import ctypes
from typing import NamedTuple

from fastpack import blocks
from fastpack.machine import run

_SixNumbers = ctypes.c_int64 * 6
ThreeNumbers = ctypes.c_int64 * 3


class LengthFacts(NamedTuple):
    """What `measure_lengths` found. An index is -1 where there is none; `total` is -1 where int64 cannot hold it."""

    longest: int
    total: int
    negative: int  # the first sequence with a length below 0
    too_long: int  # the first with more than the limit
    empty: int  # the first of length 0
    rise: int  # the first that is longer than the one before it


class LayoutFacts(NamedTuple):
    """What `measure_layout` found, likewise."""

    total: int
    bad_step: int  # the first step whose batch size is below 1 or above the one before
    bad_index: int  # the first sorted index that is out of range or that unsorted_indices does not send back


def measure_lengths(lengths: int, B: int, limit: int) -> LengthFacts:
    """Return the facts of the B lengths at the address `lengths`."""
    facts = _SixNumbers()
    run(blocks.MeasureLengths(lengths, B, limit, ctypes.addressof(facts)))
    return tuple.__new__(LengthFacts, facts[:])  # as LengthFacts(*facts), in a third of its time


def measure_layout(batch_sizes: int, T: int, sorted_indices: int, unsorted_indices: int, B: int, lengths: int) -> LayoutFacts:
    """Return the facts of a layout that came from outside, and write its B lengths at the address `lengths`."""
    facts = ThreeNumbers()
    run(blocks.MeasureLayout(batch_sizes, T, sorted_indices, unsorted_indices, B, lengths, 0, 0, ctypes.addressof(facts)))
    return tuple.__new__(LayoutFacts, facts[:])
