"""Kernels that move rows."""

from typing import NamedTuple

from fastpack.blocks.arguments import Bytes, Int64s, Pointers, Size


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
    strides: Int64s  # (B or 1, 1 + D), in bytes: from row to row, then along each dimension of a row
    strides_apart: Size  # 1 + D, or 0 where all sequences have the same strides
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
