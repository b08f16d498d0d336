"""The yardstick: what multiply-adds alone reach on one core, at a CPU level: `python -m bench.peak x86-64-v3`.

As many rows by 4 vectors of sums as the level's registers hold, K products each, from rows and weights in the first-level cache.
No matrix kernel can be faster. Numba compiles for one CPU a process, so each level is measured in a process of its own.
"""

import sys
import time
from functools import cache
from typing import Any

from bench.children import output_of
from fastpack import compiler, machine

VECTORS, K = 4, 256
SECONDS = 0.3


@cache
def peak(level: str = "") -> float:
    """Return the floating-point operations a second that float32 reaches, at the level in use if none is given."""
    level = level or machine.library().level
    steering = {"FASTPACK_COMPILING": level, "NUMBA_CPU_NAME": compiler.llvm_cpu(level), "NUMBA_CPU_FEATURES": ""}
    return float(output_of("-c", "from bench.peak import measure; print(measure())", **steering))


def measure() -> float:
    """Return the best rate seen in this process.

    Raises
    ------
    RuntimeError
        The sums are wrong.
    """
    import numba
    import numpy as np
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    from fastpack.kernels.simd import REGISTER, Memory, Vector, float_of, fma, number

    kind, rows = float_of(32), REGISTER.accumulators // VECTORS
    # the smaller side stays and the other comes one by one: the other way round, AVX2 reaches half and AVX-512 three quarters
    order = sorted(range(rows * VECTORS), key=lambda k: k // VECTORS if rows > VECTORS else k % VECTORS)

    @intrinsic
    def tile(_typing: Any, a: Any, b: Any, c: Any) -> Any:
        """Add a (K, rows) times b (K, VECTORS * lanes) to c."""

        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            memory = Memory(builder, kind)
            a, b, c = (builder.inttoptr(address, kind.item.as_pointer()) for address in args)
            places = [memory.at(c, k * kind.lanes) for k in range(rows * VECTORS)]
            sums = [cgutils.alloca_once_value(builder, memory.load(place).value) for place in places]  # LLVM keeps them in registers
            with cgutils.for_range(builder, number(K)) as loop:
                row = memory.at(a, builder.mul(loop.index, number(rows)))
                weights = memory.at(b, builder.mul(loop.index, number(VECTORS * kind.lanes)))
                items = cache(lambda r: memory.spread(memory.at(row, r)))
                factors = cache(lambda j: memory.load(memory.at(weights, j * kind.lanes)))
                for k in order:
                    before = Vector(builder, builder.load(sums[k], typ=kind.vector), kind)
                    builder.store(fma(items(k // VECTORS), factors(k % VECTORS), before).value, sums[k])
            for place, total in zip(places, sums, strict=True):
                memory.store(Vector(builder, builder.load(total, typ=kind.vector), kind), place)
            return context.get_dummy_value()

        return types.void(a, b, c), codegen

    @numba.njit(nogil=True)
    def repeat(a: int, b: int, c: int, times: int) -> None:
        for _ in range(times):
            tile(a, b, c)

    random = np.random.default_rng(0)
    a, b = (random.standard_normal((K, width), np.float32) for width in (rows, VECTORS * kind.lanes))
    c = np.zeros((rows, VECTORS * kind.lanes), np.float32)
    addresses = [array.ctypes.data for array in (a, b, c)]
    repeat(*addresses, 1)
    if not np.allclose(c, a.T @ b, atol=1e-3):
        raise RuntimeError("the yardstick is wrong")
    best, times, end = np.inf, 500, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        c[:] = 0
        begin = time.perf_counter()
        repeat(*addresses, times)
        best = min(best, (time.perf_counter() - begin) / times)
    return 2 * K * c.size / best


if __name__ == "__main__":
    print(f"{peak(*sys.argv[1:]) / 1e9:.0f} GFLOP/s")
