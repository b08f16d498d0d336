"""One registry of cases for tests and benchmarks: what is timed has been checked.

A case is its lengths, the shape of a row and a dtype; data are made from a fixed seed when asked for.
"""

from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

SHARES = [0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0]
QUANTILES = {
    "reviews": [11, 43, 68, 97, 129, 180, 287, 455, 592, 895, 2494],  # film reviews, tokens
    "speech": [33, 63, 105, 160, 285, 345, 383, 418, 433, 453, 680],  # read speech, 25 frames a second
    "sentences": [1, 4, 7, 10, 15, 23, 34, 46, 55, 73, 150],  # sentences for translation, words
    "utterances": [7, 7, 9, 10, 12, 15, 19, 22, 24, 27, 29],  # two vowels, spoken by nine speakers, frames
}


SWEPT = (1, 4, 32, 128)  # steps


def _like(source: str) -> Any:
    return lambda B, random: np.rint(np.interp(random.random(B), SHARES, QUANTILES[source])).astype(np.int64)


LENGTHS = {
    **{source: _like(source) for source in QUANTILES},
    "flat": lambda B, random: np.full(B, 60),
    "ones": lambda B, random: np.ones(B, np.int64),
    "ties": lambda B, random: random.integers(1, 4, B),
    "gaps": lambda B, random: random.integers(0, 20, B) * random.integers(0, 2, B),  # half of them are empty
    "empty": lambda B, random: np.zeros(B, np.int64),
    "falling": lambda B, random: np.arange(B, 0, -1),
    "rising": lambda B, random: np.arange(B),
    "cuts": lambda B, random: np.diff(np.sort(random.choice(99_999, B - 1, replace=False)) + 1, prepend=0, append=100_000),
    "steep": lambda B, random: np.where(np.arange(B) == B // 2, 1000, 1),
    **{f"x {T}": lambda B, random, T=T: np.full(B, T) for T in SWEPT},
    **{f"x 1..{T}": lambda B, random, T=T: random.integers(1, T + 1, B) for T in SWEPT},
}


class Case(NamedTuple):
    """B sequences with lengths of some kind, and rows of a shape and dtype."""

    kind: str  # a name in LENGTHS
    B: int
    trailing: tuple[int, ...]
    dtype: str

    @property
    def name(self) -> str:
        """As in 'reviews-64x100-float32'."""
        return "-".join([self.kind, "x".join(map(str, (self.B, *self.trailing))), np.dtype(self.dtype).name])

    @property
    def row_bytes(self) -> int:
        """The size of a row."""
        return prod(self.trailing) * np.dtype(self.dtype).itemsize

    @property
    def lengths(self) -> np.ndarray:
        """int64 array (B,)."""
        return np.asarray(LENGTHS[self.kind](self.B, np.random.default_rng(self.B)), np.int64)

    def values(self) -> np.ndarray:
        """All rows, one sequence after another: (N, ...). Any bytes, but floats are finite and booleans 0 or 1."""
        shape = (int(self.lengths.sum()), *self.trailing)
        random, dtype = np.random.default_rng(self.B + 1), np.dtype(self.dtype)
        if dtype.kind == "c":
            return (random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(dtype)
        if dtype.kind == "f":
            return random.standard_normal(shape).astype(dtype)
        if dtype.kind == "b":
            return random.integers(0, 2, shape).astype(dtype)
        return np.frombuffer(random.bytes(prod(shape) * dtype.itemsize), dtype).reshape(shape).copy()

    def offsets(self) -> np.ndarray:
        """int64 array (B + 1,): sequence i is `values[offsets[i]:offsets[i + 1]]`."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def sequences(self) -> list[np.ndarray]:
        """B arrays (T_i, ...), each with memory of its own."""
        return [part.copy() for part in np.split(self.values(), self.offsets()[1:-1])]

    def padded(self) -> np.ndarray:
        """Array (B, T, ...), with rows of other values behind each sequence, so that reading one shows."""
        batch = np.full((self.B, max(self.lengths), *self.trailing), 77 if np.dtype(self.dtype).kind in "iufc" else 1).astype(self.dtype)
        for row, sequence in zip(batch, self.sequences(), strict=True):
            row[: len(sequence)] = sequence
        return batch


@cache
def cases() -> tuple[Case, ...]:
    """From 1 sequence to 4096 and from 1 byte a row to 4 KB: widths of rows, workloads, and the corners of lengths."""
    widths = [
        Case("sentences", 64, *row)
        for row in (
            ((), "bool"),
            ((), "int8"),
            ((), "float16"),
            ((3,), "uint8"),
            ((), "float32"),
            ((5,), "int8"),
            ((), "int64"),
            ((3,), "float32"),
            ((), "complex128"),
            ((7,), "float32"),
            ((1, 2, 1), "float64"),
            ((3, 5), "float64"),
            ((40,), "float32"),
            ((2, 3, 4, 5), "int16"),
            ((128,), "float32"),
            ((257,), "float32"),
            ((1024,), "float32"),
        )
    ]
    workloads = [
        Case("reviews", 64, (), "int64"),
        Case("reviews", 64, (100,), "float32"),
        Case("speech", 32, (80,), "float32"),
        Case("utterances", 270, (12,), "float64"),
        Case("sentences", 1024, (1,), "float32"),
        Case("utterances", 4096, (1,), "float32"),
        Case("flat", 64, (64,), "float32"),
        Case("ones", 4096, (8,), "float32"),
    ]
    corners = [
        Case(kind, B, trailing, dtype)
        for kind in ("ties", "gaps", "empty", "falling", "rising", "steep")
        for B, trailing, dtype in ((1, (), "int32"), (3, (4,), "float32"), (33, (), "uint8"), (200, (), "int64"))
    ]
    few = [Case("sentences", B, (16,), "float32") for B in (1, 2, 3, 8, 256)]
    return (*few, *widths, *workloads, *corners)


def with_bytes(limit: int) -> list[Case]:
    """Return the cases whose padded batch takes no more than so many bytes."""
    return [case for case in cases() if case.B * int(max(case.lengths)) * case.row_bytes <= limit]
