"""Parquet files as storage: rows are encoded there, so they are decoded a row group at a time, when one of its sequences is wanted."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from fastpack import checks
from fastpack.arrow import Column, chosen, is_list, sequences
from fastpack.checks import Array, Int64Array
from fastpack.moves import Located
from fastpack.storage import Recipe, Stamp, copied

CACHE_BYTES = 1 << 30


class Files:
    """Parquet files of one schema, as they were when they were opened."""

    def __init__(self, paths: Any, stamps: tuple[Stamp, ...] = ()) -> None:
        self.stamps = stamps or tuple(map(Stamp.of, _listed(paths)))
        for stamp in stamps:
            stamp.check()
        self._footers = [self._footer(stamp) for stamp in self.stamps]
        counts = [(k, g, footer.row_group(g).num_rows) for k, footer in enumerate(self._footers) for g in range(footer.num_row_groups)]
        self.groups = [(k, g) for k, g, _ in counts]  # file and row group
        self.firsts = np.cumsum([0, *(count for *_, count in counts)], dtype=np.int64)  # number of each row group's first row
        if not len(self):
            raise ValueError(
                f"{self.stamps[0].path} has no row" if len(self.stamps) == 1 else f"none of the {len(self.stamps)} files has a row"
            )

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __reduce__(self) -> Recipe:
        return Files, (None, self.stamps)

    def _footer(self, stamp: Stamp) -> Any:
        Path(stamp.path).open("rb").close()  # what the system has against it comes as the system says it
        try:
            return parquet.read_metadata(stamp.path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{stamp.path} is no Parquet file, or is truncated: {error}") from error

    def lists(self) -> list[str]:
        """Return the names of the columns of lists, as the first file has them."""
        return [field.name for field in self._footers[0].schema.to_arrow_schema() if is_list(field.type)]

    def kind(self, name: str) -> Any:
        """Return the Arrow type of a column, the same in all files.

        Raises
        ------
        ValueError
            A file has no such column, or several.
        TypeError
            It is of another type than in the first file.
        """
        kinds = []
        for stamp, footer in zip(self.stamps, self._footers, strict=True):
            schema = footer.schema.to_arrow_schema()
            if schema.names.count(name) != 1:
                problem = "is missing" if name not in schema.names else "is there more than once"
                raise ValueError(f"column {name!r} {problem}: {stamp.path} has {', '.join(map(repr, schema.names)) or 'no column'}")
            kinds.append(schema.field(name).type)
            if kinds[-1] != kinds[0]:
                raise TypeError(f"column {name!r} is of Arrow type {kinds[-1]} in {stamp.path}, but of {kinds[0]} in {self.stamps[0].path}")
        return kinds[0]

    def read(self, group: int, name: str) -> Any:
        """Return a column of a row group as a table.

        Raises
        ------
        ValueError
            The file has changed, or cannot be decoded.
        """
        k, g = self.groups[group]
        stamp = self.stamps[k]
        stamp.check()
        try:
            file = parquet.ParquetFile(stamp.path, memory_map=True, metadata=self._footers[k])
            return file.read_row_group(g, columns=[name], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{stamp.path} cannot be decoded, row group {g}, column {name!r}: {error}") from error

    def read_all(self, name: str) -> Any:
        """Return a column of all files as a table."""
        self.kind(name)
        return pa.concat_tables([self.read(group, name) for group in range(len(self.groups))])


class Decoded:
    """A column of lists in Parquet files; row groups that were decoded are kept, up to `cache_bytes`, those used last."""

    def __init__(self, files: Files, name: str, nulls: str, cache_bytes: int) -> None:
        self.files, self.name, self.nulls, self.cache_bytes = files, name, nulls, cache_bytes
        files.kind(name)
        self._kept: dict[int, Column] = {}
        self._sizes: dict[int, int] = {}
        for group in self._filled():  # a row's shape is that of the first row, where the type does not say it
            first = self._column(group)
            if first.sequences.has_rows:
                break
        self.dtype, self.grid = first.dtype, first.sequences.grid

    def __len__(self) -> int:
        return len(self.files)

    def __reduce__(self) -> Recipe:
        return Decoded, (self.files, self.name, self.nulls, self.cache_bytes)

    def located(self, indices: Int64Array) -> Located:
        """Return where the sequences of indices (B,), each from 0 to len - 1, are: in memory that the result keeps.

        Beyond `cache_bytes` of row groups, the sequences are copied and their row groups let go.
        """
        groups = np.searchsorted(self.files.firsts, indices, "right") - 1
        first_rows, lengths = np.empty_like(indices), np.empty_like(indices)
        alive, held = [], 0
        for group in np.unique(groups).tolist():
            chosen_ones = np.flatnonzero(groups == group)
            column = self._column(group)
            found = column.sequences.located(indices[chosen_ones] - self.files.firsts[group])
            held += self._sizes.get(group, 0)
            if held > self.cache_bytes:
                found = copied(found, self.grid)
            first_rows[chosen_ones], lengths[chosen_ones] = found.first_rows, found.lengths
            alive.append(found.alive)
        return Located(first_rows, lengths, int(lengths.max(initial=0)), int(lengths.sum()), alive)

    def lengths(self) -> Int64Array:
        """Return the length of every sequence; each row group is decoded once."""
        return np.concatenate([self._column(group).sequences.lengths() for group in self._filled()])

    def valid(self) -> Int64Array | None:
        """Return the numbers of the lists that are not null, where some are; each row group is decoded once."""
        found, firsts = [self._column(group).valid for group in self._filled()], self.files.firsts
        if all([valid is None for valid in found]):
            return None
        stretches = [np.arange(firsts[group], firsts[group + 1]) for group in self._filled()]
        return np.concatenate([rows if valid is None else rows[valid] for rows, valid in zip(stretches, found, strict=True)])

    def _filled(self) -> list[int]:
        return np.flatnonzero(np.diff(self.files.firsts)).tolist()

    def _column(self, group: int) -> Column:
        """Return the column of a row group. Threads may be here at the same time: at worst two decode the same."""
        column = self._kept.pop(group, None)
        if column is None:
            table = self.files.read(group, self.name)
            column = sequences(chosen(table, self.name).chunks, f"column {self.name!r}", self.nulls, ())
            trailing, known = column.sequences.grid.trailing, getattr(self, "grid", column.sequences.grid).trailing
            if trailing != known and column.sequences.has_rows:
                raise ValueError(f"column {self.name!r} has rows of shape {trailing} in row group {group}, but of {known} before")
            self._sizes[group] = table.nbytes
        self._kept[group] = column  # the last of all
        for other in list(self._kept)[:-1]:
            if sum(self._sizes[g] for g in list(self._kept)) <= self.cache_bytes:
                break
            self._kept.pop(other, None)
        return column


def lengths_of(path: Any, column: str = "") -> Array:
    """Return how long the lists of a column are, of the only one that has lists if none is named; or its integers, as they are.

    Raises
    ------
    ValueError
        The file is no Parquet file, or has no row; a column is to be named, is missing, or is null in a row.
    TypeError
        The column is of neither.
    """
    opened = Files(path)
    lists = opened.lists()
    if not column and len(lists) != 1:
        several = f"the columns of lists {', '.join(map(repr, lists))}" if lists else "no column of lists"
        raise ValueError(f"has {several}: choose one {'of them' if lists else 'of lengths'}, by --column")
    name = column or lists[0]
    kind = opened.kind(name)
    if not (is_list(kind) or pa.types.is_integer(kind)):
        nulls = " (no values but nulls)" if pa.types.is_null(kind) else ""
        raise TypeError(f"column {name!r} is of Arrow type {kind}{nulls}, but lengths are those of lists, or integers")
    pieces = []
    for group in range(len(opened.groups)):  # one at a time: what is in the lists takes far more memory than how long they are
        found = opened.read(group, name).column(name)
        pieces += (compute.list_value_length(found) if is_list(kind) else found).chunks
    counted = pa.chunked_array(pieces)
    if counted.null_count:
        raise ValueError(f"column {name!r} is null in row {compute.index(counted.is_null(), True).as_py()}: a length is 0 or more")
    found_lengths: Array = counted.to_numpy()
    return found_lengths


def _listed(paths: Any) -> list[Any]:
    if isinstance(paths, (str, os.PathLike)):
        return [paths]
    if not isinstance(paths, Iterable):
        raise TypeError(f"files is {checks.described(paths)}, not a path or a list of paths")
    found = list(paths)
    if not found:
        raise ValueError("files is empty: pass at least one path")
    return found
