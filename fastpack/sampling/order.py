"""In which order sequences are taken: shuffled, and sorted by length within mega-batches.

Random numbers come from PCG64's raw stream, and sorting is by keys that are all different: neither depends on the machine or on
NumPy's version, as `Generator.permutation` and an unstable argsort may. (Keys also sort by vector instructions, in a tenth of
the time of a stable argsort.)
"""

import numpy as np

from fastpack.checks import LARGEST, Int64Array


def shuffled(random: np.random.PCG64, n: int) -> Int64Array:
    """Return the numbers below n in random order.

    The high bits of a key are random and its low bits the number itself, so that sorting the keys shuffles the numbers.
    """
    low = (1 << max(n - 1, 0).bit_length()) - 1
    keys: np.typing.NDArray[np.uint64] = random.random_raw(n)
    keys &= np.uint64(~low & 0xFFFFFFFFFFFFFFFF)
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    keys &= np.uint64(low)
    return keys.view(np.int64)


def by_length(lengths: Int64Array, mega_batch: int) -> Int64Array:
    """Return the positions of `lengths` (n,) sorted within each mega-batch, which is so many of them in a row.

    Mega-batches are sorted downwards and upwards in turn, so that a batch across the border of two is as uniform as any other.
    Equal lengths keep their order.
    """
    n, longest = len(lengths), int(lengths.max(initial=0))
    position = np.arange(n)
    if mega_batch >= n:
        mega, height = np.zeros(1, np.int64), longest - lengths
    else:
        mega = position // mega_batch
        height = np.where(mega % 2 == 0, longest - lengths, lengths)
    if (n // mega_batch + 1) * (longest + 1) * n > LARGEST:  # such keys do not fit
        return np.lexsort((height, np.broadcast_to(mega, n)))
    keys = (mega * (longest + 1) + height) * n
    keys += position
    keys.sort()
    keys %= n
    return keys


def shortest(lengths: Int64Array, count: int) -> Int64Array:
    """Return the positions of the `count` shortest of `lengths`, ascending; of equal ones the last."""
    limit = np.partition(lengths, count - 1)[count - 1]
    below, equal = np.flatnonzero(lengths < limit), np.flatnonzero(lengths == limit)
    return np.sort(np.concatenate([below, equal[len(equal) - count + len(below) :]]))


def gathered(offsets: Int64Array, batches: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return what puts rows, those of batch k being `offsets[k]:offsets[k + 1]`, into the order `batches`, and their offsets there."""
    counts = np.diff(offsets)[batches]
    ends = np.concatenate([[0], np.cumsum(counts)])
    rows = np.repeat(offsets[batches] - ends[:-1], counts)
    rows += np.arange(len(rows))
    return rows, ends
