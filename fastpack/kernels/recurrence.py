"""A layer's cell along packed rows: the loops over steps, hidden blocks and row blocks.

A share owns some sequences through all their steps, dealt like cards in packed order, so that shares have about as many rows.
Where a step has many of its rows, each tile goes through the inputs and then the states. Where it has few, a tile would spend
its time loading weights for one or two rows: so there the inputs of several steps are multiplied together, ahead.
"""

from typing import Any, NamedTuple

from fastpack import blocks
from fastpack.kernels.cells import CELLS
from fastpack.kernels.kernel import helper, kernel
from fastpack.kernels.memory import advance, as_bytes, as_float32, as_float32_rows, as_float64, as_float64_rows, copy_row, is_null
from fastpack.kernels.shares import (
    Batch,
    Rows,
    States,
    Team,
    first_step,
    move_on,
    own_row,
    own_rows,
    state_row,
    step_after,
    units_of,
    wait_for_others,
)
from fastpack.kernels.simd import float_of
from fastpack.kernels.tile import ROWS, Panels, Starts, Tables, ahead_tile, step_tile, wide_blocks, wide_rows

AHEAD = blocks.AHEAD


class Call(NamedTuple):
    """The sizes and addresses of a call, as the block has them."""

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


def over_rows(tile, lanes):
    """Make the function that runs a tile over n rows, at hidden block j."""

    @helper
    def run(n, j, tables, starts, panels, H):
        tiles, i = -(-n // ROWS), 0  # as equal as can be: 7 rows as 4 and 3, where 6 and 1 would load all weights for one
        for k in range(tiles):
            rows = (n + k) // tiles
            begin = Starts(advance(starts.sums, j * starts.block + i * starts.row), starts.row, starts.block, starts.inputs)
            tile(rows, tables, i, begin, panel_of(panels, j), j * lanes, H - j * lanes)
            i += rows

    return run


def stepper(code, bits):
    """Make the function that runs a cell on the first n rows of tables, in all hidden blocks."""
    cell, lanes = CELLS[code], float_of(bits).lanes
    single, wide = over_rows(step_tile(code, bits, False), lanes), over_rows(step_tile(code, bits, True), lanes)
    several, most = wide_blocks(cell), wide_rows(cell) if wide_rows(cell) < ROWS else 2**62

    @helper
    def run_step(n, tables, starts, panels, units, back):
        # every other step `back`, from the last block down: what the second-level cache still holds is used first
        groups = (units.stop - units.first) // several if n <= most else 0
        rest = units.first + groups * several
        if back:
            for j in range(units.stop - 1, rest - 1, -1):
                single(n, j, tables, starts, panels, units.H)
        for k in range(groups):
            wide(n, units.first + several * (groups - 1 - k if back else k), tables, starts, panels, units.H)
        if not back:
            for j in range(rest, units.stop):
                single(n, j, tables, starts, panels, units.H)

    return run_step


@helper
def panel_of(panels, j):
    return Panels(advance(panels.panel, j * panels.block), panels.block, panels.F, panels.P)


def recurrence(code, bits):
    """Make the function that walks one share of a batch with a cell."""
    cell, lanes, item = CELLS[code], float_of(bits).lanes, bits // 8
    sums, has_c = cell.sums, cell.has_c
    ahead, run_step, run_projection = ahead_tile(code, bits), stepper(code, bits), stepper(blocks.LINEAR, bits)

    @helper
    def run_ahead(t, x, step, table, batch, panels, aside, units):
        # the inputs of as many steps as AHEAD rows make, from step t on; returns how many rows these are
        count, more = 0, True
        while more:
            n = own_rows(batch, batch.batch_sizes[t])
            for i in range(n):
                table[count + i] = advance(step, own_row(batch, i) * x.row)
            count += n
            following = step_after(batch, t)
            more = 0 <= following < batch.T
            if more:
                step = move_on(batch, t, x, step)
                n = own_rows(batch, batch.batch_sizes[following])
                more = n > 0 and count + n <= AHEAD
                t = following
        tiles, aside_row = -(-count // ROWS), -(-units.H // lanes) * sums * lanes
        for j in range(units.first, units.stop):
            i = 0
            for tile in range(tiles):
                rows = (count + tile) // tiles
                ahead(rows, table, i, panel_of(panels, j), advance(aside, i * aside_row + j * sums * lanes), aside_row)
                i += rows
        return count

    @helper
    def begin_rows(first, n, batch, states, tables, H, P):
        for i in range(first, n):
            index = batch.sorted_indices[own_row(batch, i)]
            tables.h[i] = state_row(states.h_0, states.zeros, index, P)
            if has_c:
                tables.c_before[i] = state_row(states.c_0, states.zeros, index, H)
                tables.c[i] = advance(states.c_n, index * H)  # where it stays from step to step

    @helper
    def end_rows(first, n, batch, states, tables, P):
        for i in range(first, n):
            index = batch.sorted_indices[own_row(batch, i)]
            copy_row(as_bytes(advance(states.h_n, index * P)), as_bytes(tables.out[i]), P * item)

    @helper
    def keep_states(first, n, batch, states, H, P):
        # sequences without any step
        for i in range(first, n):
            index = batch.sorted_indices[own_row(batch, i)]
            copy_row(as_bytes(advance(states.h_n, index * P)), as_bytes(state_row(states.h_0, states.zeros, index, P)), P * item)
            if has_c:
                copy_row(as_bytes(advance(states.c_n, index * H)), as_bytes(state_row(states.c_0, states.zeros, index, H)), H * item)

    @helper
    def run_share(batch, team, x, out, states, panels, tables, unprojected, project, aside, H):
        P, aside_row, units = panels.P, -(-H // lanes) * sums * lanes, units_of(team, H, lanes)
        begun = left = done = waits = 0  # rows with a step so far; rows still ahead and rows used of them
        t = batch.T - 1 if batch.reverse else 0
        x_step, out_step = first_step(batch, x), first_step(batch, out)
        while 0 <= t < batch.T:
            n = own_rows(batch, batch.batch_sizes[t])
            begin_rows(begun, n, batch, states, tables, H, P)
            for i in range(n):
                tables.out[i] = advance(out_step, own_row(batch, i) * out.row)
            if left == 0 and n > 0 and 2 * n <= AHEAD:
                left, done = run_ahead(t, x, x_step, tables.x, batch, panels, aside, units), 0
            if left > 0:
                starts = Starts(advance(aside, done * aside_row), aside_row, sums * lanes, 0)
                left, done = left - n, done + n
            else:
                starts = Starts(panels.panel, 0, panels.block, panels.F)
                for i in range(n):
                    tables.x[i] = advance(x_step, own_row(batch, i) * x.row)
            if has_c and not is_null(project.panel):
                run_step(n, Tables(tables.x, tables.h, unprojected, tables.c_before, tables.c), starts, panels, units, t % 2)
                waits = wait_for_others(team, waits)
                begin = Starts(project.panel, 0, project.block, project.F)
                rows = Tables(unprojected, unprojected, tables.out, unprojected, unprojected)
                run_projection(n, rows, begin, project, units_of(team, P, lanes), t % 2)
            else:
                run_step(n, tables, starts, panels, units, t % 2)
            waits = wait_for_others(team, waits)
            if has_c:
                for i in range(begun, n):
                    tables.c_before[i] = tables.c[i]
            begun = max(begun, n)
            following = step_after(batch, t)
            last = not 0 <= following < batch.T
            if team.begin == 0:
                end_rows(0 if last else own_rows(batch, batch.batch_sizes[following]), n, batch, states, tables, P)
            if not last:
                x_step, out_step = move_on(batch, t, x, x_step), move_on(batch, t, out, out_step)
            tables = Tables(tables.x, tables.out, tables.h, tables.c_before, tables.c)
            t = following
        if team.begin == 0:
            keep_states(own_rows(batch, batch.batch_sizes[0] if batch.T else 0), own_rows(batch, batch.B), batch, states, H, P)

    return run_share


def entry(code, bits):
    """Make the function that carves a share's workspace and walks the share."""
    cell, lanes, item, run_share = CELLS[code], float_of(bits).lanes, bits // 8, recurrence(code, bits)
    sums, gates, has_c = cell.sums, len(cell.from_x), cell.has_c
    as_floats, as_rows = (as_float32, as_float32_rows) if bits == 32 else (as_float64, as_float64_rows)

    @helper
    def run(call, batch, team, workspace, common):
        # a share's workspace: sums put aside, six tables, a row of zeros, rows to be projected; the last are the whole team's
        H, P, rows = call.H, call.P, max(own_rows(batch, batch.B), AHEAD)
        aside = as_floats(workspace)
        kept = AHEAD * sums * -(-H // lanes) * lanes
        tables = as_rows(advance(workspace, kept * item))
        zeros = as_floats(as_bytes(advance(tables, 6 * rows)))
        for k in range(max(H, P)):
            zeros[k] = 0
        unprojected = advance(tables, 5 * rows)
        if has_c and not is_null(call.projection):
            first = as_floats(advance(common, kept * item + 6 * rows * 8 + max(H, P) * item))
            for i in range(rows):
                unprojected[i] = advance(first, i * H)
        states = States(as_floats(call.h_0), as_floats(call.c_0), as_floats(call.h_n), as_floats(call.c_n), zeros)
        run_share(
            batch,
            team,
            Rows(as_floats(call.x), call.x_row_bytes // item, call.x_step_bytes // item),
            Rows(as_floats(call.out), call.out_row_bytes // item, call.out_step_bytes // item),
            states,
            Panels(as_floats(call.panels), lanes * (sums + gates * (call.F + P)), call.F, P),
            Tables(tables, advance(tables, rows), advance(tables, 2 * rows), advance(tables, 3 * rows), advance(tables, 4 * rows)),
            unprojected,
            Panels(as_floats(call.projection), lanes * (1 + H), H, 0),
            aside,
            H,
        )

    return run


lstm_32, lstm_64 = entry(blocks.LSTM, 32), entry(blocks.LSTM, 64)
gru_32, gru_64 = entry(blocks.GRU, 32), entry(blocks.GRU, 64)
tanh_32, tanh_64 = entry(blocks.RNN_TANH, 32), entry(blocks.RNN_TANH, 64)
relu_32, relu_64 = entry(blocks.RNN_RELU, 32), entry(blocks.RNN_RELU, 64)


@helper
def run_cell(cell, item_bytes, call, batch, team, own, common):
    if cell == blocks.LSTM:
        if item_bytes == 4:
            lstm_32(call, batch, team, own, common)
        else:
            lstm_64(call, batch, team, own, common)
    elif cell == blocks.GRU:
        if item_bytes == 4:
            gru_32(call, batch, team, own, common)
        else:
            gru_64(call, batch, team, own, common)
    elif cell == blocks.RNN_TANH:
        if item_bytes == 4:
            tanh_32(call, batch, team, own, common)
        else:
            tanh_64(call, batch, team, own, common)
    elif item_bytes == 4:
        relu_32(call, batch, team, own, common)
    else:
        relu_64(call, batch, team, own, common)


@kernel(blocks.Recur)
def recur(
    begin, end, cell, item_bytes, reverse, F, H, P, panels, projection, sorted_indices, batch_sizes, B, T, x, x_row_bytes, x_step_bytes,
    out, out_row_bytes, out_step_bytes, h_0, c_0, h_n, c_n, workspace, workspace_bytes, arrivals, shares
):  # fmt: skip
    call = Call(F, H, P, panels, projection, x, x_row_bytes, x_step_bytes, out, out_row_bytes, out_step_bytes, h_0, c_0, h_n, c_n)
    if is_null(arrivals):
        for share in range(begin, end):
            batch = Batch(sorted_indices, batch_sizes, B, T, reverse, share, shares)
            own = advance(workspace, share * workspace_bytes)
            run_cell(cell, item_bytes, call, batch, Team(arrivals, 0, 1, 1), own, own)
    else:
        batch = Batch(sorted_indices, batch_sizes, B, T, reverse, 0, 1)
        team = Team(arrivals, begin, end, shares)
        run_cell(cell, item_bytes, call, batch, team, advance(workspace, begin * workspace_bytes), workspace)
