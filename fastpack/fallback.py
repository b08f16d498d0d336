"""Kernels where no ahead-built library fits: compiled at first use, kept in a per-user folder, loaded through llvmlite.

Whatever is wrong with the folder or a file in it, at worst the kernels are compiled again. A file is used only if it is the
user's own, nobody else could have written it, and it holds what was written, under a name that says from what.
"""

import hashlib
import importlib.metadata
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fastpack.machine import Library, kernel_names, sources_digest

LONGEST_WAIT = 180.0  # seconds for another process to finish compiling, before we do it ourselves
log = logging.getLogger("fastpack")


def cache_folder() -> Path | None:
    """Return the folder for compiled kernels: FASTPACK_CACHE_DIR or the system's place for caches; None where there is none."""
    try:
        if chosen := os.environ.get("FASTPACK_CACHE_DIR"):
            return Path(chosen)
        if sys.platform == "win32":
            return Path(os.environ["LOCALAPPDATA"]) / "fastpack" / "cache"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "fastpack"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastpack"
    except (KeyError, RuntimeError):  # no LOCALAPPDATA, no home
        return None


def cache_file(level: str) -> Path | None:
    """Return the file that would hold the kernels for `level`, named by all that decides its contents."""
    folder = cache_folder()
    versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    key = hashlib.sha256(repr([sources_digest(), level, platform.machine(), sys.platform, *versions]).encode())
    return folder and folder / f"kernels-{level}-{key.hexdigest()[:32]}.o"


def load(level: str, reason: str) -> Library:
    """Return the kernels for `level`, from the cache folder or freshly compiled.

    Raises
    ------
    RuntimeError
        llvmlite or numba is not installed, or the compiler failed.
    """
    try:
        import llvmlite.binding as llvm

        path = cache_file(level)
    except ImportError as error:  # PackageNotFoundError is one
        raise RuntimeError(
            f"fastpack has no kernels that fit ({reason}), and cannot compile them: {error}. Install fastpack[jit], or a wheel for this platform"
        ) from error
    code = cached_object(level, path)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    addresses = {name: engine.get_function_address(f"fastpack_{name}") for name in kernel_names()}
    return Library(level, addresses, str(path) if path else "memory", f"{reason}; compiled here", engine)


def cached_object(level: str, path: Path | None, say: Callable[[str], None] = log.warning) -> bytes:
    """Return the object code for `level` from the file `path`; compile it, and try to keep it there, where that fails."""
    from fastpack.compiler import object_code

    code = _read(path)
    if code is None:
        with _one_at_a_time(path):
            code = _read(path)  # another process may have made it meanwhile
            if code is None:
                say(f"fastpack: compiling the kernels for {level}, once; it takes about 20 seconds")
                code = object_code(level)
                _write(path, code)
    return code


def _is_ours(status: os.stat_result) -> bool:
    """Whether nobody but this user could have written what `status` describes."""
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


def _read(path: Path | None) -> bytes | None:
    try:
        if path is None or not _is_ours(path.parent.stat()):
            return None
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            if not _is_ours(os.fstat(file.fileno())):
                return None
            content = file.read()
    except OSError:
        return None
    # the digest tells a truncated or mistaken file from a whole one; against an attacker stands the ownership above
    code, digest = content[:-32], content[-32:]
    return code if hashlib.sha256(path.name.encode() + code).digest() == digest else None


def _write(path: Path | None, code: bytes) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, suffix=".new")
    except OSError as error:
        log.info("fastpack: the kernels are not kept: %s", error)
        return
    try:
        with open(handle, "wb") as file:
            file.write(code + hashlib.sha256(path.name.encode() + code).digest())
        os.replace(fresh, path)
    except OSError as error:  # a full disk, say
        log.info("fastpack: the kernels are not kept: %s", error)
        Path(fresh).unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(path: Path | None) -> Iterator[None]:
    """Let one process of many that start cold compile, the others wait for it; never for ever, and never at any cost."""
    try:
        import fcntl

        if path is None:
            raise OSError("no folder")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = open(path.with_suffix(".lock"), "ab")  # noqa: SIM115  closed below, on every path
    except (ImportError, OSError):
        yield
        return
    with file:
        deadline = time.monotonic() + LONGEST_WAIT
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
