"""Rows of gradients by weights in gradient panels: the loops over blocks of columns, stretches of the rows, and tiles."""

from fastpack.kernels.kernel import helper
from fastpack.kernels.memory import advance, copy_items, item_bytes_of
from fastpack.kernels.panels import shape_of
from fastpack.kernels.products import WIDTH, Factors, Stretch, Target, row_tile
from fastpack.kernels.simd import VECTOR
from fastpack.kernels.tile import ROWS

# Bytes of weights that a stretch may have in all of a tile's columns: they stay in the second-level cache for all rows
CLOSE = 3 << 17


@helper
def factors_of(panels, cell, H, N):
    # the product of rows of d_sums, (N, sums * H) in panels, by a matrix with a row for each of gates * H
    gates, sums = shape_of(cell)
    lanes = VECTOR // item_bytes_of(panels)
    return Factors(panels, gates * H, N * sums * lanes, H // lanes, gates * lanes, H % lanes)


@helper
def multiply(first_block, last_block, n, table, factors, target, back):
    # The first n rows of a table, in these blocks of columns, from the last one down if `back`. A long row is multiplied in
    # stretches, always the same, so a row's result does not depend on its neighbours.
    lanes = VECTOR // item_bytes_of(factors.weights)
    gates = factors.run // lanes
    runs = factors.whole + (gates if factors.part else 0)
    length = max(1, CLOSE // (WIDTH * factors.run * VECTOR))
    groups = -(-(last_block - first_block) // WIDTH)
    tiles = -(-n // ROWS)
    for k in range(groups):
        group = groups - 1 - k if back else k
        j = first_block + (last_block - first_block) * group // groups
        width = first_block + (last_block - first_block) * (group + 1) // groups - j
        for begin in range(0, runs, length):
            stretch = Stretch(begin, min(begin + length, runs))
            starts, start_block = (target.starts, target.start_block) if begin == 0 else (target.outs, target.out_block)
            beside = Target(starts, start_block, target.outs, target.out_block, target.columns)
            first = 0  # rows in tiles as equal as can be
            for tile in range(tiles):
                rows = (n + tile) // tiles
                row_tile(rows, width, table, first, factors, stretch, beside, j)
                first += rows


@helper
def copy_starts(first_block, last_block, first, n, target):
    # what stands at the starts of rows first..n to where products would go
    lanes = VECTOR // item_bytes_of(target.outs[0])
    for i in range(first, n):
        for j in range(first_block, last_block):
            start, out = advance(target.starts[i], j * target.start_block), advance(target.outs[i], j * target.out_block)
            copy_items(out, start, 0, min(lanes, target.columns - j * lanes))
