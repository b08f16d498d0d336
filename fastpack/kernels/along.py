"""Rows of gradients by weights in gradient panels: the loops over blocks of columns, stretches of the rows, and tiles."""

from fastpack.kernels.kernel import helper
from fastpack.kernels.memory import advance, copy_items, item_bytes_of
from fastpack.kernels.panels import shape_of
from fastpack.kernels.products import FEW, WIDTH, Factors, Stretch, Target, pair_tile, row_tile
from fastpack.kernels.simd import VECTOR
from fastpack.kernels.tile import ROWS

# Bytes of weights that a stretch may have in all of a tile's columns: they stay in the second-level cache for all rows
CLOSE = 3 << 17
HALVED = 4  # whole panels from which on a row is multiplied in two halves: with fewer, adding them up costs more than it gains


@helper
def factors_of(panels, cell, H, rows):
    # the product of rows of d_sums, sums * H items in panels that have room for so many, by a matrix with a row for each of gates * H
    gates, sums = shape_of(cell)
    lanes = VECTOR // item_bytes_of(panels)
    return Factors(panels, gates * H, rows * sums * lanes, H // lanes, gates * lanes, H % lanes)


@helper
def multiply_stretch(group, n, table, factors, target, soon, begin, middle, end):
    # The runs begin..middle and middle..end of the first n rows, in a group of blocks of columns. The two halves are two sums,
    # which are added one after the other: with few rows both are under way at once, or there would be too few to hide their latency.
    first_block, width = group
    after = Target(target.outs, target.out_block, target.outs, target.out_block, target.columns)
    if begin > 0:
        target = after
    tiles = -(-n // ROWS)
    if n <= FEW and middle < end:
        if n > 0:
            pair_tile(n, width, table, factors, Stretch(begin, middle), target, first_block)
    else:
        for half in range(2):
            stretch = Stretch(middle, end) if half else Stretch(begin, middle)
            first = 0  # rows in tiles as equal as can be
            for tile in range(tiles if stretch.first < stretch.last else 0):
                rows = (n + tile) // tiles
                row_tile(rows, width, table, first, factors, stretch, after if half else target, soon, first_block)
                first += rows


@helper
def multiply(first_block, last_block, n, table, factors, target, soon, back):
    # The first n rows of a table, in these blocks of columns, from the last one down if `back`. Along a row it goes in stretches
    # of at most `most` panels, which depend on the shape alone, so that a row's result does not depend on its neighbours.
    lanes = VECTOR // item_bytes_of(factors.weights)
    runs = factors.whole + (factors.run // lanes if factors.part else 0)
    most = max(1, CLOSE // (WIDTH * factors.run * VECTOR))
    groups = -(-(last_block - first_block) // WIDTH)
    for k in range(groups):
        place = groups - 1 - k if back else k
        j = first_block + (last_block - first_block) * place // groups
        group = j, first_block + (last_block - first_block) * (place + 1) // groups - j
        begin = 0
        while factors.whole - begin >= HALVED or factors.whole - begin > most:
            half = min((factors.whole - begin) // 2, most)
            multiply_stretch(group, n, table, factors, target, soon, begin, begin + half, begin + 2 * half)
            begin += 2 * half
        if begin < runs:
            multiply_stretch(group, n, table, factors, target, soon, begin, runs, runs)


@helper
def copy_starts(first_block, last_block, first, n, target):
    # what stands at the starts of rows first..n to where products would go
    lanes = VECTOR // item_bytes_of(target.outs[0])
    for i in range(first, n):
        for j in range(first_block, last_block):
            start, out = advance(target.starts[i], j * target.start_block), advance(target.outs[i], j * target.out_block)
            copy_items(out, start, 0, min(lanes, target.columns - j * lanes))
