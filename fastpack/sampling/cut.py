"""Which sequences make a batch: as many as fit of costs in a row, or what first fit decreasing puts into a bin.

Each way takes costs (n,) and returns `order` (n,), positions in them, and `offsets` (K + 1,): batch k is
`order[offsets[k]:offsets[k + 1]]`.

A cost is a number of real steps, 1 <= cost <= max_tokens, so that an empty sequence counts as a step (a batch could hold endlessly
many otherwise), and a sequence beyond the budget fills a batch alone.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from fastpack.checks import Int64Array
from fastpack.sampling.budget import Limits


def evenly(costs: Int64Array, limits: Limits) -> tuple[Int64Array, Int64Array]:
    """Cut `costs` (n,) into batches of max_sequences, whatever they cost; the last may have less."""
    n = len(costs)
    return np.arange(n), np.append(np.arange(0, n, limits.max_sequences), n)


def in_a_row(costs: Int64Array, limits: Limits) -> tuple[Int64Array, Int64Array]:
    """Cut `costs` (n,) into batches that take from them in order, each as many as fit."""
    n = len(costs)
    ends = np.cumsum(costs)
    reach = ends - costs
    reach += limits.max_tokens
    # where a batch would end that began at i: for every i at once, as a call for each batch takes 15 s for 10 million of one sequence
    ends = np.searchsorted(ends, reach, side="right")
    np.minimum(ends, np.arange(limits.max_sequences, limits.max_sequences + n), out=ends)
    offsets, end, after = [0], 0, ends.data
    while end < n:
        end = after[end]
        offsets.append(end)
    return np.arange(n), np.array(offsets, np.int64)


class Bins(NamedTuple):
    """Bins begin to begin + number, opened one after another, that have room for so many steps and so many sequences."""

    begin: int
    number: int
    room: int
    places: int


class Filled(NamedTuple):
    """The next `number * each` costs went into bins begin to begin + number, `each` of them into every one."""

    begin: int
    number: int
    each: int


def into_bins(costs: Int64Array, limits: Limits) -> tuple[Int64Array, Int64Array]:
    """Put `costs` (n,), which never rise, into bins by first fit decreasing.

    Bins come in the order in which they were opened.
    """
    fills = np.array(list(_first_fit(costs, limits)), np.int64).reshape(-1, 3)
    begin, number, each = fills.T
    # a run: what one fill puts into one bin, a stretch of costs
    bins = np.repeat(begin - np.cumsum(number) + number, number) + np.arange(int(number.sum()))
    sizes = np.repeat(each, number)
    starts = np.cumsum(sizes) - sizes
    by_bin = np.arange(len(bins)) + bins * len(bins)  # keys that are all different: in a fraction of a stable argsort's time
    by_bin.sort()
    by_bin %= len(bins)
    sizes = sizes[by_bin]
    ends = np.concatenate([[0], np.cumsum(sizes)])
    order = np.repeat(starts[by_bin] - ends[:-1], sizes) + np.arange(len(costs))
    return order, ends[np.searchsorted(bins[by_bin], np.arange(int(bins.max()) + 2))]


def _first_fit(costs: Int64Array, limits: Limits) -> Iterator[Filled]:
    """Yield what goes where, in the order of the costs.

    Equal costs go together: the first bin that takes one takes as many as fit, and all bins alike that were opened in a row do the
    same. Each such step at least halves their room, and a cost opens at most four new kinds of bins, so there are
    O(D log max_tokens) steps for D different costs, however many sequences there are.
    """
    begins = np.flatnonzero(np.diff(costs, prepend=-1))
    fitting: list[Bins] = []  # a heap, the first opened on top
    waiting: list[tuple[int, Bins]] = []  # a heap of bins with too little room so far, the most room on top
    opened = 0
    for cost, left in zip(costs[begins].tolist(), np.diff(begins, append=len(costs)).tolist(), strict=True):
        while waiting and -waiting[0][0] >= cost:
            heappush(fitting, heappop(waiting)[1])
        while left:
            if not fitting:
                each = min(limits.max_tokens // cost, limits.max_sequences)
                fitting.append(Bins(opened, -(-left // each), *limits))
                opened += fitting[0].number
            bins = heappop(fitting)
            filled = _fill(bins, cost, left)
            left -= filled.number * filled.each
            yield filled
            rest = Bins(bins.begin + filled.number, bins.number - filled.number, bins.room, bins.places)
            touched = Bins(bins.begin, filled.number, bins.room - filled.each * cost, bins.places - filled.each)
            if rest.number:
                heappush(fitting, rest)
            if touched.places and touched.room >= cost:
                heappush(fitting, touched)
            elif touched.places and touched.room:
                heappush(waiting, (-touched.room, touched))


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


def _fill(bins: Bins, cost: int, left: int) -> Filled:
    """Return how `left` sequences of one cost go into bins alike: full ones, or if there are too few for one, all into the first."""
    each = min(bins.room // cost, bins.places)
    return Filled(bins.begin, min(bins.number, left // each), each) if left >= each else Filled(bins.begin, 1, left)
