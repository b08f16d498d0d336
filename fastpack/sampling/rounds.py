"""An epoch's batches for all ranks: sequences grouped by length, dealt to the ranks, cut into batches, put in order."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastpack.checks import Int64Array
from fastpack.sampling.budget import Limits
from fastpack.sampling.cut import with_one_more
from fastpack.sampling.order import by_length, gathered, shortest, shuffled
from fastpack.sampling.ranks import columns, exchange, level

Cut = Callable[[Int64Array, Limits], tuple[Int64Array, Int64Array]]


class Plan(NamedTuple):
    """The batches of one rank in an epoch.

    Attributes
    ----------
    indices : int64 array (n,)
        The sequences, batch after batch.
    offsets : int64 array (K + 1,)
        Batch k is `indices[offsets[k]:offsets[k + 1]]`.
    """

    indices: Int64Array
    offsets: Int64Array


class Rounds(NamedTuple):
    """The batches of W ranks: `indices[offsets[k]:offsets[k + 1], r]`, without entries of -1, is batch k of rank r."""

    indices: Int64Array  # (C, W)
    offsets: Int64Array  # (K + 1,)

    def of(self, rank: int) -> Plan:
        """Return the batches of one rank."""
        indices = self.indices[:, rank]
        there = indices >= 0
        if there.all():
            return Plan(np.ascontiguousarray(indices), self.offsets)
        return Plan(indices[there], np.concatenate([[0], np.cumsum(there)])[self.offsets])


class Way(NamedTuple):
    """How batches are made: mega-batches of so many sequences, cut by `cut` so that they keep to `limits`."""

    mega_batch: int
    cut: Cut
    limits: Limits


def deal(lengths: Int64Array, order: Int64Array, W: int, way: Way) -> Rounds:
    """Return batches of the sequences `order`, longest first within a mega-batch, each sequence once.

    Parameters
    ----------
    lengths : int64 array (B + 1,)
        Of all sequences; behind them a 0, which the index -1 finds.
    order : int64 array (n,)
        n >= W.
    W : int
        The number of ranks.
    way : Way

    Raises
    ------
    ValueError
        The batches cannot be shared equally.
    """
    left = len(order) % W
    rest = order[:0]
    if left:
        at = shortest(lengths[order], left)
        rest, order = order[at], np.delete(order, at)
    dealt = columns(order[by_length(lengths[order], way.mega_batch)], W)
    if left:
        dealt = np.vstack([dealt, np.append(rest, np.full(W - left, -1))])
    levelled = level(dealt, lengths)
    costs = lengths[dealt[:, 0]] if W == 1 else lengths[dealt].max(axis=1)
    np.clip(costs, 1, way.limits.max_tokens, out=costs)
    batches: tuple[Int64Array, Int64Array] | None = way.cut(costs[: len(costs) - bool(left)], way.limits)
    if left and batches:
        batches = with_one_more(*batches, costs, way.limits)
    if batches is None:
        raise ValueError(
            f"lengths has {len(order) + left} sequences, each a batch of its own, which {W} ranks cannot share equally: "
            'pass remainder="drop" or remainder="repeat"'
        )
    rounds = Rounds(dealt[batches[0]], batches[1])
    if not levelled:
        exchange(*rounds, lengths, way.limits.max_tokens)
    return rounds


def shuffle_batches(rounds: Rounds, random: np.random.PCG64) -> Rounds:
    """Return the batches in random order."""
    return _in_order(rounds, shuffled(random, len(rounds.offsets) - 1))


def longest_to_front(rounds: Rounds, lengths: Int64Array) -> Rounds:
    """Return the batches with the one that has the longest sequence first; the others keep their order."""
    longest = int(lengths[rounds.indices].max(axis=1).argmax())
    k = int(np.searchsorted(rounds.offsets, longest, side="right")) - 1
    return _in_order(rounds, np.append(k, np.delete(np.arange(len(rounds.offsets) - 1), k)))


def _in_order(rounds: Rounds, batches: Int64Array) -> Rounds:
    order, offsets = gathered(rounds.offsets, batches)
    return Rounds(rounds.indices[order], offsets)
