"""What `fastpack score` does: the parts that are missing, here or on a cluster, with a bar that tells how far it is."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastpack import parts
from fastpack.checks import counted
from fastpack.parts import Job, Part

if TYPE_CHECKING:
    from rich.console import Console


class UnfinishedError(RuntimeError):
    """Some parts could not be made; those that are complete stay."""


def prepare(job: Job, overwrite: bool) -> list[Part]:
    """Make the folder ready, and return the parts that are still to be made.

    Raises
    ------
    OSError
        The folder cannot be made or cleared.
    ValueError
        It has parts of another model or input, and `overwrite` is not set.
    """
    folder = Path(job.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ValueError(f"{folder} is a file: choose a folder for what is written") from error
    others = parts.foreign(job)
    if others and not overwrite:
        raise ValueError(
            f"{folder} has {counted(len(others), 'part')} of another model, input or choice of columns, such as {others[0].name}: "
            "choose another folder, or pass --overwrite to remove them"
        )
    for path in others:
        path.unlink()
    parts.remove_unfinished(folder)
    return [part for part in job.parts if not job.is_done(part)]


def run(console: "Console", job: Job, missing: list[Part], address: str) -> None:
    """Make the missing parts, on the cluster at `address` or, if that is empty, in this process.

    Raises
    ------
    UnfinishedError
        One could not be made.
    """
    begin, rows = time.perf_counter(), sum(part.rows for part in job.parts)
    columns = TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn()
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=rows, completed=rows - sum(part.rows for part in missing))
            for done in _on_cluster(job, missing, address) if address else _here(job, missing):
                bar.advance(task, done)
    except Exception as error:
        complete, total = sum(job.is_done(part) for part in job.parts), len(job.parts)
        are, stay = ("is", "stays") if total == 1 else ("are", "stay")
        raise UnfinishedError(
            f"{parts.said(error)}; {complete} of {counted(total, 'part')} {are} complete and {stay} in {job.folder}: "
            "run the same command again to go on from there"
        ) from error
    parts.remove_unfinished(job.folder)  # of workers that died
    before = len(job.parts) - len(missing)
    known = f", {before:,} of them there already" if before else ""
    took = f"{time.perf_counter() - begin:.1f} s"
    console.print(f"{counted(rows, 'row')} in {counted(len(job.parts), 'part')} in {escape(job.folder)}{known}; {took}", soft_wrap=True)


def _here(job: Job, missing: list[Part]) -> Iterator[int]:
    for part in missing:
        yield from parts.write(job, part)


def _on_cluster(job: Job, missing: list[Part], address: str) -> Iterator[int]:
    from fastpack import ray

    return ray.write_parts(job, missing, address)
