"""In which order sequences are taken: shuffled, and sorted by length within mega-batches.

Random numbers come from PCG64's raw stream, and sorting is by keys that are all different: neither depends on the machine or on
NumPy's version, as `Generator.permutation` and an unstable argsort may. (Keys also sort by vector instructions, in a tenth of
the time of a stable argsort.)
"""

import numpy as np

from fastpack.checks import LARGEST, Int64Array

OURS = 0x66617374  # a key of its own: users who draw lengths by `default_rng(0)` would have them sorted, not shuffled, by its numbers


def random_of(seed: int, *part: int) -> np.random.PCG64:
    """Return the random numbers of a part of what `seed` decides: of an epoch, or of a chunk in it."""
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(OURS, *part)))


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
    # in place as far as can be: at 10 million sequences, memory touched for the first time costs more than the sorting
    n, longest = len(lengths), int(lengths.max(initial=0))
    mega_batch = min(mega_batch, n)
    count, rest = divmod(n, mega_batch)
    keys = longest - lengths
    megas, last = keys[: n - rest].reshape(count, mega_batch), keys[n - rest :].reshape(1, rest)
    np.subtract(longest, megas[1::2], out=megas[1::2])
    if count % 2:
        np.subtract(longest, last, out=last)
    for part in (megas, last):
        _sort_rows(part, longest)
    megas += np.arange(0, n - rest, mega_batch)[:, None]
    last += n - rest
    return keys


def _sort_rows(keys: Int64Array, most: int) -> None:
    """Put the numbers of each row of `keys` (R, n), from 0 to `most`, in order, in place, and leave where in the row each was."""
    n = keys.shape[1]
    bits = max(n - 1, 0).bit_length()
    if (most + 1) << bits > LARGEST:  # keys that are all different do not fit
        keys[:] = np.argsort(keys, axis=1, kind="stable")
        return
    keys <<= bits
    keys |= np.arange(n)
    keys.sort(axis=1)
    keys &= (1 << bits) - 1


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
