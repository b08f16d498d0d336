"""What `fastpack score` does: the parts that are missing, here or on a cluster, with a bar that tells how far it is."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastpack import parts
from fastpack.checks import counted
from fastpack.parts import InputError, Job, Part

if TYPE_CHECKING:
    from rich.console import Console

try:
    import fcntl
except ImportError:  # Windows: two runs into one folder are not kept apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".fastpack-score"  # in the folder, while a run writes there


class UnfinishedError(RuntimeError):
    """Some parts could not be made, or it was interrupted; those that are complete stay."""


def run(console: "Console", job: Job, overwrite: bool, address: str) -> None:
    """Make the parts that are missing, on the cluster at `address` or, if that is empty, in this process.

    Raises
    ------
    OSError
        The folder cannot be written or cleared, or no cluster is at `address`.
    ValueError
        The folder is being written by another run; or it has other parts, as of another model, and `overwrite` is not set.
    UnfinishedError
        A part could not be made, or there was a KeyboardInterrupt, which then is its cause.
    """
    if address:
        from fastpack import ray

        ray.check_address(address)
    begin = time.perf_counter()
    with alone(Path(job.folder)):
        missing = prepare(job, overwrite)
        try:
            _make(console, job, missing, address)
        except (Exception, KeyboardInterrupt) as error:
            raise UnfinishedError(_what_is_left(job, error)) from error
    rows, before = sum(part.rows for part in job.parts), len(job.parts) - len(missing)
    known = f", {before:,} of them there already" if before else ""
    took = f"{time.perf_counter() - begin:.1f} s"
    console.print(f"{counted(rows, 'row')} in {counted(len(job.parts), 'part')} in {escape(job.folder)}{known}; {took}", soft_wrap=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other runs out of it, on all machines that see it: by a lock that ends with this process.

    A cluster's workers have none; Ray ends those of a process that has died.

    Raises
    ------
    ValueError
        Another run is at work there, or it is a file.
    OSError
        The folder cannot be made or written, or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ValueError(f"{folder} is a file: choose a folder for what is written") from error
    path = folder / LOCK
    while True:
        with open(path, "a+") as file:
            _lock(file, folder)
            if not _is_at(file, path):  # the run before had it, and has ended meanwhile
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
            return


def _lock(file: IO[str], folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ValueError(
            f"{folder} is being written by another run, {file.read() or 'which has just begun'}: wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        raise OSError(
            error.errno, f"its file system has no locks ({error.strerror}): choose a folder on another one", str(folder)
        ) from error


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def prepare(job: Job, overwrite: bool) -> list[Part]:
    """Clear the folder, and return the parts that are still to be made.

    Raises
    ------
    OSError
        The folder cannot be cleared.
    ValueError
        It has parts of another model or input, and `overwrite` is not set.
    """
    folder, others = Path(job.folder), parts.foreign(job)
    if others and not overwrite:
        raise ValueError(
            f"{folder} has {counted(len(others), 'part')} of something else, such as {others[0].name}, {parts.origin(job, others[0])}: "
            "choose another folder, or pass --overwrite to remove them"
        )
    for path in others:
        path.unlink()
    parts.remove_unfinished(folder)
    return [part for part in job.parts if not job.is_done(part)]


def _make(console: "Console", job: Job, missing: list[Part], address: str) -> None:
    rows = sum(part.rows for part in job.parts)
    columns = TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=rows, completed=rows - sum(part.rows for part in missing))
        for done in _on_cluster(job, missing, address) if address else _here(job, missing):
            bar.advance(task, done)
    parts.remove_unfinished(job.folder)  # of workers that died


def _what_is_left(job: Job, error: BaseException) -> str:
    complete = sum(job.is_done(part) for part in job.parts)
    problem = parts.said(error) if isinstance(error, Exception) else "interrupted"
    if isinstance(error, InputError):
        way_out = "when the input is mended, run the same command with --overwrite to go on from there"
    else:
        way_out = "run the same command again to go on from there"
    are, stay = ("is", "stays") if len(job.parts) == 1 else ("are", "stay")
    return f"{problem}; {complete} of {counted(len(job.parts), 'part')} {are} complete and {stay} in {job.folder}: {way_out}"


def _here(job: Job, missing: list[Part]) -> Iterator[int]:
    for part in missing:
        yield from parts.write(job, part)


def _on_cluster(job: Job, missing: list[Part], address: str) -> Iterator[int]:
    from fastpack import ray

    return ray.write_parts(job, missing, address)
