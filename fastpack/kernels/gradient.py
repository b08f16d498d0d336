"""A cell's gradient in rows and blocks of units: from memory, through the formula in cells.py, to memory."""

from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastpack.blocks import LINEAR
from fastpack.kernels.cells import CELLS, Cell
from fastpack.kernels.simd import Float, Memory, Vector, each, float_of, number, own_function, switch
from fastpack.kernels.tile import unpack


class Rows(NamedTuple):
    """Tables of the addresses of a step's rows."""

    dh: Any  # (H,)
    carry: Any  # (H,), read and written
    before: Any  # (H,): c of an LSTM, h of others
    after: Any
    gates: Any
    d_sums: Any  # in the first block's panel
    unprojected: Any  # (H,), written where there is a projection


class Sizes(NamedTuple):
    """What all rows of a call have in common."""

    cell: int
    H: int
    panel: int  # items from one block's panel of d_sums to the next
    is_projected: int


@intrinsic  # type: ignore[untyped-decorator]
def cell_gradients(_typing: Any, sizes: Any, rows: Any, n: Any, first: Any, last: Any) -> Any:
    """Find the gradients of the sums of the tables' first n rows in the blocks first..last, and what is carried over to the step before."""
    kind = float_of(rows.types[0].dtype.dtype.bitwidth)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        def call(code: int) -> None:
            own_function(builder, f"gradient_{code}_{kind.bits}", "noinline", args, ir.VoidType(), partial(_gradient, CELLS[code], kind))

        switch(builder, builder.extract_value(args[0], 0), {code: partial(call, code) for code in CELLS if code != LINEAR})
        return context.get_dummy_value()

    return types.void(sizes, rows, types.int64, types.int64, types.int64), codegen


def _gradient(cell: Cell, kind: Float, builder: ir.IRBuilder, *args: Any) -> None:
    sizes, rows, (n, first, last) = Sizes(*unpack(builder, args[0])), Rows(*unpack(builder, args[1])), args[2:]

    def block(i: Any, j: Any) -> None:
        unit = builder.mul(j, number(kind.lanes))
        left = builder.sub(sizes.H, unit)
        place = Place(builder, kind, rows, i, unit)
        with builder.if_else(builder.icmp_signed(">=", left, number(kind.lanes))) as (whole, part):
            with whole:
                _apply(cell, place, sizes, j, number(kind.lanes), None)
            with part:
                _apply(cell, place, sizes, j, left, place.memory.first_lanes(left))

    each(builder, number(0), n, lambda i: each(builder, first, last, partial(block, i)))


class Place:
    """Where a row's block is in each of the tables."""

    def __init__(self, builder: ir.IRBuilder, kind: Float, rows: Rows, i: Any, unit: Any) -> None:
        self.builder, self.rows, self.i, self.unit = builder, rows, i, unit
        self.memory = Memory(builder, kind)

    def row(self, name: str) -> Any:
        """Return the address of the row."""
        pointer = self.memory.kind.item.as_pointer()
        return self.builder.load(self.builder.gep(getattr(self.rows, name), [self.i], source_etype=pointer), typ=pointer)

    def unit_of(self, name: str) -> Any:
        """Return the address of the block's first unit in a row that has an item a unit."""
        return self.memory.at(self.row(name), self.unit)


def _apply(cell: Cell, place: Place, sizes: Sizes, j: Any, units: Any, mask: Any) -> None:
    """Read what `units` units need, apply the formula, write. Under a mask all that is read beyond them is 0, and so are the results."""
    builder, memory = place.builder, place.memory
    zero = memory.zero

    def load(name: str) -> Vector:
        return memory.load(place.unit_of(name), mask)

    gates = memory.at(place.row("gates"), builder.mul(place.unit, number(cell.saved))) if cell.saved else None
    saved = [memory.load(memory.at(gates, builder.mul(units, number(k))), mask) for k in range(cell.saved)]
    before, after = load("before") if cell.carries else zero, zero if cell.reads_h else load("after")
    d_sums, carry = cell.gradient(saved, before, after, load("dh"), load("carry") if cell.carries else zero)
    panel = memory.at(place.row("d_sums"), builder.mul(j, sizes.panel))
    for k, d_sum in enumerate(d_sums):
        memory.store(d_sum, memory.at(panel, k * memory.kind.lanes))
    if cell.carries:
        memory.store(carry, place.unit_of("carry"), mask)
    if cell.output:
        with builder.if_then(builder.icmp_signed("!=", sizes.is_projected, number(0))):
            memory.store(cell.output(saved, after), place.unit_of("unprojected"), mask)
