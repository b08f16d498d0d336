"""The register tile: some rows by some vectors of sums, which stay in registers while k runs, and then the cell on them.

A tile's sums are `R` rows by `J` blocks of hidden units by the cell's sums. For each k it loads the weights of J blocks, one
vector a gate, and R inputs, and multiplies all with all. Each sum is one chain of operations over k, first over the inputs
and then over the states, whatever R and J are: so a sequence's bits do not depend on the rows that it shares a tile with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastpack.kernels.cells import CELLS, Cell
from fastpack.kernels.simd import I64, REGISTER, Float, Memory, Vector, float_of, fma, number

ROWS = REGISTER.accumulators // 4  # the most rows of a tile
EARLY = 8192  # bytes: how far ahead of their turn weights are prefetched. 4096 gained little, 16384 to 32768 lost 1 to 4 % at H = 512


def wide_blocks(cell: Cell) -> int:
    """Return how many hidden blocks a wide tile takes: with few rows, one block's sums are too few to hide a sum's latency."""
    return 2 if cell.sums > 1 else 4


def wide_rows(cell: Cell) -> int:
    """Return the most rows of a wide tile."""
    return REGISTER.accumulators // (cell.sums * wide_blocks(cell))


class Tables(NamedTuple):
    """The addresses of the rows that a step reads and writes, a table each."""

    x: Any
    h: Any  # of the step before
    out: Any
    c_before: Any
    c: Any


class Starts(NamedTuple):
    """What the sums start from: row r's of hidden block j are at `sums + r * row + j * block`."""

    sums: Any
    row: int
    block: int
    inputs: int  # how many of x are still to come: all F, or 0 where that was done ahead


class Panels(NamedTuple):
    """A layer's panels (see panels.py), from one hidden block on."""

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
        builder = self.builder
        before = builder.block
        loop, done = builder.append_basic_block("k"), builder.append_basic_block("k.done")
        builder.cbranch(builder.icmp_signed(">", count, number(0)), loop, done)
        builder.position_at_end(loop)
        k = builder.phi(I64)
        k.add_incoming(number(0), before)
        live = [self._phi(value, before) for value in sums]
        at = builder.mul(k, number(len(gates) * self.kind.lanes))
        new = self._products(
            live, [self.memory.at(row, k) for row in rows], [self.memory.at(weight, at) for weight in weights], gates, early
        )
        following = builder.add(k, number(1))
        k.add_incoming(following, loop)
        for phi, value in zip(live, new, strict=True):
            phi.value.add_incoming(value.value, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
        builder.position_at_end(done)
        result = [self._phi(value, before) for value in sums]
        for phi, value in zip(result, new, strict=True):
            phi.value.add_incoming(value.value, loop)
        return result

    def _products(self, sums: list[Vector], rows: list[Any], weights: list[Any], gates: tuple[int, ...], early: Any) -> list[Vector]:
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
                self._cells(sums, tables, first, unit, None)
            with part:
                self._cells(sums, tables, first, unit, left)

    def _cells(self, sums: list[Vector], tables: Tables, first: Any, unit: Any, left: Any) -> None:
        names = ["out"] + ["h"] * self.cell.reads_h + ["c_before", "c"] * self.cell.has_c
        rows = {name: self.pointers(getattr(tables, name), first) for name in names}
        memory, builder = self.memory, self.builder
        for j in range(self.blocks):
            at = builder.add(unit, number(j * self.kind.lanes))
            mask = None if left is None else memory.first_lanes(builder.sub(left, number(j * self.kind.lanes)))
            for r in range(self.rows):
                h = memory.load(memory.at(rows["h"][r], at), mask) if self.cell.reads_h else None
                c = memory.load(memory.at(rows["c_before"][r], at), mask) if self.cell.has_c else None
                place = self.place(r, j, 0)
                h, c = self.cell.formula(sums[place : place + self.cell.sums], h, c)
                if c is not None:
                    memory.store(c, memory.at(rows["c"][r], at), mask)
                memory.store(h, memory.at(rows["out"][r], at), mask)

    def put_aside(self, sums: list[Vector], aside: Any, aside_row: Any) -> None:
        """Store the sums of a block: row after row, `aside_row` items apart."""
        for r in range(self.rows):
            row = self.memory.at(aside, self.builder.mul(aside_row, number(r)))
            for s in range(self.cell.sums):
                self.memory.store(sums[self.place(r, 0, s)], self.memory.at(row, s * self.kind.lanes))

    def _phi(self, value: Vector, before: Any) -> Vector:
        phi = self.builder.phi(self.kind.vector)
        phi.add_incoming(value.value, before)
        return value.of(phi)


def switch_rows(builder: ir.IRBuilder, rows: Any, most: int, emit: Callable[[int], None]) -> None:
    """Write a tile for each number of rows from 1 to `most`, and the choice between them."""
    done = builder.append_basic_block("tile.done")
    never = builder.append_basic_block("tile.never")
    cases = builder.switch(rows, never)
    for count in range(1, most + 1):
        block = builder.append_basic_block(f"rows{count}")
        cases.add_case(ir.Constant(I64, count), block)
        builder.position_at_end(block)
        emit(count)
        builder.branch(done)
    builder.position_at_end(never)
    builder.unreachable()
    builder.position_at_end(done)


def step_tile(code: int, bits: int, wide: bool) -> Any:
    """Make the tile of a step: sums over x and over h, and then the cell. `wide`: of several hidden blocks."""
    cell, kind = CELLS[code], float_of(bits)
    blocks = wide_blocks(cell) if wide else 1

    @intrinsic  # type: ignore[untyped-decorator]
    def step(_typing: Any, rows: Any, tables: Any, first: Any, starts: Any, panels: Any, unit: Any, left: Any) -> Any:
        """Do `rows` rows from the tables' `first` on, in the hidden block of `unit`; `left` units are left from there on."""

        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            table = Tables(*unpack(builder, args[1], 5))
            first, (panel, block, F, P), unit, left = args[2], unpack(builder, args[4], 4), args[5], args[6]

            def emit(rows: int) -> None:
                tile = Tile(builder, cell, kind, rows, blocks)
                start, start_row, start_block, inputs = unpack(builder, args[3], 4)
                sums = tile.starts(start, start_row, start_block)
                at = tile.memory.at
                from_x = [at(at(panel, builder.mul(block, number(j))), cell.sums * kind.lanes) for j in range(blocks)]
                # the first tile to come to a panel waits for the third-level cache; a wide one has more loads under way by itself
                early = builder.select(builder.icmp_signed("==", first, number(0)), number(EARLY // (kind.bits // 8)), number(0))
                early = None if wide else early
                sums = tile.stretch(sums, tile.pointers(table.x, first), from_x, cell.from_x, inputs, early)
                past = builder.mul(F, number(len(cell.from_x) * kind.lanes))
                from_h = [at(weight, past) for weight in from_x]
                sums = tile.stretch(sums, tile.pointers(table.h, first), from_h, cell.from_h, P, early)
                tile.finish(sums, table, first, unit, left)

            switch_rows(builder, args[0], wide_rows(cell) if wide else ROWS, emit)
            return context.get_dummy_value()

        return types.void(rows, tables, types.int64, starts, panels, types.int64, types.int64), codegen

    return step


def ahead_tile(code: int, bits: int) -> Any:
    """Make the tile that multiplies rows of x ahead of their steps, in one hidden block, and puts the sums aside."""
    cell, kind = CELLS[code], float_of(bits)

    @intrinsic  # type: ignore[untyped-decorator]
    def ahead(_typing: Any, rows: Any, x: Any, first: Any, panels: Any, aside: Any, aside_row: Any) -> Any:
        """Do `rows` rows of the table `x` from `first` on; `aside` is where the first one's sums go."""

        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            panel, _block, F, _P = unpack(builder, args[3], 4)

            def emit(rows: int) -> None:
                tile = Tile(builder, cell, kind, rows, 1)
                sums = tile.starts(panel, number(0), number(0))
                weights = [tile.memory.at(panel, cell.sums * kind.lanes)]
                sums = tile.stretch(sums, tile.pointers(args[1], args[2]), weights, cell.from_x, F, None)
                tile.put_aside(sums, args[4], args[5])

            switch_rows(builder, args[0], ROWS, emit)
            return context.get_dummy_value()

        return types.void(rows, x, types.int64, panels, aside, types.int64), codegen

    return ahead


def unpack(builder: ir.IRBuilder, value: Any, count: int) -> list[Any]:
    """Return the fields of a named tuple."""
    return [builder.extract_value(value, k) for k in range(count)]
