"""The gradients of a recurrence, against its order of steps: of its sums, and of its initial states.

A step takes the gradient of its h from its own output and, by the weights, from the sums of the step after it, applies the cell's
gradient, and leaves the gradients of its own sums in panels. What these say of weights and inputs is summed up afterwards, over
many rows at once: see weights.py and inputs.py. For that it stops after each piece of the steps: see layer_gradient.py.

Shares are those of the recurrence: see recurrence.py. "Later" and "before" are meant as the recurrence goes.
"""

from typing import Any, NamedTuple

from fastpack import blocks
from fastpack.kernels import gradient
from fastpack.kernels.along import copy_starts, factors_of, multiply
from fastpack.kernels.gradient import Sizes, cell_gradients
from fastpack.kernels.kernel import helper
from fastpack.kernels.memory import advance, as_items, as_table, is_null, item_bytes_of
from fastpack.kernels.panels import saved_of, shape_of
from fastpack.kernels.products import WIDTH, Factors, Soon, Target
from fastpack.kernels.shares import Batch, Rows, hand_back, locate, move_on, own_row, own_rows, step_after, take_up
from fastpack.kernels.simd import VECTOR
from fastpack.kernels.team import do_phase


class Piece(NamedTuple):
    """The steps of a call, and how their sums lie in memory."""

    first: int
    last: int
    row: int  # the packed row with which the first step begins
    panel_rows: int
    later_row: int  # of the piece before this one, the row with which the step begins that comes after this piece's


class Call(NamedTuple):
    """The sizes and addresses of one direction and piece."""

    cell: int
    H: int
    P: int
    panels: Any
    projection: Any
    piece: Piece
    out: Any
    out_row_bytes: int
    out_step_bytes: int
    h_0: Any
    c_0: Any
    c: Any
    gates: Any
    d_out: Any
    d_out_row_bytes: int
    d_out_step_bytes: int
    d_h_n: Any
    d_c_n: Any
    d_sums: Any
    later_sums: Any
    d_projected: Any
    unprojected: Any
    d_h_0: Any
    d_c_0: Any


class Given(NamedTuple):
    """What the recurrence kept, and the gradients of its results."""

    states: Rows  # c of an LSTM, h of others
    state_0: Any  # (B, H), or null
    gates: Rows
    d_out: Rows
    d_h_n: Any
    d_c_n: Any


class Wanted(NamedTuple):
    """What is to be found."""

    d_sums: Rows
    later_sums: Any  # of the piece before
    d_projected: Rows
    unprojected: Rows
    d_h_0: Any
    d_c_0: Any


class Room(NamedTuple):
    """A share's workspace."""

    rows: gradient.Rows  # tables for a cell's gradient
    starts: Any  # table: of the gradients of a step's output
    later: Any  # table: of the gradients of the sums one step later
    projected: Any  # table: of gradients of the projection's sums
    ends: Any  # rows (P,): gradients of the output and of the last state together
    zeros: Any  # (max(H, P),)


class Weights(NamedTuple):
    """By what gradients go from one to the other."""

    recurrent: Factors
    projection: Factors  # without weights where there is none
    sizes: Sizes
    P: int


@helper
def product(first, last, n, later, table, factors, target, soon, back):
    # of the first `later` of a step's n rows the products, added to the starts; of the others the starts alone
    multiply(first, last, later, table, factors, target, soon, back)
    copy_starts(first, last, later, n, target)


@helper
def run_projected(units, given):
    # the gradients of the projection's sums, which are those of h
    n, later, room, weights, target, back = given
    product(units.first, units.stop, n, later, room.later, weights.recurrent, target, nothing_soon(room), back)


@helper
def nothing_soon(room):
    return Soon(0, room.later, 1, room.later, 0)


@helper
def run_cells(units, given):
    # the gradient of h before the projection, if any, and the cell's
    n, later, room, weights, target, back = given
    lanes, rows = units.lanes, room.rows
    saved = saved_of(weights.sizes.cell)
    soon = Soon(1, rows.gates, saved * lanes, rows.d_sums, weights.sizes.panel) if saved else nothing_soon(room)
    groups = -(-(units.stop - units.first) // WIDTH)
    for k in range(groups):
        group = groups - 1 - k if back else k
        first = units.first + (units.stop - units.first) * group // groups
        last = units.first + (units.stop - units.first) * (group + 1) // groups
        if is_null(weights.projection.weights):
            product(first, last, n, later, room.later, weights.recurrent, target, soon, 0)
        else:
            product(first, last, n, n, room.projected, weights.projection, target, soon, 0)
        cell_gradients(weights.sizes, rows, n, first, last)


@helper
def run_states(units, given):
    # gradients of the initial states h: of the sequences with steps, products; of the others the starts
    begun, every, later, room, weights, target = given
    product(units.first, units.stop, every, begun, later, weights.recurrent, target, nothing_soon(room), 0)


@helper
def locate_starts(batch, n, later, given, step, room, P):
    # The gradients of a step's output. Where a sequence ends, that of its last state joins them.
    for i in range(n):
        room.starts[i] = room.zeros if is_null(given.d_out.rows) else advance(step, own_row(batch, i) * given.d_out.row)
    if not is_null(given.d_h_n):
        for i in range(later, n):
            last = advance(given.d_h_n, batch.sorted_indices[own_row(batch, i)] * P)
            if is_null(given.d_out.rows):
                room.starts[i] = last
            else:
                end = advance(room.ends, i * P)
                for k in range(P):
                    end[k] = room.starts[i][k] + last[k]
                room.starts[i] = end


@helper
def locate_states(batch, n, t, step, given, room, H):
    # The states after this step, and those before it: of the step before or, where a sequence begins, the initial ones.
    states, rows = given.states, room.rows
    locate(rows.after, n, batch, states, step)
    before, continued = t + 1 if batch.reverse else t - 1, 0
    if 0 <= before < batch.T:
        continued = min(n, own_rows(batch, batch.batch_sizes[before]))
        size = batch.batch_sizes[t if batch.reverse else before]
        items = states.step if states.step else states.row * size
        locate(rows.before, continued, batch, states, advance(step, items if batch.reverse else -items))
    for i in range(continued, n):
        index = batch.sorted_indices[own_row(batch, i)]
        rows.before[i] = room.zeros if is_null(given.state_0) else advance(given.state_0, index * H)


@helper
def begin_steps(batch, team, phase, piece, given, wanted, room, lanes, H, later_slot):
    # What is carried over to the last of the piece's steps, as the recurrence goes: gradients of last states, or what the piece before
    # left. Returns how many rows have a step after them, and the number of the next phase.
    t = piece.first - 1 if batch.reverse else piece.last
    if not 0 <= t < batch.T:
        return 0, do_phase(team, phase, H, lanes, take_up, (batch, room.rows.carry, given.d_c_n))
    later = own_rows(batch, batch.batch_sizes[t])
    sums = wanted.d_sums
    locate(room.later, later, batch, sums, advance(wanted.later_sums, piece.later_row * sums.row + later_slot))
    return later, phase


@helper
def done_rows(batch, piece):
    # Of which rows all steps are done after this piece, and were not before it: first, last of those with steps, and with the piece
    # that has the first step, of those without any. Against its steps a recurrence that is reversed ends with each row's last one.
    begun = own_rows(batch, batch.batch_sizes[piece.first]) if piece.first < batch.T else 0
    still = 0
    if batch.reverse:
        still = own_rows(batch, batch.batch_sizes[piece.last]) if piece.last < batch.T else 0
    elif piece.first > 0:
        still = begun
    return still, begun, begun if piece.first > 0 else own_rows(batch, batch.B)


@helper
def locate_ends(batch, first, begun, every, given, wanted, room, weights):
    # where gradients of these rows' initial states go, and what products are added to
    for i in range(first, every):
        index = batch.sorted_indices[own_row(batch, i)] * weights.P
        room.rows.dh[i] = advance(wanted.d_h_0, index)
        if i < begun:
            room.starts[i] = room.rows.carry[i] if weights.sizes.cell == blocks.GRU else room.zeros
        else:
            room.starts[i] = room.zeros if is_null(given.d_h_n) else advance(given.d_h_n, index)


@helper
def run_share(weights, batch, team, phase, piece, given, wanted, room):
    P, H, rows, lanes = weights.P, weights.sizes.H, room.rows, VECTOR // item_bytes_of(room.zeros)
    later_slot = lanes if weights.sizes.cell == blocks.GRU else 0  # past n over x
    is_projected = weights.sizes.is_projected
    later, phase = begin_steps(batch, team, phase, piece, given, wanted, room, lanes, H, later_slot)  # of the step's rows
    into_dh = Target(room.starts, lanes, rows.dh, lanes, H)
    into_projection = Target(room.starts, lanes, room.projected, wanted.d_projected.step, P)
    against = Batch(batch.sorted_indices, batch.batch_sizes, batch.B, batch.T, 1 - batch.reverse, batch.share, batch.shares)
    t = piece.first if batch.reverse else piece.last - 1
    r = rows_before(batch, piece.first, t)  # of the piece's rows
    row = piece.row + r
    d_out_step, state_step = step_of(given.d_out, t, row), step_of(given.states, t, row)
    while piece.first <= t < piece.last:
        n = own_rows(batch, batch.batch_sizes[t])
        later = min(later, n)
        locate_starts(batch, n, later, given, d_out_step, room, P)
        locate_states(batch, n, t, state_step, given, room, H)
        locate(rows.gates, n, batch, given.gates, advance(given.gates.rows, row * given.gates.row))
        locate(rows.d_sums, n, batch, wanted.d_sums, advance(wanted.d_sums.rows, r * wanted.d_sums.row))
        if is_projected:
            locate(room.projected, n, batch, wanted.d_projected, advance(wanted.d_projected.rows, r * wanted.d_projected.row))
            locate(rows.unprojected, n, batch, wanted.unprojected, advance(wanted.unprojected.rows, r * wanted.unprojected.row))
            phase = do_phase(team, phase, P, lanes, run_projected, (n, later, room, weights, into_projection, t % 2))
            for i in range(n):
                room.starts[i] = room.zeros
        phase = do_phase(team, phase, H, lanes, run_cells, (n, later, room, weights, into_dh, t % 2))
        for i in range(n):
            room.later[i] = advance(rows.d_sums[i], later_slot)
        later, following = n, step_after(against, t)
        if 0 <= following < batch.T:
            d_out_step = move_on(against, t, given.d_out, d_out_step)
            state_step = move_on(against, t, given.states, state_step)
            size = batch.batch_sizes[t] if batch.reverse else -batch.batch_sizes[following]
            r, row = r + size, row + size
        t = following
    first, begun, every = done_rows(batch, piece)
    if first < every and not is_null(wanted.d_h_0):
        locate_ends(batch, first, begun, every, given, wanted, room, weights)
        target = Target(advance(room.starts, first), lanes, advance(rows.dh, first), lanes, P)
        done = begun - first, every - first, advance(room.later, first), room, weights, target
        phase = do_phase(team, phase, P, lanes, run_states, done)
    if not (0 <= t < batch.T or is_null(wanted.d_c_0)):
        phase = do_phase(team, phase, H, lanes, hand_back, (batch, rows.carry, wanted.d_c_0))
    return phase


@helper
def rows_before(batch, first, t):
    # how many rows the steps first..t have
    rows = 0
    for before in range(first, t):
        rows += batch.batch_sizes[before]
    return rows


@helper
def step_of(rows, t, row):
    # the address of step t, whose first row is number `row`
    return advance(rows.rows, rows.step * t if rows.step else rows.row * row)


@helper
def room_of(workspace, common, rows, H, P):
    # ten tables, rows where sequences end, rows of zeros; and in common the gradient of h and what is carried over
    table = as_table(advance(workspace, rows * (2 * H + P)))
    dh, carry, before, after = table, advance(table, rows), advance(table, 2 * rows), advance(table, 3 * rows)
    gates, d_sums, unprojected = advance(table, 4 * rows), advance(table, 5 * rows), advance(table, 6 * rows)
    starts, later, projected = advance(table, 7 * rows), advance(table, 8 * rows), advance(table, 9 * rows)
    zeros = as_items(advance(table, 10 * rows), workspace)
    for i in range(rows):
        dh[i], carry[i] = advance(common, i * H), advance(common, (rows + i) * H)
    for k in range(max(H, P)):
        zeros[k] = 0
    of_cells = gradient.Rows(dh, carry, before, after, gates, d_sums, unprojected)
    return Room(of_cells, starts, later, projected, advance(workspace, rows * 2 * H), zeros)


@helper
def run_steps(call, batch, team, phase, workspace, common):
    # the steps of a call's piece, for a share's sequences or by the whole team; returns the number of the next phase
    H, P, item = call.H, call.P, item_bytes_of(workspace)
    (_, sums), lanes, rows, room = shape_of(call.cell), VECTOR // item, own_rows(batch, batch.B), call.piece.panel_rows
    sizes = Sizes(call.cell, H, room * sums * lanes, 0 if is_null(call.projection) else 1)
    recurrent = factors_of(as_items(call.panels, workspace), call.cell, H, room)
    weights = Weights(recurrent, factors_of(as_items(call.projection, workspace), blocks.LINEAR, P, room), sizes, P)
    h = Rows(as_items(call.out, workspace), call.out_row_bytes // item, call.out_step_bytes // item)
    c = Rows(as_items(call.c, workspace), H, 0)
    gates = Rows(as_items(call.gates, workspace), saved_of(call.cell) * H, 0)
    d_out = Rows(as_items(call.d_out, workspace), call.d_out_row_bytes // item, call.d_out_step_bytes // item)
    has_c = call.cell == blocks.LSTM
    state_0 = as_items(call.c_0 if has_c else call.h_0, workspace)
    given = Given(c if has_c else h, state_0, gates, d_out, as_items(call.d_h_n, workspace), as_items(call.d_c_n, workspace))
    d_sums = Rows(as_items(call.d_sums, workspace), sums * lanes, sizes.panel)
    d_projected = Rows(as_items(call.d_projected, workspace), lanes, room * lanes)
    unprojected, later_sums = Rows(as_items(call.unprojected, workspace), H, 0), as_items(call.later_sums, workspace)
    d_before = as_items(call.d_h_0, workspace), as_items(call.d_c_0, workspace)
    wanted = Wanted(d_sums, later_sums, d_projected, unprojected, *d_before)
    return run_share(weights, batch, team, phase, call.piece, given, wanted, room_of(workspace, common, rows, H, P))
