"""A layer's cell along packed rows: the loops over steps, hidden blocks and row blocks.

A share owns some sequences through all their steps, dealt like cards in packed order, so that shares have about as many rows;
or it owns some hidden units of all sequences, and all shares do one phase after another together: see team.py.

Where a step has many of a share's rows, each tile goes through the inputs and then the states. Where it has few, a tile would
spend its time loading weights for one or two rows: so there the inputs of several steps are multiplied together, ahead.
"""

from typing import Any, NamedTuple

from fastpack import blocks
from fastpack.kernels.kernel import helper, kernel
from fastpack.kernels.memory import advance, as_float32, as_float64, as_items, as_table, is_null, item_bytes_of
from fastpack.kernels.panels import saved_of, shape_of
from fastpack.kernels.shares import (
    Batch,
    Rows,
    States,
    first_step,
    hand_back,
    locate,
    move_on,
    own_row,
    own_rows,
    step_after,
    take_up,
)
from fastpack.kernels.simd import VECTOR
from fastpack.kernels.team import Team, do_phase
from fastpack.kernels.tile import ROWS, Panels, Starts, Tables, ahead_tile, step_tile, wide_blocks, wide_rows

AHEAD = blocks.AHEAD
blocks_of_wide, rows_of_wide = helper(wide_blocks), helper(wide_rows)


class Call(NamedTuple):
    """The sizes and addresses of a call, as the block has them."""

    cell: int
    F: int
    H: int
    P: int
    panels: Any
    projection: Any
    x: Any
    x_row_bytes: int
    x_step_bytes: int
    out: Any
    out_row_bytes: int
    out_step_bytes: int
    h_0: Any
    c_0: Any
    h_n: Any
    c_n: Any
    c: Any
    gates: Any


class Kept(NamedTuple):
    """What is kept of each step for gradients, or nothing."""

    saves: int
    c: Rows
    gates: Rows


class Room(NamedTuple):
    """A share's workspace."""

    aside: Starts  # the sums that are begun ahead
    tables: Tables
    unprojected: Any  # the table of the rows (H,) that are to be projected
    zeros: Any  # (P,)


@helper
def run_step(units, given):
    # A cell on the first n rows of tables, in all hidden blocks of these units: as many wide tiles as fit, then the other blocks;
    # every other step `back`, from the last one down: what the second-level cache still holds is used first.
    n, tables, starts, panels, back = given
    _, sums = shape_of(panels.cell)
    several, most = blocks_of_wide(sums), rows_of_wide(sums)
    count = units.stop - units.first
    groups = count // several if n <= most or most == ROWS else 0
    places = groups + count - groups * several
    tiles = -(-n // ROWS)
    for k in range(places):
        place = places - 1 - k if back else k
        wide = 1 if place < groups else 0
        j = units.first + (place * several if wide else place + groups * (several - 1))
        first = 0  # rows in tiles as equal as can be: 7 as 4 and 3, where 6 and 1 would load all weights for one
        for tile in range(tiles):
            rows = (n + tile) // tiles
            step_tile(rows, wide, tables, first, starts, panels, j, units.width)
            first += rows


@helper
def run_ahead(units, given):
    # the inputs of the first rows of the table x, which are those of several steps
    n, panels, room = given
    tiles = -(-n // ROWS)
    for j in range(units.first, units.stop):
        first = 0
        for tile in range(tiles):
            rows = (n + tile) // tiles
            ahead_tile(rows, room.tables.x, first, panels, j, room.aside)
            first += rows


@helper
def locate_ahead(t, x, step, batch, table):
    # of as many steps as AHEAD rows make, from step t on; returns how many rows these are
    count, n = 0, own_rows(batch, batch.batch_sizes[t])
    while n > 0 and count + n <= AHEAD:
        locate(advance(table, count), n, batch, x, step)
        count += n
        following = step_after(batch, t)
        n = 0
        if 0 <= following < batch.T:
            step = move_on(batch, t, x, step)
            n = own_rows(batch, batch.batch_sizes[following])
        t = following
    return count


@helper
def locate_states(batch, states, room, H, P):
    # A sequence's h is read where it was written last, its c stays in c_n unless each step's is kept.
    for k in range(P):
        room.zeros[k] = 0
    for i in range(own_rows(batch, batch.B)):
        index = batch.sorted_indices[own_row(batch, i)]
        room.tables.h[i] = room.zeros if is_null(states.h_0) else advance(states.h_0, index * P)
        if not is_null(states.c_n):
            room.tables.c[i] = room.tables.after[i] = advance(states.c_n, index * H)


@helper
def biases(panels):
    return Starts(panels.panel, 0, panels.block, panels.F)


@helper
def run_share(panels, projection, H, batch, team, x, out, states, kept, room):
    P, lanes, aside, tables = panels.P, VECTOR // item_bytes_of(out.rows), room.aside, room.tables
    locate_states(batch, states, room, H, P)
    phase = 0 if is_null(states.c_n) else do_phase(team, 0, H, lanes, take_up, (batch, tables.c, states.c_0))
    left = done = 0  # rows still ahead and rows used of them
    t = batch.T - 1 if batch.reverse else 0
    x_step, out_step = first_step(batch, x), first_step(batch, out)
    c_step, gates_step = first_step(batch, kept.c), first_step(batch, kept.gates)
    keeps_c = kept.saves and not is_null(states.c_n)
    while 0 <= t < batch.T:
        n = own_rows(batch, batch.batch_sizes[t])
        locate(tables.out, n, batch, out, out_step)
        if kept.saves:
            locate(tables.gates, n, batch, kept.gates, gates_step)
        if keeps_c:
            locate(tables.after, n, batch, kept.c, c_step)
        if left == 0 and n > 0 and 2 * n <= AHEAD:
            left, done = locate_ahead(t, x, x_step, batch, tables.x), 0
            phase = do_phase(team, phase, H, lanes, run_ahead, (left, panels, room))
        if left > 0:
            starts = Starts(advance(aside.sums, done * aside.row), aside.row, aside.block, 0)
            left, done = left - n, done + n
        else:
            starts = biases(panels)
            locate(tables.x, n, batch, x, x_step)
        if is_null(projection.panel):
            phase = do_phase(team, phase, H, lanes, run_step, (n, tables, starts, panels, t % 2))
        else:
            rows = room.unprojected
            before = Tables(tables.x, tables.h, rows, tables.c, tables.after, tables.gates, kept.saves)
            after = Tables(rows, rows, tables.out, rows, rows, rows, 0)
            phase = do_phase(team, phase, H, lanes, run_step, (n, before, starts, panels, t % 2))
            phase = do_phase(team, phase, P, lanes, run_step, (n, after, biases(projection), projection, t % 2))
        for i in range(n):
            tables.h[i] = tables.out[i]
            if keeps_c:
                tables.c[i] = tables.after[i]
        following = step_after(batch, t)
        if 0 <= following < batch.T:
            x_step, out_step = move_on(batch, t, x, x_step), move_on(batch, t, out, out_step)
            c_step, gates_step = move_on(batch, t, kept.c, c_step), move_on(batch, t, kept.gates, gates_step)
        t = following
    if keeps_c:
        phase = do_phase(team, phase, H, lanes, hand_back, (batch, tables.c, states.c_n))
    do_phase(team, phase, P, lanes, hand_back, (batch, tables.h, states.h_n))


@helper
def room_of(workspace, rows, sums, units, saves):
    # sums that are begun ahead, seven tables, a row of zeros, and rows to be projected
    lanes = VECTOR // item_bytes_of(workspace)
    block = sums * lanes
    row = -(-units // lanes) * block
    x = as_table(advance(workspace, AHEAD * row))
    h, out, c = advance(x, rows), advance(x, 2 * rows), advance(x, 3 * rows)
    after, gates = advance(x, 4 * rows), advance(x, 5 * rows)
    tables = Tables(x, h, out, c, after, gates, saves)
    return Room(Starts(workspace, row, block, 0), tables, advance(x, 6 * rows), as_items(advance(x, 7 * rows), workspace))


@helper
def run_call(call, batch, team, workspace, common):
    # a call; `workspace` is its own, and `common` the team's first, where all keep what they make together: sums and rows
    F, H, P, item = call.F, call.H, call.P, item_bytes_of(workspace)
    (gates, sums), lanes, rows = shape_of(call.cell), VECTOR // item, max(own_rows(batch, batch.B), AHEAD)
    saves = 0 if is_null(call.gates) else 1
    own, teams = room_of(workspace, rows, sums, H, saves), room_of(common, rows, sums, H, saves)
    room = Room(teams.aside, own.tables, own.unprojected, own.zeros)
    if not is_null(call.projection):
        for i in range(rows):
            room.unprojected[i] = advance(teams.zeros, P + i * H)
    panels = Panels(call.cell, as_items(call.panels, workspace), lanes * (sums + gates * (F + P)), F, P)
    projection = Panels(blocks.LINEAR, as_items(call.projection, workspace), lanes * (1 + H), H, 0)
    x = Rows(as_items(call.x, workspace), call.x_row_bytes // item, call.x_step_bytes // item)
    out = Rows(as_items(call.out, workspace), call.out_row_bytes // item, call.out_step_bytes // item)
    before = as_items(call.h_0, workspace), as_items(call.c_0, workspace)
    states = States(before[0], before[1], as_items(call.h_n, workspace), as_items(call.c_n, workspace))
    kept = Kept(saves, Rows(as_items(call.c, workspace), H, 0), Rows(as_items(call.gates, workspace), saved_of(call.cell) * H, 0))
    run_share(panels, projection, H, batch, team, x, out, states, kept, room)


@helper
def run_shares(call, layout, item_bytes, workspace, workspace_bytes, arrivals, begin, end, shares):
    # each of the shares begin..end of the sequences; where shares are of hidden units, all of them together
    sorted_indices, batch_sizes, B, T, reverse = layout
    together = not is_null(arrivals)
    for share in range(begin, begin + 1 if together else end):
        own = advance(workspace, share * workspace_bytes)
        common = workspace if together else own
        batch = Batch(sorted_indices, batch_sizes, B, T, reverse, 0 if together else share, 1 if together else shares)
        team = Team(arrivals, begin, end, shares)
        if item_bytes == 4:
            run_call(call, batch, team, as_float32(own), as_float32(common))
        else:
            run_call(call, batch, team, as_float64(own), as_float64(common))


@kernel(blocks.Recur)
def recur(
    begin, end, cell, item_bytes, reverse, F, H, P, panels, projection, sorted_indices, batch_sizes, B, T, x, x_row_bytes, x_step_bytes,
    out, out_row_bytes, out_step_bytes, h_0, c_0, h_n, c_n, c, gates, workspace, workspace_bytes, arrivals,
    shares
):  # fmt: skip
    rows = x, x_row_bytes, x_step_bytes, out, out_row_bytes, out_step_bytes
    call = Call(cell, F, H, P, panels, projection, *rows, h_0, c_0, h_n, c_n, c, gates)
    layout = sorted_indices, batch_sizes, B, T, reverse
    run_shares(call, layout, item_bytes, workspace, workspace_bytes, arrivals, begin, end, shares)
