"""Kernels of recurrent layers, forward and backward, and what they and their callers must agree on."""

from typing import NamedTuple

from fastpack.blocks.arguments import Bytes, Int64s, Pointers, Size

# Which cell a layer runs. LINEAR is a layer's projection: panels alone, for weights without a state.
LSTM, GRU, RNN_TANH, RNN_RELU, LINEAR = range(5)

# How many bytes a vector register has on a CPU level; 16 on all others
VECTOR_BYTES = {"x86-64-v4": 64, "x86-64-v3": 32}

# How many rows `recur` multiplies by weight_ih ahead of their steps, where steps have few rows
AHEAD = 24

# How many rows the gradients of weights are summed up at a time
SUMMED = 512

# How many gradient panels, and gradients of weights, tables have for each direction
GRADIENT_PANELS, D_WEIGHTS = 3, 5

# How many int64 a cache line has: so far apart are numbers that different threads write
LINE = 8


class PackPanels(NamedTuple):
    """Weights as torch lays them out into panels, the order in which `recur` reads them: see kernels/panels.py."""

    cell: Size  # LSTM, GRU, RNN_TANH, RNN_RELU or LINEAR
    item_bytes: Size  # 4 for float32, 8 for float64
    lanes: Size  # items in a vector of the CPU level
    weight_ih: Bytes  # (G * H, F), G gates: 4 of an LSTM, 3 of a GRU, 1 otherwise
    weight_hh: Bytes  # (G * H, P); of LINEAR nothing
    bias_ih: Bytes  # (G * H,), or 0 where there is none
    bias_hh: Bytes  # (G * H,), or 0
    F: Size
    H: Size
    P: Size  # the width of the state h: H, or that of a projection; 0 of LINEAR
    panels: Bytes  # out: cells.panel_items(...) items, at a multiple of 64 bytes


class Recur(NamedTuple):
    """A layer's cell along packed rows, in one direction. Shares: sequences, dealt like cards in packed order.

    With `arrivals`, shares are of hidden units instead, which suits large weights: each thread keeps its part of them in its
    cache. All threads together do one step after the other. A thread that has done its shares of a step does those that
    nobody else has begun, so any calls, at the same time or one after another, come to the same result: one alone as well.

    Row r of step t, of B sequences in packed order, is at `rows + step + r * row_bytes`; the following step begins
    `step_bytes` further on, or behind its rows where `step_bytes` is 0.
    """

    cell: Size
    item_bytes: Size
    reverse: Size  # 1: from each sequence's last step down to its first
    F: Size
    H: Size
    P: Size  # the width of the state h: H, or that of the projection
    panels: Bytes  # of weight_ih, weight_hh and the biases
    projection: Bytes  # panels of weight_hr, as LINEAR with F = H and H = P; 0 where there is none
    sorted_indices: Int64s  # (B,)
    batch_sizes: Int64s  # (T,)
    B: Size
    T: Size
    x: Bytes  # rows of F items
    x_row_bytes: Size
    x_step_bytes: Size
    out: Bytes  # out: rows of P items
    out_row_bytes: Size
    out_step_bytes: Size
    h_0: Bytes  # (B, P), in the caller's order; 0 for zeros
    c_0: Bytes  # (B, H); 0 for zeros, or where the cell has no c
    h_n: Bytes  # out (B, P)
    c_n: Bytes  # out (B, H); 0 where the cell has no c
    c: Bytes  # out: rows (N, H), c after each step; 0 where no gradients are wanted, or the cell has no c
    gates: Bytes  # out: rows (N, saved * H), what gradients need of the gates; 0 likewise. In blocks of `lanes` units: [gate][unit]
    workspace: Bytes  # cells.workspace_items(...) items for each share, at a multiple of 64 bytes
    workspace_bytes: Size  # of one share
    arrivals: Int64s  # (cells.arrivals_items(shares),), zeros, for how far each share has come; or 0
    shares: Size


class PackGradientPanels(NamedTuple):
    """A weight matrix into the panels by which gradients of sums are multiplied: see kernels/panels.py. Shares: blocks of columns."""

    cell: Size
    over_h: Size  # 1: weight_hh, 0: weight_ih; of LINEAR 0
    item_bytes: Size
    lanes: Size
    weight: Bytes  # (G * H, columns)
    H: Size
    columns: Size  # F of weight_ih, P of weight_hh, H of a projection, whose P is H here
    panels: Bytes  # out: cells.gradient_panel_items(...) items, at a multiple of 64 bytes


class LayerGradient(NamedTuple):
    """From gradients of what `recur` returned to those of a layer's inputs, initial states and weights, in all its directions.

    Shares: threads, which all do one phase after another together, as those of `Recur` with `arrivals` do: any calls come to the same
    result, of which no two at the same time begin with the same share. The numbers are the same for any number of shares.

    Gradients of the sums are in panels: [block of `lanes` units][row][sum][lane], where lanes beyond H are anything; of a GRU, whose
    n has a sum over x and one over h, the sums are n over x, r, z, n over h. They are those of one piece of the steps at a time.
    """

    cell: Size
    item_bytes: Size
    directions: Size  # 1 or 2
    F: Size
    H: Size
    P: Size
    panels: Pointers  # (directions, GRADIENT_PANELS): gradient panels of weight_ih, weight_hh and weight_hr, 0 where there is none
    sorted_indices: Int64s  # (B,)
    batch_sizes: Int64s  # (T,)
    B: Size
    T: Size
    N: Size
    x: Bytes  # rows of F items
    x_row_bytes: Size
    x_step_bytes: Size
    out: Bytes  # rows of directions * P items, as `recur` wrote them
    out_row_bytes: Size
    out_step_bytes: Size
    h_0: Bytes  # (directions, B, P), or 0
    c_0: Bytes  # (directions, B, H), or 0
    saved: Bytes  # of each direction the gates that `recur` kept and then, of an LSTM, c; 0 where the cell has neither
    d_out: Bytes  # rows of directions * P items; 0 for zeros, as of all gradients that are given
    d_out_row_bytes: Size
    d_out_step_bytes: Size
    d_h_n: Bytes  # (directions, B, P)
    d_c_n: Bytes  # (directions, B, H)
    d_x: Bytes  # out: rows of F items; 0 where it is not wanted, as of all that follow
    d_x_row_bytes: Size
    d_x_step_bytes: Size  # 0 where each step follows the rows of the one before; else each has B rows
    d_h_0: Bytes  # out (directions, B, P)
    d_c_0: Bytes  # out (directions, B, H)
    d_weights: Pointers  # (directions, D_WEIGHTS): out weight_ih (G * H, F), weight_hh (G * H, P), bias_ih, bias_hh, weight_hr (P, H)
    piece_rows: Size  # how many rows a piece may have, those of the largest step at least
    d_sums: Bytes  # cells.d_sums_items(...) items for the gradients of a piece's sums, at a multiple of 64 bytes
    other_sums: Bytes  # the same for those of the next piece; where there is one piece only, anything
    d_projected: Bytes  # likewise of the projection, whose sums are the states h; 0 where there is none
    unprojected: Bytes  # rows of H items, what was projected; 0 where there is no projection
    workspace: Bytes  # cells.backward_items(...) items for each share, at a multiple of 64 bytes
    workspace_bytes: Size  # of one share
    products: Bytes  # cells.weight_gradient_items(...) items for each share, likewise
    products_bytes: Size
    together: Size  # 1: shares of the recurrence are of hidden units, as of `Recur` with `arrivals`; 0: of sequences
    arrivals: Int64s  # (cells.arrivals_items(shares),), zeros, for how far each share has come; 0 where there is one
    shares: Size


# Of a fingerprint: word n, of 8 bytes, has the key (n + 1) * KEY
KEY = 0x9E3779B97F4A7C15


class Fingerprint(NamedTuple):
    """Two sums over some arrays, by which to tell whether their content has changed. Shares: stripes, each in a run of its own.

    The sums of all shares, added up, are the same for any number of shares.
    """

    values: Pointers  # (arrays,), the address of each
    nbytes: Int64s  # (arrays,), multiples of 4
    arrays: Size
    shares: Size
    sums: Int64s  # out (shares, 2): see kernels/fingerprint.py
