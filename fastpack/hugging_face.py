"""Data sets of Hugging Face's library in Arrow's format: the table under one, and which of its rows it has."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from fastpack import checks
from fastpack.arrow import Wrapped, chosen, has_null
from fastpack.checks import Int64Array


def is_data_set(source: Any) -> bool:
    """Whether something is of Hugging Face's library, which need not be installed."""
    return hasattr(source, "with_format") and hasattr(source, "column_names")


def selected(source: Any, names: list[str]) -> tuple[Any, Int64Array | None]:
    """Return the table under a data set, and the numbers of the rows that it has of it, None for all.

    A data set that was shuffled, filtered or split is a whole table, often mapped from a file, and such numbers. Asked for its rows,
    the library makes each a chunk: 6 s for 100,000. Where the columns `names` have nulls, which could be in rows that
    are not selected, the selection is copied.

    Raises
    ------
    TypeError
        `source` is several data sets, or one that cannot be asked for a row by its number.
    ValueError
        A column is missing or there is no row; row numbers are beyond the table's.
    """
    if isinstance(source, Mapping):
        raise TypeError(f"table is {checks.described(source)} of {', '.join(map(repr, source))}: pass one of these data sets")
    if not hasattr(source, "data"):
        raise TypeError(
            f"table is {checks.described(source)}, whose rows come one after another: load it without streaming=True, "
            "or pass it to fastpack.torch.loader as it is, which packs its samples"
        )
    if source._indices is None:  # they have no public way to these numbers but through a copy of all that is selected
        return Wrapped(source.data), None
    rows = source._indices.column(0).to_numpy().astype(np.int64)
    table = source.data.table
    if len(rows) and not 0 <= rows.min() <= rows.max() < table.num_rows:
        raise ValueError(f"table selects row {rows.max()} of {table.num_rows}: it is not what it was when it was shuffled or filtered")
    if not len(rows) or any([has_null(array) for name in names for array in chosen(table, name).chunks]):
        return table.select(names).take(pa.array(rows)), None
    return Wrapped(source.data), rows
