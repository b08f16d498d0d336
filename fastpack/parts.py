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

from fastpack.arrow import is_list
from fastpack.scoring import Scorer, lengths_of
from fastpack.storage import Stamp

PART_ROWS = 1 << 14  # row groups of a file make a part together until they have as many rows, or bytes:
PART_BYTES = 1 << 24  # seconds of work, which is what an interruption loses
PEEK_ROWS = 16  # of a file, at a time, until a sequence has a step
FINGERPRINT = b"fastpack.score"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PATTERN = f"part-{'[0-9]' * 8}.parquet"  # of parts
UNFINISHED = ".part-*.tmp"  # of what a process that was killed leaves behind


class InputError(ValueError):
    """What a part is to be made from is not as it should be: that is to be mended, and to try again does not help."""


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

    def fingerprint(self, part: Part | None) -> dict[str, str]:
        """Return digests of all that a part is made from, by what to call it."""
        scorer = self.scorer
        made_from = {
            "model (or version of fastpack)": [self.model, repr(scorer.layer)],
            "choice of columns": [scorer.column, scorer.results, scorer.keep],
            "input": part,
        }
        return {name: hashlib.sha256(json.dumps(value).encode()).hexdigest() for name, value in made_from.items()}

    def is_done(self, part: Part) -> bool:
        """Whether a part is there, complete, and made by this job or by one like it."""
        return fingerprint_of(self.path(part)) == self.fingerprint(part)


def fingerprint_of(path: Path) -> dict[str, str]:
    """Return the fingerprint in a part; an empty one where none is complete."""
    try:
        metadata = parquet.read_metadata(path).metadata or {}
        found: dict[str, str] = json.loads(metadata.get(FINGERPRINT, b"{}"))
    except (OSError, ValueError):  # Arrow's own is a ValueError
        return {}
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


def only_lists(file: Any) -> str:
    """Return the name of a file's only column of lists; errors are those of :func:`footer_of`, too.

    Raises
    ------
    ValueError
        It has none, or several.
    """
    lists: list[str] = [field.name for field in footer_of(file).schema.to_arrow_schema() if is_list(field.type)]
    if len(lists) != 1:
        several = f"the columns of lists {', '.join(map(repr, lists))}: choose one of them, by --column" if lists else "no column of lists"
        raise ValueError(f"{file} has {several}")
    return lists[0]


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
        A file is no Parquet file, is truncated, lacks a column, has sequences that the layer does not take, or lies in `folder`.
    TypeError
        A column is of another type than in the first file, or that of sequences is none of lists of numbers.
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
            scorer.check(_first_sequence(file, footer, scorer.column))
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


def _first_sequence(file: Any, footer: Any, column: str) -> Any:
    """Return the first of a column's sequences that has a step, as a column, or none: the type need not tell how wide steps are."""
    try:
        with parquet.ParquetFile(file, memory_map=True, metadata=footer) as opened:
            for batch in opened.iter_batches(PEEK_ROWS, columns=[column], use_threads=False):
                found = pa.Table.from_batches([batch]).column(column)
                has_steps = lengths_of(found) > 0
                if has_steps.any():
                    return found.slice(int(has_steps.argmax()), 1)
            return opened.schema_arrow.empty_table().column(column)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it cannot be decoded: {error}") from error


def foreign(job: Job) -> list[Path]:
    """Return the parts in the job's folder which are not of this job."""
    own = {part.name for part in job.parts if job.is_done(part)}
    return sorted(path for path in Path(job.folder).glob(PATTERN) if path.name not in own)


def origin(job: Job, path: Path) -> str:
    """Return what tells a foreign part from the job's own."""
    found, wanted = fingerprint_of(path), job.fingerprint({part.name: part for part in job.parts}.get(path.name))
    others = [name for name, digest in wanted.items() if found.get(name) != digest]
    return f"of another {' and another '.join(others)}" if found else "which `fastpack score` did not write, or which is damaged"


def remove_unfinished(folder: Any) -> None:
    """Remove what processes that were killed left behind. One that is still at work on it, on a cluster, then places no part."""
    for path in Path(folder).glob(UNFINISHED):
        path.unlink(missing_ok=True)


def write(job: Job, part: Part) -> Iterator[int]:
    """Score one part; yield the number of rows whenever some are done. The part is there when all are.

    Raises
    ------
    InputError
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
                schema = table.schema.with_metadata({FINGERPRINT: json.dumps(job.fingerprint(part)).encode()})
                writer = stack.enter_context(parquet.ParquetWriter(file, schema))
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            yield len(table)


def _tables(job: Job, part: Part) -> Iterable[Any]:
    """Yield what becomes of a part's rows, in pieces; one without rows first, which has the columns."""
    path = part.source.path
    if Stamp.of(path) != part.source:
        raise InputError(f"{path} has been changed since this run began")
    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            yield job.scorer.schema(file.schema_arrow).empty_table()
            for group in range(part.first, part.last):
                yield from _scored(job.scorer, _decoded(file, group, job.scorer.columns, path), f"{path}, row group {group}")
    except pa.ArrowException as error:
        raise InputError(f"{path} is no Parquet file, or is truncated: {error}") from error


def _decoded(file: Any, group: int, columns: list[str], path: str) -> Any:
    try:
        return file.read_row_group(group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be decoded, row group {group}: {error}") from error


def _scored(scorer: Scorer, table: Any, where: str) -> Iterable[Any]:
    try:
        yield from scorer.slices(table)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def said(error: Exception) -> str:
    """Return what an error says, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
