"""Which sequences make a batch: as many as fit of costs in a row, or what first fit decreasing puts into a bin.

Each way takes costs (n,) and returns `order` (n,), positions in them, and `offsets` (K + 1,): batch k is
`order[offsets[k]:offsets[k + 1]]`.

A cost is a number of real steps, 1 <= cost <= max_tokens, so that an empty sequence counts as a step (a batch could hold endlessly
many otherwise), and a sequence beyond the budget fills a batch alone.
"""

import numpy as np

from fastpack import blocks
from fastpack.checks import Int64Array, address
from fastpack.machine import run
from fastpack.sampling.budget import Limits


def evenly(costs: Int64Array, limits: Limits) -> tuple[Int64Array, Int64Array]:
    """Cut `costs` (n,) into batches of max_sequences, whatever they cost; the last may have less."""
    n = len(costs)
    return np.arange(n), np.append(np.arange(0, n, limits.max_sequences), n)


def in_a_row(costs: Int64Array, limits: Limits) -> tuple[Int64Array, Int64Array]:
    """Cut `costs` (n,) into batches that take from them in order, each as many as fit."""
    costs, n, facts = np.ascontiguousarray(costs), len(costs), np.empty(1, np.int64)
    offsets = np.empty(_most_batches(costs, limits) + 1, np.int64)
    run(blocks.CutInARow(address(costs), n, *limits, address(offsets), address(facts)))
    return np.arange(n), offsets[: facts[0] + 1].copy()


def into_bins(costs: Int64Array, limits: Limits) -> tuple[Int64Array, Int64Array]:
    """Put `costs` (n,), which never rise, into bins by first fit decreasing.

    Bins come in the order in which they were opened.
    """
    costs, n, facts = np.ascontiguousarray(costs), len(costs), np.empty(1, np.int64)
    most = _most_batches(costs, limits)
    order, bins = np.empty(n, np.int64), np.empty(n, np.int64)
    offsets, rooms, following = np.empty(most + 1, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    leaves, reach = 0, 64  # of the bins, a tree with one word reaches 64, with another level 64 times as many
    while reach < most:
        leaves, reach = 64 * leaves + 1, 64 * reach
    fitting = np.zeros(leaves + -(-most // 64), np.int64)
    outputs = address(order), address(offsets), address(facts)
    run(blocks.FirstFit(address(costs), n, *limits, *outputs, address(bins), address(rooms), address(following), address(fitting), leaves))
    return order, offsets[: facts[0] + 1].copy()


def _most_batches(costs: Int64Array, limits: Limits) -> int:
    """Return how many batches there can be: all that are full of sequences, those that had no room for the next one's first, the last."""
    return min(len(costs), len(costs) // limits.max_sequences + 2 * int(costs.sum()) // limits.max_tokens + 1)


def with_one_more(order: Int64Array, offsets: Int64Array, costs: Int64Array, limits: Limits) -> tuple[Int64Array, Int64Array] | None:
    """Add the last of `costs`, which is not in `order` and is the least of all, to a batch with room, else to a part of one.

    Returns
    -------
    order, offsets : int64 arrays (n + 1,), (K + 1,) or (K + 2,)
        None where there is no room and no batch of two or more to take apart.
    """
    counts, sums = np.diff(offsets), np.add.reduceat(costs[order], offsets[:-1])
    with_room = (counts < limits.max_sequences) & (sums + costs[-1] <= limits.max_tokens)
    possible = with_room if with_room.any() else counts >= 2
    if not possible.any():
        return None
    k = int(np.where(possible, sums / counts, np.inf).argmin())  # the one whose lengths are most like it
    end = int(offsets[k + 1])
    order = np.insert(order, end, len(costs) - 1)
    offsets = offsets + (np.arange(len(offsets)) > k)
    if not with_room.any():  # with the last of batch k: there were two that fitted, and this one is no longer than the other
        offsets = np.insert(offsets, k + 1, end - 1)
    return order, offsets
