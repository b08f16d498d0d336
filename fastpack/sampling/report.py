"""What a sampler does to a data set, in figures."""

from typing import NamedTuple

import numpy as np

from fastpack.checks import Int64Array
from fastpack.sampling.order import shuffled
from fastpack.sampling.rounds import Rounds


class SamplerReport(NamedTuple):
    """An epoch of all ranks; printed, the tables that `fastpack plan` prints.

    Attributes
    ----------
    sequences, steps : int
        How many the batches hold, and their real steps.
    dropped : int
        Sequences left out.
    repeated : int
        Sequences that come a second time.
    max_tokens : int or None
        The budget.
    batch_sequences, batch_steps : int64 arrays (K, W)
        Sequences and real steps of batch k of rank r.
    padding : float
        The share of padding, had these batches been padded: of all cells, those that hold nothing.
    shuffled_padding : float
        The same for random batches of as many sequences each.
    """

    sequences: int
    steps: int
    dropped: int
    repeated: int
    max_tokens: int | None
    batch_sequences: Int64Array
    batch_steps: Int64Array
    padding: float
    shuffled_padding: float

    def __str__(self) -> str:
        """Return the report as tables."""
        from fastpack.show.plans import text

        return text(self)

    @property
    def rank_steps(self) -> Int64Array:
        """int64 array (W,): each rank's real steps."""
        return np.asarray(self.batch_steps.sum(axis=0))

    @property
    def imbalance(self) -> float:
        """The difference between the ranks with the most and the fewest real steps, of their mean."""
        return float(np.ptp(self.rank_steps) / max(self.rank_steps.mean(), 1))

    @property
    def waiting(self) -> float:
        """The share of the ranks' time that is spent waiting for the one with most to do, if they meet after every batch."""
        held = self.batch_steps.max(axis=1).sum() * self.batch_steps.shape[1]
        return _lost(self.steps, held)

    @property
    def filled(self) -> float:
        """The real steps of the batches, of what the budget allows; of the largest batch where there is none."""
        most = self.max_tokens or max(int(self.batch_steps.max()), 1)
        return float(self.batch_steps.mean() / most)


def of(rounds: Rounds, lengths: Int64Array, random: np.random.PCG64, max_tokens: int | None) -> SamplerReport:
    """Return the report of an epoch. `lengths` (B + 1,) ends with a 0, which the index -1 finds."""
    there = rounds.indices >= 0
    taken = rounds.indices[there]
    distinct = int(np.count_nonzero(np.bincount(taken, minlength=1)))
    begins = rounds.offsets[:-1]
    lengths_there = lengths[rounds.indices]
    counts = np.add.reduceat(there, begins, axis=0, dtype=np.int64)
    steps = np.add.reduceat(lengths_there, begins, axis=0)
    cells = int((counts * np.maximum.reduceat(lengths_there, begins, axis=0)).sum())
    at_random = lengths[taken[shuffled(random, len(taken))]]
    sizes = counts.ravel()
    random_cells = int((sizes * np.maximum.reduceat(at_random, np.cumsum(sizes) - sizes)).sum())
    total = int(steps.sum())
    return SamplerReport(
        sequences=len(taken),
        steps=total,
        dropped=len(lengths) - 1 - distinct,
        repeated=len(taken) - distinct,
        max_tokens=max_tokens,
        batch_sequences=counts,
        batch_steps=steps,
        padding=_lost(total, cells),
        shuffled_padding=_lost(total, random_cells),
    )


def _lost(used: int, held: int) -> float:
    return float(1 - used / held) if held else 0.0
