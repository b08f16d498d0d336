"""Which CPU this is, which library of kernels fits it, and the call of a kernel. Imports neither numba nor llvmlite.

`FASTPACK_CPU` picks a lower level than the CPU's own, `FASTPACK_KERNELS=jit` the fallback in place of the built library.
"""

import ctypes
import os
import platform
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parent
LIBRARIES = PACKAGE / "_machine_code"

# What each level asks of a CPU, beyond the level before it, as Linux and as NumPy name it.
X86_LEVELS = {
    "x86-64-v2": "cx16 popcnt sse4_1 sse4_2 ssse3",
    "x86-64-v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe",
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
}


class Library(NamedTuple):
    """The kernels in use: their CPU level, their entries' addresses, and where they came from."""

    level: str
    addresses: dict[str, int]
    origin: str  # the file
    reason: str  # why these
    keep: Any  # what must live as long as the code is called


def cpu_levels() -> list[str]:
    """Return the levels that kernels are built for on this kind of machine, lowest first."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return list(X86_LEVELS)
    return ["generic", f"host-{host_fingerprint()}"]


def supported_levels() -> list[str]:
    """Return those levels that this CPU and operating system can run, lowest first."""
    levels = cpu_levels()
    if levels[0] == "generic":
        return levels
    features = cpu_features()
    supported = levels[:1]  # NumPy itself needs no less
    for level in levels[1:]:
        if not features.issuperset(X86_LEVELS[level].split()):
            break
        supported.append(level)
    return supported


def cpu_features() -> set[str]:
    """Return the features of an x86 CPU that the operating system lets programs use, by Linux's names."""
    try:
        # one page: the file lists every core, and each costs the kernel time
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file.read(8192).splitlines():
                if line.startswith("flags"):
                    return set(line.partition(":")[2].split())
    except OSError:
        pass
    try:  # private to NumPy, so never relied on: without it, the lowest level
        from numpy._core._multiarray_umath import __cpu_features__ as known
    except ImportError:
        return set()
    features = {name.lower() for name, present in known.items() if present}
    if {"fma3", "avx2"} <= features:
        features |= {"fma", "bmi1", "bmi2", "abm", "movbe"}  # every CPU with AVX2 and FMA has these; NumPy does not list them
    return features


def host_fingerprint() -> str:
    """Return a name for exactly this CPU, where there are no named levels."""
    import hashlib

    described = platform.machine() + platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = file.read(8192).lower().splitlines()
        described += "".join(sorted({line for line in lines if line.startswith(("features", "cpu implementer", "cpu part", "isa"))}))
    except OSError:
        pass
    return hashlib.sha256(described.encode()).hexdigest()[:8]


def sources_digest() -> str:
    """Return a hash of all that decides what the kernels' machine code is: a library built from other sources does not fit."""
    import hashlib

    digest = hashlib.sha256()
    for path in [*sorted((PACKAGE / "kernels").glob("*.py")), PACKAGE / "blocks.py", PACKAGE / "compiler.py"]:
        digest.update(path.name.encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def library_name(level: str) -> str:
    """Return the file name of the library for `level`, built from the sources as they are now."""
    return f"{level}-{sources_digest()}.so"


def chosen_level() -> tuple[str, str]:
    """Return the level to use and why.

    Raises
    ------
    ValueError
        FASTPACK_CPU names no level, or one that this CPU cannot run.
    """
    supported = supported_levels()
    wanted = os.environ.get("FASTPACK_CPU", "")
    if not wanted:
        return supported[-1], "the highest level of this CPU"
    if wanted not in cpu_levels():
        raise ValueError(f"FASTPACK_CPU is {wanted!r}, but the levels here are {', '.join(cpu_levels())}")
    if wanted not in supported:
        raise ValueError(f"FASTPACK_CPU is {wanted!r}, but this CPU runs no more than {supported[-1]}")
    return wanted, "FASTPACK_CPU"


def _open_library() -> Library:
    level, reason = chosen_level()
    wish = os.environ.get("FASTPACK_KERNELS", "")
    if wish not in ("", "jit"):
        raise ValueError(f"FASTPACK_KERNELS is {wish!r}, but can only be 'jit' or unset")
    if wish == "jit":
        from fastpack import fallback

        return fallback.load(level, f"{reason}; FASTPACK_KERNELS=jit")
    # without a wish for a level, the best that was built will do
    levels = [level] if reason == "FASTPACK_CPU" else supported_levels()[::-1]
    for level in levels:
        path = LIBRARIES / library_name(level)
        if path.exists():
            return Library(level, _addresses(ctypes.CDLL(str(path))), str(path), f"{reason}; built ahead", None)
    from fastpack import fallback

    why = "built from other sources" if any(LIBRARIES.glob("*.so")) else "not built"
    return fallback.load(levels[0], f"{reason}; the ahead-built library is {why}")


def _addresses(opened: ctypes.CDLL) -> dict[str, int]:
    addresses = {name: ctypes.cast(getattr(opened, f"fastpack_{name}"), ctypes.c_void_p).value or 0 for name in kernel_names()}
    return addresses


def kernel_names() -> list[str]:
    """Return the name of each kernel: its block's, in lower case with underscores."""
    from fastpack import blocks

    tuples = [item for item in vars(blocks).values() if isinstance(item, type) and issubclass(item, tuple) and item is not NamedTuple]
    return [kernel_name(item) for item in tuples]


def kernel_name(block: type) -> str:
    """Return the name of the kernel that takes `block`: PackPadded's is pack_padded."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in block.__name__).lstrip("_")


_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p)
_lock = threading.Lock()
_library: Library | None = None
_calls: dict[type, tuple[Callable[[int, int, bytes], None], Callable[..., bytes], int]] = {}


def library() -> Library:
    """Return the kernels in use, opening them at the first call."""
    global _library
    with _lock:
        if _library is None:
            _library = _open_library()
        return _library


def kernel(block: type) -> tuple[Callable[[int, int, bytes], None], Callable[..., bytes], int]:
    """Return how to call the kernel of `block`, how to lay its block out, and its address."""
    found = _calls.get(block)
    if found is None:
        address = library().addresses[kernel_name(block)]
        found = _calls[block] = (_PROTOTYPE(address), Struct(f"{len(block._fields)}q").pack, address)  # type: ignore[attr-defined]
    return found


def run(block: Iterable[int], begin: int = 0, end: int = 1) -> None:
    """Have the kernel of `block` do the shares `begin` to `end` in this thread, without the interpreter's lock."""
    call, encode, _address = kernel(type(block))
    call(begin, end, encode(*block))


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a child forked while another thread opened the library must not wait for that thread
    os.register_at_fork(after_in_child=_renew_lock)
