"""Pointers in Numba: moving along, reading as another type, copying. Each is a line or two of LLVM IR."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastpack.kernels.kernel import helper

I8, I64 = ir.IntType(8), ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator]
def advance(_typing: Any, pointer: Any, count: Any) -> Any:
    """Move on by `count` items. Pointer arithmetic, never integers: LLVM 22 can miscompile sums that become pointers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        item = context.get_data_type(signature.args[0].dtype)
        return builder.gep(args[0], [args[1]], source_etype=item)

    return pointer(pointer, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def is_null(_typing: Any, pointer: Any) -> Any:
    """Whether there is nothing at this address."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.icmp_unsigned("==", builder.ptrtoint(args[0], I64), ir.Constant(I64, 0))

    return types.boolean(pointer), codegen


@intrinsic  # type: ignore[untyped-decorator]
def null(_typing: Any, like: Any) -> Any:
    """Return the address of nothing, as one of such items as those at `like`."""

    def codegen(context: Any, _builder: Any, signature: Any, _args: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return like(like), codegen


def _caster(result: Any) -> Any:
    """Make a function that takes the same address as one of other items."""

    @intrinsic  # type: ignore[untyped-decorator]
    def cast(_typing: Any, pointer: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(result))

        return result(pointer), codegen

    return cast


as_bytes = _caster(types.CPointer(types.uint8))
as_float32, as_float64 = _caster(types.CPointer(types.float32)), _caster(types.CPointer(types.float64))


def _reader(item: Any) -> Any:
    """Make a function that reads item `k` of an array of such integers, at any address, as an int64."""

    @intrinsic  # type: ignore[untyped-decorator]
    def read(_typing: Any, pointer: Any, k: Any) -> Any:
        def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            place = builder.gep(builder.bitcast(args[0], item.as_pointer()), [args[1]], source_etype=item)
            return builder.sext(builder.load(place, align=1, typ=item), I64)

        return types.int64(pointer, types.int64), codegen

    return read


read_int32, read_int64 = _reader(ir.IntType(32)), _reader(I64)


@intrinsic  # type: ignore[untyped-decorator]
def as_items(_typing: Any, pointer: Any, like: Any) -> Any:
    """Take an address as one of such items as those at `like`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return like(pointer, like), codegen


@intrinsic  # type: ignore[untyped-decorator]
def as_table(_typing: Any, pointer: Any) -> Any:
    """Take an address as that of a table of addresses of such items."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(pointer)(pointer), codegen


@intrinsic  # type: ignore[untyped-decorator]
def item_bytes_of(_typing: Any, pointer: Any) -> Any:
    """How many bytes an item has: a constant."""

    def codegen(_context: Any, _builder: Any, signature: Any, _args: Any) -> Any:
        return ir.Constant(I64, signature.args[0].dtype.bitwidth // 8)

    return types.int64(pointer), codegen


def _copier(width: int) -> Any:
    """Make a function that copies `width` bytes by one vector load and one store, neither aligned."""
    vector = ir.VectorType(I8, width)

    @intrinsic  # type: ignore[untyped-decorator]
    def copy(_typing: Any, to: Any, source: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            target, origin = (builder.bitcast(address, vector.as_pointer()) for address in args)
            builder.store(builder.load(origin, align=1), target, align=1)
            return context.get_dummy_value()

        return types.void(to, source), codegen

    return copy


copy_1, copy_2, copy_4, copy_8, copy_16, copy_32 = (_copier(width) for width in (1, 2, 4, 8, 16, 32))


@helper
def copy_row(to, source, row_bytes):
    # A last vector that overlaps the one before makes any length a few whole vectors. The C library's memcpy lost at every
    # length, by 5 to 25 % for rows of 1 to 4 KB and by up to 45 % for whole sequences.
    if row_bytes >= 64:
        at = 0
        while at + 64 <= row_bytes:
            copy_32(advance(to, at), advance(source, at))
            copy_32(advance(to, at + 32), advance(source, at + 32))
            at += 64
        if at < row_bytes:
            copy_32(advance(to, row_bytes - 64), advance(source, row_bytes - 64))
            copy_32(advance(to, row_bytes - 32), advance(source, row_bytes - 32))
    elif row_bytes >= 32:
        copy_32(to, source)
        copy_32(advance(to, row_bytes - 32), advance(source, row_bytes - 32))
    elif row_bytes >= 16:
        copy_16(to, source)
        copy_16(advance(to, row_bytes - 16), advance(source, row_bytes - 16))
    elif row_bytes >= 8:
        copy_8(to, source)
        copy_8(advance(to, row_bytes - 8), advance(source, row_bytes - 8))
    elif row_bytes >= 4:
        copy_4(to, source)
        copy_4(advance(to, row_bytes - 4), advance(source, row_bytes - 4))
    elif row_bytes >= 2:
        copy_2(to, source)
        copy_2(advance(to, row_bytes - 2), advance(source, row_bytes - 2))
    elif row_bytes == 1:
        copy_1(to, source)


@helper
def copy_items(to, source, first, last):
    # items first..last of a row
    copy_row(as_bytes(advance(to, first)), as_bytes(advance(source, first)), (last - first) * item_bytes_of(to))


@intrinsic  # type: ignore[untyped-decorator]
def stack_pointers(_typing: Any, count: Any) -> Any:
    """Room on the stack for `count` pointers, a literal number."""

    def codegen(context: Any, builder: Any, signature: Any, _args: Any) -> Any:
        pointer = context.get_value_type(types.CPointer(types.uint8))
        with builder.goto_entry_block():
            return builder.alloca(pointer, size=ir.Constant(I64, signature.args[0].literal_value))

    if not isinstance(count, types.IntegerLiteral):
        return None
    return types.CPointer(types.CPointer(types.uint8))(count), codegen


def transposer(item_bytes: int, side: int) -> Any:
    """Make a function that transposes a tile of `side` by `side` items of `item_bytes`, in registers.

    It reads `side` runs of `side` items at `sources` and writes as many at `targets`, each `offset` bytes further on.
    Interleaving the first half of the vectors with the second, log2(side) times, is a transposition.
    """
    vector = ir.VectorType(ir.IntType(8 * item_bytes), side)
    low = [k // 2 + side * (k % 2) for k in range(side)]
    high = [side // 2 + k for k in low]

    def mask(lanes: list[int]) -> ir.Constant:
        return ir.Constant(ir.VectorType(ir.IntType(32), side), lanes)

    @intrinsic  # type: ignore[untyped-decorator]
    def transpose(_typing: Any, sources: Any, source_offset: Any, targets: Any, target_offset: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            def place(pointers: Any, offset: Any, k: int) -> Any:
                pointer = builder.load(builder.gep(pointers, [ir.Constant(I64, k)], source_etype=I8.as_pointer()), typ=I8.as_pointer())
                return builder.bitcast(builder.gep(pointer, [offset], source_etype=I8), vector.as_pointer())

            tile = [builder.load(place(args[0], args[1], k), align=1, typ=vector) for k in range(side)]
            for _ in range(side.bit_length() - 1):
                pairs = zip(tile[: side // 2], tile[side // 2 :], strict=True)
                tile = [builder.shuffle_vector(a, b, mask(half)) for a, b in pairs for half in (low, high)]
            for k, item in enumerate(tile):
                builder.store(item, place(args[2], args[3], k), align=1)
            return context.get_dummy_value()

        return types.void(sources, types.int64, targets, types.int64), codegen

    return transpose
