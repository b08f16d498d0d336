"""Kernels where no ahead-built library fits: compiled at first use, kept in a per-user folder, loaded through llvmlite.

Whatever is wrong with the folder or a file in it, at worst the kernels are compiled again. A file is used only if it is the
user's own, nobody else could have written it, and it holds what was written, under a name that says from what.
"""

import hashlib
import importlib.metadata
import logging
import os
import platform
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastpack import compiler, machine
from fastpack.machine import Library, kernel_blocks, sources_digest, symbol

try:
    import fcntl
except ImportError:  # Windows: processes that start cold may each compile
    fcntl = None  # type: ignore[assignment]

LONGEST_WAIT = 180.0  # seconds for another process to finish compiling, before we do it ourselves
KEPT_DAYS = 90  # files of other sources, versions or CPUs are removed when they are older
log = logging.getLogger("fastpack")


def cache_folder() -> Path | None:
    """Return the folder for compiled kernels: FASTPACK_CACHE_DIR or the system's place for caches; None where there is none."""
    try:
        if chosen := os.environ.get("FASTPACK_CACHE_DIR"):
            return Path(chosen).expanduser().absolute()
        if sys.platform == "win32":
            folder = Path(os.environ["LOCALAPPDATA"]) / "fastpack" / "cache"
        elif sys.platform == "darwin":
            folder = Path.home() / "Library" / "Caches" / "fastpack"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME", ""))
            folder = (base if base.is_absolute() else Path.home() / ".cache") / "fastpack"  # a relative one is to be ignored
        return folder if folder.is_absolute() else None
    except (KeyError, RuntimeError, OSError):  # no LOCALAPPDATA, no home, a current folder that was removed
        return None


def cache_name(level: str) -> str:
    """Return the name of the file that holds the kernels for `level`, made of all that decides its contents."""
    versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    key = hashlib.sha256(repr([sources_digest(), level, platform.machine(), sys.platform, *versions]).encode())
    return f"kernels-{level}-{key.hexdigest()[:32]}.o"


def cache_file(level: str) -> Path | None:
    """Return the file that would hold the kernels for `level`."""
    name, folder = cache_name(level), cache_folder()
    return folder and folder / name


def load(level: str, reason: str) -> Library:
    """Return the kernels for `level`, from the cache folder or freshly compiled.

    Raises
    ------
    RuntimeError
        llvmlite or numba is not installed, or the compiler failed.
    """
    try:
        with machine.uninterrupted_by_fork:
            import llvmlite.binding as llvm

            path = cache_file(level)
    except (ImportError, OSError) as error:  # PackageNotFoundError is an ImportError, a library that cannot be opened an OSError
        raise RuntimeError(
            f"fastpack has no kernels that fit ({reason}), and cannot compile them: {error}."
            " Install fastpack[jit], or a wheel for this platform"
        ) from error
    code = cached_object(level, path)
    with machine.uninterrupted_by_fork:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        # All sections in one piece of memory: LLVM aborts the process where it gets two more than 2 GB apart from each other
        target = llvm.Target.from_default_triple().create_target_machine()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target, use_lmm=True)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        addresses = {name: engine.get_function_address(symbol(block)) for name, block in kernel_blocks().items()}
    if not all(addresses.values()):
        raise RuntimeError("fastpack's files have changed since this process imported it: start the process again")
    return Library(level, addresses, str(path) if path else "memory", f"{reason}; compiled here", engine)


def cached_object(level: str, path: Path | None, say: Callable[[str], None] = log.warning) -> bytes:
    """Return the object code for `level` from the file `path`; compile it, and try to keep it there, where that fails."""
    code = _read(path)
    if code is None:
        with _one_at_a_time(path):
            code = _read(path)  # another process may have made it meanwhile
            if code is None:
                say(f"fastpack: compiling the kernels for {level}, once; it takes about a minute")
                code = compiler.object_code(level)
                if path is not None and path.name == cache_name(level):  # else the sources changed while we waited
                    _write(path, code)
    return code


def _is_ours(status: os.stat_result) -> bool:
    """Whether nobody but this user could have written what `status` describes."""
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


def _read(path: Path | None) -> bytes | None:
    try:
        content = _content(path) if path else None
    except OSError:
        return None
    if path is None or content is None:
        return None
    # the digest tells a truncated or mistaken file from a whole one; against an attacker stands the ownership
    code, digest = content[:-32], content[-32:]
    return code if hashlib.sha256(path.name.encode() + code).digest() == digest else None


def _content(path: Path) -> bytes | None:
    """Return what the file holds, if it and its folder are ours. What is looked at is what is read: nothing is opened twice."""
    if not hasattr(os, "geteuid"):
        return path.read_bytes()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not _is_ours(os.fstat(folder)):
            return None
        # not blocking, as a pipe might lie there, whose other end nobody opens
        handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or not _is_ours(status):
            return None
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    """Make the cache folder, or raise OSError if it is not ours, so that what lies in it is of no use."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(folder.stat()):
        raise PermissionError(f"others can write to {folder}")


def _write(path: Path, code: bytes) -> None:
    try:
        _make_folder(path.parent)
        handle, fresh = tempfile.mkstemp(dir=path.parent, suffix=".new")
    except OSError as error:
        log.warning("fastpack: the compiled kernels are not kept: %s", error)
        return
    try:
        with open(handle, "wb") as file:
            file.write(code + hashlib.sha256(path.name.encode() + code).digest())
        Path(fresh).replace(path)
        _remove_old(path.parent)
    except OSError as error:  # a full disk, say
        log.warning("fastpack: the compiled kernels are not kept: %s", error)
    finally:
        with suppress(OSError):  # it is no longer there, unless something went wrong
            Path(fresh).unlink()


def _remove_old(folder: Path) -> None:
    """Remove what was made for other sources, versions or CPUs long ago, and what a killed process left."""
    for old in [*folder.glob("kernels-*"), *folder.glob("*.new")]:
        with suppress(OSError):
            if old.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
                old.unlink()


@contextmanager
def _one_at_a_time(path: Path | None) -> Iterator[None]:
    """Let one process of many that start cold compile, the others wait for it; never for ever, and never at any cost."""
    try:
        if path is None or fcntl is None:
            raise OSError("no folder, or no locks")
        _make_folder(path.parent)
        # as in _content: neither a link nor a pipe leads us astray
        handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError:
        yield
        return
    _held.add(handle)
    try:
        deadline = time.monotonic() + LONGEST_WAIT
        while time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


# A fork copies the handles of lock files, and such a lock is held until all copies are closed: a child closes its own.
_held: set[int] = set()


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
