"""What every drawing shares: what is drawn, its colours, its words."""

from typing import Protocol

import numpy as np

from fastpack.checks import Array, Int64Array

COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#a0a8b0")
PADDING = "#e8e8ec"


class Laid(Protocol):
    """What is drawn: a Layout or a Packed."""

    @property
    def batch_sizes(self) -> Int64Array:
        """int64 array (T,)."""

    @property
    def sorted_indices(self) -> Int64Array:
        """int64 array (B,)."""

    @property
    def unsorted_indices(self) -> Int64Array:
        """int64 array (B,)."""

    @property
    def lengths(self) -> Int64Array:
        """int64 array (B,)."""

    @property
    def offsets(self) -> Int64Array:
        """int64 array (T + 1,)."""


def sizes(layout: Laid) -> tuple[int, int, int]:
    """Return B, T and N of a layout."""
    return len(layout.sorted_indices), len(layout.batch_sizes), int(layout.offsets[-1])


def colour(sequence: int) -> str:
    """Return the colour of a sequence, as #rrggbb."""
    return COLOURS[sequence % len(COLOURS)]


def ink(background: str) -> str:
    """Return the colour of text that is readable on `background`."""
    red, green, blue = (int(background[k : k + 2], 16) for k in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else "#000000"


def savings(layout: Laid) -> str:
    """Return how much of the padded batch is filled, and what packing saves, in words."""
    B, T, N = sizes(layout)
    if N == 0:
        return "no rows at all: every sequence is empty"
    return f"{N:,} of {B * T:,} padded cells filled ({N / (B * T):.1%}): packing saves {1 - N / (B * T):.1%}"


def listed(values: Int64Array, room: int, gap: str = "…") -> str:
    """Return `values` as a list that fits into `room` characters, leaving out the middle where it must."""
    shown = values[: room + 1].tolist()
    whole = str(shown)
    if len(values) <= room and len(whole) <= room:
        return whole
    count = f"  ({len(values):,} entries)"
    for k in range(min(room, len(values) - 1), 0, -1):
        text = "[" + ", ".join([*map(str, values[: (k + 1) // 2].tolist()), gap, *map(str, values[len(values) - k // 2 :].tolist())]) + "]"
        if len(text + count) <= room:
            return text + count
    return f"[{gap}]{count}"


def staircase(batch_sizes: Int64Array, columns: int) -> Array:
    """Return the batch sizes at up to `columns` steps spread evenly over all."""
    T = len(batch_sizes)
    return batch_sizes if columns >= T else batch_sizes[np.arange(columns) * T // columns]


def histogram(lengths: Int64Array, bins: int) -> tuple[Int64Array, Int64Array]:
    """Return the counts and the edges of up to `bins` bins of equal width, at whole lengths, over all of `lengths`."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    width = -(-(high - low) // bins)
    edges = np.append(np.arange(low, high, width), high)
    return np.bincount((lengths - low) // width, minlength=len(edges) - 1), edges
