"""A vector as a value with operators, while LLVM IR is made: `a * b + c` writes two instructions.

Nothing here is Numba's: a `Vector` lives only inside an intrinsic's `codegen`, which costs Numba no type inference. There is
no fast-math and no implied contraction: each operation is done as written, so a row's bits never depend on its neighbours.
"""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from fastpack.blocks import VECTOR_BYTES

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


class Registers(NamedTuple):
    """What a CPU level has, beside registers' width."""

    accumulators: int  # how many a tile keeps, beside what it loads
    fused: bool  # whether there is an instruction for a * b + c


# Without a promise of a fused instruction LLVM would call the C library, a lane at a time
REGISTERS = {
    "x86-64-v4": Registers(accumulators=24, fused=True),
    "x86-64-v3": Registers(accumulators=12, fused=True),
    "x86-64-v2": Registers(accumulators=8, fused=False),
}
OTHERS = Registers(accumulators=16, fused=True) if platform.machine().lower() in ("arm64", "aarch64") else REGISTERS["x86-64-v2"]

LEVEL = os.environ.get("FASTPACK_COMPILING", "")
REGISTER = REGISTERS.get(LEVEL, OTHERS)
VECTOR = VECTOR_BYTES.get(LEVEL, 16)  # bytes


class Float(NamedTuple):
    """A floating-point type and its vectors on this CPU level."""

    bits: int  # 32 or 64
    lanes: int

    @property
    def item(self) -> ir.Type:
        """LLVM's type of one number."""
        return ir.FloatType() if self.bits == 32 else ir.DoubleType()

    @property
    def integer(self) -> ir.Type:
        """LLVM's type of an integer of the same width."""
        return ir.IntType(self.bits)

    @property
    def vector(self) -> ir.Type:
        """LLVM's type of a vector of numbers."""
        return ir.VectorType(self.item, self.lanes)

    @property
    def integers(self) -> ir.Type:
        """LLVM's type of a vector of such integers."""
        return ir.VectorType(self.integer, self.lanes)


def float_of(bits: int) -> Float:
    """Return float32 or float64 with as many lanes as a register holds."""
    return Float(bits, VECTOR * 8 // bits)


class Vector:
    """As many numbers as a register holds: floats, or what `bits` and comparisons make of them."""

    def __init__(self, builder: ir.IRBuilder, value: Any, kind: Float) -> None:
        self.builder, self.value, self.kind = builder, value, kind

    def of(self, value: Any) -> "Vector":
        """Return another vector of the same kind."""
        return Vector(self.builder, value, self.kind)

    def full(self, number: float | int) -> "Vector":
        """Return a vector of `number` in each lane, of integers where this one is."""
        return self.of(ir.Constant(self.value.type, [number] * self.kind.lanes))

    def _with(self, other: "Vector | float | int") -> Any:
        return other.value if isinstance(other, Vector) else self.full(other).value

    @property
    def _is_float(self) -> bool:
        return isinstance(self.value.type.element, (ir.FloatType, ir.DoubleType))

    def __add__(self, other: "Vector | float | int") -> "Vector":
        return self.of((self.builder.fadd if self._is_float else self.builder.add)(self.value, self._with(other)))

    def __sub__(self, other: "Vector | float | int") -> "Vector":
        return self.of((self.builder.fsub if self._is_float else self.builder.sub)(self.value, self._with(other)))

    def __rsub__(self, other: float | int) -> "Vector":
        return self.full(other) - self

    def __mul__(self, other: "Vector | float") -> "Vector":
        return self.of(self.builder.fmul(self.value, self._with(other)))

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: "Vector | float") -> "Vector":
        return self.of(self.builder.fdiv(self.value, self._with(other)))

    def __rtruediv__(self, other: float) -> "Vector":
        return self.full(other) / self

    def __neg__(self) -> "Vector":
        return self.of(self.builder.fneg(self.value))

    def __lshift__(self, count: int) -> "Vector":
        return self.of(self.builder.shl(self.value, self._with(count)))

    def __rshift__(self, count: int) -> "Vector":
        return self.of(self.builder.ashr(self.value, self._with(count)))

    def __and__(self, other: "Vector | int") -> "Vector":
        return self.of(self.builder.and_(self.value, self._with(other)))

    def __or__(self, other: "Vector | int") -> "Vector":
        return self.of(self.builder.or_(self.value, self._with(other)))

    def __lt__(self, other: "Vector | float") -> "Vector":
        return self._compare("<", other)

    def __gt__(self, other: "Vector | float") -> "Vector":
        return self._compare(">", other)

    def __le__(self, other: "Vector | float") -> "Vector":
        return self._compare("<=", other)

    def __ge__(self, other: "Vector | float") -> "Vector":
        return self._compare(">=", other)

    def _compare(self, how: str, other: "Vector | float") -> "Vector":
        """Return one bit a lane; false where either is NaN."""
        compare = self.builder.fcmp_ordered if self._is_float else self.builder.icmp_signed
        return self.of(compare(how, self.value, self._with(other)))

    def where(self, yes: "Vector | float", no: "Vector | float") -> "Vector":
        """Return `yes` in the lanes where this comparison holds, else `no`. At least one of the two is a vector."""
        like = yes if isinstance(yes, Vector) else no
        assert isinstance(like, Vector)  # noqa: S101
        return like.of(self.builder.select(self.value, like._with(yes), like._with(no)))

    def bits(self) -> "Vector":
        """Return the same bits as integers."""
        return self.of(self.builder.bitcast(self.value, self.kind.integers))

    def floats(self) -> "Vector":
        """Return the same bits as floats."""
        return self.of(self.builder.bitcast(self.value, self.kind.vector))

    def to_integers(self) -> "Vector":
        """Return the integer value of floats that are whole numbers within range."""
        return self.of(self.builder.fptosi(self.value, self.kind.integers))

    def call(self, name: str, *others: "Vector | float") -> "Vector":
        """Return LLVM's intrinsic `name` of this and other vectors of floats."""
        vector = self.kind.vector
        full = f"llvm.{name}.v{self.kind.lanes}f{self.kind.bits}"
        module = self.builder.module
        function = module.globals.get(full) or ir.Function(module, ir.FunctionType(vector, [vector] * (1 + len(others))), name=full)
        return self.of(self.builder.call(function, [self.value, *map(self._with, others)]))


def fma(a: Vector, b: Vector | float, c: Vector | float) -> Vector:
    """Return a * b + c, rounded once where the CPU level has an instruction for that, else twice."""
    return a.call("fma", b, c) if REGISTER.fused else a * b + c


def rint(a: Vector) -> Vector:
    """Return the nearest whole numbers, of two equally near ones the even."""
    return a.call("rint")


def absolute(a: Vector) -> Vector:
    """Return |a|."""
    return a.call("fabs")


def copysign(a: Vector, sign: Vector) -> Vector:
    """Return |a| with the sign of `sign`."""
    return a.call("copysign", sign)


def horner(x: Vector, *coefficients: float) -> Vector:
    """Return the polynomial in x, highest power first."""
    result = x.full(coefficients[0])
    for coefficient in coefficients[1:]:
        result = fma(result, x, coefficient)
    return result


class Memory:
    """Reads and writes vectors, none of which needs to be aligned."""

    def __init__(self, builder: ir.IRBuilder, kind: Float) -> None:
        self.builder, self.kind = builder, kind

    def at(self, pointer: Any, items: Any) -> Any:
        """Return the address so many items further on."""
        return self.builder.gep(pointer, [number(items)], source_etype=self.kind.item)

    @property
    def zero(self) -> Vector:
        """Return a vector of zeros."""
        return Vector(self.builder, ir.Constant(self.kind.vector, [0.0] * self.kind.lanes), self.kind)

    def load(self, pointer: Any, mask: Any = None) -> Vector:
        """Load a vector; under a mask, only its lanes, and zeros beside them."""
        if mask is None:
            return Vector(self.builder, self.builder.load(pointer, align=self.kind.bits // 8, typ=self.kind.vector), self.kind)
        loaded = self._intrinsic(f"llvm.masked.load.{self._vector_name}.p0", self.kind.vector, pointer, self._align, mask, self.zero.value)
        return Vector(self.builder, loaded, self.kind)

    def store(self, value: Vector, pointer: Any, mask: Any = None) -> None:
        """Store a vector, or only a mask's lanes of it."""
        if mask is None:
            self.builder.store(value.value, self.builder.bitcast(pointer, self.kind.vector.as_pointer()), align=self.kind.bits // 8)
        else:
            self._intrinsic(f"llvm.masked.store.{self._vector_name}.p0", ir.VoidType(), value.value, pointer, self._align, mask)

    def spread(self, pointer: Any) -> Vector:
        """Load one item into every lane."""
        item = self.builder.load(pointer, align=self.kind.bits // 8, typ=self.kind.item)
        return Vector(self.builder, self._in_each_lane(item, self.kind.vector), self.kind)

    def first_lanes(self, count: Any) -> Any:
        """Return the mask of the first `count` lanes, which may be more than there are."""
        numbers = ir.Constant(ir.VectorType(I32, self.kind.lanes), list(range(self.kind.lanes)))
        return self.builder.icmp_signed("<", numbers, self._in_each_lane(self.builder.trunc(count, I32), numbers.type))

    def prefetch(self, pointer: Any) -> None:
        """Have the line at this address, which may be anything, fetched into the first-level cache."""
        read, keep, data = (ir.Constant(I32, flag) for flag in (0, 3, 1))
        self._intrinsic("llvm.prefetch.p0", ir.VoidType(), pointer, read, keep, data)

    @property
    def _vector_name(self) -> str:
        return f"v{self.kind.lanes}f{self.kind.bits}"

    @property
    def _align(self) -> Any:
        return ir.Constant(I32, self.kind.bits // 8)

    def _in_each_lane(self, item: Any, vector: ir.Type) -> Any:
        undefined = ir.Constant(vector, ir.Undefined)
        first = self.builder.insert_element(undefined, item, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))

    def _intrinsic(self, name: str, result: ir.Type, *arguments: Any) -> Any:
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, [argument.type for argument in arguments]), name=name)
        kinds = function.function_type.args  # a pointer's may be to other items than where the function was declared
        return self.builder.call(
            function, [self.builder.bitcast(a, k) if a.type != k else a for a, k in zip(arguments, kinds, strict=True)]
        )


def number(value: Any) -> Any:
    """Return an int64 of the IR, of a Python number or of what is one already."""
    return ir.Constant(I64, value) if isinstance(value, int) else value


def loop(
    builder: ir.IRBuilder, first: Any, last: Any, vectors: Sequence[Vector], body: Callable[[Any, list[Vector]], list[Vector]]
) -> list[Vector]:
    """Write a loop from `first` up to `last`, and return what `body`, given the counter and the vectors, made of them."""
    before, head, done = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("loop.done")

    def phi(vector: Vector) -> Vector:
        value = builder.phi(vector.value.type)
        value.add_incoming(vector.value, before)
        return vector.of(value)

    builder.cbranch(builder.icmp_signed("<", first, last), head, done)
    builder.position_at_end(head)
    counter = builder.phi(I64)
    counter.add_incoming(first, before)
    live = [phi(vector) for vector in vectors]
    new = body(counter, live)
    end, following = builder.block, builder.add(counter, number(1))
    counter.add_incoming(following, end)
    builder.cbranch(builder.icmp_signed("<", following, last), head, done)
    builder.position_at_end(done)
    result = [phi(vector) for vector in vectors]
    for old, after, vector in zip(live, result, new, strict=True):
        old.value.add_incoming(vector.value, end)
        after.value.add_incoming(vector.value, end)
    return result


def each(builder: ir.IRBuilder, first: Any, last: Any, body: Callable[[Any], None]) -> None:
    """Write a loop from `first` up to `last` that only does what `body` does, given the counter."""

    def nothing_else(counter: Any, vectors: list[Vector]) -> list[Vector]:
        body(counter)
        return vectors

    loop(builder, first, last, [], nothing_else)


def switch(builder: ir.IRBuilder, value: Any, cases: Mapping[int, Callable[[], None]]) -> None:
    """Write each case, and the choice between them: there is always one that `value` is."""
    done, never = builder.append_basic_block("done"), builder.append_basic_block("never")
    chosen = builder.switch(value, never)
    for key, emit in cases.items():
        block = builder.append_basic_block(f"case{key}")
        chosen.add_case(number(key), block)
        builder.position_at_end(block)
        emit()
        builder.branch(done)
    builder.position_at_end(never)
    builder.unreachable()
    builder.position_at_end(done)


def own_function(
    builder: ir.IRBuilder, name: str, inlining: str, arguments: Sequence[Any], result: ir.Type, emit: Callable[..., Any]
) -> Any:
    """Call a function of the module's own, which `emit` writes at its first call, given a builder and the arguments."""
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = ir.Function(builder.module, kind, name)
        function.linkage = "internal"
        function.attributes.add(inlining)
        inside = ir.IRBuilder(function.append_basic_block())
        returned = emit(inside, *function.args)
        inside.ret_void() if returned is None else inside.ret(returned)
    return builder.call(function, arguments)
