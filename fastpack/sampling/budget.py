"""The budget of a batch: its rules, and what becomes of a sequence beyond it."""

from typing import NamedTuple

import numpy as np

from fastpack import checks
from fastpack.checks import Int64Array

UNLIMITED = 2**62
MOST_STEPS = 2**61  # of all sequences together, so that no sum of costs and budgets leaves int64
TOO_LONG = ("error", "alone", "drop")


class Limits(NamedTuple):
    """What a batch can hold: of each, `UNLIMITED` at most."""

    max_tokens: int
    max_sequences: int


class Budget(NamedTuple):
    """What the user allows a batch, and what is to become of a longer sequence."""

    max_tokens: int
    max_sequences: int | None
    too_long: str

    @property
    def limits(self) -> Limits:
        """The same as numbers to count with."""
        return Limits(min(self.max_tokens, UNLIMITED), min(self.max_sequences or UNLIMITED, UNLIMITED))

    def fitting(self, lengths: Int64Array) -> Int64Array | None:
        """Return the positions of the sequences that take part; None for all."""
        if self.too_long == "alone" or lengths.max(initial=0) <= self.max_tokens:
            return None
        if self.too_long == "drop":
            return np.flatnonzero(lengths <= self.max_tokens)
        k = int((lengths > self.max_tokens).argmax())
        raise ValueError(
            f"lengths[{k}] is {lengths[k]}, but max_tokens is {self.max_tokens}: raise it, "
            'or pass too_long="alone" to make a batch of such a sequence, or too_long="drop" to leave it out'
        )


def budget(max_tokens: int, max_sequences: int | None, too_long: str) -> Budget:
    """Return a checked budget."""
    most = None if max_sequences is None else checks.count(max_sequences, "max_sequences", 1)
    return Budget(checks.count(max_tokens, "max_tokens", 1), most, checks.choice(too_long, "too_long", TOO_LONG))


def lengths(value: object) -> Int64Array:
    """Return checked lengths, few enough steps to be added up."""
    if hasattr(type(value), "lengths"):
        raise TypeError(f"lengths is {checks.described(value)}, which has them: pass its .lengths")
    vector, facts = checks.lengths(value)
    if facts.total > MOST_STEPS:
        raise OverflowError(f"lengths add up to {facts.total} steps, but batches are made of up to {MOST_STEPS}")
    return vector
