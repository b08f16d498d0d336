"""What a kernel is: a loop over memory that its caller owns, registered under the block that names its arguments.

A kernel does the shares `begin..end` of the work. It never validates, allocates, raises or returns.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import numba
from numba import types

# The options stand here alone: `error_model` and `boundscheck` so that nothing can raise. No `fastmath`: it lets LLVM drop NaN
# and infinity.
OPTIONS = {"nogil": True, "error_model": "numpy", "boundscheck": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

TYPES = {
    "int64": types.int64,
    "int64*": types.CPointer(types.int64),
    "uint8*": types.CPointer(types.uint8),
    "uint8**": types.CPointer(types.CPointer(types.uint8)),
}


class Kernel(NamedTuple):
    """A kernel's name, its Python function and the kind of each argument after `begin` and `end`."""

    name: str
    function: Callable[..., None]
    kinds: tuple[str, ...]


KERNELS: dict[str, Kernel] = {}


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that kernels call; LLVM inlines it. Numba compiles it anew for each literal that it is passed."""
    compiled: Callable[..., Any] = numba.njit(**OPTIONS)(function)
    return compiled


def kernel(block: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register the decorated function as the kernel of `block`, whose field names its parameters repeat."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(block, include_extras=True)
        parameters = list(inspect.signature(function).parameters)
        if parameters != ["begin", "end", *hints]:
            raise TypeError(f"{function.__name__} takes {parameters}, but its block is begin, end, {', '.join(hints)}")
        kinds = tuple(hint.__metadata__[0] for hint in hints.values())
        KERNELS[function.__name__] = Kernel(function.__name__, function, kinds)
        return function

    return register
