"""Moving rows between sequences and packed order.

Packed order is walked in blocks of steps, within a block by sequence: a sequence's rows are then one run, and so are each
step's. A move has a direction, in or out of packed order, and is passed to the walk as a function, so that each kernel is
compiled for its own.
"""

from typing import Any, NamedTuple

from fastpack import blocks
from fastpack.kernels.homes import Listed, Padded, Ragged, Scattered, first_row, step_bytes_of
from fastpack.kernels.kernel import helper, kernel
from fastpack.kernels.memory import advance, copy_1, copy_2, copy_4, copy_8, copy_row, stack_pointers, transposer

TILED = 16  # steps walked together where rows are single items, or items apart: the side of the largest tile
BLOCK = 8  # and otherwise: each step is a run of writes, and more than 8 may fall on one set of a first-level cache


class Packed(NamedTuple):
    """The N rows in packed order, and their layout."""

    rows: Any
    row_bytes: int
    sorted_indices: Any  # (B,)
    batch_sizes: Any  # (T,)
    T: int


@helper
def move_in(packed_row, row, row_bytes, home, i):
    copy_row(packed_row, row, row_bytes)


@helper
def move_out(packed_row, row, row_bytes, home, i):
    copy_row(row, packed_row, row_bytes)


@helper
def walk_rows(move, t, stop, low, high, place, packed, home):
    # sequences low..high of packed order through steps t..stop; `place` is step t's first packed row
    for k in range(low, min(high, packed.batch_sizes[t])):
        i = packed.sorted_indices[k]
        step_bytes = step_bytes_of(home, i)
        row = advance(first_row(home, i), t * step_bytes)
        packed_row = advance(packed.rows, (place + k) * packed.row_bytes)
        for s in range(t, stop):
            size = packed.batch_sizes[s]
            if k >= size:
                break
            move(packed_row, row, packed.row_bytes, home, i)
            packed_row = advance(packed_row, size * packed.row_bytes)
            row = advance(row, step_bytes)


@helper
def block_in(t, stop, place, packed, home):
    walk_rows(move_in, t, stop, 0, packed.batch_sizes[t], place, packed, home)


@helper
def block_out(t, stop, place, packed, home):
    walk_rows(move_out, t, stop, 0, packed.batch_sizes[t], place, packed, home)


def tiles(item_bytes, copy, inward):
    """Make the walk over a block for rows of a single item: side x side of them at a time, transposed in registers.

    The ragged edge goes one by one, as everything did before: 15,055 tokens of 64 film reviews took 12 us, in tiles 6.
    Sides of 32 or 64 bytes in place of 16 gained nothing.
    """
    side = 16 // item_bytes
    transpose = transposer(item_bytes, side)

    @helper
    def move(packed_row, row, row_bytes, home, i):
        if inward:
            copy(packed_row, row)
        else:
            copy(row, packed_row)

    @helper
    def block(t, stop, place, packed, home):
        rows, packed_rows = stack_pointers(side), stack_pointers(side)
        while t + side <= stop and home.step_bytes == item_bytes:
            following = place
            for s in range(side):
                packed_rows[s] = advance(packed.rows, following * item_bytes)
                following += packed.batch_sizes[t + s]
            whole = packed.batch_sizes[t + side - 1] // side * side
            for k in range(0, whole, side):
                for j in range(side):
                    rows[j] = first_row(home, packed.sorted_indices[k + j])
                if inward:
                    transpose(rows, t * item_bytes, packed_rows, k * item_bytes)
                else:
                    transpose(packed_rows, k * item_bytes, rows, t * item_bytes)
            walk_rows(move, t, t + side, whole, packed.batch_sizes[t], place, packed, home)
            t, place = t + side, following
        if t < stop:
            walk_rows(move, t, stop, 0, packed.batch_sizes[t], place, packed, home)

    return block, move


(in_1, move_in_1), (in_2, move_in_2), (in_4, move_in_4), (in_8, move_in_8) = (
    tiles(size, copy, inward=True) for size, copy in ((1, copy_1), (2, copy_2), (4, copy_4), (8, copy_8))
)
(out_1, move_out_1), (out_2, move_out_2), (out_4, move_out_4), (out_8, move_out_8) = (
    tiles(size, copy, inward=False) for size, copy in ((1, copy_1), (2, copy_2), (4, copy_4), (8, copy_8))
)


@helper
def walk(begin, end, steps, block, move, packed, home):
    # block() moves up to `steps` whole steps, move() single rows of a step in which this share begins or ends
    t, place = 0, 0  # a step and its first packed row
    while t < packed.T and place + packed.batch_sizes[t] <= begin:
        place += packed.batch_sizes[t]
        t += 1
    while t < packed.T and place < end:
        stop, following = t, place
        while place >= begin and stop < packed.T and stop < t + steps and following + packed.batch_sizes[stop] <= end:
            following += packed.batch_sizes[stop]
            stop += 1
        if stop > t:
            block(t, stop, place, packed, home)
        else:
            stop, following = t + 1, place + packed.batch_sizes[t]
            walk_rows(move, t, stop, max(0, begin - place), end - place, place, packed, home)
        t, place = stop, following


@helper
def into_packed(begin, end, packed, home):
    if packed.row_bytes == 8:
        walk(begin, end, TILED, in_8, move_in_8, packed, home)
    elif packed.row_bytes == 4:
        walk(begin, end, TILED, in_4, move_in_4, packed, home)
    elif packed.row_bytes == 2:
        walk(begin, end, TILED, in_2, move_in_2, packed, home)
    elif packed.row_bytes == 1:
        walk(begin, end, TILED, in_1, move_in_1, packed, home)
    else:
        walk(begin, end, BLOCK, block_in, move_in, packed, home)


@helper
def out_of_packed(begin, end, packed, home):
    if packed.row_bytes == 8:
        walk(begin, end, TILED, out_8, move_out_8, packed, home)
    elif packed.row_bytes == 4:
        walk(begin, end, TILED, out_4, move_out_4, packed, home)
    elif packed.row_bytes == 2:
        walk(begin, end, TILED, out_2, move_out_2, packed, home)
    elif packed.row_bytes == 1:
        walk(begin, end, TILED, out_1, move_out_1, packed, home)
    else:
        walk(begin, end, BLOCK, block_out, move_out, packed, home)


@kernel(blocks.PackPadded)
def pack_padded(begin, end, padded, sequence_bytes, step_bytes, row_bytes, sorted_indices, batch_sizes, T, packed):
    into_packed(begin, end, Packed(packed, row_bytes, sorted_indices, batch_sizes, T), Padded(padded, sequence_bytes, step_bytes))


@kernel(blocks.PackListed)
def pack_listed(begin, end, first_rows, step_bytes, row_bytes, sorted_indices, batch_sizes, T, packed):
    into_packed(begin, end, Packed(packed, row_bytes, sorted_indices, batch_sizes, T), Listed(first_rows, step_bytes))


@kernel(blocks.PackRagged)
def pack_ragged(begin, end, values, offsets, step_bytes, row_bytes, sorted_indices, batch_sizes, T, packed):
    into_packed(begin, end, Packed(packed, row_bytes, sorted_indices, batch_sizes, T), Ragged(values, offsets, step_bytes))


@kernel(blocks.UnpackRagged)
def unpack_ragged(begin, end, values, offsets, step_bytes, row_bytes, sorted_indices, batch_sizes, T, packed):
    out_of_packed(begin, end, Packed(packed, row_bytes, sorted_indices, batch_sizes, T), Ragged(values, offsets, step_bytes))


@kernel(blocks.UnpackListed)
def unpack_listed(begin, end, first_rows, step_bytes, row_bytes, sorted_indices, batch_sizes, T, packed):
    out_of_packed(begin, end, Packed(packed, row_bytes, sorted_indices, batch_sizes, T), Listed(first_rows, step_bytes))


def gathering(copy):
    """Make the move and the block for rows whose items lie apart; copy(to, item, item_bytes) copies an item."""

    @helper
    def move(packed_row, row, row_bytes, home, i):
        # in C order: the last dimension by its stride, the others by division, so that no index is kept
        to, strides = packed_row, advance(home.strides, i * home.strides_apart + 1)
        last = home.D - 1
        for outer in range(home.lines):
            start, rest = row, outer
            for d in range(last - 1, -1, -1):
                start = advance(start, rest % home.row_shape[d] * strides[d])
                rest //= home.row_shape[d]
            for j in range(home.row_shape[last]):
                copy(to, advance(start, j * strides[last]), home.item_bytes)
                to = advance(to, home.item_bytes)

    @helper
    def block(t, stop, place, packed, home):
        walk_rows(move, t, stop, 0, packed.batch_sizes[t], place, packed, home)

    return move, block


@helper
def item_4(to, item, item_bytes):
    copy_4(to, item)


@helper
def item_8(to, item, item_bytes):
    copy_8(to, item)


gather_4, gather_block_4 = gathering(item_4)
gather_8, gather_block_8 = gathering(item_8)
gather_any, gather_block_any = gathering(copy_row)


@kernel(blocks.PackScattered)
def pack_scattered(
    begin, end, first_rows, strides, strides_apart, row_shape, D, item_bytes, row_bytes, sorted_indices, batch_sizes, T, packed
):
    rows = Packed(packed, row_bytes, sorted_indices, batch_sizes, T)
    home = Scattered(first_rows, strides, strides_apart, row_shape, D, item_bytes, row_bytes // item_bytes // row_shape[D - 1])
    if item_bytes == 4:
        walk(begin, end, TILED, gather_block_4, gather_4, rows, home)
    elif item_bytes == 8:
        walk(begin, end, TILED, gather_block_8, gather_8, rows, home)
    else:
        walk(begin, end, TILED, gather_block_any, gather_any, rows, home)
