"""The gradients of a recurrence's inputs: of each row the gradients of its sums by weight_ih, many rows at once."""

from typing import Any, NamedTuple

from fastpack.kernels.along import factors_of, multiply
from fastpack.kernels.kernel import helper
from fastpack.kernels.memory import advance, as_items, as_table, item_bytes_of, stack_pointers
from fastpack.kernels.panels import shape_of
from fastpack.kernels.products import Soon, Target
from fastpack.kernels.shares import Rows
from fastpack.kernels.simd import VECTOR

MANY = 96  # rows at a time: as many tables' entries are on the stack, and so often weights are read from the second-level cache
ZEROS = VECTOR // 8  # a vector of them, in pointers


class Call(NamedTuple):
    """The sizes and addresses of one direction and piece."""

    cell: int
    F: int
    H: int
    panels: Any
    d_sums: Any
    panel_rows: int
    B: int
    add: int
    d_x: Any
    d_x_row_bytes: int
    d_x_step_bytes: int


@helper
def place_of(rows, n, B):
    # the address of packed row n; where steps lie apart, each has B rows
    if rows.step:
        return advance(rows.rows, n // B * rows.step + n % B * rows.row)
    return advance(rows.rows, n * rows.row)


@helper
def run_inputs(begin, end, call, like):
    # the packed rows begin..end of a piece
    (_, sums), item = shape_of(call.cell), item_bytes_of(like)
    lanes = VECTOR // item
    factors = factors_of(as_items(call.panels, like), call.cell, call.H, call.panel_rows)
    d_x = Rows(as_items(call.d_x, like), call.d_x_row_bytes // item, call.d_x_step_bytes // item)
    table, outs = as_table(as_items(stack_pointers(MANY), like)), as_table(as_items(stack_pointers(MANY), like))
    nothing = as_table(as_items(stack_pointers(MANY), like))
    zeros = as_items(stack_pointers(ZEROS), like)
    for lane in range(lanes):
        zeros[lane] = 0
    for i in range(MANY):
        nothing[i] = zeros
    target = Target(outs, lanes, outs, lanes, call.F) if call.add else Target(nothing, 0, outs, lanes, call.F)
    for first in range(begin, end, MANY):
        n = min(MANY, end - first)
        for i in range(n):
            outs[i] = place_of(d_x, first + i, call.B)
            table[i] = advance(as_items(call.d_sums, like), (first + i) * sums * lanes)
        multiply(0, -(-call.F // lanes), n, table, factors, target, Soon(0, table, 1, table, 0), first // MANY % 2)
