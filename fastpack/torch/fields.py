"""From what a caller has to the fields of a data set: arrays, memory maps, tensors, Arrow, lists of strings."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpack import checks
from fastpack.checks import Array
from fastpack.moves import Grid
from fastpack.storage import Chunk, Mapped, Ragged, Rows, checked_offsets, portable, ragged_of, rows_of
from fastpack.torch.batches import Field, Sequences, Texts, Values
from fastpack.torch.bridge import is_dense

PLAIN = "numbers, arrays of one shape, or strings"


def sequences_of(values: Any, offsets: Any, name: str, offsets_name: str) -> Sequences:
    """Return the field of values (N, ...) between offsets (B + 1,).

    Raises
    ------
    TypeError, ValueError
        An argument is not what it should be.
    """
    rows = _rows(values, name)
    bounds = checked_offsets(_as_array(offsets, offsets_name), len(rows), offsets_name)
    if isinstance(rows, Tensor):
        return Sequences(_ragged_of_tensor(rows, bounds), rows.dtype)
    return Sequences(ragged_of(rows, bounds), torch_dtype(rows.dtype, name))


def values_of(value: Any, name: str) -> Field:
    """Return the field of one value, array of a fixed shape or string a sequence.

    Raises
    ------
    TypeError, ValueError
        `value` is nothing of the kind.
    """
    if _is_arrow(value):
        from fastpack import arrow

        table = arrow.table_of(value, name)
        return column_of(table, name, table)
    if isinstance(value, (list, tuple)) and value and all([isinstance(item, str) for item in value]):
        return texts_of(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "UT":
        return texts_of(value.tolist())
    rows = _rows(value, name)
    if isinstance(rows, Tensor):
        return Values(_rows_of_tensor(rows), rows.dtype)
    if rows.dtype.kind in "US":
        raise TypeError(f"{name} is of dtype {rows.dtype}, but a value of each sequence is one of {PLAIN}")
    return Values(rows_of(rows), torch_dtype(rows.dtype, name))


def joined(sequences: Any) -> tuple[Any, list[int]]:
    """Return tensors or arrays (T_i, ...) one after another, and their lengths.

    Raises
    ------
    TypeError, ValueError
        There is none, or they are not alike.
    """
    items = list(sequences) if isinstance(sequences, Iterable) and not isinstance(sequences, (str, bytes, Mapping)) else sequences
    if not isinstance(items, list) or not items or not all([isinstance(item, Tensor) for item in items]):
        arrays, _ = checks.sequences(items)
        return np.concatenate(arrays), [len(array) for array in arrays]
    first = items[0]
    for k, item in enumerate(items):
        if not item.dim() or item.shape[1:] != first.shape[1:] or item.dtype is not first.dtype:
            said = [f"sequences[{i}] is of {items[i].dtype} and shape {tuple(items[i].shape)}" for i in (k, 0)]
            raise ValueError(f"{', but '.join(said)}: only the first dimension may differ")
    return torch.cat([item.detach() for item in items]), [len(item) for item in items]


def column_of(table: Any, name: str, source: Any) -> Field:
    """Return the field of a column of an Arrow table with one value, list of a fixed size or string a row."""
    from fastpack import arrow

    if arrow.is_text(arrow.chosen(table, name).type):
        return Texts(arrow.text_column(table, name, source))
    rows, dtype = arrow.row_column(table, name, source)
    return Values(rows, torch_dtype(dtype, f"column {name!r}"))


def texts_of(texts: Iterable[str]) -> Texts:
    """Return the field of one string a sequence."""
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return Texts(ragged_of(np.frombuffer(b"".join(encoded), np.uint8), offsets))


def torch_dtype(dtype: np.dtype[Any], name: str) -> torch.dtype:
    """Return torch's name of a dtype.

    Raises
    ------
    TypeError
        torch has none.
    """
    try:
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except (TypeError, ValueError) as error:  # the latter of foreign byte order
        raise TypeError(f"{name} is of dtype {dtype}, which torch does not have: convert it, as by .astype or .view") from error


def _rows(value: Any, name: str) -> Any:
    """Return a dense tensor or an array of at least one dimension."""
    if isinstance(value, Tensor):
        if not is_dense(value) or not value.dim():
            raise TypeError(f"{name} is no dense tensor of the CPU with rows: pass one, as by {name}.cpu()")
        if value.requires_grad:
            raise ValueError(f"{name} requires grad, but batches from storage have no history: pass {name}.detach()")
        return value
    return checks.rows(_as_array(value, name), name)


def _as_array(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if _is_arrow(value):
        from fastpack import arrow

        return arrow.as_numpy(value, name)
    return value


def _is_arrow(value: Any) -> bool:
    return hasattr(value, "__arrow_c_array__") or hasattr(value, "__arrow_c_stream__")


def _grid_of_tensor(tensor: Tensor) -> Grid:
    item_bytes = tensor.element_size()
    return Grid.of(tuple(tensor.shape[1:]), [[stride * item_bytes for stride in tensor.stride()]], item_bytes)


def _rows_of_tensor(tensor: Tensor) -> Rows:
    try:
        held: Any = tensor.numpy()
    except TypeError:  # NumPy has no such dtype, as bfloat16
        held = tensor
    return Rows(_grid_of_tensor(tensor), [(len(tensor), tensor.data_ptr(), held)], (_rows_of_tensor, (tensor,)))


def _ragged_of_tensor(values: Tensor, offsets: Any) -> Ragged:
    bounds: Array = offsets.opened() if isinstance(offsets, Mapped) else offsets
    chunk = Chunk(values.data_ptr(), len(values), 0, bounds, values)
    return Ragged(_grid_of_tensor(values), [chunk], (_ragged_of_tensor, (values, portable(bounds))))
