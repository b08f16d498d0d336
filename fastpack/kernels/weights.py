"""The gradients of a recurrence's weights: over all rows, those of their sums by what the weights were multiplied with.

Parts of the weights are dealt to shares, never rows: each number is the same sum whoever makes it. It is summed up over SUMMED rows
at a time, for which three vectors of columns are gathered side by side.
"""

from typing import Any, NamedTuple

from fastpack import blocks
from fastpack.kernels.kernel import helper
from fastpack.kernels.memory import advance, as_items, as_table, copy_items, is_null, item_bytes_of
from fastpack.kernels.panels import gate_of, shape_of
from fastpack.kernels.products import BROAD, TALL, Matrix, Summed, sum_rows, sum_tile
from fastpack.kernels.shares import Rows
from fastpack.kernels.simd import VECTOR

SUMMED = blocks.SUMMED


class Call(NamedTuple):
    """The sizes and addresses of one direction and piece. A projection is weight_ih of LINEAR, with F = H and H = P."""

    cell: int
    reverse: int
    F: int
    H: int
    P: int
    sorted_indices: Any
    batch_sizes: Any
    T: int
    first: int
    N: int
    panel_rows: int
    x: Any
    x_row_bytes: int
    x_step_bytes: int
    out: Any
    out_row_bytes: int
    out_step_bytes: int
    h_0: Any
    d_sums: Any
    add: int
    d_weight_ih: Any
    d_weight_hh: Any
    d_bias_ih: Any
    d_bias_hh: Any


class Found(NamedTuple):
    """A gradient that is wanted, or null: of a matrix (gates * H, columns), or of a bias, with one column."""

    matrix: Any
    columns: int
    over_h: int
    slot: int  # of the first of its sums


class Sums(NamedTuple):
    """Gradients of sums, in panels."""

    items: Any
    cell: int
    H: int
    row: int
    panel: int


class Cursor(NamedTuple):
    """A packed row, and where its step lies, and the ones beside it."""

    t: int
    r: int
    x: Any
    out: Any
    before: Any  # the step before as the recurrence goes; anything where there is none


class Room(NamedTuple):
    """A share's workspace."""

    x: Any  # table (SUMMED,)
    h: Any  # table (SUMMED,); null where h is zeros
    columns: Any  # (BROAD, SUMMED, lanes)
    zeros: Any  # (BROAD * lanes,)


@helper
def vectors_of(found, lanes):
    return 0 if is_null(found.matrix) else -(-found.columns // lanes)


@helper
def gather(columns, table, n, first, width, lanes, all):
    # `width` vectors of columns of n rows, zeros beyond the last; of a row that is nowhere all are
    for v in range(width):
        begin = first + v * lanes
        count = min(lanes, all - begin)
        for k in range(n):
            to = advance(columns, (v * SUMMED + k) * lanes)
            if is_null(table[k]):
                count_here = 0
            else:
                count_here = count
                copy_items(to, advance(table[k], begin), 0, count)
            for lane in range(count_here, lanes):
                to[lane] = 0


@helper
def add_panel(found, sums, j, row, n, add, first, width, lanes, room):
    # the products of a panel's gradients by the gathered columns, to their place in the matrix
    gates, _ = shape_of(sums.cell)
    units = min(lanes, sums.H - j * lanes)
    tiles = -(-units // TALL)
    for slot in range(gates):
        gate = gate_of(sums.cell, found.over_h, slot)
        unit = 0
        for tile in range(tiles):
            count = (units + tile) // tiles
            items = advance(sums.items, j * sums.panel + row * sums.row + (found.slot + slot) * lanes + unit)
            place = advance(found.matrix, (gate * sums.H + j * lanes + unit) * found.columns + first)
            summed = Summed(items, sums.row, room.columns, SUMMED * lanes, n)
            if add:
                matrix = Matrix(place, found.columns, place, found.columns, lanes, found.columns - first)
            else:
                matrix = Matrix(place, found.columns, room.zeros, 0, lanes, found.columns - first)
            sum_tile(count, width, summed, matrix)
            unit += count


@helper
def add_bias(found, sums, j, row, n, add, lanes, room):
    gates, _ = shape_of(sums.cell)
    for slot in range(gates):
        items = advance(sums.items, j * sums.panel + row * sums.row + (found.slot + slot) * lanes)
        place = advance(found.matrix, gate_of(sums.cell, found.over_h, slot) * sums.H + j * lanes)
        sum_rows(items, sums.row, n, place, place if add else room.zeros, sums.H - j * lanes)


@helper
def begin_rows(call, x, out):
    t, step = call.first, out.rows
    if call.reverse and t < call.T:
        return Cursor(t, 0, x.rows, step, advance(step, out.step if out.step else out.row * call.batch_sizes[t]))
    if t > 0:
        return Cursor(t, 0, x.rows, step, advance(step, -(out.step if out.step else out.row * call.batch_sizes[t - 1])))
    return Cursor(t, 0, x.rows, step, step)


@helper
def next_row(cursor, call, x, out):
    t, r = cursor.t, cursor.r + 1
    if r < call.batch_sizes[t] or t + 1 == call.T:
        return Cursor(t, r, cursor.x, cursor.out, cursor.before)
    size, following = call.batch_sizes[t], call.batch_sizes[t + 1]
    x_step = advance(cursor.x, x.step if x.step else x.row * size)
    step = advance(cursor.out, out.step if out.step else out.row * size)
    if call.reverse:
        return Cursor(t + 1, 0, x_step, step, advance(step, out.step if out.step else out.row * following))
    return Cursor(t + 1, 0, x_step, step, cursor.out)


@helper
def h_before(cursor, call, out, h_0):
    # the address of a row's state before, null where it is zeros
    t, r = cursor.t, cursor.r
    continues = t > 0
    if call.reverse:
        continues = t + 1 < call.T and r < call.batch_sizes[t + 1]
    if continues:
        return advance(cursor.before, r * out.row)
    return h_0 if is_null(h_0) else advance(h_0, call.sorted_indices[r] * call.P)


@helper
def run_rows(call, first, last, x, h, biases, sums, row, n, room, lanes):
    # Of n rows from `row` on, the share's parts of the products: numbered by groups of columns, those of x before those of h, and in
    # each by panels. The biases go with the first group.
    panels, add = -(-sums.H // lanes), 1 if call.add or row > 0 else 0
    over_x, over_h = vectors_of(x, lanes), vectors_of(h, lanes)
    groups_x, groups_h = -(-over_x // BROAD), -(-over_h // BROAD)
    for group in range(first // panels, -(-last // panels)):
        begin, end = max(first - group * panels, 0), min(last - group * panels, panels)
        if group == 0:
            for j in range(begin, end):
                for bias in biases:
                    if not is_null(bias.matrix):
                        add_bias(bias, sums, j, row, n, add, lanes, room)
        if group < groups_x:
            found, k, groups, vectors, table = x, group, groups_x, over_x, room.x
        else:
            found, k, groups, vectors, table = h, group - groups_x, groups_h, over_h, room.h
        if k < groups:
            column, width = vectors * k // groups * lanes, vectors * (k + 1) // groups - vectors * k // groups
            gather(room.columns, table, n, column, width, lanes, found.columns)
            for j in range(begin, end):
                add_panel(found, sums, j, row, n, add, column, width, lanes, room)


@helper
def run_weights(call, share, shares, workspace):
    # a share's parts of the weights
    item = item_bytes_of(workspace)
    (gates, all_sums), lanes = shape_of(call.cell), VECTOR // item
    x = Rows(as_items(call.x, workspace), call.x_row_bytes // item, call.x_step_bytes // item)
    out = Rows(as_items(call.out, workspace), call.out_row_bytes // item, call.out_step_bytes // item)
    h_0 = as_items(call.h_0, workspace)
    sums = Sums(as_items(call.d_sums, workspace), call.cell, call.H, all_sums * lanes, call.panel_rows * all_sums * lanes)
    over_x = Found(as_items(call.d_weight_ih, workspace), call.F, 0, 0)
    over_h = Found(as_items(call.d_weight_hh, workspace), call.P, 1, all_sums - gates)
    biases = (Found(as_items(call.d_bias_ih, workspace), 1, 0, 0), Found(as_items(call.d_bias_hh, workspace), 1, 1, all_sums - gates))
    table = as_table(advance(workspace, (BROAD * SUMMED + BROAD) * lanes))
    room = Room(table, advance(table, SUMMED), workspace, advance(workspace, BROAD * SUMMED * lanes))
    for k in range(BROAD * lanes):
        room.zeros[k] = 0
    groups = -(-vectors_of(over_x, lanes) // BROAD) + -(-vectors_of(over_h, lanes) // BROAD)
    parts = max(groups, 1) * -(-call.H // lanes)
    first, last = parts * share // shares, parts * (share + 1) // shares
    cursor = begin_rows(call, x, out)
    for row in range(0, max(call.N, 1), SUMMED):  # of no rows the sums are zeros
        n = min(SUMMED, call.N - row)
        for k in range(n):
            room.x[k] = advance(cursor.x, cursor.r * x.row)
            room.h[k] = h_before(cursor, call, out, h_0)
            cursor = next_row(cursor, call, x, out)
        run_rows(call, first, last, over_x, over_h, biases, sums, row, n, room, lanes)
