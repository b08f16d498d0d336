"""Which sequences make a batch: as many as fit of costs in a row, or what first fit decreasing puts into a bin.

Each way takes costs (n,) and returns `order` (n,), positions in them, and `offsets` (K + 1,): batch k is
`order[offsets[k]:offsets[k + 1]]`.

A cost is a number of real steps, 1 <= cost <= max_tokens, so that an empty sequence counts as a step (a batch could hold endlessly
many otherwise), and a sequence beyond the budget fills a batch alone.
"""

from heapq import heappop, heappush
from itertools import chain

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


def into_bins(costs: Int64Array, limits: Limits) -> tuple[Int64Array, Int64Array]:
    """Put `costs` (n,), which never rise, into bins by first fit decreasing.

    Bins come in the order in which they were opened.
    """
    fills = np.fromiter(chain.from_iterable(_first_fit(costs, limits)), np.int64).reshape(-1, 3)
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


def _first_fit(costs: Int64Array, limits: Limits) -> list[tuple[int, int, int]]:
    """Return (begin, number, each) for each fill: the next number * each costs go into the bins from begin on, `each` into every one.

    Equal costs go together: the first bin that takes one takes as many as fit, and all bins alike that were opened in a row do the
    same. Each such fill at least halves their room, and a cost makes at most four new kinds of bins, so there are
    O(D log max_tokens) fills for D different costs, however many sequences there are.
    """
    # bins alike are a plain tuple (begin, number, room for so many steps, places for sequences): named, they take three times as long
    begins = np.flatnonzero(np.diff(costs, prepend=-1))
    fitting: list[tuple[int, int, int, int]] = []  # a heap, the first opened on top
    waiting: list[tuple[int, tuple[int, int, int, int]]] = []  # a heap of bins with too little room so far, the most on top
    fills, opened, least = [], 0, int(costs[-1])
    for cost, left in zip(costs[begins].tolist(), np.diff(begins, append=len(costs)).tolist(), strict=True):
        while waiting and -waiting[0][0] >= cost:
            heappush(fitting, heappop(waiting)[1])
        while left:
            if fitting:
                begin, number, room, places = heappop(fitting)
            else:
                begin, (room, places) = opened, limits
                number = -(-left // min(room // cost, places))
                opened += number
            each = min(room // cost, places)
            each, filled = (each, min(number, left // each)) if left >= each else (left, 1)
            fills.append((begin, filled, each))
            left -= filled * each
            if filled < number:
                heappush(fitting, (begin + filled, number - filled, room, places))
            room, places = room - each * cost, places - each
            if places and room >= cost:
                heappush(fitting, (begin, filled, room, places))
            elif places and room >= least:
                heappush(waiting, (-room, (begin, filled, room, places)))
    return fills


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
