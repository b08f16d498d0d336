"""What `fastpack info` tells, and the cache folder that `fastpack compile` fills."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

import fastpack
from fastpack import fallback, machine

if TYPE_CHECKING:
    from rich.console import Console

VECTOR_BITS = {"x86-64-v2": 128, "x86-64-v3": 256, "x86-64-v4": 512}


def show(console: "Console") -> bool:
    """Print what fastpack runs on, and return whether it has kernels."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("fastpack", f"{fastpack.__version__} in {escape(str(machine.PACKAGE))}")
    table.add_row("python", f"{platform.python_version()} ({escape(sys.executable or 'embedded')})")
    for name in ("numpy", "torch", "numba", "llvmlite"):
        table.add_row(name, version(name))
    table.add_row("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    table.add_row("CPU", escape(cpu_name()))
    table.add_row("CPU levels", ", ".join(machine.supported_levels()))
    usable, facts = kernels()
    for name, value in facts:
        table.add_row(name, escape(value))
    table.add_row("threads", threads())
    table.add_row("cache folder", escape(cache()))
    console.print(table)
    return usable


def version(name: str) -> str:
    """Return the installed version of a distribution, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "[dim]not installed[/dim]"


def cpu_name() -> str:
    """Return the CPU's name, as the operating system knows it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file.read(8192).splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def kernels() -> tuple[bool, list[tuple[str, str]]]:
    """Return whether there are kernels, and which are in use and why, or why none."""
    try:
        library = machine.library()
    except (ValueError, RuntimeError, OSError) as error:
        return False, [("kernels", f"none: {error}")]
    bits = VECTOR_BITS.get(library.level) or (128 if platform.machine().lower() in ("aarch64", "arm64") else 0)
    width = f"{bits} bits, {bits // 32} float32 at a time" if bits else "not known for this level"
    return True, [("kernels", f"{library.level}: {library.reason}"), ("", library.origin), ("vector width", width)]


def threads() -> str:
    """Return how many threads there may be, and who decides."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = "".join(f", {name}={escape(os.environ[name])}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ)
    return f"{usable} usable cores{chosen}; on arrays the calling thread, on tensors torch's pool (torch.set_num_threads)"


def cache() -> str:
    """Return the folder of kernels compiled on this machine, and what is in it."""
    folder = fallback.cache_folder()
    if folder is None:
        return "none: neither FASTPACK_CACHE_DIR nor a home folder is set"
    try:
        files = [path.stat().st_size for path in folder.glob("kernels-*.o")]
    except OSError as error:
        return f"{folder} ({error.strerror})"
    kept = f"{len(files)} compiled, {sum(files) // 1024} KB" if files else "empty" if folder.is_dir() else "not made"
    return f"{folder} ({kept}; used only where no built library fits)"


def compile_into_cache(console: "Console", levels: list[str]) -> None:
    """Compile the kernels for `levels` into the cache folder, showing progress.

    Raises
    ------
    ImportError
        numba is not installed.
    OSError
        There is no folder to keep them in, or it cannot be written.
    RuntimeError
        The compiler failed.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    if fallback.cache_folder() is None:
        raise OSError("there is no cache folder: set FASTPACK_CACHE_DIR to one")
    columns = (SpinnerColumn(finished_text=" "), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for level in levels:
            task = progress.add_task(f"kernels for {level}", total=1)
            compiled: list[str] = []
            path = fallback.cache_file(level)
            code = fallback.cached_object(level, path, compiled.append)
            kept = is_kept(path)
            progress.update(task, completed=1)
            if path is None or not kept:
                raise OSError(
                    f"compiled for {level}, but {fallback.cache_folder()} does not keep it: it must be writable, and by this user alone"
                )
            console.print(
                f"{level}: {'compiled' if compiled else 'was there already'}, {len(code) // 1024} KB: {escape(str(path))}", soft_wrap=True
            )
    built = [level for level in levels if (Path(machine.LIBRARIES) / machine.library_name(level)).exists()]
    if built:
        console.print(f"{', '.join(built)}: a library was built ahead; what was compiled is for FASTPACK_KERNELS=jit alone.", style="dim")


def is_kept(path: Path | None) -> bool:
    """Whether the next process will take the kernels in `path`."""
    return fallback._read(path) is not None
