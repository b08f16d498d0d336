"""The plain NumPy twin of every kernel: the readable definition, and the oracle of the tests. Nothing at run time imports it.

A twin has its kernel's name and its block's argument names, with arrays in place of addresses. What an array knows by itself,
its sizes and strides, is not passed again. Like a kernel, a twin validates nothing and writes into memory that its caller owns.

Letters: B sequences, T steps, N packed rows; F input features, H hidden units, P the width of the state h.
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

LSTM, GRU, RNN_TANH, RNN_RELU, LINEAR = range(5)
GATES = {LSTM: 4, GRU: 3}  # of the others 1


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
    batch_sizes: Int64Array, sorted_indices: Int64Array, unsorted_indices: Int64Array, lengths: Int64Array, facts: Int64Array
) -> None:
    """Find the sum of batch sizes, the first below 1 or above the one before, and the first index without its inverse.

    Where neither is found, find each sequence's length: the number of steps with more sequences than stand before it.
    """
    sizes, B = batch_sizes.tolist(), len(sorted_indices)
    bad_steps = [not 1 <= size <= before for before, size in pairwise([B, *sizes])]
    good = sizes[: bad_steps.index(True)] if any(bad_steps) else sizes
    facts[0] = sum(good) if sum(good) <= LARGEST else -1
    facts[1] = _first(bad_steps)
    facts[2] = _first([not 0 <= i < B or unsorted_indices[i] != place for place, i in enumerate(sorted_indices)])
    if facts[1] < 0 and facts[2] < 0:
        for i, place in enumerate(unsorted_indices):
            lengths[i] = np.count_nonzero(batch_sizes > place)


def offsets_of(counts: Int64Array, offsets: Int64Array) -> None:
    """Find where each of `counts` begins in their sum, and the sum."""
    for i in range(len(offsets)):
        offsets[i] = counts[:i].sum()


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


def pack_panels(cell: int, weight_ih: Array, weight_hh: Array, bias_ih: Array | None, bias_hh: Array | None, panels: Array) -> None:
    """Lay weights out as panels (units / lanes, what a unit has, lanes), with zeros for units beyond H.

    A unit has what its sums start from, then for each of x's F items a weight a gate, then for each of h's P items.
    """
    gates = GATES.get(cell, 1)
    H = len(weight_ih) // gates
    w_ih, w_hh = (weight.reshape(gates, H, weight.shape[1]) for weight in (weight_ih, weight_hh))
    b_ih, b_hh = (np.zeros((gates, H)) if bias is None else bias.reshape(gates, H) for bias in (bias_ih, bias_hh))
    starts = b_ih + b_hh
    if cell == GRU:  # its n has two sums, as r multiplies that over h alone
        starts = np.stack([*starts[:2], b_ih[2], b_hh[2]])
    panels[:] = 0
    for unit in range(H):
        block, lane = divmod(unit, panels.shape[2])
        panels[block, :, lane] = [*starts[:, unit], *w_ih[:, unit].T.flat, *w_hh[:, unit].T.flat]


def recur(
    cell: int,
    reverse: int,
    panels: Array,
    projection: Array | None,
    sorted_indices: Int64Array,
    batch_sizes: Int64Array,
    x: Array,
    out: Array,
    h_0: Array | None,
    c_0: Array | None,
    h_n: Array,
    c_n: Array | None,
) -> None:
    """Run a cell along packed rows x (N, F), to `out` (N, P); `reverse` is from each sequence's last step to its first.

    States are in the caller's order: h_0 and h_n (B, P), c_0 and c_n (B, H), where None is zeros, or a cell without c.
    """
    h = np.zeros_like(h_n) if h_0 is None else h_0[sorted_indices]
    c = np.zeros_like(h if c_n is None else c_n) if c_0 is None else c_0[sorted_indices]
    starts, w_ih, w_hh = _unpacked(panels, cell, x.shape[1], c.shape[1])
    ends = np.cumsum(batch_sizes)
    for t in range(len(ends))[:: -1 if reverse else 1]:
        size = batch_sizes[t]  # the other sequences wait for their first step, or have had their last
        rows = slice(ends[t] - size, ends[t])
        over_x, over_h = np.tensordot(x[rows], w_ih, 1), np.tensordot(h[:size], w_hh, 1)  # (size, gates, H)
        h_t, c[:size] = _cell(cell, starts, over_x, over_h, h[:size], c[:size])
        if projection is not None:
            h_t = h_t @ _unpacked(projection, LINEAR, c.shape[1], h.shape[1])[1][:, 0]
        out[rows] = h[:size] = h_t
    h_n[sorted_indices] = h
    if c_n is not None:
        c_n[sorted_indices] = c


def _cell(cell: int, starts: Array, over_x: Array, over_h: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """Return the next h (before its projection) and c, from the sums over x and over h: the formulas of torch's documentation."""
    sums = [*np.moveaxis(starts[: over_x.shape[1]] + over_x + over_h, 1, 0)]  # by gate
    if cell == LSTM:
        i, f, g, o = _sigmoid(sums[0]), _sigmoid(sums[1]), np.tanh(sums[2]), _sigmoid(sums[3])
        c = f * c + i * g
        return o * np.tanh(c), c
    if cell == GRU:
        r, z = _sigmoid(sums[0]), _sigmoid(sums[1])
        n = np.tanh(starts[2] + over_x[:, 2] + r * (starts[3] + over_h[:, 2]))
        return (1 - z) * n + z * h, c
    return np.tanh(sums[0]) if cell == RNN_TANH else np.maximum(sums[0], 0), c


def _unpacked(panels: Array, cell: int, F: int, H: int) -> tuple[Array, Array, Array]:
    """Return what panels hold: the sums' starts (sums, H), weight_ih (F, gates, H) and weight_hh (P, gates, H)."""
    gates = GATES.get(cell, 1)
    units = panels.swapaxes(0, 1).reshape(panels.shape[1], -1)[:, :H]
    starts, weights = np.split(units, [4 if cell == GRU else gates])
    w_ih, w_hh = np.split(weights.reshape(-1, gates, H), [F])
    return starts, w_ih, w_hh


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) is infinite, and 1 / inf the 0 that it should be
        return 1 / (1 + np.exp(-x))


def fingerprint(values: Sequence[Array], shares: int, sums: Int64Array) -> None:
    """Add up the words of some arrays; and before that, products of each word's halves, to which the halves of its key are added."""
    found, words_before = np.zeros((shares, 2), np.uint64), 0
    for array in values:
        content = array.tobytes()
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
