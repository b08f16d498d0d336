"""All gradients of a layer, in all its directions.

The steps go by in pieces, against the recurrence. Of each piece come first the gradients of its sums (backward.py), then the products
with these (inputs.py, weights.py), which find them in a cache; the next piece leaves its sums in the memory of the last but one.

One thread does all, or several together do one phase after another: see team.py. A recurrence is one phase, of whose shares each owns
some sequences; or it is many, in which shares are of hidden units. The products of a piece are one phase.
"""

from typing import NamedTuple

from fastpack import blocks
from fastpack.kernels import backward, inputs, weights
from fastpack.kernels.kernel import helper, kernel
from fastpack.kernels.memory import advance, as_float32, as_float64, as_items, is_null, item_bytes_of, null
from fastpack.kernels.panels import saved_of
from fastpack.kernels.shares import Batch
from fastpack.kernels.team import Team, do_phase

PANELS, WEIGHTS = blocks.GRADIENT_PANELS, blocks.D_WEIGHTS


class Steps(NamedTuple):
    """Steps of a batch that follow each other, and their packed rows."""

    first: int
    last: int
    row: int  # with which the first one begins
    N: int


@helper
def steps_after(call, reverse, done):
    # the next piece against the recurrence: steps of `piece_rows` rows together, or one of more
    first, last, n = (done.last, done.last, 0) if reverse else (done.first, done.first, 0)
    if reverse:
        while last < call.T and (last == first or n + call.batch_sizes[last] <= call.piece_rows):
            n += call.batch_sizes[last]
            last += 1
        return Steps(first, last, done.row + done.N, n)
    while first > 0 and (last == first or n + call.batch_sizes[first - 1] <= call.piece_rows):
        first -= 1
        n += call.batch_sizes[first]
    return Steps(first, last, done.row - n, n)


@helper
def part(pointer, nbytes):
    return pointer if is_null(pointer) else advance(pointer, nbytes)


@helper
def from_step(rows, row_bytes, step_bytes, piece):
    # the address of a piece's first row
    return part(rows, step_bytes * piece.first if step_bytes else row_bytes * piece.row)


@helper
def recurrence_of(call, reverse, piece, later, d_sums, later_sums, item):
    # what backward.py needs; `later` is the piece done before, if any
    H, P = call.H, call.P
    states = reverse * call.B * item
    half, h, c = reverse * P * item, states * P, states * H
    has_c, row_bytes = call.cell == blocks.LSTM, saved_of(call.cell) * H * item
    gates = part(call.saved, reverse * call.N * (row_bytes + (H * item if has_c else 0)))
    later_row = later.N - call.batch_sizes[later.last - 1] if reverse and later.N else 0
    return backward.Call(
        call.cell, H, P, call.panels[PANELS * reverse + 1], call.panels[PANELS * reverse + 2],
        backward.Piece(piece.first, piece.last, piece.row, call.piece_rows, later_row),
        advance(call.out, half), call.out_row_bytes, call.out_step_bytes, part(call.h_0, h), part(call.c_0, c),
        part(gates, call.N * row_bytes) if has_c else null(gates), gates,
        part(call.d_out, half), call.d_out_row_bytes, call.d_out_step_bytes, part(call.d_h_n, h), part(call.d_c_n, c),
        d_sums, later_sums, call.d_projected, call.unprojected, part(call.d_h_0, h), part(call.d_c_0, c),
    )  # fmt: skip


@helper
def layout_of(call):
    return call.sorted_indices, call.batch_sizes, call.B, call.T


@helper
def inputs_of(call, reverse, piece, d_sums):
    # what inputs.py needs; the second direction adds to what the first one wrote
    place = from_step(call.d_x, call.d_x_row_bytes, call.d_x_step_bytes, piece), call.d_x_row_bytes, call.d_x_step_bytes
    return inputs.Call(call.cell, call.F, call.H, call.panels[PANELS * reverse], d_sums, call.piece_rows, call.B, reverse, *place)


@helper
def weights_of(call, reverse, piece, d_sums, add, item):
    # what weights.py needs
    P, half, h = call.P, reverse * call.P * item, reverse * call.B * call.P * item
    d_weights = advance(call.d_weights, WEIGHTS * reverse)
    return weights.Call(
        call.cell, reverse, call.F, call.H, P, call.sorted_indices, call.batch_sizes, call.T, piece.first, piece.N, call.piece_rows,
        from_step(call.x, call.x_row_bytes, call.x_step_bytes, piece), call.x_row_bytes, call.x_step_bytes,
        from_step(advance(call.out, half), call.out_row_bytes, call.out_step_bytes, piece), call.out_row_bytes, call.out_step_bytes,
        part(call.h_0, h), d_sums, add, d_weights[0], d_weights[1], d_weights[2], d_weights[3],
    )  # fmt: skip


@helper
def projection_of(call, reverse, piece, add, item):
    # the same of a projection, whose x is what was projected, and which has no h
    d_weight, none = call.d_weights[WEIGHTS * reverse + 4], null(call.x)
    return weights.Call(
        blocks.LINEAR, reverse, call.H, call.P, 0, call.sorted_indices, call.batch_sizes, call.T, piece.first, piece.N,
        call.piece_rows, call.unprojected, call.H * item, 0, call.out, 0, 0, none, call.d_projected, add, d_weight, none, none, none,
    )  # fmt: skip


@helper
def run_sequences(units, given):
    # a piece of the recurrence, for the sequences of these shares
    call, recurrence, team, reverse, like = given
    alone = Team(null(team.arrivals), 0, 1, 1)
    for share in range(units.first, units.stop):
        own = as_items(advance(call.workspace, share * call.workspace_bytes), like)
        backward.run_steps(recurrence, Batch(*layout_of(call), reverse, share, team.shares), alone, 0, own, own)


@helper
def run_products(units, given):
    # these shares of a piece's products with the gradients of its sums
    call, piece, over_inputs, over_weights, over_projection, shares, like = given
    for share in range(units.first, units.stop):
        own = as_items(advance(call.products, share * call.products_bytes), like)
        if not is_null(call.d_x):
            inputs.run_inputs(piece.N * share // shares, piece.N * (share + 1) // shares, over_inputs, like)
        if is_any_wanted(over_weights):
            weights.run_weights(over_weights, share, shares, own)
        if not is_null(over_projection.d_weight_ih):
            weights.run_weights(over_projection, share, shares, own)


@helper
def is_any_wanted(call):
    none = is_null(call.d_weight_ih) and is_null(call.d_weight_hh) and is_null(call.d_bias_ih) and is_null(call.d_bias_hh)
    return not none


@helper
def run_direction(call, reverse, team, phase, like):
    # returns the number of the next phase
    item = item_bytes_of(like)
    later = Steps(0, 0, 0, 0) if reverse else Steps(call.T, call.T, call.N, 0)
    add, left = 0, True
    d_sums, other_sums = call.d_sums, call.other_sums
    while left:
        piece = steps_after(call, reverse, later)
        recurrence = recurrence_of(call, reverse, piece, later, d_sums, other_sums, item)
        if call.together:
            own = as_items(advance(call.workspace, team.begin * call.workspace_bytes), like)
            batch = Batch(*layout_of(call), reverse, 0, 1)
            phase = backward.run_steps(recurrence, batch, team, phase, own, as_items(call.workspace, like))
        else:
            phase = do_phase(team, phase, team.shares, 1, run_sequences, (call, recurrence, team, reverse, like))
        over_weights, over_projection = weights_of(call, reverse, piece, d_sums, add, item), projection_of(call, reverse, piece, add, item)
        over_inputs = inputs_of(call, reverse, piece, d_sums)
        products = call, piece, over_inputs, over_weights, over_projection, team.shares, like
        phase = do_phase(team, phase, team.shares, 1, run_products, products)
        later, add, left = piece, 1, piece.last < call.T if reverse else piece.first > 0
        d_sums, other_sums = other_sums, d_sums
    return phase


@helper
def run_layer(call, directions, team, like):
    phase = 0
    for reverse in range(directions):
        phase = run_direction(call, reverse, team, phase, like)


@kernel(blocks.LayerGradient)
def layer_gradient(
    begin, end, cell, item_bytes, directions, F, H, P, panels, sorted_indices, batch_sizes, B, T, N, x, x_row_bytes, x_step_bytes,
    out, out_row_bytes, out_step_bytes, h_0, c_0, saved, d_out, d_out_row_bytes, d_out_step_bytes, d_h_n, d_c_n, d_x, d_x_row_bytes,
    d_x_step_bytes, d_h_0, d_c_0, d_weights, piece_rows, d_sums, other_sums, d_projected, unprojected, workspace, workspace_bytes,
    products, products_bytes, together, arrivals, shares
):  # fmt: skip
    call = blocks.LayerGradient(
        cell, item_bytes, directions, F, H, P, panels, sorted_indices, batch_sizes, B, T, N, x, x_row_bytes, x_step_bytes,
        out, out_row_bytes, out_step_bytes, h_0, c_0, saved, d_out, d_out_row_bytes, d_out_step_bytes, d_h_n, d_c_n, d_x, d_x_row_bytes,
        d_x_step_bytes, d_h_0, d_c_0, d_weights, piece_rows, d_sums, other_sums, d_projected, unprojected, workspace, workspace_bytes,
        products, products_bytes, together, arrivals, shares
    )  # fmt: skip
    team = Team(arrivals, begin, end, shares)
    if item_bytes == 4:
        run_layer(call, directions, team, as_float32(workspace))
    else:
        run_layer(call, directions, team, as_float64(workspace))
