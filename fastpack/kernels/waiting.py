"""Threads that wait for each other: numbers that all of them see, and how to wait for one."""

import platform
import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I64 = ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator]
def count_up(_typing: Any, counter: Any) -> Any:
    """Add 1 to a number that several threads count on; what this thread wrote before is there for who reads the number."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.atomic_rmw("add", args[0], ir.Constant(I64, 1), "release")
        return context.get_dummy_value()

    return types.void(counter), codegen


@intrinsic  # type: ignore[untyped-decorator]
def counted(_typing: Any, counter: Any) -> Any:
    """Read such a number; what its threads wrote before is there."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load_atomic(args[0], "acquire", 8, typ=I64)

    return types.int64(counter), codegen


@intrinsic  # type: ignore[untyped-decorator]
def took(_typing: Any, number: Any, expected: Any) -> Any:
    """Whether a number was `expected` and this thread was the one to add 1 to it."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        following = builder.add(args[1], ir.Constant(I64, 1))
        return builder.extract_value(builder.cmpxchg(args[0], args[1], following, "monotonic", "monotonic"), 1)

    return types.boolean(number, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def give_way(_typing: Any) -> Any:
    """Let another thread have this core."""

    def codegen(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic  # type: ignore[untyped-decorator]
def pause(_typing: Any) -> Any:
    """Wait a moment, without work for the core's other thread to wait for."""

    def codegen(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), name), [])
        return context.get_dummy_value()

    return types.void(), codegen
