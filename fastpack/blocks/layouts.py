"""Kernels that find layouts: of packed batches, of stored sequences, of a sampler's batches."""

from typing import NamedTuple

from fastpack.blocks.arguments import Int64s, Pointers, Size


class MeasureLengths(NamedTuple):
    """What there is to know of `lengths` before anything is allocated."""

    lengths: Int64s  # (B,)
    B: Size
    limit: Size  # the longest that a sequence may be
    facts: Int64s  # out (6,): see layout.LengthFacts


class SortByLength(NamedTuple):
    """The layout of a packed batch from its lengths: a stable counting sort, longest first."""

    lengths: Int64s  # (B,), 0 <= lengths[i] <= T
    B: Size
    T: Size
    batch_sizes: Int64s  # out (T,)
    sorted_indices: Int64s  # out (B,)
    unsorted_indices: Int64s  # out (B,)
    offsets: Int64s  # out (B + 1,): where each sequence begins in ragged order


class MeasureLayout(NamedTuple):
    """What there is to know of a layout that came from outside, before anything is moved by it, and its lengths."""

    batch_sizes: Int64s  # (T,)
    T: Size
    sorted_indices: Int64s  # (B,)
    unsorted_indices: Int64s  # (B,)
    B: Size
    lengths: Int64s  # out (B,), in the caller's order; written only where nothing is wrong; or 0
    own_sizes: Int64s  # out (T,): a copy of batch_sizes, which is what is measured; or 0
    own_indices: Int64s  # out (B,): one of sorted_indices, likewise
    facts: Int64s  # out (3,): see layout.LayoutFacts


class OffsetsOf(NamedTuple):
    """Where each of `counts` begins in their sum, and the sum."""

    counts: Int64s  # (B,)
    B: Size
    offsets: Int64s  # out (B + 1,)


class Locate(NamedTuple):
    """Where some of many stored sequences are, in chunks of memory, and whether what is stored of them is in order."""

    indices: Int64s  # (B,), 0 <= indices[k] < firsts[C]
    B: Size
    firsts: Int64s  # (C + 1,): the number of each chunk's first sequence, then of all sequences
    C: Size
    bounds: Pointers  # (C,): of the row where each of a chunk's sequences begins, followed by that where it ends
    pair_bytes: Size  # from a sequence's bounds to those of the next
    bound_bytes: Size  # 4 or 8, of a signed integer, at any address
    mask: Size  # bits of a bound that count: all, -1; or the lower 32 of what is unsigned
    origins: Int64s  # (C,): what the bounds of a chunk call its first row
    rows: Int64s  # (C,): how many there are
    values: Int64s  # (C,): the address of the first
    step_bytes: Size  # from one row to the next
    first_rows: Int64s  # out (B,): addresses
    lengths: Int64s  # out (B,)
    facts: Int64s  # out (3,): longest, total or -1 where int64 cannot hold it, first of wrong bounds or -1


class CutInARow(NamedTuple):
    """Batches of costs in a row, each of as many as fit."""

    costs: Int64s  # (n,), 1 <= costs[i] <= max_tokens
    n: Size  # at least 1
    max_tokens: Size
    max_sequences: Size
    offsets: Int64s  # out (K + 1,): batch k has the costs offsets[k]:offsets[k + 1]. Room for as many as there can be: see sampling/cut.py
    facts: Int64s  # out (1,): K


class FirstFit(NamedTuple):
    """Bins of costs by first fit decreasing: each cost goes into the first bin that has room."""

    costs: Int64s  # (n,), 1 <= costs[i] <= max_tokens, which never rise
    n: Size  # at least 1
    max_tokens: Size
    max_sequences: Size
    order: Int64s  # out (n,): the costs in the order of their bins
    offsets: Int64s  # out (K + 1,): bin k has the costs order[offsets[k]:offsets[k + 1]]; room likewise
    facts: Int64s  # out (1,): K
    bins: Int64s  # working memory (n,), where each cost goes
    rooms: Int64s  # working memory, a number for each bin that there can be, how many steps it has left
    following: Int64s  # working memory, likewise: lists of bins
    fitting: Int64s  # working memory, zeros, a set of bins: see kernels/batches.py
    leaves: Size  # which of its words is the first that holds members
