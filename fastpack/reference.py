"""The plain NumPy twin of every kernel: the readable definition, and the oracle of the tests. Nothing at run time imports it.

Those of recurrent layers are in reference_layers.py.

A twin has its kernel's name and its block's argument names, with arrays in place of addresses. What an array knows by itself,
its sizes and strides, is not passed again. Like a kernel, a twin validates nothing and writes into memory that its caller owns.

Letters: B sequences, T steps, N packed rows.
`first_rows` and `target_rows` are lists of B arrays (T_i, ...).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Int64Array = npt.NDArray[np.int64]
LARGEST = 2**63 - 1
KEY = np.uint64(0x9E3779B97F4A7C15)


def measure_lengths(lengths: Int64Array, limit: int, facts: Int64Array) -> None:
    """Find the longest length, the sum, and the first length that is negative, above `limit`, 0, longer than the one before."""
    values = lengths.tolist()
    rises = [False] + [after > before for before, after in pairwise(values)]
    facts[0] = max([0, *values])
    total = 0
    for value in values:  # below 0, by overflow or by a negative length, it stays as it is
        total = total if total < 0 else -1 if total + value > LARGEST else total + value
    facts[1] = total
    facts[2] = _first([value < 0 for value in values])
    facts[3] = _first([value > limit for value in values])
    facts[4] = _first([value == 0 for value in values])
    facts[5] = _first(rises)


def sort_by_length(
    lengths: Int64Array, batch_sizes: Int64Array, sorted_indices: Int64Array, unsorted_indices: Int64Array, offsets: Int64Array
) -> None:
    """Lay a packed batch out: longest first, equal lengths in the caller's order; and where each begins in ragged order."""
    offsets_of(lengths, offsets)
    sorted_indices[:] = np.argsort(-lengths, kind="stable")
    unsorted_indices[sorted_indices] = np.arange(len(lengths))
    for t in range(len(batch_sizes)):
        batch_sizes[t] = np.count_nonzero(lengths > t)


def measure_layout(
    batch_sizes: Int64Array,
    sorted_indices: Int64Array,
    unsorted_indices: Int64Array,
    lengths: Int64Array | None,
    own_sizes: Int64Array | None,
    own_indices: Int64Array | None,
    facts: Int64Array,
) -> None:
    """Find the sum of batch sizes, the first below 1 or above the one before, and the first index without its inverse.

    Where neither is found, find each sequence's length, unless None: the number of steps with more sequences than stand before it.
    `own_sizes` and `own_indices` become copies of batch_sizes and sorted_indices, unless None.
    """
    if own_sizes is not None:
        own_sizes[:] = batch_sizes
    if own_indices is not None:
        own_indices[:] = sorted_indices
    sizes, B = batch_sizes.tolist(), len(sorted_indices)
    bad_steps = [not 1 <= size <= before for before, size in pairwise([B, *sizes])]
    good = sizes[: bad_steps.index(True)] if any(bad_steps) else sizes
    facts[0] = sum(good) if sum(good) <= LARGEST else -1
    facts[1] = _first(bad_steps)
    facts[2] = _first([not 0 <= i < B or unsorted_indices[i] != place for place, i in enumerate(sorted_indices)])
    if facts[1] < 0 and facts[2] < 0 and lengths is not None:
        for i, place in enumerate(unsorted_indices):
            lengths[i] = np.count_nonzero(batch_sizes > place)


def offsets_of(counts: Int64Array, offsets: Int64Array) -> None:
    """Find where each of `counts` begins in their sum, and the sum."""
    for i in range(len(offsets)):
        offsets[i] = counts[:i].sum()


def locate(
    indices: Int64Array,
    firsts: Int64Array,
    bounds: Sequence[Array],
    origins: Int64Array,
    rows: Int64Array,
    values: Int64Array,
    step_bytes: int,
    first_rows: Int64Array,
    lengths: Int64Array,
    facts: Int64Array,
) -> None:
    """Find where some of many stored sequences are, how many rows they have, and the first whose bounds are wrong: it has none.

    `bounds` are C arrays, of two numbers a sequence.
    """
    wrong = []
    for k, i in enumerate(indices):
        chunk = int(np.searchsorted(firsts, i, "right")) - 1
        start, end = (int(bound) - int(origins[chunk]) for bound in bounds[chunk][i - firsts[chunk]])
        wrong.append(not 0 <= start <= end <= rows[chunk])
        first_rows[k], lengths[k] = (values[chunk], 0) if wrong[-1] else (values[chunk] + start * step_bytes, end - start)
    total = sum(lengths.tolist())
    facts[0] = lengths.max(initial=0)
    facts[1] = total if total <= LARGEST else -1
    facts[2] = _first(wrong)


def cut_in_a_row(costs: Int64Array, max_tokens: int, max_sequences: int, offsets: Int64Array, facts: Int64Array) -> None:
    """Cut costs (n,) into batches that take from them in order, each as many as fit; find how many batches, and where each begins."""
    begins = [0]
    for i in range(1, len(costs)):
        if i - begins[-1] == max_sequences or costs[begins[-1] : i + 1].sum() > max_tokens:
            begins.append(i)
    facts[0] = len(begins)
    offsets[: len(begins) + 1] = [*begins, len(costs)]


def first_fit(costs: Int64Array, max_tokens: int, max_sequences: int, order: Int64Array, offsets: Int64Array, facts: Int64Array) -> None:
    """Put each of costs (n,), which never rise, into the first bin that has room; find how many bins, and what is in each."""
    n = len(costs)
    bins, rooms, counts = np.zeros(n, np.int64), np.full(n, max_tokens), np.zeros(n, np.int64)
    for i, cost in enumerate(costs):
        bins[i] = k = np.argmax((rooms >= cost) & (counts < max_sequences))  # one that is still empty has room for any
        rooms[k] -= cost
        counts[k] += 1
    facts[0] = np.count_nonzero(counts)
    order[:] = np.argsort(bins, kind="stable")
    offsets[: facts[0] + 1] = np.cumsum([0, *counts[: facts[0]]])


def pack_padded(padded: Array, sorted_indices: Int64Array, batch_sizes: Int64Array, packed: Array) -> None:
    """Move rows of a padded batch (B, T, ...) into packed order (N, ...)."""
    pack_listed(list(padded), sorted_indices, batch_sizes, packed)


def pack_listed(first_rows: Sequence[Array], sorted_indices: Int64Array, batch_sizes: Int64Array, packed: Array) -> None:
    """Move rows of separate sequences into packed order (N, ...)."""
    n = 0
    for t, size in enumerate(batch_sizes):
        for i in sorted_indices[:size]:
            packed[n] = first_rows[i][t]
            n += 1


def pack_ragged(values: Array, offsets: Int64Array, sorted_indices: Int64Array, batch_sizes: Int64Array, packed: Array) -> None:
    """Move rows of sequences that follow each other (N, ...) into packed order (N, ...)."""
    pack_listed([values[start:end] for start, end in pairwise(offsets)], sorted_indices, batch_sizes, packed)


def pack_scattered(first_rows: Sequence[Array], sorted_indices: Int64Array, batch_sizes: Int64Array, packed: Array) -> None:
    """Do as `pack_listed`: to NumPy, how far apart a row's items lie makes no difference."""
    pack_listed(first_rows, sorted_indices, batch_sizes, packed)


def unpack_listed(first_rows: Sequence[Array], sorted_indices: Int64Array, batch_sizes: Int64Array, packed: Array) -> None:
    """Move packed rows (N, ...) back into separate sequences."""
    n = 0
    for t, size in enumerate(batch_sizes):
        for i in sorted_indices[:size]:
            first_rows[i][t] = packed[n]
            n += 1


def unpack_ragged(values: Array, offsets: Int64Array, sorted_indices: Int64Array, batch_sizes: Int64Array, packed: Array) -> None:
    """Move packed rows (N, ...) back into sequences that follow each other (N, ...)."""
    unpack_listed([values[start:end] for start, end in pairwise(offsets)], sorted_indices, batch_sizes, packed)


def copy_listed(first_rows: Sequence[Array], target_rows: Sequence[Array], lengths: Int64Array) -> None:
    """Copy rows of separate sequences to other places."""
    for source, target, length in zip(first_rows, target_rows, lengths, strict=True):
        target[:length] = source[:length]


def pad_ragged(values: Array, offsets: Int64Array, padding_row: Array, after: int, padded: Array) -> None:
    """Move rows of sequences that follow each other (N, ...) into a padded batch (B, T, ...), and fill its padding."""
    padded[:] = padding_row
    for i, (start, end) in enumerate(pairwise(offsets)):
        _steps(padded[i], end - start, after)[:] = values[start:end]


def unpad_ragged(values: Array, offsets: Int64Array, after: int, padded: Array) -> None:
    """Move rows of a padded batch (B, T, ...) one sequence after another (N, ...)."""
    for i, (start, end) in enumerate(pairwise(offsets)):
        values[start:end] = _steps(padded[i], end - start, after)


def pad_packed(
    padded: Array, padding_row: Array, lengths: Int64Array, sorted_indices: Int64Array, batch_sizes: Int64Array, packed: Array
) -> None:
    """Move packed rows (N, ...) back into a padded batch (B, steps, ...), and fill the padding behind each sequence."""
    unpack_listed(list(padded), sorted_indices, batch_sizes, packed)
    fill_padding(padding_row, lengths, 1, padded)


def fill_padding(padding_row: Array, lengths: Int64Array, after: int, padded: Array) -> None:
    """Write the padding of a padded batch (B, T, ...), behind each sequence or before it."""
    T = padded.shape[1]
    for i, length in enumerate(lengths):
        padding = padded[i, length:] if after else padded[i, : T - length]
        padding[:] = padding_row


def fingerprint(values: Sequence[Array], nbytes: Sequence[int], sums: Int64Array) -> None:
    """Add up the words of some arrays; and before that, products of each word's halves, to which the halves of its key are added."""
    shares, found, words_before = len(sums), np.zeros(sums.shape, np.uint64), 0
    for array, count in zip(values, nbytes, strict=True):
        content = array.tobytes()[:count]
        stripes = -(-len(content) // 64)
        words = np.frombuffer(content.ljust(stripes * 64, b"\0"), np.uint64)
        keys = (np.arange(words_before, words_before + len(words), dtype=np.uint64) + np.uint64(1)) * KEY
        low, high = (words.view(np.uint32) + keys.view(np.uint32)).reshape(-1, 2).T.astype(np.uint64)
        for share in range(shares):
            own = slice(stripes * share // shares * 8, stripes * (share + 1) // shares * 8)
            found[share] += np.array([(low[own] * high[own]).sum(), words[own].sum()])
        words_before += len(words)
    sums[:] = found.view(np.int64)


def _steps(row: Array, length: int, after: int) -> Array:
    """Return the part of a row (T, ...) of a padded batch that is no padding."""
    return row[:length] if after else row[len(row) - length :]


def _first(found: list[bool]) -> int:
    return found.index(True) if True in found else -1
