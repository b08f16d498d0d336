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
from fastpack.kernels.simd import I32, I64, REGISTER, Float, Vector, float_of, fma

ROWS = REGISTER.accumulators // 4  # the most rows of a tile


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

    def at(self, pointer: Any, items: Any) -> Any:
        """Return the address so many items further on."""
        return self.builder.gep(pointer, [number(items)], source_etype=self.kind.item)

    def load(self, pointer: Any) -> Vector:
        return Vector(self.builder, self.builder.load(pointer, align=self.kind.bits // 8, typ=self.kind.vector), self.kind)

    def spread(self, pointer: Any) -> Vector:
        """Load one item into every lane."""
        item = self.builder.load(pointer, align=self.kind.bits // 8, typ=self.kind.item)
        undefined = ir.Constant(self.kind.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, item, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.kind.lanes), [0] * self.kind.lanes)
        return Vector(self.builder, self.builder.shuffle_vector(first, undefined, zeros), self.kind)

    def prefetch(self, pointer: Any) -> None:
        module = self.builder.module
        byte = ir.IntType(8).as_pointer()
        function = module.globals.get("llvm.prefetch.p0") or ir.Function(module, ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32]), name="llvm.prefetch.p0")
        self.builder.call(function, [self.builder.bitcast(pointer, byte), ir.Constant(I32, 0), ir.Constant(I32, 3), ir.Constant(I32, 1)])

    def pointers(self, table: Any, first: Any) -> list[Any]:
        """Load the addresses of the tile's rows from a table."""
        pointer = ir.IntType(8).as_pointer()
        places = [self.builder.gep(table, [self.builder.add(first, number(r))], source_etype=pointer) for r in range(self.rows)]
        return [self.builder.load(place, typ=pointer) for place in places]

    def stretch(self, sums: list[Vector], rows: list[Any], weights: list[Any], count: Any, gates: tuple[int, ...], distance: Any = None) -> list[Vector]:
        """Add `count` products to the sums: of each row's items with the weights, [k][gate][lane] in each block."""
        builder, lanes = self.builder, self.kind.lanes
        before = builder.block
        loop, done = builder.append_basic_block("k"), builder.append_basic_block("k.done")
        builder.cbranch(builder.icmp_signed(">", count, number(0)), loop, done)
        builder.position_at_end(loop)
        k = builder.phi(I64)
        k.add_incoming(number(0), before)
        live = [self._phi(value, before) for value in sums]
        new = [Vector(builder, phi, self.kind) for phi in live]
        starts = [self.at(weight, builder.mul(k, number(len(gates) * lanes))) for weight in weights]
        if distance is not None:
            for start in starts:
                for g in range(len(gates)):
                    self.prefetch(self.at(self.at(start, distance), g * lanes))

        def item(r: int) -> Vector:
            return self.spread(self.at(rows[r], k))

        def factor(j: int, g: int) -> Vector:
            return self.load(self.at(starts[j], g * lanes))

        factors = [(j, g) for j in range(self.blocks) for g in range(len(gates))]
        # the smaller side is loaded first and stays, the other comes one by one: otherwise sums spill out of the registers
        if self.rows <= len(factors):
            items = [item(r) for r in range(self.rows)]
            pairs = (((r, j, g), items[r], loaded) for j, g in factors for loaded in [factor(j, g)] for r in range(self.rows))
        else:
            weights_ = {jg: factor(*jg) for jg in factors}
            pairs = (((r, j, g), loaded, weights_[j, g]) for r in range(self.rows) for loaded in [item(r)] for j, g in factors)
        for (r, j, g), a, b in pairs:
            place = self.place(r, j, gates[g])
            new[place] = fma(a, b, new[place])
        following = builder.add(k, number(1))
        k.add_incoming(following, loop)
        for phi, value in zip(live, new, strict=True):
            phi.add_incoming(value.value, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
        builder.position_at_end(done)
        result = []
        for value, changed in zip(sums, new, strict=True):
            phi = self._phi(value, before)
            phi.add_incoming(changed.value, loop)
            result.append(Vector(builder, phi, self.kind))
        return result

    def place(self, row: int, block: int, target: int) -> int:
        """Return where a sum stands in the list of them."""
        return (row * self.blocks + block) * self.cell.sums + target

    def starts(self, start: Any, start_row: Any, start_block: Any) -> list[Vector]:
        """Load what the sums start from: biases, the same for each row, or sums that were begun ahead."""
        values = []
        for r in range(self.rows):
            row = self.at(start, self.builder.mul(start_row, number(r)))
            for j in range(self.blocks):
                block = self.at(row, self.builder.mul(start_block, number(j)))
                values += [self.load(self.at(block, s * self.kind.lanes)) for s in range(self.cell.sums)]
        return values

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
        for j in range(self.blocks):
            at = self.builder.add(unit, number(j * self.kind.lanes))
            mask = None if left is None else self._mask(self.builder.sub(left, number(j * self.kind.lanes)))
            for r in range(self.rows):
                h = self._read(self.at(rows["h"][r], at), mask) if self.cell.reads_h else None
                c = self._read(self.at(rows["c_before"][r], at), mask) if self.cell.has_c else None
                place = self.place(r, j, 0)
                h, c = self.cell.formula(sums[place : place + self.cell.sums], h, c)
                if c is not None:
                    self._write(c, self.at(rows["c"][r], at), mask)
                self._write(h, self.at(rows["out"][r], at), mask)

    def store(self, sums: list[Vector], ahead: Any, ahead_row: Any) -> None:
        """Put the sums aside: row after row, in each the sums of a block."""
        for r in range(self.rows):
            row = self.at(ahead, self.builder.mul(ahead_row, number(r)))
            for s in range(self.cell.sums):
                self._write(sums[self.place(r, 0, s)], self.at(row, s * self.kind.lanes), None)

    def _phi(self, value: Vector, before: Any) -> Any:
        phi = self.builder.phi(self.kind.vector)
        phi.add_incoming(value.value, before)
        return phi

    def _mask(self, left: Any) -> Any:
        """Return one bit a lane: whether it is among the first `left`."""
        lanes = self.kind.lanes
        numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        undefined = ir.Constant(numbers.type, ir.Undefined)
        first = self.builder.insert_element(undefined, self.builder.trunc(left, I32), ir.Constant(I32, 0))
        limit = self.builder.shuffle_vector(first, undefined, ir.Constant(numbers.type, [0] * lanes))
        return self.builder.icmp_signed("<", numbers, limit)

    def _masked(self, name: str, result: Any, arguments: list[Any]) -> Any:
        full = f"llvm.masked.{name}.v{self.kind.lanes}f{self.kind.bits}.p0"
        module = self.builder.module
        kinds = [argument.type for argument in arguments]
        function = module.globals.get(full) or ir.Function(module, ir.FunctionType(result, kinds), name=full)
        return self.builder.call(function, arguments)

    def _read(self, pointer: Any, mask: Any) -> Vector:
        if mask is None:
            return self.load(pointer)
        zeros = ir.Constant(self.kind.vector, [0.0] * self.kind.lanes)
        align = ir.Constant(I32, self.kind.bits // 8)
        return Vector(self.builder, self._masked("load", self.kind.vector, [pointer, align, mask, zeros]), self.kind)

    def _write(self, value: Vector, pointer: Any, mask: Any) -> None:
        if mask is None:
            self.builder.store(value.value, self.builder.bitcast(pointer, self.kind.vector.as_pointer()), align=self.kind.bits // 8)
        else:
            self._masked("store", ir.VoidType(), [value.value, pointer, ir.Constant(I32, self.kind.bits // 8), mask])


def number(value: Any) -> Any:
    """Return an int64 of the IR, of a Python number or of what is one already."""
    return ir.Constant(I64, value) if isinstance(value, int) else value


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
                from_x = [tile.at(tile.at(panel, builder.mul(block, number(j))), cell.sums * kind.lanes) for j in range(blocks)]
                D = 32
                distance = builder.select(builder.icmp_signed("==", first, number(0)), number(D * len(cell.from_x) * kind.lanes), number(0)) if not wide else None
                sums = tile.stretch(sums, tile.pointers(table.x, first), from_x, inputs, cell.from_x, distance)
                past = builder.mul(F, number(len(cell.from_x) * kind.lanes))
                from_h = [tile.at(weight, past) for weight in from_x]
                sums = tile.stretch(sums, tile.pointers(table.h, first), from_h, P, cell.from_h, distance)
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
                sums = tile.stretch(sums, tile.pointers(args[1], args[2]), [tile.at(panel, cell.sums * kind.lanes)], F, cell.from_x)
                tile.store(sums, args[4], args[5])

            switch_rows(builder, args[0], ROWS, emit)
            return context.get_dummy_value()

        return types.void(rows, x, types.int64, panels, aside, types.int64), codegen

    return ahead


def unpack(builder: ir.IRBuilder, value: Any, count: int) -> list[Any]:
    """Return the fields of a named tuple."""
    return [builder.extract_value(value, k) for k in range(count)]
