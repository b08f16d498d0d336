"""Columns of Arrow, packed, against fastpack.pack of the lists that pyarrow says are in them."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

import fastpack
from fastpack import arrow
from fastpack.arrow import pack_column, unpack_column
from tests.test_memory import peak

LISTS = {"list": pa.list_, "large_list": pa.large_list, "list_view": pa.list_view, "large_list_view": pa.large_list_view}
INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
NUMBERS = [pa.type_for_alias(name) for name in (*INTEGERS, "float16", "float32", "float64", "bool")]
LENGTHS = [3, 0, 5, 1, 2]


def lists(dtype: pa.DataType, seed: int = 0) -> list[list]:
    """Return lists of LENGTHS of values of a type."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 2 if dtype == pa.bool_() else 100, n).astype(dtype.to_pandas_dtype()).tolist() for n in LENGTHS]


def assert_packed(found: fastpack.Packed, rows: list, dtype: str | np.dtype, trailing: tuple[int, ...] = ()) -> None:
    expected = fastpack.pack([np.array(row, dtype).reshape(len(row), *trailing) for row in rows])
    assert found.data.dtype == expected.data.dtype
    assert found.data.shape == expected.data.shape
    assert found.data.tobytes() == expected.data.tobytes()
    assert [field.tolist() for field in found[1:]] == [field.tolist() for field in expected[1:]]


@pytest.mark.parametrize("kind", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_lists_of_every_number(kind, dtype):
    rows = lists(dtype)
    whole = pa.array([rows[2], *rows, rows[0]], kind(dtype))
    for column in (
        pa.array(rows, kind(dtype)),
        whole[1:-1],
        pa.chunked_array([whole[1:3], whole[:0], whole[3:4], whole[4:-1]]),
        pa.chunked_array([whole])[1:-1],
        pa.table({"x": whole}).slice(1, 5).column("x"),
    ):
        assert column.to_pylist() == rows
        assert_packed(pack_column(column), rows, dtype.to_pandas_dtype())


@pytest.mark.parametrize("kind", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("inner", [*LISTS.values(), lambda dtype: pa.list_(dtype, 2)], ids=[*LISTS, "fixed_size_list"])
def test_rows_that_are_lists_of_one_size(kind, inner):
    rows = [[[value, value + 0.5] for value in row] for row in lists(pa.float32())]
    whole = pa.array([rows[2], *rows, rows[0]], kind(inner(pa.float32())))
    for column in (whole[1:-1], pa.chunked_array([whole[1:2], whole[2:3], whole[3:-1]])):
        assert column.to_pylist() == rows
        assert_packed(pack_column(column), rows, np.float32, (2,))
    deeper = [[[row, row[::-1], row] for row in sequence] for sequence in rows]
    outer = inner if inner in LISTS.values() else lambda dtype: pa.list_(dtype, 3)
    assert_packed(pack_column(pa.array(deeper, kind(outer(inner(pa.float32()))))), deeper, np.float32, (3, 2))


def test_lists_of_fixed_size():
    rows = [[1, 2], [3, 4], [5, 6], [7, 8]]
    whole = pa.array(rows, pa.list_(pa.int16(), 2))
    assert_packed(pack_column(whole), rows, np.int16)
    assert_packed(pack_column(whole[1:3]), rows[1:3], np.int16)
    assert_packed(pack_column(pa.chunked_array([whole[2:], whole[:1]])), [*rows[2:], rows[0]], np.int16)
    nested = pa.array([rows[:2], rows[2:]], pa.list_(pa.list_(pa.int16(), 2), 2))
    assert_packed(pack_column(nested[1:]), [rows[2:]], np.int16, (2,))


def test_views_of_lists_in_any_order():
    values, ends = pa.array(range(10)), pa.array([0, 5, 9, 6, 5], pa.int32())
    column = pa.ListViewArray.from_arrays(ends, pa.array([0, 3, 0, 2, 3], pa.int32()), values)
    assert_packed(pack_column(column), column.to_pylist(), np.int64)
    assert_packed(pack_column(column[1:]), [[5, 6, 7], [], [6, 7], [5, 6, 7]], np.int64)


def test_extension_types_are_what_they_store():
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), (2, 2)), pa.array([[1.0, 2, 3, 4]] * 3, pa.list_(pa.float32(), 4))
    )
    column = pa.ListArray.from_arrays(pa.array([0, 2, 3], pa.int32()), tensors)
    assert_packed(pack_column(column), [[[1, 2, 3, 4]] * 2, [[1, 2, 3, 4]]], np.float32, (4,))


def test_dates_and_times():
    column = pa.array([[1, 2, 3], [9]], pa.list_(pa.timestamp("us")))
    assert_packed(pack_column(column), [[1, 2, 3], [9]], "M8[us]")
    assert_packed(pack_column(pa.array([[5]], pa.list_(pa.duration("ms")))), [[5]], "m8[ms]")


@pytest.mark.parametrize("kind", [*LISTS.values(), lambda dtype: pa.list_(dtype, 3)], ids=[*LISTS, "fixed_size_list"])
def test_nulls_are_refused_or_skipped(kind):
    rows = [[1, None, 2], None, [3, 4, 5], [None] * 3, [6, 7, None]]
    column = pa.array(rows, kind(pa.int32()))
    for given, problem in ((column, "is null in row 1"), (column[2:], "a null among the steps")):
        with pytest.raises(ValueError, match=problem):
            pack_column(given)
    wanted = [[1, 2], [3, 4, 5], [], [6, 7]]
    for given in (column, pa.chunked_array([column[:1], column[1:2], column[2:]])):
        assert_packed(pack_column(given, nulls="skip"), wanted, np.int32)
    assert_packed(pack_column(column[2:3]), [[3, 4, 5]], np.int32)  # what a slice leaves out is nobody's business
    rows_of_rows = pa.array([[[1, 2], None, [3, 4]], [None]], kind(pa.list_(pa.int32(), 2))) if kind in LISTS.values() else None
    if rows_of_rows is not None:
        assert_packed(pack_column(rows_of_rows, nulls="skip"), [[[1, 2], [3, 4]], []], np.int32, (2,))


@pytest.mark.parametrize(
    ("column", "error", "problem"),
    [
        (pa.array([1, 2]), TypeError, "column is of Arrow type int64, but sequences are lists"),
        (pa.array([["a"]]), TypeError, "column holds values of Arrow type string: cast them to numbers"),
        (pa.array([[{"a": 1}]]), TypeError, "values of Arrow type struct"),
        (pa.array([[1]], pa.list_(pa.date32())), TypeError, "values of Arrow type date32"),
        (pa.array([], pa.list_(pa.int8())), ValueError, "column has no row"),
        (pa.chunked_array([], pa.list_(pa.int8())), ValueError, "column has no row"),
        (pa.array([[[1, 2], [3]]]), ValueError, "rows of different sizes within its lists: .* as the first, 2"),
        (pa.array([[[1], [3, 4]]]), ValueError, "rows of different sizes"),
        (pa.chunked_array([[[[1, 2]]], [[[1]]]]), ValueError, r"rows of shape \(1,\) in chunk 1, but of \(2,\) before"),
        (pa.array([[[1, None]]]), ValueError, "a null within a row of values"),
        (pa.array([None, [1]]), ValueError, "is null in row 0: fill it, or pass nulls='skip'"),
        ([[1, 2]], TypeError, "column is a list, not a pyarrow Array"),
        (pa.table({"x": [[1]]}), TypeError, "."),
    ],
)
def test_what_is_no_column_of_sequences(column, error, problem):
    with pytest.raises(error, match=problem):
        pack_column(column)


def test_nothing_left_and_a_wrong_choice():
    with pytest.raises(ValueError, match="no list that is not null"):
        pack_column(pa.array([None, None], pa.list_(pa.int8())), nulls="skip")
    with pytest.raises(ValueError, match="nulls is 'drop', but can only be 'error' or 'skip'"):
        pack_column(pa.array([[1]]), nulls="drop")


def test_columns_of_no_type():
    with pytest.raises(TypeError, match=r"^column is of Arrow type null, of nulls alone: give it a type, as by column\.cast\("):
        pack_column(pa.nulls(3))
    with pytest.raises(TypeError, match=r"^column has values of Arrow type null, as where there is none: give it a type"):
        pack_column(pa.array([[], []]))
    given = pa.nulls(3).cast(pa.list_(pa.float32()))  # the way out
    assert_packed(pack_column(pa.concat_arrays([given, pa.array([[1]], given.type)]), nulls="skip"), [[1]], np.float32)


def test_offsets_that_are_wrong_are_refused():
    wrong = pa.ListArray.from_buffers(
        pa.list_(pa.int8()), 3, [None, pa.py_buffer(np.array([0, 9, 2, 3], np.int32))], children=[pa.array([1, 2, 3], pa.int8())]
    )
    with pytest.raises(ValueError, match="offsets of sequence 0 are 0 and 9, but offsets never decrease, and there are rows 0 to 3"):
        pack_column(wrong)


class Foreign:
    """An array of another library: nothing but Arrow's C interface."""

    def __init__(self, array):
        self.array = array

    def __getattr__(self, name):
        if name not in ("__arrow_c_array__", "__arrow_c_stream__"):
            raise AttributeError(name)
        return getattr(self.array, name)


@pytest.mark.parametrize("column", [pa.array([[1], [2, 3]]), pa.chunked_array([[[1]], [[2, 3]]])])
def test_other_libraries_columns(column):
    assert_packed(pack_column(Foreign(column)), [[1], [2, 3]], np.int64)


def test_a_batch_becomes_a_column_again():
    for trailing in ((), (3,), (2, 3)):
        sequences = [np.random.default_rng(n).normal(size=(n, *trailing)) for n in LENGTHS]
        packed = fastpack.pack(sequences)
        column = unpack_column(packed)
        assert column.to_pylist() == [sequence.tolist() for sequence in sequences]
        assert_packed(pack_column(column), sequences, np.float64, trailing)
    with pytest.raises(TypeError, match="which Arrow does not have"):
        unpack_column(fastpack.pack([np.array([1j])]))


def test_values_are_not_copied():
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(40 * 50_000, np.float32)), 40)
    column = pa.ListArray.from_arrays(pa.array(np.arange(0, 50_001, 500, dtype=np.int32)), rows)
    chunked, before = pa.chunked_array([column[:30], column[30:]]), pa.total_allocated_bytes()
    packed = pack_column(chunked)
    assert packed.data.nbytes <= peak(lambda: pack_column(chunked)) < 1.05 * packed.data.nbytes
    assert pa.total_allocated_bytes() == before
    assert (
        peak(lambda: pack_column(pa.array(column.values.values.to_numpy().copy() * 1).cast(pa.float32()) and chunked))
        > 1.9 * packed.data.nbytes
    )


def test_storage_crosses_to_another_process():
    table = pa.table({"x": [[1, 2], [3], [], [4, 5, 6]], "unused": ["x" * 10_000] * 4})
    column = arrow.sequence_column(table, "x", "error", table).sequences
    sent = pickle.dumps(column)
    assert len(sent) < 5_000
    assert pickle.loads(sent).lengths().tolist() == [2, 1, 0, 3]


def test_without_pyarrow_the_error_says_what_to_install(child):
    code = "import sys\nsys.modules['pyarrow'] = None\nimport fastpack.arrow"
    assert child(code, status=1).splitlines()[-1] == "ImportError: fastpack.arrow needs pyarrow 18 or later: pip install 'fastpack[arrow]'"
