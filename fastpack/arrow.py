"""Arrow columns, packed where they lie: tables, record batches, files, and whatever speaks Arrow's C interface.

Sequences are lists: `list`, `large_list`, `fixed_size_list`, `list_view` or `large_list_view`, of numbers, truths, dates or
times; or of rows, which are again lists, all of one size, nested at will. Columns may be sliced and in many chunks. Rows
are read straight from Arrow's buffers, by the kernels; only truths, which are bits there, are spread out first.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

try:
    import pyarrow as pa
except ModuleNotFoundError as error:
    raise ImportError("fastpack.arrow needs pyarrow 18 or later: pip install 'fastpack[arrow]'") from error
import numpy as np

from fastpack import checks, storage
from fastpack.checks import Array, Int64Array, address
from fastpack.moves import Grid
from fastpack.packed import Packed
from fastpack.packing import pack_located, unpack_ragged
from fastpack.storage import Chunk, Ragged, Rows, Stamp, grid_of

NULLS = ("error", "skip")
LISTS = "list, large_list, fixed_size_list, list_view or large_list_view"

_types = pa.types


class Column(NamedTuple):
    """A column of sequences, opened."""

    sequences: Ragged
    dtype: np.dtype[Any]
    valid: Int64Array | None  # the numbers of those that are not null, where some are


class Wrapped(NamedTuple):
    """A table of Hugging Face's library, which has one of pyarrow's: it is pickled as the path of the file that it maps."""

    whole: Any


def pack_column(column: Any, *, nulls: str = "error") -> Packed:
    """Pack the lists of a column.

    Parameters
    ----------
    column : pyarrow Array or ChunkedArray of B lists, or an object with Arrow's C interface, such as a Series of polars
        Lists of numbers, truths, dates or times; or of rows, lists of one size, nested at will.
    nulls : 'error' or 'skip'
        What happens where a list or a step is null: an error; or a list that is null is left out of the batch, and a step that
        is null out of its sequence. A step's row that is null in part is always an error.

    Returns
    -------
    Packed
        `data` is (N, ...), of the NumPy dtype of the lists' values; its rows were read once, where they are.

    Raises
    ------
    TypeError
        `column` is no column of such lists.
    ValueError
        There is no list, one or a step is null, or rows are of different sizes.

    Examples
    --------
    >>> import pyarrow as pa
    >>> packed = pack_column(pa.array([[9], [1, 2, 3]]))
    >>> packed.data.tolist(), packed.batch_sizes.tolist()
    ([1, 9, 2, 3], [2, 1, 1])
    """
    return pack_named(column, "column", nulls)


def pack_named(column: Any, name: str, nulls: str) -> Packed:
    """Pack the lists of a column as :func:`pack_column` does; errors call it `name`."""
    opened = sequences(_arrays(column, name), name, nulls, None)
    indices = np.arange(len(opened.sequences)) if opened.valid is None else opened.valid
    if not len(indices):
        raise ValueError(f"{name} has no list that is not null: a batch needs at least one sequence")
    found = opened.sequences.located(indices)
    return pack_located(found, opened.sequences.grid, opened.dtype)


def unpack_column(packed: Packed) -> Any:
    """Return the sequences of a packed batch as a column, in the caller's order.

    Parameters
    ----------
    packed : Packed
        Of a dtype that Arrow has.

    Returns
    -------
    pyarrow LargeListArray
        Of B lists; rows (D,) are fixed-size lists of D values.

    Raises
    ------
    ValueError, TypeError
        `packed` is inconsistent, or Arrow has no such dtype.

    Examples
    --------
    >>> import numpy as np, fastpack
    >>> unpack_column(fastpack.pack([np.array([9]), np.array([1, 2, 3])])).to_pylist()
    [[9], [1, 2, 3]]
    """
    values, bounds = unpack_ragged(packed)
    try:
        items = pa.array(values.reshape(-1))
    except pa.ArrowException as error:
        raise TypeError(f"packed.data is of dtype {values.dtype}, which Arrow does not have: {error}") from error
    for size in values.shape[:0:-1]:
        items = pa.FixedSizeListArray.from_arrays(items, size)
    return pa.LargeListArray.from_arrays(pa.array(bounds), items)


def opened(source: Any) -> Any:
    """Return what has columns as a pyarrow Table: a table, a record batch, an Arrow file's path, or one `Wrapped`.

    Files are memory-mapped; what is compressed in one is read to memory.

    Raises
    ------
    TypeError
        `source` is nothing of the kind.
    ValueError
        A file is no Arrow file, is truncated, or is another than it was.
    """
    if isinstance(source, Stamp):
        source.check()
        return _file(source.path)
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    if isinstance(source, (str, os.PathLike)):
        return _file(os.fspath(source))
    if isinstance(source, Wrapped):
        return source.whole.table
    if hasattr(source, "__arrow_c_stream__"):
        return pa.table(source)
    if hasattr(source, "__arrow_c_array__"):
        return opened(pa.record_batch(source))
    raise TypeError(
        f"table is {checks.described(source)}, not a pyarrow Table or RecordBatch, "
        "the path of an Arrow file, or a data set in Arrow's format"
    )


def table_of(values: Any, name: str) -> Any:
    """Return a table of one column."""
    return pa.table({name: _arrays(values, name)[0] if isinstance(values, pa.Array) else pa.chunked_array(values)})


def portable_source(source: Any, table: Any) -> Any:
    """Return what another process opens in place of `source`: a file by its path."""
    if isinstance(source, (str, os.PathLike)):
        return Stamp.of(source)
    return source if isinstance(source, Wrapped) else table


def chosen(table: Any, name: str) -> Any:
    """Return the column of this name.

    Raises
    ------
    ValueError
        There is none, there are several, or the table has no row.
    """
    count = table.column_names.count(name)
    if count != 1:
        problem = "is missing" if not count else f"is there {count} times"
        raise ValueError(f"column {name!r} {problem}: the table has {', '.join(map(repr, table.column_names)) or 'no column'}")
    if not table.num_rows:
        raise ValueError(f"column {name!r} is empty: the table has no row")
    return table.column(name)


def sequence_column(table: Any, name: str, nulls: str, source: Any) -> Column:
    """Return a column of lists of a table, which another process has from `source`, as :func:`opened` takes it."""
    arrays = chosen(table, name).chunks
    return sequences(arrays, f"column {name!r}", nulls, (_sequences_again, (_alone(source, name), name, nulls)))


def _sequences_again(source: Any, name: str, nulls: str) -> Ragged:
    return sequence_column(opened(source), name, nulls, source).sequences


def sequences(arrays: list[Any], name: str, nulls: str, recipe: Any) -> Column:
    """Return lists in several arrays of one type."""
    checks.choice(nulls, "nulls", NULLS)
    kind = arrays[0].type
    if not is_list(kind):
        raise TypeError(no_lists(name, kind))
    arrays = [array for array in arrays if len(array)]
    if not arrays:
        raise ValueError(f"{name} has no row: a batch needs at least one sequence")
    valid = _valid(arrays, name, nulls)
    chunks = [_chunk(array, name, nulls) for array in arrays]
    rows: list[Array] = [chunk.alive for chunk in chunks]
    first = next(filter(len, rows), rows[0])
    for k, other in enumerate(rows):
        if len(other) and other.shape[1:] != first.shape[1:]:
            raise ValueError(f"{name} has rows of shape {other.shape[1:]} in chunk {k}, but of {first.shape[1:]} before")
    return Column(Ragged(grid_of(first), chunks, recipe), first.dtype, valid)


def no_lists(name: str, kind: Any) -> str:
    """Return what is wrong with a column of an Arrow type that is none of lists."""
    if _types.is_null(kind):
        return f"{name} is of Arrow type null, of nulls alone: give it a type, as by column.cast(pyarrow.list_(pyarrow.float32()))"
    return f"{name} is of Arrow type {kind}, but sequences are lists ({LISTS}) of numbers"


def valid_rows(table: Any, name: str, nulls: str) -> Int64Array | None:
    """Return the numbers of a column's rows that are not null, where some are.

    Raises
    ------
    ValueError
        One is null, and `nulls` is 'error'.
    """
    return _valid([array for array in chosen(table, name).chunks if len(array)], f"column {name!r}", nulls)


def has_null(array: Any) -> bool:
    """Whether there is a null in an array, or at any depth in its lists."""
    if isinstance(array, pa.ExtensionArray):
        return has_null(array.storage)
    return bool(array.null_count) or (is_list(array.type) and has_null(array.flatten()))


def _valid(arrays: list[Any], name: str, nulls: str) -> Int64Array | None:
    if not any(array.null_count for array in arrays):
        return None
    validity = np.concatenate([array.is_valid().to_numpy(zero_copy_only=False) for array in arrays])
    if nulls == "error":
        raise ValueError(f"{name} is null in row {int(np.argmin(validity))}: fill it, or pass nulls='skip'")
    return np.flatnonzero(validity)


def _chunk(array: Any, name: str, nulls: str) -> Chunk:
    """Return the lists of one array, which keep their rows alive."""
    bounds, first, child = _bounds(array)
    if child.null_count and nulls == "error":
        raise ValueError(f"{name} has a null among the steps of its lists: fill it, or pass nulls='skip'")
    if nulls == "skip":  # of all chunks alike, so that their bounds are of one dtype
        validity = child.is_valid().to_numpy(zero_copy_only=False)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(validity)])
        bounds, first = before[bounds.astype(np.int64) - first], 0
        child = child.filter(pa.array(validity)) if child.null_count else child
    rows = _rows(child, name)
    return Chunk(address(rows), len(rows), first, bounds, rows)


def _bounds(array: Any) -> tuple[Array, int, Any]:
    """Return where lists begin and end, (B + 1,) or (B, 2), the number of the first row that they have, and rows from there on."""
    kind, count = array.type, len(array)
    if isinstance(array, pa.ExtensionArray):
        return _bounds(array.storage)
    if _types.is_fixed_size_list(kind):
        size, start = kind.list_size, array.offset * kind.list_size
        return np.arange(count + 1) * size, 0, array.values.slice(start, count * size)
    found = array.offsets.to_numpy()
    if _types.is_list_view(kind) or _types.is_large_list_view(kind):
        starts, sizes = found[:count], array.sizes.to_numpy().astype(np.int64)
        filled = starts[sizes > 0] if sizes.any() else np.zeros(1, np.int64)
        low, high = int(filled.min()), int((starts + sizes)[sizes > 0].max(initial=0))
        starts = np.where(sizes > 0, starts, low)  # of an empty list it may be anywhere
        return np.stack([starts, starts + sizes], 1), low, array.values.slice(low, max(high - low, 0))
    first = int(found[0])
    return found, first, array.values.slice(first, int(found[-1]) - first)


def _rows(array: Any, name: str) -> Array:
    """Return the values of an array without nulls as rows, (N,) or (N, ...) where they are lists of one size."""
    if array.null_count:
        raise ValueError(f"{name} has a null within a row of values: fill it")
    if isinstance(array, pa.ExtensionArray):
        return _rows(array.storage, name)
    if not is_list(array.type):
        return _items(array, name)
    count = len(array)
    if _types.is_fixed_size_list(array.type):  # known without a number for each row, of which there may be many millions
        size = array.type.list_size
        inner = _rows(array.values.slice(array.offset * size, count * size), name)
        return inner.reshape(count, size, *inner.shape[1:])
    bounds, first, child = _bounds(array)
    starts, ends = (bounds[:-1], bounds[1:]) if bounds.ndim == 1 else bounds.T
    size = int(ends[0] - starts[0]) if count else 0
    for k in range(0, count, storage.PIECE):  # memory for them all would be several times what the values take
        expected = first + size * np.arange(k, min(k + storage.PIECE, count) + 1)
        piece = slice(k, k + len(expected) - 1)
        if (starts[piece] != expected[:-1]).any() or (ends[piece] != expected[1:]).any():
            raise ValueError(f"{name} has rows of different sizes within its lists: each must have as many values as the first, {size}")
    inner = _rows(child.slice(0, size * count), name)
    return inner.reshape(count, size, *inner.shape[1:])


def _items(array: Any, name: str) -> Array:
    kind = array.type
    if _types.is_boolean(kind):
        return np.require(array.to_numpy(zero_copy_only=False))
    if _types.is_null(kind):
        raise TypeError(f"{name} has values of Arrow type null, as where there is none: give it a type, as by pyarrow.compute.cast")
    if not (_types.is_integer(kind) or _types.is_floating(kind) or _types.is_timestamp(kind) or _types.is_duration(kind)):
        raise TypeError(f"{name} holds values of Arrow type {kind}: cast them to numbers first, as by pyarrow.compute.cast")
    found: Array = array.to_numpy(zero_copy_only=True)
    return found


def row_column(table: Any, name: str, source: Any) -> tuple[Rows, np.dtype[Any]]:
    """Return a column of one value, or one list of a fixed size, a row; what stands for a null is anything."""
    arrays = [_filled(array) for array in _lists_filled(chosen(table, name), name).chunks if len(array)]
    rows = [_rows(array, f"column {name!r}") for array in arrays]
    chunks = [(len(array), address(array), array) for array in rows]
    return Rows(grid_of(rows[0]), chunks, (_rows_again, (_alone(source, name), name))), rows[0].dtype


def _rows_again(source: Any, name: str) -> Rows:
    return row_column(opened(source), name, source)[0]


def _lists_filled(column: Any, name: str) -> Any:
    """Return a column with the first list that there is in place of each that is null."""
    if not (is_list(column.type) and column.null_count):
        return column
    if column.null_count == len(column):
        raise ValueError(f"column {name!r} is null in every row: nothing is left of the data set")
    valid = column.is_valid().to_numpy()
    return column.take(pa.array(np.where(valid, np.arange(len(valid)), valid.argmax())))


def _filled(array: Any) -> Any:
    kind = array.type
    if not array.null_count or not (_types.is_boolean(kind) or _types.is_integer(kind) or _types.is_floating(kind)):
        return array
    return array.fill_null(pa.scalar(0).cast(kind))


def text_column(table: Any, name: str, source: Any) -> Ragged:
    """Return a column of strings as sequences of bytes, in UTF-8; what stands for a null is an empty string."""
    chunks = []
    for array in chosen(table, name).cast(pa.large_string()).chunks:
        if len(array):
            _, bounds, values = array.buffers()
            first = np.frombuffer(bounds, np.int64)[array.offset : array.offset + len(array) + 1]
            content = np.frombuffer(values or b"", np.uint8)
            chunks.append(Chunk(address(content), len(content), 0, first, content))
    return Ragged(Grid.of((), [[1]], 1), chunks, (_texts_again, (_alone(source, name), name)))


def _texts_again(source: Any, name: str) -> Ragged:
    return text_column(opened(source), name, source)


def _alone(source: Any, name: str) -> Any:
    """Return what to send to another process for one column of `source`."""
    if isinstance(source, Wrapped):
        return Wrapped(source.whole.select([name]))
    return source.select([name]) if isinstance(source, (pa.Table, pa.RecordBatch)) else source


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of strings."""
    kind = kind.value_type if _types.is_dictionary(kind) else kind
    return any([_types.is_string(kind), _types.is_large_string(kind), _types.is_string_view(kind)])


def as_numpy(array: Any, name: str) -> Array:
    """Return an array of Arrow as one of NumPy that shares its memory: numbers, or rows of them."""
    arrays = _arrays(array, name)
    if len(arrays) != 1:
        raise ValueError(
            f"{name} has {len(arrays)} chunks, but needs one: pass {name}.combine_chunks(), or a column of lists to from_arrow"
        )
    return _rows(arrays[0], name)


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is one of lists."""
    if isinstance(kind, pa.ExtensionType):
        return is_list(kind.storage_type)
    tests: Sequence[Callable[[Any], bool]] = (
        _types.is_list,
        _types.is_large_list,
        _types.is_fixed_size_list,
        _types.is_list_view,
        _types.is_large_list_view,
    )
    return any([test(kind) for test in tests])


def _arrays(column: Any, name: str) -> list[Any]:
    if isinstance(column, pa.ChunkedArray):
        return column.chunks or [pa.array([], column.type)]
    if isinstance(column, pa.Array):
        return [column]
    if hasattr(column, "__arrow_c_stream__"):
        return _arrays(pa.chunked_array(column), name)
    if hasattr(column, "__arrow_c_array__"):
        return [pa.array(column)]
    raise TypeError(f"{name} is {checks.described(column)}, not a pyarrow Array or ChunkedArray")


def _file(path: str) -> Any:
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic[:4] == b"PAR1":
        raise ValueError(f"{path} is a Parquet file: use from_parquet")
    try:
        mapped = pa.memory_map(path)
        return (pa.ipc.open_file if magic == b"ARROW1" else pa.ipc.open_stream)(mapped).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Arrow file, or is truncated: {error}") from error
