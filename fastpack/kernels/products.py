"""Products with the gradients of sums: by weights in gradient panels, and, over all rows, by inputs and states.

Gradients of sums are in panels, [block of units][row][sum][lane], so that both products read whole cache lines, one after another:
the first goes along a row, through all panels, the second down the rows of one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastpack.blocks import LINEAR
from fastpack.kernels.cells import CELLS
from fastpack.kernels.simd import REGISTER, Float, Memory, Vector, float_of, loop, number, own_function, switch
from fastpack.kernels.tile import EARLY, ROWS, Tile, unpack

WIDTH = 4  # the most vectors of a row tile
FEW = ROWS // 2  # the most rows of a pair tile, whose sums are twice as many
TALL = 1 << (REGISTER.accumulators // 3).bit_length() - 1  # the most rows of weights of a sum tile, by up to
BROAD = 3  # so many vectors: a power of 2, which divides the lanes


class Factors(NamedTuple):
    """What rows of gradients are multiplied by, and how these rows lie in panels."""

    weights: Any  # gradient panels
    k: int  # how many items a row has
    panel: int  # items from one panel of rows to the next
    whole: int  # how many panels are whole
    run: int  # how many items of a whole panel's row are wanted, side by side
    part: int  # how many units the last panel has, where it is not whole; else 0


class Stretch(NamedTuple):
    """A part of a row: so many whole panels, then the gates of the last one, counted together."""

    first: int
    last: int


class Target(NamedTuple):
    """Where products go: block j of row r is at the r-th address and j blocks further on, likewise what it is added to."""

    starts: Any  # table
    start_block: int
    outs: Any  # table
    out_block: int
    columns: int  # how many there are in all


class Soon(NamedTuple):
    """What will be read and written next, of the same rows and blocks: meanwhile it is fetched."""

    is_known: int
    gates: Any  # table
    block: int  # items from one block's gates to the next's
    d_sums: Any  # table
    panel: int  # items from one block's panel to the next


@intrinsic  # type: ignore[untyped-decorator]
def row_tile(
    _typing: Any, rows: Any, width: Any, table: Any, first: Any, factors: Any, stretch: Any, target: Any, soon: Any, j: Any
) -> Any:
    """Multiply a stretch of `rows` rows, from the table's `first` on, by the weights of `width` blocks of columns from j on."""
    kind = float_of(factors.types[0].dtype.bitwidth)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        rows, width, *others = args
        _by_width(builder, kind, width, WIDTH, _rows, [rows, *others])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, table, types.int64, factors, stretch, target, soon, types.int64), codegen


def _by_width(builder: ir.IRBuilder, kind: Float, width: Any, most: int, write: Callable[..., None], given: list[Any]) -> None:
    """Write a function for each width from 1 to `most`, and the choice between them."""

    def call(vectors: int) -> None:
        emit = partial(write, kind, vectors)
        own_function(builder, f"{write.__name__}_{vectors}_{kind.bits}", "noinline", given, ir.VoidType(), emit)

    switch(builder, width, {vectors: partial(call, vectors) for vectors in range(1, most + 1)})


def _rows(kind: Float, blocks: int, builder: ir.IRBuilder, *args: Any) -> None:
    """Write the tiles of 1 to ROWS rows by `blocks` vectors; `args` are those of `row_tile` but `width`."""
    rows, table, first, j, at = args[0], args[1], args[2], args[7], Memory(builder, kind).at
    factors, stretch = Factors(*unpack(builder, args[3])), Stretch(*unpack(builder, args[4]))
    target, soon = Target(*unpack(builder, args[5])), Soon(*unpack(builder, args[6]))
    block = builder.mul(factors.k, number(kind.lanes))
    weights = [at(factors.weights, builder.mul(builder.add(j, number(v)), block)) for v in range(blocks)]
    early = builder.select(builder.icmp_signed("==", first, number(0)), number(EARLY // (kind.bits // 8)), number(0))
    left = builder.sub(target.columns, builder.mul(j, number(kind.lanes)))

    def emit(count: int) -> None:
        tile = Tile(builder, CELLS[LINEAR], kind, count, blocks)
        fetch = partial(_fetch, tile, soon, first, j)
        sums = _along(tile, tile.pointers(table, first), weights, factors, stretch, early, fetch)
        starts = [at(place, builder.mul(j, target.start_block)) for place in tile.pointers(target.starts, first)]
        outs = [at(place, builder.mul(j, target.out_block)) for place in tile.pointers(target.outs, first)]
        _whole_or_part(tile, sums, left, partial(_add, tile, starts, target.start_block, outs, target.out_block))

    switch(builder, rows, {count: partial(emit, count) for count in range(1, ROWS + 1)})


def _fetch(tile: Tile, soon: Soon, first: Any, j: Any, q: Any) -> None:
    """Fetch two vectors of each row's gates, and of where the gradients of its sums will be: those of turn q."""
    builder, memory, lanes = tile.builder, tile.memory, number(tile.kind.lanes)
    with builder.if_then(builder.icmp_signed("!=", soon.is_known, number(0))):
        for turn in range(2):
            line = builder.add(builder.mul(q, number(2)), number(turn))
            gate = builder.add(builder.mul(j, soon.block), builder.mul(line, lanes))
            block, of_block = builder.sdiv(builder.mul(line, lanes), soon.block), builder.srem(builder.mul(line, lanes), soon.block)
            d_sum = builder.add(builder.mul(builder.add(j, block), soon.panel), of_block)
            for gates, d_sums in zip(tile.pointers(soon.gates, first), tile.pointers(soon.d_sums, first), strict=True):
                memory.prefetch(memory.at(gates, gate))
                memory.prefetch(memory.at(d_sums, d_sum))


def _along(
    tile: Tile, rows: list[Any], weights: list[Any], factors: Factors, stretch: Stretch, early: Any, fetch: Callable[[Any], None]
) -> list[Vector]:
    """Return the sums of products along a stretch of the rows: of each whole panel one run, of the last one a run a gate."""
    builder, memory, lanes = tile.builder, tile.memory, tile.kind.lanes
    zeros = [memory.zero] * (tile.rows * tile.blocks)

    def body(q: Any, sums: list[Vector]) -> list[Vector]:
        fetch(q)
        is_whole, gate = builder.icmp_signed("<", q, factors.whole), builder.sub(q, factors.whole)

        def choose(of_whole: Any, of_part: Any) -> Any:
            return builder.select(is_whole, of_whole, of_part)

        last = builder.add(builder.mul(factors.whole, factors.panel), builder.mul(gate, number(lanes)))
        place = choose(builder.mul(q, factors.panel), last)
        done = builder.add(builder.mul(factors.whole, factors.run), builder.mul(gate, factors.part))
        k = builder.mul(choose(builder.mul(q, factors.run), done), number(lanes))
        count = choose(factors.run, factors.part)
        return tile.stretch(sums, [memory.at(row, place) for row in rows], [memory.at(w, k) for w in weights], (0,), count, early)

    return loop(builder, stretch.first, stretch.last, zeros, body)


@intrinsic  # type: ignore[untyped-decorator]
def pair_tile(_typing: Any, rows: Any, width: Any, table: Any, factors: Any, stretch: Any, target: Any, j: Any) -> Any:
    """Do what `row_tile` does of a stretch of whole panels and then of the one as long that follows, of the first 1 to FEW rows."""
    kind = float_of(factors.types[0].dtype.bitwidth)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        rows, width, *others = args
        _by_width(builder, kind, width, WIDTH, _pairs, [rows, *others])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, table, factors, stretch, target, types.int64), codegen


def _pairs(kind: Float, blocks: int, builder: ir.IRBuilder, *args: Any) -> None:
    """Write the tiles of 1 to FEW rows by `blocks` vectors, twice each; `args` are those of `pair_tile` but `width`."""
    rows, table, j, at = args[0], args[1], args[5], Memory(builder, kind).at
    factors, stretch = Factors(*unpack(builder, args[2])), Stretch(*unpack(builder, args[3]))
    target = Target(*unpack(builder, args[4]))
    block = builder.mul(factors.k, number(kind.lanes))
    weights = [at(factors.weights, builder.mul(builder.add(j, number(v)), block)) for v in range(blocks)]
    left = builder.sub(target.columns, builder.mul(j, number(kind.lanes)))
    further = builder.sub(stretch.last, stretch.first)
    row_further = builder.mul(further, factors.panel)
    weight_further = builder.mul(builder.mul(further, factors.run), number(kind.lanes))

    def emit(count: int) -> None:
        tile, sums_of_one = Tile(builder, CELLS[LINEAR], kind, count, blocks), count * blocks
        places = tile.pointers(table, number(0))

        def run(q: Any, sums: list[Vector]) -> list[Vector]:
            row, weight = builder.mul(q, factors.panel), builder.mul(builder.mul(q, factors.run), number(kind.lanes))

            def step(k: Any, sums: list[Vector]) -> list[Vector]:
                item, factor = builder.add(row, k), builder.add(weight, builder.mul(k, number(kind.lanes)))
                items, factors_here = [at(place, item) for place in places], [at(w, factor) for w in weights]
                one = tile.products(sums[:sums_of_one], items, factors_here, (0,), None)
                items, factors_here = [at(place, row_further) for place in items], [at(w, weight_further) for w in factors_here]
                return one + tile.products(sums[sums_of_one:], items, factors_here, (0,), None)

            return loop(builder, number(0), factors.run, sums, step)

        sums = loop(builder, stretch.first, stretch.last, [tile.memory.zero] * (2 * sums_of_one), run)
        starts = [at(place, builder.mul(j, target.start_block)) for place in tile.pointers(target.starts, number(0))]
        outs = [at(place, builder.mul(j, target.out_block)) for place in tile.pointers(target.outs, number(0))]
        _whole_or_part(tile, sums, left, partial(_add, tile, starts, target.start_block, outs, target.out_block))

    switch(builder, rows, {count: partial(emit, count) for count in range(1, FEW + 1)})


def _whole_or_part(tile: Tile, sums: list[Vector], left: Any, finish: Any) -> None:
    """Finish a tile of which all columns are wanted, or only the `left` ones: then under masks."""
    builder, lanes = tile.builder, tile.kind.lanes
    with builder.if_else(builder.icmp_signed(">=", left, number(tile.blocks * lanes))) as (whole, part):
        with whole:
            finish(sums, [None] * tile.blocks)
        with part:
            finish(sums, [tile.memory.first_lanes(builder.sub(left, number(v * lanes))) for v in range(tile.blocks)])


def _add(tile: Tile, starts: list[Any], start_block: Any, outs: list[Any], out_block: Any, sums: list[Vector], masks: list[Any]) -> None:
    """Store what stands at `starts` and the sums, one set of them after another, at `outs`."""
    builder, memory, each = tile.builder, tile.memory, tile.rows * tile.blocks
    for r in range(tile.rows):
        for v, mask in enumerate(masks):
            total = memory.load(memory.at(starts[r], builder.mul(start_block, number(v))), mask)
            for place in range(tile.place(r, v, 0), len(sums), each):
                total = total + sums[place]
            memory.store(total, memory.at(outs[r], builder.mul(out_block, number(v))), mask)


class Summed(NamedTuple):
    """What is summed up over rows: items of gradients by columns of inputs."""

    items: Any  # of the first row
    step: int  # from row to row
    columns: Any  # [vector][row][lane]
    vector: int  # items from one vector's to the next's
    rows: int


class Matrix(NamedTuple):
    """Where the sums go, beside what is there, or beside zeros."""

    place: Any
    row: int  # items from row to row
    before: Any  # the same, or zeros
    before_row: int
    before_vector: int
    left: int  # columns


@intrinsic  # type: ignore[untyped-decorator]
def sum_tile(_typing: Any, count: Any, width: Any, summed: Any, matrix: Any) -> Any:
    """Add the products of `count` items by `width` vectors of columns, over all rows, to a matrix."""
    kind = float_of(summed.types[0].dtype.bitwidth)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        count, width, *others = args
        _by_width(builder, kind, width, BROAD, _sums, [count, *others])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, summed, matrix), codegen


def _sums(kind: Float, vectors: int, builder: ir.IRBuilder, *args: Any) -> None:
    """Write the tiles of 1 to TALL items by `vectors` vectors; `args` are those of `sum_tile` but `width`."""
    summed, matrix = Summed(*unpack(builder, args[1])), Matrix(*unpack(builder, args[2]))
    at = Memory(builder, kind).at

    def emit(count: int) -> None:
        tile = Tile(builder, CELLS[LINEAR], kind, count, vectors)

        def body(n: Any, sums: list[Vector]) -> list[Vector]:
            row = at(summed.items, builder.mul(n, summed.step))
            column = at(summed.columns, builder.mul(n, number(kind.lanes)))
            columns = [at(column, builder.mul(summed.vector, number(v))) for v in range(vectors)]
            return tile.products(sums, [at(row, r) for r in range(count)], columns, (0,), None)

        sums = loop(builder, number(0), summed.rows, [tile.memory.zero] * (count * vectors), body)
        starts = [at(matrix.before, builder.mul(matrix.before_row, number(r))) for r in range(count)]
        outs = [at(matrix.place, builder.mul(matrix.row, number(r))) for r in range(count)]
        _whole_or_part(tile, sums, matrix.left, partial(_add, tile, starts, matrix.before_vector, outs, number(kind.lanes)))

    switch(builder, args[0], {count: partial(emit, count) for count in range(1, TALL + 1)})


@intrinsic  # type: ignore[untyped-decorator]
def sum_rows(_typing: Any, items: Any, step: Any, rows: Any, place: Any, before: Any, left: Any) -> Any:
    """Add a vector of each of some rows to what stands at `before`, and store it at `place`."""
    kind = float_of(items.dtype.bitwidth)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        own_function(builder, f"sum_rows_{kind.bits}", "noinline", args, ir.VoidType(), partial(_sum_rows, kind))
        return context.get_dummy_value()

    return types.void(items, types.int64, types.int64, items, items, types.int64), codegen


def _sum_rows(kind: Float, builder: ir.IRBuilder, items: Any, step: Any, rows: Any, place: Any, before: Any, left: Any) -> None:
    memory, chains = Memory(builder, kind), 4  # in one chain each row would wait for the sum of those before
    tile = Tile(builder, CELLS[LINEAR], kind, 1, 1)
    fours = builder.sdiv(rows, number(chains))

    def row(n: Any) -> Vector:
        return memory.load(memory.at(items, builder.mul(n, step)))

    def four(m: Any, sums: list[Vector]) -> list[Vector]:
        n = builder.mul(m, number(chains))
        return [one + row(builder.add(n, number(k))) for k, one in enumerate(sums)]

    a, b, c, d = loop(builder, number(0), fours, [memory.zero] * chains, four)
    (rest,) = loop(builder, builder.mul(fours, number(chains)), rows, [memory.zero], lambda n, sums: [sums[0] + row(n)])
    _whole_or_part(tile, [(a + b) + (c + d) + rest], left, partial(_add, tile, [before], number(0), [place], number(0)))
