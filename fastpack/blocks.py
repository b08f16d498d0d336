"""What each kernel is given: one named tuple a kernel, the only place where its arguments are named.

A kernel receives the address of a block of int64. The block is made from one of these tuples (`machine.run`), and the
entry that unpacks it again is made from the same tuple (`compiler`), so the two cannot disagree. An annotation says what
an argument is: `Size` is a number, the others are addresses, turned into a pointer once, at the kernel's entry.

Letters: B sequences, T steps, N packed rows. Sizes and strides are in bytes where their name says so.
"""

from typing import Annotated, NamedTuple

Size = Annotated[int, "int64"]
Int64s = Annotated[int, "int64*"]  # address of an int64 array
Bytes = Annotated[int, "uint8*"]  # address of rows, of any dtype
Pointers = Annotated[int, "uint8**"]  # address of an array of addresses


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
    lengths: Int64s  # out (B,), in the caller's order; written only where nothing is wrong
    facts: Int64s  # out (3,): see layout.LayoutFacts


class OffsetsOf(NamedTuple):
    """Where each of `counts` begins in their sum, and the sum."""

    counts: Int64s  # (B,)
    B: Size
    offsets: Int64s  # out (B + 1,)


class PackPadded(NamedTuple):
    """Rows of a padded batch into packed order. Shares: packed rows, 0 to N."""

    padded: Bytes  # row (i, t) is at i * sequence_bytes + t * step_bytes
    sequence_bytes: Size
    step_bytes: Size
    row_bytes: Size
    sorted_indices: Int64s  # (B,)
    batch_sizes: Int64s  # (T,)
    T: Size
    packed: Bytes  # out (N,) rows


class PackListed(NamedTuple):
    """Rows of separate sequences into packed order. Shares: packed rows, 0 to N."""

    first_rows: Pointers  # (B,), the address of each sequence's first row
    step_bytes: Size  # from one row of a sequence to its next
    row_bytes: Size
    sorted_indices: Int64s  # (B,)
    batch_sizes: Int64s  # (T,)
    T: Size
    packed: Bytes  # out (N,) rows


class PackRagged(NamedTuple):
    """Rows of sequences that follow each other into packed order. Shares: packed rows, 0 to N."""

    values: Bytes  # (N,) rows, step_bytes apart
    offsets: Int64s  # (B + 1,): sequence i begins at row offsets[i]
    step_bytes: Size
    row_bytes: Size
    sorted_indices: Int64s  # (B,)
    batch_sizes: Int64s  # (T,)
    T: Size
    packed: Bytes  # out (N,) rows


class PackScattered(NamedTuple):
    """As PackListed, where a row's items lie apart, or each sequence has strides of its own. Shares: packed rows."""

    first_rows: Pointers  # (B,)
    strides: Int64s  # (B, 1 + D), in bytes: from row to row, then along each dimension of a row
    row_shape: Int64s  # (D,), D >= 1
    D: Size
    item_bytes: Size
    row_bytes: Size
    sorted_indices: Int64s  # (B,)
    batch_sizes: Int64s  # (T,)
    T: Size
    packed: Bytes  # out (N,) rows


class UnpackRagged(NamedTuple):
    """Packed rows back into sequences that follow each other. Shares: packed rows, 0 to N."""

    values: Bytes  # out (N,) rows, step_bytes apart
    offsets: Int64s  # (B + 1,)
    step_bytes: Size
    row_bytes: Size
    sorted_indices: Int64s  # (B,)
    batch_sizes: Int64s  # (T,)
    T: Size
    packed: Bytes  # (N,) rows


class UnpackListed(NamedTuple):
    """Packed rows back into separate sequences. Shares: packed rows, 0 to N."""

    first_rows: Pointers  # (B,), of the memory to write
    step_bytes: Size
    row_bytes: Size
    sorted_indices: Int64s  # (B,)
    batch_sizes: Int64s  # (T,)
    T: Size
    packed: Bytes  # (N,) rows


class CopyListed(NamedTuple):
    """Rows of separate sequences to other places. Shares: sequences, dealt like cards: share s has s, s + shares, ..."""

    first_rows: Pointers  # (B,)
    step_bytes: Size
    target_rows: Pointers  # (B,), of the memory to write
    target_step_bytes: Size
    row_bytes: Size
    lengths: Int64s  # (B,)
    B: Size
    shares: Size


class PadRagged(NamedTuple):
    """Rows of sequences that follow each other into a padded batch. Shares: sequences, dealt like cards."""

    values: Bytes  # (N,) rows
    offsets: Int64s  # (B + 1,)
    padding_row: Bytes  # (row_bytes,)
    row_bytes: Size
    T: Size
    after: Size  # 1 where the padding follows the sequence, 0 where it comes before
    padded: Bytes  # out: row (i, t) is at i * sequence_bytes + t * step_bytes
    sequence_bytes: Size
    step_bytes: Size
    B: Size
    shares: Size


class UnpadRagged(NamedTuple):
    """Rows of a padded batch one sequence after another. Shares: sequences, dealt like cards."""

    values: Bytes  # out (N,) rows
    offsets: Int64s  # (B + 1,)
    row_bytes: Size
    T: Size
    after: Size
    padded: Bytes
    sequence_bytes: Size
    step_bytes: Size
    B: Size
    shares: Size


class PadPacked(NamedTuple):
    """Packed rows into a padded batch, padding behind each sequence. Shares: packed rows, 0 to N, and as much of the padding."""

    padded: Bytes  # out: row (i, t) is at i * sequence_bytes + t * step_bytes
    sequence_bytes: Size
    step_bytes: Size
    row_bytes: Size
    padding_row: Bytes  # (row_bytes,)
    lengths: Int64s  # (B,)
    B: Size
    steps: Size  # of the padded batch, at least T
    sorted_indices: Int64s  # (B,)
    batch_sizes: Int64s  # (T,)
    T: Size
    packed: Bytes  # (N,) rows
    N: Size  # at least 1


class FillPadding(NamedTuple):
    """The padding of a padded batch. Shares: sequences, dealt like cards: share s has s, s + shares, ..."""

    padding_row: Bytes  # (row_bytes,)
    row_bytes: Size
    lengths: Int64s  # (B,)
    T: Size
    after: Size  # 1 where the padding follows the sequence, 0 where it comes before
    padded: Bytes  # out: row (i, t) is at i * sequence_bytes + t * step_bytes
    sequence_bytes: Size
    step_bytes: Size
    B: Size
    shares: Size
