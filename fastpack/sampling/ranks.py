"""Several ranks: who am I, and sharing sequences so that all have equally much to do at every batch.

Sequences in the order of their lengths are taken W at a time: a *column* has one of about the same length for each of the W ranks.
Batches are planned once, for columns, a column costing what its longest sequence costs. So every rank has the same number of
batches, with the same number of sequences and nearly the same steps in each, and none is over its budget. Where sequences are
few, or a few are very long, some are then exchanged between the ranks.
"""

import os
from collections.abc import Mapping

import numpy as np

from fastpack import checks
from fastpack.checks import Int64Array

REMAINDERS = ("keep", "drop", "repeat")
UNEVEN = 0.001  # the difference of the ranks' steps, of their mean, from which on sequences are exchanged
CANDIDATES = 10_000  # of a rank's sequences, to be exchanged: trying more at a time helps no further
EXAMINED = 320_000  # the candidates of all ranks together: a thousand ranks that cannot be levelled took 25 s with 10,000 of each


def who(rank: object, world_size: object, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return this process's rank and the number of ranks: as given, else as torch.distributed's launchers set them, else 0 of 1."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank is {rank} and world_size is {world_size}: give both, or neither to have them read from RANK and WORLD_SIZE")
    if rank is None:
        rank, world_size = _from_environment(environment)
    W = checks.count(world_size, "world_size", 1)
    r = checks.count(rank, "rank", 0)
    if r >= W:
        raise ValueError(f"rank is {r}, but needs to be below world_size, which is {W}")
    return r, W


def _from_environment(environment: Mapping[str, str]) -> tuple[int, int]:
    found = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if environment.get(name)}
    if not found:
        return 0, 1
    if len(found) == 1:
        (name,) = found
        raise ValueError(f"the environment has {name}={found[name]}, but not the other of RANK and WORLD_SIZE: pass rank= and world_size=")
    for name, value in found.items():
        if not (value.isascii() and value.isdigit()):
            raise ValueError(f"the environment has {name}={value}, not a whole number: pass rank= and world_size=")
    return int(found["RANK"]), int(found["WORLD_SIZE"])


def whole(order: Int64Array, W: int, remainder: str) -> Int64Array:
    """Return sequences in any order without what is dropped, or with what is repeated, so that W ranks can share them."""
    n = len(order)
    if remainder == "repeat":
        return np.concatenate([order, np.resize(order, -n % W)])
    kept = n // W * W if remainder == "drop" else n
    if kept < W:
        there = f"there {'is' if n == 1 else 'are'} {checks.counted(n, 'sequence')}"
        raise ValueError(f'{there} for {W} ranks, less than one each: pass remainder="repeat", or use fewer ranks')
    return order[:kept]


def columns(order: Int64Array, W: int) -> Int64Array:
    """Return sequences (C * W,) in the order of their lengths as columns (C, W): to and fro, so that no rank gets the longer ones."""
    dealt = order.reshape(-1, W)
    if W > 1:
        dealt = dealt.copy()
        dealt[1::2] = dealt[1::2, ::-1]
    return dealt


def level(dealt: Int64Array, lengths: Int64Array) -> bool:
    """Exchange sequences within columns (C, W), in place, and return whether the ranks' steps are nearly equal.

    `lengths` has an entry for each number in `dealt`. Many columns level each other; a few want exchanging.
    """
    W = dealt.shape[1]
    if W == 1:
        return True
    steps = lengths[dealt]
    totals = steps.sum(axis=0)
    if _extremes(totals)[2] <= UNEVEN * totals.mean():
        return True
    candidates = _most_uneven(steps)
    steps = steps[candidates]
    for _ in range(32 * W):
        most, least, gap = _extremes(totals)
        if gap <= UNEVEN * totals.mean():
            return True
        k = int(np.abs(2 * (steps[:, most] - steps[:, least]) - gap).argmin())
        change = int(steps[k, most] - steps[k, least])
        if not 0 < change < gap:
            break
        for table, row in ((steps, k), (dealt, candidates[k])):
            table[row, [most, least]] = table[row, [least, most]]
        totals[most] -= change
        totals[least] += change
    return False


def _most_uneven(steps: Int64Array) -> Int64Array:
    """Return those of many columns (C, W) in which the ranks' steps differ most.

    In sorted sequences all columns' differences add up to no more than the longest, so that those of the others are too small to matter.
    """
    count = _candidates(steps)
    return np.sort(np.argpartition(np.ptp(steps, axis=1), -count)[-count:])


def exchange(indices: Int64Array, offsets: Int64Array, lengths: Int64Array, max_tokens: int) -> None:
    """Exchange sequences between the ranks' batches (C, W), in place, until steps are nearly equal or no exchange helps.

    For data sets whose longest sequences are a good part of a rank's steps, which columns alone cannot level. Batches keep their
    numbers of sequences and their budget; of exchanges that help about as much, one that makes no batch's longest longer is taken.
    """
    steps = lengths[indices]
    sums = np.add.reduceat(np.maximum(steps, 1), offsets[:-1], axis=0)
    tops = np.maximum.reduceat(steps, offsets[:-1], axis=0)
    batch = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    totals = steps.sum(axis=0)
    stride = -(-len(indices) // _candidates(indices))
    for _ in range(32 * indices.shape[1]):
        most, least, gap = _extremes(totals)
        if gap <= UNEVEN * totals.mean():
            return
        given, taken = (np.flatnonzero(indices[::stride, rank] >= 0) * stride for rank in (most, least))
        given = given[np.argsort(steps[given, most], kind="stable")]
        rising, back = steps[given, most], steps[taken, least]
        room = np.minimum(max_tokens - sums[batch[taken], least], gap // 2)
        at = np.searchsorted(rising, back + room, side="right") - 1  # the longest that may come in place of each
        change = np.where(at >= 0, rising[at] - back, 0)
        if change.max() <= 0:
            return
        longer = np.maximum(rising[at] - tops[batch[taken], least], 0)
        j = int(np.where(change >= 0.8 * change.max(), longer, np.iinfo(np.int64).max).argmin())
        k, moved = (given[at[j]], taken[j]), int(change[j])
        for table in (steps, indices):
            table[k, (most, least)] = table[k[::-1], (least, most)]
        for rank, change_of, row in ((most, -moved, k[0]), (least, moved, k[1])):
            came, b = int(steps[row, rank]), batch[row]
            left = came - change_of
            sums[b, rank] += max(came, 1) - max(left, 1)
            was_longest = left == tops[b, rank]
            tops[b, rank] = steps[offsets[b] : offsets[b + 1], rank].max() if was_longest else max(tops[b, rank], came)
            totals[rank] += change_of


def evened(indices: Int64Array, lengths: Int64Array, steps: Int64Array) -> Int64Array:
    """Return the ranks' shares (C, W) of one part of many, the largest for the rank that had least before, and count it.

    `steps` (W,), the real steps of each rank so far, grow in place. Otherwise the same ranks would have the longest sequences of every
    part: 16 ranks differed by 43 % of their mean where one sequence in 50 is 400 times as long as the rest, and by 0.4 % with it.
    """
    shares = lengths[indices].sum(axis=0)
    ranks, largest = np.argsort(steps, kind="stable"), np.argsort(-shares, kind="stable")
    steps[ranks] += shares[largest]
    turned = np.empty_like(largest)
    turned[ranks] = largest
    return indices[:, turned]


def _candidates(table: Int64Array) -> int:
    """Return how many rows of a table (C, W) are tried at a time."""
    C, W = table.shape
    return int(min(C, CANDIDATES, max(EXAMINED // W, 1)))


def _extremes(totals: Int64Array) -> tuple[int, int, int]:
    """Return the ranks with the most and the fewest steps, and the difference."""
    most, least = int(totals.argmax()), int(totals.argmin())
    return most, least, int(totals[most] - totals[least])
