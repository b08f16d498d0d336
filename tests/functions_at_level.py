"""Run by test_functions.py in a process per CPU level: evaluate exp, sigmoid and tanh on arrays, as the kernels do on registers."""

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastpack.kernels import functions
from fastpack.kernels.simd import I64, Float, Vector, float_of

Rows = Callable[[Vector], list[Vector]]

# What makes the tests of accuracy fail: a coefficient, ln2 without its second piece, no subnormal numbers
WRONG: dict[str, Callable[[functions.Constants], functions.Constants]] = {
    "coefficient": lambda known: known._replace(tanh=(known.tanh[0] * 0.99, *known.tanh[1:])),
    "ln2": lambda known: known._replace(ln2=(sum(known.ln2), 0.0)),
    "end": lambda known: known._replace(sigmoid_ends=(known.sigmoid_ends[0] * 0.83, known.sigmoid_ends[1])),
    "tanh_end": lambda known: known._replace(tanh_end=known.tanh_end * 0.8),
}


def ours(x: Vector) -> list[Vector]:
    return [functions.exp(x), functions.sigmoid(x), functions.tanh(x)]


def fractions(x: Vector) -> list[Vector]:
    return [*functions.sigmoid_fraction(x), *functions.tanh_fraction(x)]


def sleef(bits: int) -> Rows | None:
    """Return the exp and tanh that torch is built with, for vectors of this CPU level, if it has them."""
    kind = float_of(bits)
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    library = ctypes.CDLL(next(str(path) for path in Path(spec.submodule_search_locations[0], "lib").glob("libtorch_cpu.*")))
    names = [f"Sleef_{name}{'fd'[bits // 64]}{kind.lanes}_u10" for name in ("exp", "tanh")]
    if not all(hasattr(library, name) for name in names):
        return None
    addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in names]
    function = ir.FunctionType(kind.vector, [kind.vector]).as_pointer()

    def call(x: Vector, address: int | None) -> Vector:
        return x.of(x.builder.call(x.builder.inttoptr(ir.Constant(I64, address), function), [x.value]))

    return lambda x: [call(x, address) for address in addresses]


def evaluate(rows: Rows, count: int, kind: Float, x: np.ndarray) -> np.ndarray:
    """Return `count` rows: what `rows` makes of x, a vector at a time."""
    dtype = np.float32 if kind.bits == 32 else np.float64
    item, lanes = types.float32 if kind.bits == 32 else types.float64, kind.lanes

    @intrinsic
    def apply(_typing: Any, source: Any, out: Any, n: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            source, out, n, at = args

            def place(address: Any, index: Any) -> Any:
                pointer = builder.inttoptr(address, kind.item.as_pointer())
                return builder.bitcast(builder.gep(pointer, [index], source_etype=kind.item), kind.vector.as_pointer())

            vector = Vector(builder, builder.load(place(source, at), align=kind.bits // 8, typ=kind.vector), kind)
            for k, row in enumerate(rows(vector)):
                index = builder.add(at, builder.mul(n, ir.Constant(I64, k)))
                builder.store(row.value, place(out, index), align=kind.bits // 8)
            return context.get_dummy_value()

        return types.void(source, out, n, at), codegen

    @numba.njit(types.void(types.int64, types.int64, types.int64), error_model="numpy")
    def run(source: Any, out: Any, n: Any) -> None:
        for at in range(0, n, lanes):
            apply(source, out, n, at)

    assert item.bitwidth == kind.bits
    padded = np.resize(x, -(-x.size // lanes) * lanes).astype(dtype)
    out = np.empty((count, padded.size), dtype)
    run(padded.ctypes.data, out.ctypes.data, padded.size)
    return out[:, : x.size]


def main(inputs: str, outputs: str, stride: str, guard: str) -> None:
    found: dict[str, np.ndarray] = {}
    for bits, x in ((32, np.load(inputs)["x32"]), (64, np.load(inputs)["x64"])):
        kind, some = float_of(bits), x[:: int(stride)]
        found[f"ours{bits}"] = evaluate(ours, 3, kind, x)
        found[f"fractions{bits}"] = evaluate(fractions, 4, kind, some)
        found[f"nan{bits}"] = evaluate(ours, 3, kind, np.array([np.nan, -np.nan], x.dtype))
        found[f"lanes{bits}"] = evaluate(ours, 3, Float(bits, 2), some)
        if called := sleef(bits):
            found[f"sleef{bits}"] = evaluate(called, 2, kind, some)
        for name, change in WRONG.items() if guard else ():
            right = functions.CONSTANTS[bits]
            functions.CONSTANTS[bits] = change(right)
            found[f"{name}{bits}"] = evaluate(ours, 3, kind, some)
            functions.CONSTANTS[bits] = right
    np.savez(outputs, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
