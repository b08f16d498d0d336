"""Which sequences a share of a recurrence owns, and where the rows of its steps are."""

from typing import Any, NamedTuple

from fastpack.kernels.kernel import helper
from fastpack.kernels.memory import advance, copy_items, is_null


class Rows(NamedTuple):
    """Rows of x or out: row r of a step is at `rows + step + r * row`, in items."""

    rows: Any
    row: int
    step: int  # 0 where each step follows the rows of the one before


class States(NamedTuple):
    """The states before and after, in the caller's order."""

    h_0: Any  # (B, P), or null
    c_0: Any  # (B, H), or null
    h_n: Any  # (B, P)
    c_n: Any  # (B, H), or null


class Batch(NamedTuple):
    """The layout of the packed batch, and which of its rows a share owns."""

    sorted_indices: Any  # (B,)
    batch_sizes: Any  # (T,)
    B: int
    T: int
    reverse: int
    share: int
    shares: int


@helper
def own_row(batch, i):
    # to and fro: the shares of 0 1 1 0 0 1 differ by less than those of 0 1 0 1 0 1
    return i * batch.shares + (batch.share if i % 2 == 0 else batch.shares - 1 - batch.share)


@helper
def own_rows(batch, size):
    # of a step with `size` rows, how many are this share's
    whole = size // batch.shares
    return whole + (1 if own_row(batch, whole) < size else 0)


@helper
def step_after(batch, t):
    return t - 1 if batch.reverse else t + 1


@helper
def move_on(batch, t, rows, step):
    # from the address of step t to that of the step after, which in reverse is t - 1
    size = batch.batch_sizes[t - 1 if batch.reverse else t]
    items = rows.step if rows.step else rows.row * size
    return advance(step, -items if batch.reverse else items)


@helper
def first_step(batch, rows):
    step = rows.rows
    if batch.reverse:
        for t in range(batch.T - 1):
            step = advance(step, rows.step if rows.step else rows.row * batch.batch_sizes[t])
    return step


@helper
def locate(table, n, batch, rows, step):
    # the addresses of a share's n rows of the step that begins at `step`
    for i in range(n):
        table[i] = advance(step, own_row(batch, i) * rows.row)


@helper
def take_up(units, given):
    # to a table's rows, in packed order, these units of states in the caller's order, or zeros
    batch, table, states = given
    first, last = units.first * units.lanes, min(units.stop * units.lanes, units.width)
    for i in range(own_rows(batch, batch.B)):
        if is_null(states):
            for k in range(first, last):
                table[i][k] = 0
        else:
            copy_items(table[i], advance(states, batch.sorted_indices[own_row(batch, i)] * units.width), first, last)


@helper
def hand_back(units, given):
    # the same the other way: from the table's rows to states in the caller's order
    batch, table, states = given
    first, last = units.first * units.lanes, min(units.stop * units.lanes, units.width)
    for i in range(own_rows(batch, batch.B)):
        copy_items(advance(states, batch.sorted_indices[own_row(batch, i)] * units.width), table[i], first, last)
