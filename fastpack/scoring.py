"""Scores of sequences in Arrow tables: a column of lists in, columns of what a layer makes of them out, row by row."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from fastpack import arrow, checks
from fastpack.packed import Packed
from fastpack.recurrent import GRU, LSTM, RNN

RESULTS = ("last", "rows")
SLICE_STEPS = 1 << 17  # of a batch, about; of 100 floats each, 50 MB


@dataclass(frozen=True)
class Scorer:
    """What to make of each row of a table: the same, in the same order, whatever tables the rows come in.

    Each row of the result is of one row of the table. It depends on nothing else, to the bit: not on the table's other rows,
    nor on threads or machines of one CPU level. Pickled, it takes the layer along.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        Its input_size is F.
    column : str
        The column of sequences: lists of rows, each a list of F numbers; or, if F is 1, lists of numbers. Numbers are cast to
        the layer's dtype.
    results : tuple of str
        Which columns to make, of D directions and the state's width P: 'last', a list of D * P numbers, the last layer's state
        after the last step (backward: the first), zeros of a sequence without steps; 'rows', for each step a list of D * P.
        Of a null both are null.
    keep : tuple of str
        The columns of the table to go into the result, before those.
    num_threads : int
        Threads that share a batch.

    Raises
    ------
    ValueError
        `results` is empty or has another name, or names are there twice.

    Examples
    --------
    >>> import numpy as np, pyarrow as pa, fastpack
    >>> one = np.ones((1, 1))
    >>> running_sum = fastpack.RNN.from_state_dict({"weight_ih_l0": one, "weight_hh_l0": one}, nonlinearity="relu")
    >>> scorer = Scorer(running_sum, "x", results=("last", "rows"), keep=("id",))
    >>> scorer(pa.table({"id": [7, 8, 9], "x": [[9.0], None, [1.0, 2.0, 3.0]]})).to_pylist()[-1]
    {'id': 9, 'last': [6.0], 'rows': [[1.0], [3.0], [6.0]]}
    """

    layer: LSTM | GRU | RNN
    column: str
    results: tuple[str, ...] = ("last",)
    keep: tuple[str, ...] = ()
    num_threads: int = 1

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError(f"results is empty: name at least one of {', '.join(RESULTS)}")
        for name in self.results:
            checks.choice(name, "results", RESULTS)
        for what, names in (("results", self.results), ("keep", self.keep)):
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{what} has {name!r} more than once: name each column once")
        for name in self.keep:
            if name in self.results:
                raise ValueError(f"keep has {name!r}, the name of a column that is made, too: rename it in the input, or leave it out")
        checks.count(self.num_threads, "num_threads", 1)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys([self.column, *self.keep]))

    def schema(self, table_schema: Any) -> Any:
        """Return the schema of what is made of tables of this one.

        Raises
        ------
        ValueError
            A column is missing, or is there more than once.
        TypeError
            The column of sequences is none of lists.
        """
        for name in self.columns:
            if table_schema.names.count(name) != 1:
                problem = "is missing" if name not in table_schema.names else "is there more than once"
                raise ValueError(f"column {name!r} {problem}: there is {', '.join(map(repr, table_schema.names)) or 'no column'}")
        kind = table_schema.field(self.column).type
        if not arrow.is_list(kind):
            raise TypeError(arrow.no_lists(f"column {self.column!r}", kind))
        return pa.schema([table_schema.field(name) for name in self.keep] + [pa.field(name, self._type(name)) for name in self.results])

    def check(self, column: Any) -> None:
        """Check that the sequences of a column are what the layer takes, without running it.

        Raises
        ------
        ValueError, TypeError
            As a call would raise.
        """
        if column.null_count < len(column):
            self._packed(column.drop_null())

    def __call__(self, table: Any) -> Any:
        """Return the result of a table: as many rows, in the same order.

        Raises
        ------
        ValueError
            A column is missing, a step is null, or rows are not of F numbers.
        TypeError
            The column of sequences is none of lists of numbers.
        MemoryError
            There is not enough.
        """
        return pa.concat_tables([self.schema(table.schema).empty_table(), *self.slices(table)])

    def slices(self, table: Any) -> Iterator[Any]:
        """Yield the result of a table in pieces, each of a batch of about `SLICE_STEPS` steps."""
        schema = self.schema(table.schema)
        lengths = lengths_of(table.column(self.column))
        batches = np.cumsum(lengths, dtype=np.int64) // SLICE_STEPS
        cuts = [0, *(np.flatnonzero(np.diff(batches)) + 1).tolist(), len(lengths)]
        for begin, end in pairwise(cuts):
            if end > begin:
                yield self._score(table.slice(begin, end - begin), schema)

    def _score(self, table: Any, schema: Any) -> Any:
        column = table.column(self.column)
        found = self._run(column.drop_null()) if column.null_count < len(column) else {}
        arrays = [table.column(name) for name in self.keep]
        for name in self.results:
            array = found.get(name, pa.array([], self._type(name)))
            arrays.append(_spread(array, column) if column.null_count else array)
        return pa.table(arrays, schema=schema)

    def _run(self, column: Any) -> dict[str, Any]:
        output, state = self.layer(self._packed(column), num_threads=self.num_threads)
        made = {"last": lambda: self._last(state), "rows": lambda: self._rows(output)}
        return {name: made[name]().cast(self._type(name)) for name in self.results}

    def _packed(self, column: Any) -> Packed:
        """Return lists, of which none is null, as a batch of rows (N, F) of the layer's dtype."""
        name = f"column {self.column!r}"
        if compute.list_flatten(column).null_count:
            raise ValueError(f"{name} has a null among the steps of its lists: fill it, or leave the step out")
        packed = arrow.pack_named(column, name, "error")
        rows, F = packed.data, self.layer.input_size
        if not len(rows):  # nothing tells how wide they would be
            rows = np.empty((0, F), self.layer.dtype)
        if rows.ndim == 1 and F == 1:
            rows = rows[:, None]
        if rows.shape[1:] != (F,):
            fitting = f", or a layer whose input_size is {math.prod(rows.shape[1:])}" if rows.ndim < 3 else ""
            raise ValueError(
                f"{name} has steps of shape {rows.shape[1:]}, but the layer takes {F} numbers a step, ({F},): name another column{fitting}"
            )
        if rows.dtype.kind not in "biuf":
            raise TypeError(f"{name} holds {rows.dtype}, but a layer takes numbers: cast them first")
        return packed._replace(data=rows.astype(self.layer.dtype, copy=False))

    def _last(self, state: Any) -> Any:
        h_n = state[0] if isinstance(state, tuple) else state
        last = h_n[-self._directions :]  # (D, B, P)
        values = np.ascontiguousarray(last.transpose(1, 0, 2)).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(values), self._width)

    def _rows(self, output: Packed) -> Any:
        return arrow.unpack_column(output)

    @property
    def _directions(self) -> int:
        return 2 if self.layer.bidirectional else 1

    @property
    def _width(self) -> int:
        return self._directions * (self.layer.proj_size or self.layer.hidden_size)

    def _type(self, name: str) -> Any:
        one = pa.list_(pa.from_numpy_dtype(self.layer.dtype), self._width)
        return one if name == "last" else pa.large_list(one)


def lengths_of(column: Any) -> Any:
    """Return how long the lists of a column are, 0 for a null."""
    return compute.fill_null(compute.list_value_length(column), 0).to_numpy()


def _spread(array: Any, column: Any) -> Any:
    """Return `array`, which has an item for each item of `column` that is not null, with nulls where those are."""
    valid = column.is_valid().to_numpy()
    return array.take(pa.array(np.cumsum(valid) - 1, mask=~valid))
