"""The register tile: some rows by some vectors of sums, which stay in registers while k runs, and then the cell on them.

A tile's sums are `R` rows by `J` blocks of hidden units by the cell's sums. For each k it loads the weights of J blocks, one
vector a gate, and R inputs, and multiplies all with all. Each sum is one chain of operations over k, first over the inputs
and then over the states, whatever R and J are: so a sequence's bits do not depend on the rows that it shares a tile with.
"""

from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastpack.blocks import LINEAR
from fastpack.kernels.cells import CELLS, Cell
from fastpack.kernels.simd import REGISTER, Float, Memory, Vector, float_of, fma, loop, number, own_function, switch

ACCUMULATORS = REGISTER.accumulators
ROWS = ACCUMULATORS // 4  # the most rows of a tile
EARLY = 8192  # bytes: how far ahead of their turn weights are prefetched. 4096 gained little, 16384 to 32768 lost 1 to 4 % at H = 512


def wide_blocks(sums: int) -> int:
    """Return how many hidden blocks a wide tile takes: with few rows, one block's sums are too few to hide a sum's latency."""
    return 2 if sums > 1 else 4


def wide_rows(sums: int) -> int:
    """Return the most rows of a wide tile."""
    return ACCUMULATORS // (sums * (2 if sums > 1 else 4))


class Tables(NamedTuple):
    """The addresses of the rows that a step reads and writes, a table each."""

    x: Any
    h: Any  # of the step before
    out: Any
    c: Any  # of the step before
    after: Any  # c of this one: the same address where c stays from step to step
    gates: Any
    saves: int  # whether there are rows of gates


class Starts(NamedTuple):
    """What the sums start from: row r's of hidden block j are at `sums + r * row + j * block`."""

    sums: Any
    row: int
    block: int
    inputs: int  # how many of x are still to come: all F, or 0 where that was done ahead


class Panels(NamedTuple):
    """A cell's panels: see panels.py."""

    cell: int
    panel: Any
    block: int  # items from one hidden block's to the next's
    F: int
    P: int


class Tile:
    """Writes the IR of one tile."""

    def __init__(self, builder: ir.IRBuilder, cell: Cell, kind: Float, rows: int, blocks: int) -> None:
        self.builder, self.cell, self.kind, self.rows, self.blocks = builder, cell, kind, rows, blocks
        self.memory = Memory(builder, kind)

    def place(self, row: int, block: int, target: int) -> int:
        """Return where a sum stands in the list of them."""
        return (row * self.blocks + block) * self.cell.sums + target

    def pointers(self, table: Any, first: Any) -> list[Any]:
        """Load the addresses of the tile's rows from a table."""
        pointer = self.kind.item.as_pointer()
        places = [self.builder.gep(table, [self.builder.add(first, number(r))], source_etype=pointer) for r in range(self.rows)]
        return [self.builder.load(place, typ=pointer) for place in places]

    def starts(self, start: Any, start_row: Any, start_block: Any) -> list[Vector]:
        """Load what the sums start from: biases, the same for each row, or sums that were begun ahead."""
        values = []
        for r in range(self.rows):
            row = self.memory.at(start, self.builder.mul(start_row, number(r)))
            for j in range(self.blocks):
                block = self.memory.at(row, self.builder.mul(start_block, number(j)))
                values += [self.memory.load(self.memory.at(block, s * self.kind.lanes)) for s in range(self.cell.sums)]
        return values

    def stretch(
        self, sums: list[Vector], rows: list[Any], weights: list[Any], gates: tuple[int, ...], count: Any, early: Any
    ) -> list[Vector]:
        """Add `count` products to the sums: of each row's items with the weights, [k][gate][lane] in each block.

        Weights are prefetched `early` items before their turn.
        """
        at, step = self.memory.at, len(gates) * self.kind.lanes

        def body(k: Any, sums: list[Vector]) -> list[Vector]:
            turn = self.builder.mul(k, number(step))
            return self.products(sums, [at(row, k) for row in rows], [at(weight, turn) for weight in weights], gates, early)

        return loop(self.builder, number(0), count, sums, body)

    def products(self, sums: list[Vector], rows: list[Any], weights: list[Any], gates: tuple[int, ...], early: Any) -> list[Vector]:
        """Add one product to each sum: of the item at each row's address with the vectors at each block's."""
        new, memory, lanes = list(sums), self.memory, self.kind.lanes
        factors = [(j, g) for j in range(self.blocks) for g in range(len(gates))]

        def item(r: int) -> Vector:
            return memory.spread(rows[r])

        def factor(j: int, g: int) -> Vector:
            if early is not None:
                memory.prefetch(memory.at(memory.at(weights[j], early), g * lanes))
            return memory.load(memory.at(weights[j], g * lanes))

        def add(r: int, j: int, g: int, item: Vector, factor: Vector) -> None:
            place = self.place(r, j, gates[g])
            new[place] = fma(item, factor, new[place])

        # The smaller side is loaded first and stays, the other comes one by one: otherwise sums spill out of the registers, which
        # halved the speed of 3 rows with AVX2.
        if self.rows <= len(factors):
            items = [item(r) for r in range(self.rows)]
            for j, g in factors:
                loaded = factor(j, g)
                for r in range(self.rows):
                    add(r, j, g, items[r], loaded)
        else:
            kept = {pair: factor(*pair) for pair in factors}
            for r in range(self.rows):
                spread = item(r)
                for j, g in factors:
                    add(r, j, g, spread, kept[j, g])
        return new

    def finish(self, sums: list[Vector], tables: Tables, first: Any, unit: Any, left: Any) -> None:
        """Apply the cell to each row's sums. `left` units are left from `unit` on: the last block may have fewer than lanes."""
        full = self.builder.icmp_signed(">=", left, number(self.blocks * self.kind.lanes))
        with self.builder.if_else(full) as (whole, part):
            with whole:
                self._kept_or_not(sums, tables, first, unit, None)
            with part:
                self._kept_or_not(sums, tables, first, unit, left)

    def _kept_or_not(self, sums: list[Vector], tables: Tables, first: Any, unit: Any, left: Any) -> None:
        if not self.cell.saved:
            self._cells(sums, tables, first, unit, left, saves=False)
            return
        with self.builder.if_else(self.builder.icmp_signed("!=", tables.saves, number(0))) as (kept, passing):
            with kept:
                self._cells(sums, tables, first, unit, left, saves=True)
            with passing:
                self._cells(sums, tables, first, unit, left, saves=False)

    def _cells(self, sums: list[Vector], tables: Tables, first: Any, unit: Any, left: Any, *, saves: bool) -> None:
        names = ["out"] + ["h"] * self.cell.reads_h + ["c", "after"] * self.cell.has_c + ["gates"] * saves
        rows = {name: self.pointers(getattr(tables, name), first) for name in names}
        memory, builder = self.memory, self.builder
        for j in range(self.blocks):
            at = builder.add(unit, number(j * self.kind.lanes))
            mask = None if left is None else memory.first_lanes(builder.sub(left, number(j * self.kind.lanes)))
            for r in range(self.rows):
                h = memory.load(memory.at(rows["h"][r], at), mask) if self.cell.reads_h else None
                c = memory.load(memory.at(rows["c"][r], at), mask) if self.cell.has_c else None
                place = self.place(r, j, 0)
                h, c, *saved = self._formula(sums[place : place + self.cell.sums], h, c)
                if self.cell.has_c:
                    memory.store(c, memory.at(rows["after"][r], at), mask)
                memory.store(h, memory.at(rows["out"][r], at), mask)
                if saves:
                    # a block's gates follow each other: of the last block so many items each as it has units
                    gates = memory.at(rows["gates"][r], builder.mul(at, number(self.cell.saved)))
                    units = number(self.kind.lanes) if mask is None else self._units(left, j)
                    for k, gate in enumerate(saved):
                        memory.store(gate, memory.at(gates, builder.mul(units, number(k))), mask)

    def _units(self, left: Any, j: int) -> Any:
        """Return how many units block j of the tile has, which may be none, of the `left` ones."""
        units = self.builder.sub(left, number(j * self.kind.lanes))
        return self.builder.select(self.builder.icmp_signed("<", units, number(self.kind.lanes)), units, number(self.kind.lanes))

    def _formula(self, sums: list[Vector], h: Vector | None, c: Vector | None) -> list[Vector]:
        """Call the cell's formula, which is written once for all tiles and inlined by LLVM: that takes less time than to write it anew."""
        nothing = sums[0].full(0.0)
        results = ir.LiteralStructType([self.kind.vector] * (2 + self.cell.saved))

        def emit(builder: ir.IRBuilder, *values: Any) -> Any:
            *sums, h, c = (Vector(builder, value, self.kind) for value in values)
            h, c, saved = self.cell.formula(sums, h, c)
            packed = ir.Constant(results, ir.Undefined)
            for k, value in enumerate([h, c, *saved]):
                packed = builder.insert_value(packed, value.value, k)
            return packed

        name, given = f"{self.cell.formula.__name__}_{self.kind.bits}", [*sums, h or nothing, c or nothing]
        after = own_function(self.builder, name, "alwaysinline", [item.value for item in given], results, emit)
        return [nothing.of(self.builder.extract_value(after, k)) for k in range(2 + self.cell.saved)]

    def put_aside(self, sums: list[Vector], aside: Any, aside_row: Any) -> None:
        """Store the sums of a block: row after row, `aside_row` items apart."""
        for r in range(self.rows):
            row = self.memory.at(aside, self.builder.mul(aside_row, number(r)))
            for s in range(self.cell.sums):
                self.memory.store(sums[self.place(r, 0, s)], self.memory.at(row, s * self.kind.lanes))


@intrinsic  # type: ignore[untyped-decorator]
def step_tile(_typing: Any, rows: Any, wide: Any, tables: Any, first: Any, starts: Any, panels: Any, j: Any, H: Any) -> Any:
    """Do a step of `panels`' cell, of `rows` rows from the tables' `first` on, in hidden block j; if `wide`, in several from j on."""
    kind = float_of(panels.types[1].dtype.bitwidth)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        rows, wide, *others = args

        def call(code: int, blocks: int, most: int) -> None:
            # Not inlined: where all tiles stood in one loop, LLVM moved ahead of it what any of them could compute there
            emit = partial(_step, CELLS[code], kind, blocks, most)
            own_function(builder, f"step_{code}_{blocks}_{kind.bits}", "noinline", [rows, *others], ir.VoidType(), emit)

        def choose(code: int, sums: int) -> None:
            switch(builder, wide, {0: partial(call, code, 1, ROWS), 1: partial(call, code, wide_blocks(sums), wide_rows(sums))})

        switch(builder, builder.extract_value(args[5], 0), {code: partial(choose, code, cell.sums) for code, cell in CELLS.items()})
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, tables, types.int64, starts, panels, types.int64, types.int64), codegen


def _step(cell: Cell, kind: Float, blocks: int, most: int, builder: ir.IRBuilder, *args: Any) -> None:
    """Write the steps of 1 to `most` rows in `blocks` blocks, and the choice between them; `args` are those of `step_tile` but `wide`."""
    rows, first, j, H, at = args[0], args[2], args[5], args[6], Memory(builder, kind).at
    tables, starts, panels = Tables(*unpack(builder, args[1])), Starts(*unpack(builder, args[3])), Panels(*unpack(builder, args[4]))
    start = at(at(starts.sums, builder.mul(first, starts.row)), builder.mul(j, starts.block))
    panel = at(at(panels.panel, builder.mul(j, panels.block)), cell.sums * kind.lanes)
    from_x = [at(panel, builder.mul(panels.block, number(k))) for k in range(blocks)]
    from_h = [at(weight, builder.mul(panels.F, number(len(cell.from_x) * kind.lanes))) for weight in from_x]
    unit, early = builder.mul(j, number(kind.lanes)), None
    if blocks == 1:  # the first tile to come to a panel waits for the third-level cache; a wide one has more loads under way by itself
        early = builder.select(builder.icmp_signed("==", first, number(0)), number(EARLY // (kind.bits // 8)), number(0))

    def emit(count: int) -> None:
        tile = Tile(builder, cell, kind, count, blocks)
        sums = tile.starts(start, starts.row, starts.block)
        sums = tile.stretch(sums, tile.pointers(tables.x, first), from_x, cell.from_x, starts.inputs, early)
        sums = tile.stretch(sums, tile.pointers(tables.h, first), from_h, cell.from_h, panels.P, early)
        tile.finish(sums, tables, first, unit, builder.sub(H, unit))

    switch(builder, rows, {count: partial(emit, count) for count in range(1, most + 1)})


@intrinsic  # type: ignore[untyped-decorator]
def ahead_tile(_typing: Any, rows: Any, x: Any, first: Any, panels: Any, j: Any, aside: Any) -> Any:
    """Multiply `rows` rows of the table `x` from `first` on, in hidden block j, and put the sums aside."""
    kind = float_of(panels.types[1].dtype.bitwidth)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        def call(code: int) -> None:
            own_function(builder, f"ahead_{code}_{kind.bits}", "noinline", args, ir.VoidType(), partial(_ahead, CELLS[code], kind))

        switch(builder, builder.extract_value(args[3], 0), {code: partial(call, code) for code in CELLS if code != LINEAR})
        return context.get_dummy_value()

    return types.void(types.int64, x, types.int64, panels, types.int64, aside), codegen


def _ahead(cell: Cell, kind: Float, builder: ir.IRBuilder, *args: Any) -> None:
    """Write the products of 1 to ROWS rows, and the choice between them; `args` are those of `ahead_tile`."""
    rows, x, first, j, at = args[0], args[1], args[2], args[4], Memory(builder, kind).at
    panels, aside = Panels(*unpack(builder, args[3])), Starts(*unpack(builder, args[5]))
    panel = at(panels.panel, builder.mul(j, panels.block))
    to = at(at(aside.sums, builder.mul(first, aside.row)), builder.mul(j, aside.block))

    def emit(count: int) -> None:
        tile = Tile(builder, cell, kind, count, 1)
        sums, weights = tile.starts(panel, number(0), number(0)), [at(panel, cell.sums * kind.lanes)]
        tile.put_aside(tile.stretch(sums, tile.pointers(x, first), weights, cell.from_x, panels.F, None), to, aside.row)

    switch(builder, rows, {count: partial(emit, count) for count in range(1, ROWS + 1)})


def unpack(builder: ir.IRBuilder, value: Any) -> list[Any]:
    """Return the fields of a named tuple."""
    return [builder.extract_value(value, k) for k in range(len(value.type))]
