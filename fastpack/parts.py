"""Scoring Parquet files into a folder of Parquet files: which part is of which rows, which are done, how one is written.

A part is made of one or several row groups of one file, and is complete or not there: it is written under another name, and
renamed when all of it is on the disk. It carries a fingerprint of all that it was made from.
"""

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from fastpack.scoring import Scorer
from fastpack.storage import Stamp

PART_ROWS = 1 << 16  # row groups of a file make a part together until they have as many rows, or bytes
PART_BYTES = 1 << 26
FINGERPRINT = b"fastpack.score"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PATTERN = f"part-{'[0-9]' * 8}.parquet"  # of parts
UNFINISHED = ".part-*.tmp"  # of what a process that was killed leaves behind


class Part(NamedTuple):
    """Row groups `first` to `last` - 1 of a file."""

    number: int
    source: Stamp
    first: int
    last: int
    rows: int

    @property
    def name(self) -> str:
        """The name of the file it becomes: names sort as the rows of all inputs do."""
        return f"part-{self.number:08d}.parquet"


class Job(NamedTuple):
    """All parts of some inputs, and what to make of them."""

    scorer: Scorer
    model: str  # a digest of the weights, and of whatever else may change the results
    folder: str
    parts: tuple[Part, ...]

    def path(self, part: Part) -> Path:
        """Return where a part goes."""
        return Path(self.folder) / part.name

    def fingerprint(self, part: Part) -> bytes:
        """Return what tells a part of this job from any other: of model, input, rows and columns."""
        scorer = self.scorer
        made_from = [self.model, repr(scorer.layer), scorer.column, scorer.results, scorer.keep, part]
        return hashlib.sha256(json.dumps(made_from).encode()).hexdigest().encode()

    def is_done(self, part: Part) -> bool:
        """Whether a part is there, complete, and made by this job or by one like it."""
        try:
            footer = parquet.read_metadata(self.path(part))
        except (pa.ArrowException, OSError):
            return False
        found: bool = footer.num_rows == part.rows and (footer.metadata or {}).get(FINGERPRINT) == self.fingerprint(part)
        return found


def inputs(paths: Iterable[Any]) -> list[Path]:
    """Return the files, those of a folder by name.

    Raises
    ------
    ValueError
        A folder has no Parquet file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} has no file *.parquet")
        found += files
    return found


def footer_of(path: Any) -> Any:
    """Return the footer of a Parquet file.

    Raises
    ------
    ValueError
        It is none, or is truncated.
    OSError
        It is not there, or cannot be read.
    """
    Path(path).open("rb").close()  # what the system has against it comes as the system says it
    try:
        return parquet.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file, or is truncated: {error}") from error


def columns(file: Any) -> list[str]:
    """Return the names of a file's columns; errors are those of :func:`footer_of`."""
    names: list[str] = footer_of(file).schema.to_arrow_schema().names
    return names


def plan(files: Iterable[Any], scorer: Scorer, model: str, folder: Any, *, part_rows: int = PART_ROWS) -> Job:
    """Return the job of scoring files: row groups in order, one or several a part.

    Parameters
    ----------
    files : iterable of paths
        Parquet files, whose rows the result has in the same order.
    scorer : Scorer
        What to make of them.
    model : str
        A digest of the layer's weights, and of whatever else may change the results.
    folder : path
        Where the parts go.
    part_rows : int
        A part gets row groups until it has as many rows, or `PART_BYTES` bytes.

    Raises
    ------
    ValueError
        A file is no Parquet file, is truncated, lacks a column, or lies in `folder`.
    TypeError
        A column is of another type than in the first file, or that of sequences is none of lists.
    OSError
        A file cannot be read.
    """
    parts: list[Part] = []
    empty: list[Part] = []
    schema = None
    for file in files:
        source, footer = Stamp.of(Path(file).resolve()), footer_of(file)  # by one path, from wherever the work is resumed
        if Path(folder).resolve() in (Path(file).absolute().parent.resolve(), Path(file).resolve().parent):
            raise ValueError(f"{folder} has {Path(file).name} in it, which is to be read: choose another folder for what is written")
        try:
            found = scorer.schema(footer.schema.to_arrow_schema())
        except (TypeError, ValueError) as error:
            raise type(error)(f"{file}: {error}") from error
        for name, kind, before in zip(found.names, found.types, (schema or found).types, strict=True):
            if kind != before:
                raise TypeError(f"{file}: column {name!r} is of Arrow type {kind}, but of {before} in the files before")
        schema, first, rows, size = schema or found, 0, 0, 0
        for group in range(footer.num_row_groups):
            rows, size = rows + footer.row_group(group).num_rows, size + footer.row_group(group).total_byte_size
            if rows >= part_rows or size >= PART_BYTES or group == footer.num_row_groups - 1:
                (parts if rows else empty).append(Part(len(parts), source, first, group + 1, rows))
                first, rows, size = group + 1, 0, 0
        if not footer.num_row_groups:
            empty.append(Part(0, source, 0, 0, 0))
    return Job(scorer, model, str(folder), tuple(parts or empty[:1]))  # without any row: one part, which has the columns


def foreign(job: Job) -> list[Path]:
    """Return the parts in the job's folder which are not of this job."""
    own = {part.name for part in job.parts if job.is_done(part)}
    return sorted(path for path in Path(job.folder).glob(PATTERN) if path.name not in own)


def remove_unfinished(folder: Any) -> None:
    """Remove what processes that were killed left behind."""
    for path in Path(folder).glob(UNFINISHED):
        path.unlink(missing_ok=True)


def write(job: Job, part: Part) -> Iterator[int]:
    """Score one part; yield the number of rows whenever some are done. The part is there when all are.

    Raises
    ------
    ValueError, TypeError
        The input has changed or cannot be decoded, or its sequences do not fit the layer: with the file's name.
    OSError
        The part cannot be written: nothing of it is left.
    """
    target = job.path(part)
    unfinished = target.with_name(f".{part.name}.{uuid.uuid4().hex}.tmp")  # as pattern UNFINISHED; a part tried twice has two
    try:
        with open(unfinished, "xb") as file:
            yield from _write_into(file, job, part)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(error.errno, f"{os.strerror(error.errno)}, while {part.name} was written", job.folder) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _write_into(file: Any, job: Job, part: Part) -> Iterator[int]:
    schema = None
    with contextlib.ExitStack() as stack:
        for table in _tables(job, part):
            if schema is None:
                schema = table.schema.with_metadata({FINGERPRINT: job.fingerprint(part)})
                writer = stack.enter_context(parquet.ParquetWriter(file, schema))
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            yield len(table)


def _tables(job: Job, part: Part) -> Iterable[Any]:
    """Yield what becomes of a part's rows, in pieces; one without rows first, which has the columns."""
    part.source.check()
    path = part.source.path
    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            yield job.scorer.schema(file.schema_arrow).empty_table()
            for group in range(part.first, part.last):
                yield from _scored(job.scorer, _decoded(file, group, job.scorer.columns, path), f"{path}, row group {group}")
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file, or is truncated: {error}") from error


def _decoded(file: Any, group: int, columns: list[str], path: str) -> Any:
    try:
        return file.read_row_group(group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be decoded, row group {group}: {error}") from error


def _scored(scorer: Scorer, table: Any, where: str) -> Iterable[Any]:
    try:
        yield from scorer.slices(table)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def said(error: Exception) -> str:
    """Return what an error says, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
