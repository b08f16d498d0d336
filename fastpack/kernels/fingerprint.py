"""Telling one content of arrays from another, at the speed of reading them.

Words are of 8 bytes, a stripe is 8 words: one vector on every CPU level, of which LLVM makes two or four registers where they
are narrower. A word with the halves `low` and `high` counts as (low + k) * (high + l), k and l being the halves of a key that
differs from word to word. So words that changed places are noticed, and signs that changed everywhere; that a single word
changed is seen for certain from the plain sum of words. It is no defence against someone who looks for two contents alike.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastpack import blocks
from fastpack.blocks import KEY
from fastpack.kernels.kernel import kernel
from fastpack.kernels.memory import I8, I64, advance

STRIPE = 64  # bytes
I32 = ir.IntType(32)
WORDS, HALVES = ir.VectorType(I64, 8), ir.VectorType(I32, 16)
PRODUCTS, SUMS, NEXT_KEYS = range(3)  # the three vectors of a state, which LLVM keeps in registers
FIRST_KEYS = [KEY * (k + 1) % 2**64 for k in range(8)]
STEP = ir.Constant(WORDS, [KEY * 8 % 2**64] * 8)  # from the keys of a stripe to those of the next
LOW = ir.Constant(WORDS, [2**32 - 1] * 8)


def _slot(builder: Any, state: Any, which: int) -> Any:
    return builder.bitcast(builder.gep(state, [ir.Constant(I64, which * STRIPE)], source_etype=I8), WORDS.as_pointer())


def _splat(builder: Any, word: Any) -> Any:
    single = builder.insert_element(ir.Constant(WORDS, ir.Undefined), word, ir.Constant(I32, 0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(I32, 8), [0] * 8))


def _add(builder: Any, state: Any, words: Any) -> None:
    products, sums, keys = (builder.load(_slot(builder, state, which), typ=WORDS) for which in range(3))
    mixed = builder.bitcast(builder.add(builder.bitcast(words, HALVES), builder.bitcast(keys, HALVES)), WORDS)
    product = builder.mul(builder.and_(mixed, LOW), builder.lshr(mixed, ir.Constant(WORDS, [32] * 8)))
    builder.store(builder.add(products, product), _slot(builder, state, PRODUCTS))
    builder.store(builder.add(sums, words), _slot(builder, state, SUMS))
    builder.store(builder.add(keys, STEP), _slot(builder, state, NEXT_KEYS))


@intrinsic  # type: ignore[untyped-decorator]
def new_state(_typing: Any) -> Any:
    """Both sums of nothing."""

    def codegen(_context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        with builder.goto_entry_block():
            state = builder.bitcast(builder.alloca(ir.ArrayType(WORDS, 3)), I8.as_pointer())
        for which in (PRODUCTS, SUMS):
            builder.store(ir.Constant(WORDS, None), _slot(builder, state, which))
        return state

    return types.CPointer(types.uint8)(), codegen


@intrinsic  # type: ignore[untyped-decorator]
def go_to(_typing: Any, state: Any, stripe: Any) -> Any:
    """Set the keys to those of the stripe with this number."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        moved = builder.mul(_splat(builder, args[1]), STEP)
        builder.store(builder.add(moved, ir.Constant(WORDS, FIRST_KEYS)), _slot(builder, args[0], NEXT_KEYS))
        return context.get_dummy_value()

    return types.void(state, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def add_stripe(_typing: Any, state: Any, values: Any) -> Any:
    """Count a whole stripe in."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _add(builder, args[0], builder.load(builder.bitcast(args[1], WORDS.as_pointer()), align=1, typ=WORDS))
        return context.get_dummy_value()

    return types.void(state, values), codegen


@intrinsic  # type: ignore[untyped-decorator]
def add_part(_typing: Any, state: Any, values: Any, halves: Any) -> Any:
    """Count in a stripe of which only the first `halves` words of 4 bytes are there; the others count as 0."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        state, values, halves = args
        number = builder.bitcast(_splat(builder, builder.mul(halves, ir.Constant(I64, 2**32 + 1))), HALVES)
        there = builder.icmp_unsigned("<", ir.Constant(HALVES, list(range(16))), number)
        pointer = builder.bitcast(values, HALVES.as_pointer())
        kinds = [pointer.type, I32, there.type, HALVES]
        name = "llvm.masked.load.v16i32.p0"
        load = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(HALVES, kinds), name=name)
        _add(builder, state, builder.bitcast(builder.call(load, [pointer, ir.Constant(I32, 1), there, ir.Constant(HALVES, None)]), WORDS))
        return context.get_dummy_value()

    return types.void(state, values, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def total(_typing: Any, state: Any, which: Any) -> Any:
    """Add a state's products up (0), or its words (1)."""

    def codegen(_context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = builder.load(_slot(builder, args[0], signature.args[1].literal_value), typ=WORDS)
        lanes = [builder.extract_element(words, ir.Constant(I32, lane)) for lane in range(8)]
        whole = lanes[0]
        for lane in lanes[1:]:
            whole = builder.add(whole, lane)
        return whole

    return (types.int64(state, which), codegen) if isinstance(which, types.IntegerLiteral) else None


@kernel(blocks.Fingerprint)
def fingerprint(begin: int, end: int, values: Any, nbytes: Any, arrays: int, shares: int, sums: Any) -> None:
    for share in range(begin, end):
        state, stripes_before = new_state(), 0
        for k in range(arrays):
            array, stripes = values[k], (nbytes[k] + STRIPE - 1) // STRIPE
            first, last = stripes * share // shares, stripes * (share + 1) // shares
            go_to(state, stripes_before + first)
            for stripe in range(first, min(last, nbytes[k] // STRIPE)):
                add_stripe(state, advance(array, stripe * STRIPE))
            if last == stripes and first < last and nbytes[k] % STRIPE > 0:
                add_part(state, advance(array, (stripes - 1) * STRIPE), nbytes[k] % STRIPE // 4)
            stripes_before += stripes
        sums[2 * share] = total(state, 0)
        sums[2 * share + 1] = total(state, 1)
