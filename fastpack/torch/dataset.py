"""A data set whose batches come straight from storage: arrays, memory maps, Arrow, Parquet."""

import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Self

import numpy as np
from torch.utils.data import Dataset

from fastpack import checks
from fastpack.checks import Int64Array, address
from fastpack.layout import measure_lengths
from fastpack.torch.batches import BatchLayout, Field, Sequences, Texts, batch_type
from fastpack.torch.fields import column_of, joined, sequences_of, torch_dtype, values_of

CACHE_BYTES = 1 << 30
WAY_OUT = "a DataLoader takes a sampler of batches as its batch_sampler, not as its sampler"


class RaggedDataset(Dataset[Any]):
    """A map-style data set over sequences that follow each other in storage, and values that each of them has.

    `dataset[i]` is a sample: the sequence, a tensor (T_i, ...), where the data set has nothing else; otherwise a named tuple of
    the fields, sequences first. `dataset.__getitems__(indices)`, which a DataLoader calls for each batch, is a batch of the same
    form: each field of sequences a PackedSequence, gathered by one call of a kernel, without a tensor for each; numbers
    and arrays stacked in the order of `indices`; strings in a tuple. Samples and batches are new memory: nothing in storage is
    ever changed.

    The batch is complete, so a `collate_fn` has to return it as it is: `fastpack.torch.loader` and `PackCollate` do, and so does
    `collate_fn=lambda batch: batch`. Always give one to a DataLoader of torch's: without it `default_collate` takes the batch for a
    list of samples, and stacks the tensors within it, mostly to an error, but to nonsense without a word where two fields have
    the same lengths. torch's Subset and random_split keep all of this.

    What is memory-mapped is not read when it is opened, nor copied to worker processes, which map the file themselves.

    Parameters
    ----------
    values : array or tensor (N, ...), or mapping of names to them
        The rows of all sequences, one sequence after another: NumPy arrays or memory maps, with any strides; tensors of the CPU;
        arrays of Arrow. Of a dtype that torch has. A mapping makes several fields of sequences; an array alone is the field
        `values`.
    offsets : array or tensor of int (B + 1,), or mapping of the same names to them
        Sequence i is `values[offsets[i]:offsets[i + 1]]`: the first is 0, the last N, and they never decrease, which is checked for
        those sequences that a batch takes. One for all fields, or one for each. A sequence may be empty: it has no row.
    **per_sequence : arrays or tensors (B, ...), lists of numbers or of strings
        What else each sequence has: labels, names, weights.

    Attributes
    ----------
    lengths : int64 array (B,)
        The length of every sequence of the first field, as samplers want them.

    Raises
    ------
    TypeError
        A dtype is one that torch does not have, offsets are not of integers, or a per-sequence value is of another kind.
    ValueError
        Offsets do not start at 0 or do not end at N, there is no sequence, or fields have different numbers of them.

    Examples
    --------
    >>> dataset = RaggedDataset(np.array([1, 2, 3, 9]), [0, 3, 4], label=[0, 1])
    >>> dataset[0]
    RaggedBatch(values=tensor([1, 2, 3]), label=tensor(0))
    >>> packed, label = dataset.__getitems__([1, 0])
    >>> packed.data.tolist(), packed.batch_sizes.tolist(), label.tolist()
    ([1, 9, 2, 3], [2, 1, 1], [1, 0])
    """

    def __init__(self, values: Any, offsets: Any, **per_sequence: Any) -> None:
        fields = values if isinstance(values, Mapping) else {"values": values}
        if not fields:
            raise ValueError("values is empty: pass at least one field of sequences")
        bounds = offsets if isinstance(offsets, Mapping) else dict.fromkeys(fields, offsets)
        if set(bounds) != set(fields):
            raise ValueError(f"offsets are of {', '.join(map(repr, bounds))}, but values of {', '.join(map(repr, fields))}")
        made: dict[str, Field] = {}
        for name, rows in fields.items():
            rows_name = f"values[{name!r}]" if isinstance(values, Mapping) else "values"
            made[name] = sequences_of(rows, bounds[name], rows_name, f"offsets[{name!r}]" if isinstance(offsets, Mapping) else "offsets")
        self._set_up(made | {name: values_of(value, name) for name, value in _distinct(made, per_sequence)}, None)

    def _set_up(self, fields: dict[str, Field], kept: Int64Array | None) -> None:
        """Take the fields, those of sequences first, and the numbers of the rows to use, where it is not all of them."""
        counts = {name: len(field.storage) for name, field in fields.items()}
        first, count = next(iter(counts.items()))
        for name, other in counts.items():
            if other != count:
                raise ValueError(f"{name} has {other} entries, but {first} has {count} sequences: pass one for each")
        if kept is not None and not len(kept):
            raise ValueError("each row has a null: nothing is left of the data set")
        self._fields, self._kept, self._size = fields, kept, count if kept is None else len(kept)
        self._names = tuple(fields)

    @classmethod
    def from_arrow(cls, table: Any, column: str | Sequence[str], per_sequence: str | Iterable[str] = (), *, nulls: str = "error") -> Self:
        """Return the data set over columns of Arrow, read from where they are.

        Parameters
        ----------
        table : pyarrow Table or RecordBatch, path of an Arrow file, or an object with Arrow's C interface
            Files, of either of Arrow's formats, are memory-mapped (what is compressed in them is read to memory). A data set of
            Hugging Face's library is taken as it is, with its selection of rows, which are left where they are unless one
            of these columns has a null.
        column : str, or list of them
            Columns of sequences, fields of these names: lists of numbers or truths, or of rows, lists of one size. See
            :func:`fastpack.arrow.pack_column`.
        per_sequence : str, or list of them
            Columns of numbers, truths, strings or lists of one size.
        nulls : 'error' or 'skip'
            What happens where one of these columns is null: an error, or the data set goes without the row; and a step that is
            null is left out of its sequence: of that column's alone, so that columns whose steps belong together no longer do
            where one of them has a null step that the others do not.

        Returns
        -------
        RaggedDataset

        Raises
        ------
        TypeError
            `table` is nothing of the kind (several data sets, or one that is streamed), or a column of a type that sequences
            or values are not.
        ValueError
            A column is missing, something is null, there is no row, or a file is no Arrow file.

        Examples
        --------
        >>> import pyarrow as pa
        >>> table = pa.table({"tokens": [[9], [1, 2, 3]], "label": [0, 1]})
        >>> RaggedDataset.from_arrow(table, "tokens", "label")[1]
        RaggedBatch(tokens=tensor([1, 2, 3]), label=tensor(1))
        """
        from fastpack import arrow, hugging_face

        names, others = _names(column, per_sequence)
        rows: Int64Array | None = None
        if hugging_face.is_data_set(table):
            table, rows = hugging_face.selected(table, [*names, *others])
        opened = arrow.opened(table)
        source = arrow.portable_source(table, opened)
        fields: dict[str, Field] = {}
        valid = []
        for name in names:
            found = arrow.sequence_column(opened, name, nulls, source)
            fields[name] = Sequences(found.sequences, torch_dtype(found.dtype, f"column {name!r}"))
            valid.append(found.valid)
        for name in others:
            valid.append(arrow.valid_rows(opened, name, nulls))
            fields[name] = column_of(opened, name, source)
        return cls._of(fields, valid if rows is None else [rows])

    @classmethod
    def from_parquet(
        cls,
        files: Any,
        column: str | Sequence[str],
        per_sequence: str | Iterable[str] = (),
        *,
        nulls: str = "error",
        cache_bytes: int = CACHE_BYTES,
    ) -> Self:
        """Return the data set over columns of Parquet files.

        Parquet holds rows encoded, so none can be used where it is. Opening reads footers, the first row group and the columns
        `per_sequence`; a row group of sequences is decoded, from the memory-mapped file, when a batch wants one of them. Row groups
        used last are kept. In the order of the files each is decoded once. For batches in random order `cache_bytes` should
        hold all, or the same will be decoded again and again: shuffle within row groups then, or keep the data as Arrow files.

        Parameters
        ----------
        files : path, or list of paths
            Of one schema, as far as the columns go. Read one after another.
        column, per_sequence, nulls
            As of :meth:`from_arrow`. With 'skip', opening decodes every row group once.
        cache_bytes : int
            How many bytes of decoded row groups are kept for each column and process, at least one row group.

        Returns
        -------
        RaggedDataset

        Raises
        ------
        TypeError
            A column is of a type that sequences or values are not, or not of the same in all files.
        ValueError
            A file is no Parquet file, is truncated or, later, not what it was; a column is missing; there is no row.
        """
        from fastpack import arrow, parquet

        names, others = _names(column, per_sequence)
        opened = parquet.Files(files)
        fields: dict[str, Field] = {}
        valid = []
        for name in names:
            decoded = parquet.Decoded(opened, name, checks.choice(nulls, "nulls", arrow.NULLS), checks.count(cache_bytes, "cache_bytes", 0))
            fields[name] = Sequences(decoded, torch_dtype(decoded.dtype, f"column {name!r}"))
            valid.append(decoded.valid() if nulls == "skip" else None)
        for name in others:
            table = opened.read_all(name)
            valid.append(arrow.valid_rows(table, name, nulls))
            fields[name] = column_of(table, name, table)
        return cls._of(fields, valid)

    @classmethod
    def from_npz(cls, file: str | os.PathLike[str]) -> Self:
        """Return the data set over the arrays `values`, `offsets` and any per-sequence ones of an .npz file.

        Parameters
        ----------
        file : path
            As np.savez writes it: its arrays are memory-mapped. Those of np.savez_compressed are read to memory.

        Returns
        -------
        RaggedDataset

        Raises
        ------
        ValueError, TypeError
            The file is no .npz file, `values` or `offsets` is missing; and as the constructor.
        """
        from fastpack.npz import arrays_of

        arrays = arrays_of(file)
        for name in ("values", "offsets"):
            if name not in arrays:
                raise ValueError(f"array {name!r} is missing: {os.fspath(file)} has {', '.join(map(repr, arrays)) or 'no array'}")
        return cls(**arrays)

    @classmethod
    def from_list(cls, sequences: Iterable[Any], **per_sequence: Any) -> Self:
        """Return the data set over a list of sequences, which are copied one after another.

        Parameters
        ----------
        sequences : iterable of B tensors or arrays (T_i, ...)
            Of one dtype and one trailing shape.
        **per_sequence
            As of the constructor.

        Returns
        -------
        RaggedDataset

        Raises
        ------
        TypeError, ValueError
            There is no sequence, or they are not alike (the message names which); and as the constructor.

        Examples
        --------
        >>> RaggedDataset.from_list([np.array([9]), np.array([1, 2, 3])]).lengths
        array([1, 3])
        """
        values, counts = joined(sequences)
        return cls(values, np.cumsum([0, *counts], dtype=np.int64), **per_sequence)

    @classmethod
    def _of(cls, fields: dict[str, Field], valid: list[Int64Array | None]) -> Self:
        dataset = cls.__new__(cls)
        some = [rows for rows in valid if rows is not None]
        dataset._set_up(fields, reduce(np.intersect1d, some) if some else None)
        return dataset

    @property
    def lengths(self) -> Int64Array:
        """int64 array (B,): the length of every sequence of the first field."""
        first: Any = next(iter(self._fields.values()))
        found: Int64Array = first.storage.lengths()
        return found if self._kept is None else found[self._kept]

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Any:
        try:
            i = operator.index(index)
        except TypeError:
            raise TypeError(f"index is {index!r}, not an integer: __getitems__ takes several, and {WAY_OUT}") from None
        if not -self._size <= i < self._size:
            raise IndexError(f"index {i} is out of range: there are {self._size} sequences")
        indices = self._rows(np.array([i % self._size], np.int64))
        return self._joined([field.sample(indices) for field in self._fields.values()])

    def __getitems__(self, indices: Any) -> Any:
        """Return the batch of some sequences.

        Parameters
        ----------
        indices : list, array or tensor of int (B,)
            In any order; the last sequence is -1.

        Returns
        -------
        PackedSequence, or named tuple of one field each

        Raises
        ------
        IndexError
            An index is out of range.
        TypeError, ValueError
            `indices` is empty or not of integers; offsets decrease or leave the rows; a file has changed.
        """
        if isinstance(indices, list) and indices and isinstance(indices[0], list):
            raise TypeError(f"indices[0] is {indices[0]}, not an integer: {WAY_OUT}")
        chosen = checks.integers(indices, "indices")
        if not len(chosen):
            raise ValueError("indices is empty: a batch needs at least one sequence")
        facts = measure_lengths(address(chosen), len(chosen), self._size - 1)
        if facts.negative >= 0:
            chosen = np.where(chosen < 0, chosen + self._size, chosen)
            facts = measure_lengths(address(chosen), len(chosen), self._size - 1)
        wrong = max(facts.negative, facts.too_long)
        if wrong >= 0:
            raise IndexError(f"indices[{wrong}] is {indices[wrong]}, out of range: there are {self._size} sequences")
        chosen = self._rows(chosen)
        layouts: list[BatchLayout] = []
        return self._joined([field.batch(chosen, layouts) for field in self._fields.values()])

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self._size))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._size} sequences; {', '.join(f'{name} {_said(field)}' for name, field in self._fields.items())})"
        )

    def _rows(self, indices: Int64Array) -> Int64Array:
        return indices if self._kept is None else self._kept[indices]

    def _joined(self, parts: list[Any]) -> Any:
        """Return the one field alone, or the named tuple of all."""
        return parts[0] if len(parts) == 1 else batch_type(self._names)(*parts)


def _said(field: Field) -> str:
    if isinstance(field, Texts):
        return "str"
    trailing = ", ".join(map(str, field.storage.grid.trailing))
    return f"{str(field.dtype).removeprefix('torch.')} ({'T, ' if isinstance(field, Sequences) else ''}{trailing})"


def _names(column: str | Sequence[str], per_sequence: str | Iterable[str]) -> tuple[list[str], list[str]]:
    names, others = ([item] if isinstance(item, str) else list(item) for item in (column, per_sequence))
    if not names:
        raise ValueError("column is empty: pass the name of at least one column of sequences")
    twice = [name for name in {*names, *others} if [*names, *others].count(name) > 1]
    if twice:
        raise ValueError(f"column {twice[0]!r} is named twice: a column is one field")
    return names, others


def _distinct(fields: dict[str, Field], per_sequence: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for name in per_sequence:
        if name in fields:
            raise ValueError(f"{name!r} is the name of a field of sequences and of a per-sequence one")
    return per_sequence.items()
