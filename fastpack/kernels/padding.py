"""Moving rows between sequences and padded batches, and filling the padding."""

from fastpack import blocks
from fastpack.kernels.homes import Padded
from fastpack.kernels.kernel import helper, kernel
from fastpack.kernels.memory import advance, copy_row
from fastpack.kernels.rows import Packed, out_of_packed

PATTERN = 8192  # bytes from which on a pattern of padding is not made longer


@helper
def copy_run(to, to_step, source, source_step, row_bytes, count):
    # `count` rows that follow each other, at any distances
    if to_step == row_bytes and source_step == row_bytes:
        copy_row(to, source, row_bytes * count)
    else:
        for _ in range(count):
            copy_row(to, source, row_bytes)
            to, source = advance(to, to_step), advance(source, source_step)


@kernel(blocks.CopyListed)
def copy_listed(begin, end, first_rows, step_bytes, target_rows, target_step_bytes, row_bytes, lengths, B, shares):
    for share in range(begin, end):
        for i in range(share, B, shares):
            copy_run(target_rows[i], target_step_bytes, first_rows[i], step_bytes, row_bytes, lengths[i])


@kernel(blocks.PadRagged)
def pad_ragged(begin, end, values, offsets, padding_row, row_bytes, T, after, padded, sequence_bytes, step_bytes, B, shares):
    for share in range(begin, end):
        for i in range(share, B, shares):
            length = offsets[i + 1] - offsets[i]
            first = advance(padded, i * sequence_bytes)
            row = advance(first, (1 - after) * (T - length) * step_bytes)
            copy_run(row, step_bytes, advance(values, offsets[i] * row_bytes), row_bytes, row_bytes, length)
            fill_steps(advance(first, after * length * step_bytes), step_bytes, padding_row, row_bytes, T - length)


@kernel(blocks.UnpadRagged)
def unpad_ragged(begin, end, values, offsets, row_bytes, T, after, padded, sequence_bytes, step_bytes, B, shares):
    for share in range(begin, end):
        for i in range(share, B, shares):
            length = offsets[i + 1] - offsets[i]
            row = advance(padded, i * sequence_bytes + (1 - after) * (T - length) * step_bytes)
            copy_run(advance(values, offsets[i] * row_bytes), row_bytes, row, step_bytes, row_bytes, length)


@kernel(blocks.PadPacked)
def pad_packed(
    begin, end, padded, sequence_bytes, step_bytes, row_bytes, padding_row, lengths, B, steps, sorted_indices, batch_sizes, T, packed, N
):
    out_of_packed(begin, end, Packed(packed, row_bytes, sorted_indices, batch_sizes, T), Padded(padded, sequence_bytes, step_bytes))
    for i in range(B * begin // N, B * end // N):
        row = advance(padded, i * sequence_bytes + lengths[i] * step_bytes)
        fill_steps(row, step_bytes, padding_row, row_bytes, steps - lengths[i])


@kernel(blocks.FillPadding)
def fill_padding(begin, end, padding_row, row_bytes, lengths, T, after, padded, sequence_bytes, step_bytes, B, shares):
    for share in range(begin, end):
        for i in range(share, B, shares):
            row = advance(padded, i * sequence_bytes + after * lengths[i] * step_bytes)
            fill_steps(row, step_bytes, padding_row, row_bytes, T - lengths[i])


@helper
def fill_steps(row, step_bytes, padding_row, row_bytes, count):
    if step_bytes == row_bytes:
        fill_run(row, padding_row, row_bytes, count * row_bytes)
    else:
        copy_run(row, step_bytes, padding_row, 0, row_bytes, count)


@helper
def fill_run(to, padding_row, row_bytes, run_bytes):
    # what is filled is the pattern of the next piece, twice as large, up to what stays in the first cache
    if run_bytes > 0:
        copy_row(to, padding_row, row_bytes)
        pattern = filled = row_bytes
        while filled < run_bytes:
            piece = min(pattern, run_bytes - filled)
            copy_row(advance(to, filled), to, piece)
            filled += piece
            if pattern < PATTERN:
                pattern = filled
