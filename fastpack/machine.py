"""Which CPU this is, which library of kernels fits it, and the call of a kernel. Imports neither numba nor llvmlite.

`FASTPACK_CPU` picks a lower level than the CPU's own, `FASTPACK_KERNELS=jit` the fallback in place of the built library.
"""

import ctypes
import os
import platform
import sys
from _thread import RLock, allocate_lock  # `threading` and `pathlib` would add a third to the time of `import fastpack`
from collections.abc import Callable, Iterable
from itertools import takewhile
from struct import Struct
from typing import Any, NamedTuple

PACKAGE = os.path.dirname(os.path.abspath(__file__))
LIBRARIES = os.path.join(PACKAGE, "_machine_code")

# What each level asks of a CPU, beyond the level before it, as Linux and as NumPy name it.
X86_LEVELS = {
    "x86-64-v2": "cx16 popcnt sse4_1 sse4_2 ssse3",
    "x86-64-v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe",
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
}

# NumPy's names, in lower case, where they differ
NUMPY_NAMES = {"sse41": "sse4_1", "sse42": "sse4_2", "fma3": "fma", "bmi": "bmi1", "lzcnt": "abm"}


class Library(NamedTuple):
    """The kernels in use: their CPU level, their entries' addresses, and where they came from."""

    level: str
    addresses: dict[str, int]
    origin: str  # the file
    reason: str  # why these
    keep: Any  # what must live as long as the code is called


def cpu_levels() -> list[str]:
    """Return the levels that kernels are built for on this kind of machine, lowest first."""
    # a 32-bit Python on a 64-bit CPU runs 32-bit code only
    if platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32:
        return list(X86_LEVELS)
    fingerprint = host_fingerprint()
    return ["generic", f"host-{fingerprint}"] if fingerprint else ["generic"]


def supported_levels() -> list[str]:
    """Return those levels that this CPU and operating system can run, lowest first."""
    levels = cpu_levels()
    if levels[0] == "generic":
        return levels
    features = cpu_features()
    if not features:
        return levels[:1]  # unknown: what any x86 CPU of the last fifteen years has, and what NumPy itself is built for
    supported = list(takewhile(lambda level: features.issuperset(X86_LEVELS[level].split()), levels))
    return supported or ["generic"]  # an emulator may hide even the lowest level's features


def cpu_features() -> set[str]:
    """Return the features of an x86 CPU that the operating system lets programs use, by Linux's names; empty if unknown."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            for line in file:  # no further than the first core: each costs the kernel time
                if line.startswith(b"flags"):
                    return set(line.decode("ascii", "replace").partition(":")[2].split())
    except OSError:
        pass
    try:  # private to NumPy, so never relied on: without it, the lowest level
        from numpy._core._multiarray_umath import __cpu_features__ as known
    except ImportError:
        return set()
    features = {name.lower() for name, present in known.items() if present}
    features |= {linux for numpy, linux in NUMPY_NAMES.items() if numpy in features}
    if {"fma", "avx2"} <= features:
        features |= {"bmi1", "bmi2", "abm", "movbe"}  # every CPU with AVX2 and FMA has these; NumPy lists them from 2.4 on
    return features | {"cx16"} if "sse4_2" in features else features  # likewise


def host_fingerprint() -> str:
    """Return a name for exactly this CPU, where there are no named levels; empty where nothing tells it from others of its kind."""
    import zlib

    described = [platform.processor().encode()] if sys.platform == "win32" else []
    try:
        with open("/proc/cpuinfo", "rb") as file:
            # what the kernel says of any core, as cores may differ; clocks and counters change from one look to the next
            named = (b"features", b"flags", b"cpu implementer", b"cpu part", b"cpu variant", b"cpu\t", b"isa", b"uarch", b"model name")
            described += sorted({line for line in file.read(2**20).lower().splitlines() if line.startswith(named)})
    except OSError:
        pass
    return f"{zlib.crc32(b'|'.join([platform.machine().encode(), *described])):08x}" if any(described) else ""


def sources_digest() -> str:
    """Return a hash of all that decides what the kernels' machine code is: a library built from other sources does not fit."""
    import hashlib

    paths = ["compiler.py"]
    for folder in ("blocks", "kernels"):
        names = sorted(name for name in os.listdir(os.path.join(PACKAGE, folder)) if name.endswith(".py") and not name.startswith("."))
        paths += [os.path.join(folder, name) for name in names]
    digest = hashlib.sha256()
    for path in paths:
        with open(os.path.join(PACKAGE, path), "rb") as file:
            digest.update(path.encode() + file.read().replace(b"\r\n", b"\n"))
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
    known = list(dict.fromkeys([*supported, *cpu_levels()]))
    if wanted not in known:
        raise ValueError(f"FASTPACK_CPU is {wanted!r}, but the levels here are {', '.join(known)}")
    if wanted not in supported:
        raise ValueError(f"FASTPACK_CPU is {wanted!r}, but this CPU runs no more than {supported[-1]}")
    return wanted, "FASTPACK_CPU"


def _open_library() -> Library:
    level, reason = chosen_level()
    wish = os.environ.get("FASTPACK_KERNELS", "")
    if wish not in ("", "jit"):
        raise ValueError(f"FASTPACK_KERNELS is {wish!r}, but can only be 'jit' or unset")
    problem = "FASTPACK_KERNELS=jit" if wish else "no library was built ahead"
    with uninterrupted_by_fork:
        if not wish:
            # without a wish for a level, the best that was built will do
            for candidate in [level] if reason == "FASTPACK_CPU" else supported_levels()[::-1]:
                path = _built(candidate)
                if path:
                    try:
                        return Library(candidate, _addresses(ctypes.CDLL(path)), path, f"{reason}; built ahead", None)
                    except (OSError, AttributeError) as error:  # not for this system, on a file system without execution, ...
                        problem = f"{os.path.basename(path)} cannot be opened: {error}"
                elif any(name.startswith(f"{candidate}-") for name in _present()):
                    problem = "the library was built from other sources"
        from fastpack import fallback
    return fallback.load(level, f"{reason}; {problem}")


def _present() -> list[str]:
    try:
        return sorted(name for name in os.listdir(LIBRARIES) if name.endswith(".so"))
    except OSError:
        return []


def _built(level: str) -> str | None:
    """Return the library for `level` that was built from the sources as they are."""
    try:
        name = library_name(level)
    except OSError:  # a frozen program carries no sources, so they cannot have changed: the one library of its level
        return next((os.path.join(LIBRARIES, name) for name in _present() if name.startswith(f"{level}-")), None)
    return os.path.join(LIBRARIES, name) if name in _present() else None


def _addresses(opened: ctypes.CDLL) -> dict[str, int]:
    return {name: ctypes.cast(opened[symbol(block)], ctypes.c_void_p).value or 0 for name, block in kernel_blocks().items()}


def kernel_blocks() -> dict[str, type]:
    """Return each kernel's name and block."""
    from fastpack import blocks

    tuples = [item for item in vars(blocks).values() if isinstance(item, type) and issubclass(item, tuple)]
    return {kernel_name(item): item for item in tuples}


def kernel_name(block: type) -> str:
    """Return the name of the kernel that takes `block`: PackPadded's is pack_padded."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in block.__name__).lstrip("_")


def symbol(block: type) -> str:
    """Return the name of the kernel's entry in machine code, which holds a hash of its arguments' names and kinds.

    So code made for other arguments is never found, whatever its file is called: a package that is upgraded under a running
    process has new files on disk and old blocks in memory.
    """
    import zlib

    arguments = [f"{name}:{hint.__metadata__[0]}" for name, hint in block.__annotations__.items()]
    return f"fastpack_{kernel_name(block)}_{zlib.crc32(' '.join(arguments).encode()):08x}"


_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p)
_lock = allocate_lock()
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


# A child forked while another thread imports a module, or is inside llvmlite, finds their locks locked for ever. So a fork waits
# for those moments, under a second; in the worst case, whatever else goes on, no longer than this.
LONGEST_FORK = 10.0
uninterrupted_by_fork = RLock()
_fork_waited: list[bool] = []


def _before_fork() -> None:
    _fork_waited.append(uninterrupted_by_fork.acquire(timeout=LONGEST_FORK))


def _after_fork() -> None:
    if _fork_waited.pop():
        uninterrupted_by_fork.release()


def _after_fork_in_child() -> None:
    # nor must the child wait for a thread that it has not, and that was opening the library
    global _lock, uninterrupted_by_fork
    _lock, uninterrupted_by_fork = allocate_lock(), RLock()
    _fork_waited.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
