"""Weights into panels: the order in which tiles read them, one block's after another's, each a single stream.

A panel holds the weights of `lanes` hidden units: what their sums start from, [sum][lane]; then for each input feature, and
then for each item of the state, [gate][lane]. Units beyond H are zeros.

A gradient panel holds `lanes` columns of a matrix, for all its rows in the order in which gradients of sums stand: block after
block of units, in each gate after gate; a GRU's over x begin with n, over h they end with it. Columns beyond the last are zeros.
"""

from typing import Any, NamedTuple

from fastpack import blocks
from fastpack.kernels.kernel import helper, kernel
from fastpack.kernels.memory import (
    advance,
    as_bytes,
    as_float32,
    as_float64,
    copy_items,
    is_null,
    item_bytes_of,
    stack_pointers,
    transposer,
)
from fastpack.kernels.simd import VECTOR

LANES = VECTOR // 4  # the most that a vector has
transpose_4, transpose_8 = transposer(4, VECTOR // 4), transposer(8, VECTOR // 8)


class Weights(NamedTuple):
    """The weights of a layer's direction, as torch has them."""

    ih: Any  # (gates * H, F)
    hh: Any  # (gates * H, P)
    bias_ih: Any  # (gates * H,), or null
    bias_hh: Any  # (gates * H,), or null
    F: int
    H: int
    P: int


class Columns(NamedTuple):
    """How many columns a matrix has, and how many from a panel's first on."""

    all: int
    left: int


@helper
def shape_of(cell):
    # gates, and sums: of a GRU's third gate the sum over x and the sum over h are apart
    if cell == blocks.LSTM:
        return 4, 4
    if cell == blocks.GRU:
        return 3, 4
    return 1, 1


@helper
def saved_of(cell):
    # what is saved of a unit's gates
    return 4 if cell == blocks.LSTM or cell == blocks.GRU else 0


@helper
def pack_starts(panel, weights, gates, sums, lanes, unit):
    for k in range(sums * lanes):
        panel[k] = 0
    for gate in range(gates):
        apart = 1 if sums > gates and gate == gates - 1 else 0
        for lane in range(min(lanes, weights.H - unit)):
            item = gate * weights.H + unit + lane
            if not is_null(weights.bias_ih):
                panel[gate * lanes + lane] += weights.bias_ih[item]
            if not is_null(weights.bias_hh):
                panel[(gate + apart) * lanes + lane] += weights.bias_hh[item]


@helper
def transpose(rows, columns, panel, step, lanes):
    # Whole tiles of `lanes` rows of a matrix to [column][lane], with `step` items from column to column; returns how many columns
    # these are. One by one, an item takes six times as long.
    item = item_bytes_of(panel)
    sources, targets = stack_pointers(LANES), stack_pointers(LANES)
    for lane in range(lanes):
        sources[lane] = as_bytes(advance(rows, lane * columns))
        targets[lane] = as_bytes(advance(panel, lane * step))
    whole = columns - columns % lanes
    for k in range(0, whole, lanes):
        if item == 4:
            transpose_4(sources, k * item, targets, k * step * item)
        else:
            transpose_8(sources, k * item, targets, k * step * item)
    return whole


@helper
def pack_matrix(panel, matrix, columns, gates, lanes, unit, H):
    for gate in range(gates):
        rows, to, done = advance(matrix, (gate * H + unit) * columns), advance(panel, gate * lanes), 0
        if unit + lanes <= H:
            done = transpose(rows, columns, to, gates * lanes, lanes)
        for lane in range(lanes):
            for k in range(done, columns):
                to[k * gates * lanes + lane] = rows[lane * columns + k] if unit + lane < H else 0


@helper
def pack_block(j, panels, weights, cell, lanes):
    gates, sums = shape_of(cell)
    panel = advance(panels, j * lanes * (sums + gates * (weights.F + weights.P)))
    pack_starts(panel, weights, gates, sums, lanes, j * lanes)
    over_x = advance(panel, sums * lanes)
    pack_matrix(over_x, weights.ih, weights.F, gates, lanes, j * lanes, weights.H)
    pack_matrix(advance(over_x, weights.F * gates * lanes), weights.hh, weights.P, gates, lanes, j * lanes, weights.H)


@kernel(blocks.PackPanels)
def pack_panels(begin, end, cell, item_bytes, lanes, weight_ih, weight_hh, bias_ih, bias_hh, F, H, P, panels):
    for j in range(begin, end):
        if item_bytes == 4:
            floats = Weights(as_float32(weight_ih), as_float32(weight_hh), as_float32(bias_ih), as_float32(bias_hh), F, H, P)
            pack_block(j, as_float32(panels), floats, cell, lanes)
        else:
            doubles = Weights(as_float64(weight_ih), as_float64(weight_hh), as_float64(bias_ih), as_float64(bias_hh), F, H, P)
            pack_block(j, as_float64(panels), doubles, cell, lanes)


@helper
def gate_of(cell, over_h, slot):
    # torch's gates r, z, n of a GRU are n, r, z among the sums over x
    return (slot + 2) % 3 if cell == blocks.GRU and not over_h else slot


@helper
def pack_columns(panel, weight, columns, cell, over_h, lanes, H):
    # one panel: `lanes` columns, of which `columns` may be fewer, are at `weight`
    gates, _ = shape_of(cell)
    width = min(lanes, columns.left)
    for block in range(-(-H // lanes)):
        units = min(lanes, H - block * lanes)
        for slot in range(gates):
            first = gate_of(cell, over_h, slot) * H + block * lanes
            for unit in range(units):
                copy_items(panel, advance(weight, (first + unit) * columns.all), 0, width)
                for lane in range(width, lanes):
                    panel[lane] = 0
                panel = advance(panel, lanes)


@kernel(blocks.PackGradientPanels)
def pack_gradient_panels(begin, end, cell, over_h, item_bytes, lanes, weight, H, columns, panels):
    gates, _ = shape_of(cell)
    for j in range(begin, end):
        some, place = Columns(columns, columns - j * lanes), j * lanes * gates * H
        if item_bytes == 4:
            pack_columns(advance(as_float32(panels), place), advance(as_float32(weight), j * lanes), some, cell, over_h, lanes, H)
        else:
            pack_columns(advance(as_float64(panels), place), advance(as_float64(weight), j * lanes), some, cell, over_h, lanes, H)
