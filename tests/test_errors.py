"""Every bad input has its own error, which names the argument, the rule, what came and a way out; and changes nothing."""

import numpy as np
import pytest
import torch

from fastpack import Layout, Packed, pack, pack_padded, pack_ragged, pad, unpack, unpack_ragged
from tests.conftest import shown
from tests.oracle import unchanged

A, M = np.arange(3.0), np.arange(6.0).reshape(2, 3)
STRINGS = np.array(["a"], np.dtypes.StringDType())
WITH_OBJECT = np.zeros(2, [("a", "O"), ("b", "i4")])


def refused(error: type[Exception], match: str, function, *arguments, **options) -> None:
    given = [*arguments, *options.values()]
    inside = [item for argument in given if isinstance(argument, (list, tuple)) for item in argument]
    with (
        unchanged(*[item for item in [*given, *inside] if isinstance(item, (np.ndarray, list, int, str))]),
        pytest.raises(error, match=match),
    ):
        function(*arguments, **options)


class Broken:
    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise RuntimeError("the file is gone")


SEQUENCES = [
    (None, TypeError, r"^sequences is None, not a list of arrays: pass a list with one array a sequence$"),
    (3, TypeError, r"^sequences is an int, not a list of arrays"),
    ("abc", TypeError, r"^sequences is a str, not a list of arrays"),
    ({"a": A}, TypeError, r"^sequences is a dict, not a list of arrays"),
    ({1, 2}, TypeError, r"^sequences is a set, not a list of arrays"),
    (np.array(3.0), TypeError, r"^sequences is a ndarray, not a list of arrays"),
    (torch.tensor(3.0), TypeError, r"^sequences is a Tensor, not a list of arrays"),
    (pack([A]), TypeError, r"^sequences is a Packed, which is packed already: take it apart with unpack first$"),
    ([], ValueError, r"^sequences is empty: a batch needs at least one sequence$"),
    (np.zeros((0, 3)), ValueError, r"^sequences is empty"),
    ([A, None], TypeError, r"^sequences\[1\] is None, not an array of rows: pass an array, or a list of numbers$"),
    ([A, "abc"], TypeError, r"^sequences\[1\] is a str, not an array of rows"),
    ([b"abc"], TypeError, r"^sequences\[0\] is a bytes, not an array of rows"),
    ([A, {1}], TypeError, r"^sequences\[1\] is a set, not an array of rows"),
    ([object()], TypeError, r"^sequences\[0\] is an object, not an array of rows"),
    ([(k for k in range(3))], TypeError, r"^sequences\[0\] is a generator, not an array of rows"),
    ([A, np.array(3.0)], ValueError, r"^sequences\[1\] is the single value np.float64\(3.0\), not a sequence of rows: give it a"),
    ([A, 3], ValueError, r"^sequences\[1\] is the single value np.int64\(3\), not a sequence of rows"),
    (A, ValueError, r"^sequences\[0\] is the single value np.float64\(0.0\), not a sequence of rows"),
    ([A, A.astype("f4")], TypeError, r"^sequences\[1\] is of dtype float32, but sequences\[0\] is of float64: convert them"),
    ([A, A, A.astype(">f8")], TypeError, r"^sequences\[2\] is of dtype >f8, but sequences\[0\] is of float64"),
    ([[1, 2], [3.5]], TypeError, r"^sequences\[1\] is of dtype float64, but sequences\[0\] is of int64"),
    ([["abc"], ["x", "y"]], TypeError, r"^sequences\[1\] is of dtype <U1, but sequences\[0\] is of <U3"),
    ([A.astype("M8[s]"), A.astype("M8[ms]")], TypeError, r"^sequences\[1\] is of dtype datetime64\[ms\], but"),
    ([np.zeros(1, "i4,f8"), np.zeros(1, np.dtype("i4,f8", align=True))], TypeError, r"^sequences\[1\] is of dtype .*aligned.*, but"),
    ([M, A], ValueError, r"^sequences\[1\] has rows of shape \(\), but those of sequences\[0\] have \(3,\): its shape is \(3,"),
    ([A, M], ValueError, r"^sequences\[1\] has rows of shape \(3,\), but those of sequences\[0\] have \(\)"),
    ([M, M, M[:, :2]], ValueError, r"^sequences\[2\] has rows of shape \(2,\), but those of sequences\[0\] have \(3,\)"),
    ([M[None], M[None].swapaxes(1, 2)], ValueError, r"^sequences\[1\] has rows of shape \(3, 2\), but"),
    ([A, A.astype(object)], TypeError, r"^sequences\[1\] is of dtype object, but sequences\[0\] is of float64"),
    ([A.astype(object)], TypeError, r"^sequences\[0\] is of dtype object, whose values are references to Python objects"),
    ([STRINGS], TypeError, r"^sequences\[0\] is of dtype StringDType.*references to Python objects"),
    ([WITH_OBJECT], TypeError, r"^sequences\[0\] is of dtype .*'O'.*references to Python objects"),
    ([[[1, 2], [3]]], ValueError, r"^sequences\[0\] is not a regular array: "),
    ([np.ma.array([1, 2], mask=[0, 1])], TypeError, r"^sequences\[0\] is a masked array, whose mask would be lost: pass .fil"),
    (np.ma.array([[1, 2]]), TypeError, r"^sequences\[0\] is a masked array"),
    ([[np.ma.array([1, 2], mask=[0, 1])]], TypeError, r"^sequences\[0\] is a masked array"),
    ([A, Broken()], TypeError, r"^sequences\[1\] cannot be read as a NumPy array: the file is gone$"),
    ([torch.ones(3, requires_grad=True)], TypeError, r"^sequences\[0\] cannot be read as a NumPy array: .*requires grad"),
    ([torch.ones(3, dtype=torch.bfloat16)], TypeError, r"^sequences\[0\] cannot be read as a NumPy array: .*BFloat16"),
]  # fmt: skip


@pytest.mark.parametrize(("sequences", "error", "match"), SEQUENCES, ids=[match[1:60] for *_, match in SEQUENCES])
def test_sequences(sequences, error, match):
    refused(error, match, pack, sequences)


# of any vector of integers; {} is the argument's name
INTEGERS = [
    (None, TypeError, r"^{} is None, not a vector of integers: pass an array of them, a list or a tuple$"),
    ("12", TypeError, r"^{} is a str, not a vector of integers"),
    ({1: 2}, TypeError, r"^{} is a dict, not a vector of integers"),
    ({1, 2}, TypeError, r"^{} is a set, not a vector of integers"),
    ((k for k in (1, 2)), TypeError, r"^{} is a generator, not a vector of integers"),
    ([0, 1.0], TypeError, r"^{}\[1\] is 1.0, not an integer: convert it, or drop it$"),
    ((0, float("nan")), TypeError, r"^{}\[1\] is nan, not an integer"),
    ([0, True], TypeError, r"^{}\[1\] is True, not an integer"),
    ([0, np.True_], TypeError, r"^{}\[1\] is np.True_, not an integer"),
    ([0, torch.tensor(True)], TypeError, r"^{}\[1\] is tensor\(True\), not an integer"),
    ([0, "1"], TypeError, r"^{}\[1\] is '1', not an integer"),
    ([0, None], TypeError, r"^{}\[1\] is None, not an integer"),
    ([0, np.timedelta64(1, "s")], TypeError, r"^{}\[1\] is np.timedelta64\(1,'s'\), not an integer"),
    ([[0, 1]], TypeError, r"^{}\[0\] is \[0, 1\], not an integer"),
    (np.array([0.0, 1.0]), TypeError, r"^{0} is of dtype float64, not of an integer dtype: convert it, as by {0}.astype\(np.int64\)$"),
    (np.array([0, np.nan]), TypeError, r"^{} is of dtype float64, not of an integer dtype"),
    (np.array([]), TypeError, r"^{} is of dtype float64, not of an integer dtype"),
    (np.array([False, True]), TypeError, r"^{} is of dtype bool, not of an integer dtype"),
    (np.array([0, 1], "m8[s]"), TypeError, r"^{} is of dtype timedelta64\[s\], not of an integer dtype"),
    (np.array(["0", "1"]), TypeError, r"^{} is of dtype <U1, not of an integer dtype"),
    (np.array([0, 1], complex), TypeError, r"^{} is of dtype complex128, not of an integer dtype"),
    (torch.tensor([0.0, 1.0]), TypeError, r"^{} is of dtype float32, not of an integer dtype"),
    (np.array([0, 1], object), TypeError, r"^{} is of dtype object, whose values are references to Python objects: convert it"),
    (np.ma.array([0, 1], mask=[0, 1]), TypeError, r"^{} is a masked array, whose mask would be lost"),
    (3, ValueError, r"^{} has the shape \(\), but needs one dimension$"),
    (np.array([[0, 1]]), ValueError, r"^{} has the shape \(1, 2\), but needs one dimension$"),
    ([0, 2**63], ValueError, r"^{}\[1\] is 9223372036854775808, beyond the range of int64$"),
    ([-(2**63) - 1, 0], ValueError, r"^{}\[0\] is -9223372036854775809, beyond the range of int64$"),
    (np.array([0, 2**63], np.uint64), ValueError, r"^{}\[1\] is 9223372036854775808, beyond the range of int64$"),
    (np.array([0, 2**64 - 1], ">u8"), ValueError, r"^{}\[1\] is 18446744073709551615, beyond the range of int64$"),
]  # fmt: skip
READERS = {
    "lengths": (lambda value: pack_padded(M, value), Layout),
    "offsets": (lambda value: pack_ragged(A, value),),
    **{
        field: tuple(
            lambda value, field=field, read=read: read(pack([A, A[:1]])._replace(**{field: value}))
            for read in (unpack, unpack_ragged, pad, lambda packed: packed.lengths)
        )
        for field in Packed._fields[1:]
    },
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(("value", "error", "match"), INTEGERS, ids=[match[1:60] for *_, match in INTEGERS])
def test_vectors_of_integers(name, value, error, match):
    for read in READERS[name]:
        refused(error, match.format(name), read, value)


@pytest.mark.parametrize(
    ("padded", "lengths", "error", "match"),
    [
        (M, [1], ValueError, r"^lengths has 1 entries, but padded has 2 sequences: pass one length for each$"),
        (M, [1, 2, 3], ValueError, r"^lengths has 3 entries, but padded has 2 sequences"),
        (M, [], ValueError, r"^lengths has 0 entries, but padded has 2 sequences"),
        (M, [1, -1], ValueError, r"^lengths\[1\] is -1, but a length is 0 or more$"),
        (M, [4, 1], ValueError, r"^lengths\[0\] is 4, but padded has only 3 steps$"),
        (M, [2**62, 2**62], ValueError, r"^lengths\[0\] is 4611686018427387904, but padded has only 3 steps$"),
        (np.zeros((2, 0)), [0, 1], ValueError, r"^lengths\[1\] is 1, but padded has only 0 steps$"),
        (A, [1], ValueError, r"^padded has 1 dimensions, but needs at least 2: its shape is \(3,\)$"),
        (3.0, [1], ValueError, r"^padded has 0 dimensions, but needs at least 2"),
        (np.zeros((0, 3)), [], ValueError, r"^padded has the shape \(0, 3\) and no sequence: a batch needs at least one$"),
        (None, [1], TypeError, r"^padded is None, not an array of rows: pass an array, or a list of numbers$"),
        ([[1, 2], [3]], [2, 1], ValueError, r"^padded is not a regular array: "),
        (np.ma.array([[1, 2]], mask=[[0, 1]]), [1], TypeError, r"^padded is a masked array"),
        ([np.ma.array([1, 2], mask=[0, 1])], [1], TypeError, r"^padded is a masked array"),
        (M.astype(object), [1, 1], TypeError, r"^padded is of dtype object, whose values are references to Python objects"),
        (np.zeros((2, 2), WITH_OBJECT.dtype), [1, 1], TypeError, r"^padded is of dtype .*references to Python objects"),
    ],
)
def test_padded_and_lengths(padded, lengths, error, match):
    refused(error, match, pack_padded, padded, lengths)


def test_batch_first_says_which_dimension_counts():
    refused(ValueError, r"^lengths has 2 entries, but padded has 3 sequences", pack_padded, M, [1, 1], batch_first=False)
    refused(ValueError, r"^lengths\[1\] is 3, but padded has only 2 steps", pack_padded, M, [1, 3, 1], batch_first=False)


@pytest.mark.parametrize(
    ("lengths", "error", "match"),
    [
        ([], ValueError, r"^lengths is empty: a batch needs at least one sequence$"),
        ([3, -1], ValueError, r"^lengths\[1\] is -1, but a length is 0 or more$"),
        ([2**62, 2**62], OverflowError, r"^lengths add up to more rows than int64 can count$"),
        (
            [2**62],
            OverflowError,
            r"^batch_sizes would have the shape \(4611686018427387904,\) and dtype int64: more bytes than int64 can count$",
        ),
    ],
)
def test_lengths_of_a_layout(lengths, error, match):
    refused(error, match, Layout, lengths)


@pytest.mark.parametrize(
    ("values", "offsets", "error", "match"),
    [
        (A, [], ValueError, r"^offsets has 0 entries, but needs B \+ 1, at least 2: 0, then where each sequence ends$"),
        (A, [0], ValueError, r"^offsets has 1 entries, but needs B \+ 1, at least 2"),
        (A, [1, 3], ValueError, r"^offsets\[0\] is 1, but offsets start at 0: cut values and offsets to the part that you mean$"),
        (A, [-1, 3], ValueError, r"^offsets\[0\] is -1, but offsets start at 0"),
        (A, [0, 2, 1, 3], ValueError, r"^offsets\[2\] is 1, but offsets never decrease and offsets\[1\] is 2$"),
        (A, [0, -(2**63), 3], ValueError, r"^offsets\[1\] is -9223372036854775808, but offsets never decrease"),
        (A, [0, 2], ValueError, r"^offsets\[1\] is 2, but offsets end at the number of rows, and values has 3$"),
        (A, [0, 2, 4], ValueError, r"^offsets\[2\] is 4, but offsets end at the number of rows, and values has 3$"),
        (3.0, [0, 1], ValueError, r"^values has 0 dimensions, but needs at least 1: its shape is \(\)$"),
        ("abc", [0, 3], TypeError, r"^values is a str, not an array of rows"),
        (A.astype(object), [0, 3], TypeError, r"^values is of dtype object, whose values are references to Python objects"),
        (np.ma.array([1, 2], mask=[0, 1]), [0, 2], TypeError, r"^values is a masked array"),
    ],
)
def test_values_and_offsets(values, offsets, error, match):
    refused(error, match, pack_ragged, values, offsets)


READ = pytest.mark.parametrize(
    "read", [unpack, unpack_ragged, pad, lambda packed: packed.lengths], ids=["unpack", "ragged", "pad", "lengths"]
)


@READ
@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"batch_sizes": [2, 1]}, r"^batch_sizes add up to 3, but data has 4 rows$"),
        ({"batch_sizes": []}, r"^batch_sizes add up to 0, but data has 4 rows$"),
        ({"batch_sizes": [1, 2, 1]}, r"^batch_sizes\[1\] is 2, but batch sizes are at least 1 and never grow, and batch_sizes\[0\] is 1$"),
        ({"batch_sizes": [2, 2, 0]}, r"^batch_sizes\[2\] is 0, but batch sizes are at least 1"),
        ({"batch_sizes": [2, 3, -1]}, r"^batch_sizes\[1\] is 3, but"),
        ({"batch_sizes": [4]}, r"^batch_sizes\[0\] is 4, but batch sizes are at least 1 and never grow, and there are 2 sequences$"),
        ({"batch_sizes": [2**62, 2**62]}, r"^batch_sizes\[0\] is 4611686018427387904, but"),
        ({"sorted_indices": []}, r"^sorted_indices is empty: a packed batch has at least one sequence$"),
        ({"sorted_indices": [0]}, r"^unsorted_indices has 2 entries, but sorted_indices has 1$"),
        ({"sorted_indices": [0, 2]}, r"^sorted_indices\[1\] is 2, but it is a permutation of 0 to 1$"),
        ({"sorted_indices": [-1, 0]}, r"^sorted_indices\[0\] is -1, but it is a permutation of 0 to 1$"),
        (
            {"sorted_indices": [0, 0]},
            r"^unsorted_indices\[0\] is 0, but sorted_indices\[1\] is 0: each must be the inverse permutation of the other$",
        ),
        ({"sorted_indices": [1, 0]}, r"^unsorted_indices\[1\] is 1, but sorted_indices\[0\] is 1: each must be"),
        ({"unsorted_indices": [0, 7]}, r"^unsorted_indices\[1\] is 7, but sorted_indices\[1\] is 1: each must be"),
        ({"data": A}, r"^batch_sizes add up to 4, but data has 3 rows$"),
    ],
)
def test_packed_batches_that_contradict_themselves(read, fields, match):
    packed = pack([A, A[:1]])._replace(**fields)
    with unchanged(*packed), pytest.raises(ValueError, match=match):
        read(packed)


@pytest.mark.parametrize("read", [unpack, unpack_ragged, pad])
def test_what_is_no_packed_batch(read):
    packed = pack([A])
    refused(TypeError, r"^packed is a list, not a Packed: make one by pack, pack_padded or pack_ragged$", read, [A])
    refused(TypeError, r"^packed is a tuple, not a Packed", read, tuple(packed))
    refused(TypeError, r"^packed is a NoneType, not a Packed", read, None)
    refused(TypeError, r"^data is of dtype object, whose values are references", read, packed._replace(data=A.astype(object)))
    refused(TypeError, r"^data is None, not an array of rows", read, packed._replace(data=None))
    refused(ValueError, r"^data has 0 dimensions, but needs at least 1", read, packed._replace(data=np.float64(1)))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"total_length": 2}, ValueError, r"^total_length is 2, but the longest sequence has 3 steps$"),
        ({"total_length": 0}, ValueError, r"^total_length is 0, but the longest sequence has 3 steps$"),
        ({"total_length": -1}, ValueError, r"^total_length is -1, but needs at least 0$"),
        ({"total_length": 4.0}, TypeError, r"^total_length is 4.0, not an integer$"),
        ({"total_length": True}, TypeError, r"^total_length is True, not an integer$"),
        ({"total_length": "4"}, TypeError, r"^total_length is '4', not an integer$"),
        (
            {"total_length": 2**62},
            OverflowError,
            r"^the padded batch would have the shape \(2, 4611686018427387904\) and dtype float64: more bytes",
        ),
        ({"total_length": 2**80}, OverflowError, r"^the padded batch would have the shape .*: more bytes than int64 can count$"),
        ({"multiple_of": 0}, ValueError, r"^multiple_of is 0, but needs at least 1$"),
        ({"multiple_of": 1.5}, TypeError, r"^multiple_of is 1.5, not an integer$"),
        ({"multiple_of": None}, TypeError, r"^multiple_of is None, not an integer$"),
        ({"multiple_of": 2**70}, OverflowError, r"^the padded batch would have the shape"),
        ({"padding_side": "top"}, ValueError, r"^padding_side is 'top', but can only be 'right' or 'left'$"),
        ({"padding_side": None}, ValueError, r"^padding_side is None, but can only be 'right' or 'left'$"),
        ({"padding_side": np.array(["right", "left"])}, ValueError, r"^padding_side is array.*, but can only be 'right' or 'left'$"),
    ],
)
def test_options_of_pad(options, error, match):
    refused(error, match, pad, pack([A, A[:1]]), **options)


NOT_HELD = [
    *(("?", value) for value in (2, -1, 0.5, np.nan, "a", b"", None, [True], np.datetime64("2020"), 1j)),
    *(
        ("i1", value)
        for value in (128, -129, 1.5, np.nan, np.inf, 1e300, 2**70, "1", None, 1j, np.timedelta64(1, "s"), np.array([1, 2]), (1,), object())
    ),
    *(("u8", value) for value in (-1, 2**64, np.datetime64("NaT"), -0.5)),
    *((">i2", value) for value in (2**15, 0.1)),
    *(("f2", value) for value in (65520, 1e5, -1e300, 2**70, 1j, "1.5", None, [1.5], np.array([1.5]), np.complex64(1))),
    *(("f4", value) for value in (1e39, 2**200, np.float64(1e300), np.datetime64("2020"))),
    *(("f8", value) for value in (10**400, "nan", np.timedelta64(1, "s"))),
    *(("F", value) for value in (1e39j, 1e300, "1j", None)),
    *(("S3", value) for value in ("abcd", b"abcd", "é", 1, 1.5, None, b"a\0", "a\0", False)),
    *(("U3", value) for value in ("abcd", b"a", 1, None, "a\0", True)),
    *(("M8[s]", value) for value in (1, True, 1.5, None, "soon", np.timedelta64(1, "s"), "2020-01-01T00:00:00.5")),
    *(("M8[D]", value) for value in (np.datetime64("2020-01-01T12:00"), "2020-13")),
    *(("m8[s]", value) for value in (1.5, None, "long", np.timedelta64(1, "ms"), np.datetime64("2020"))),
    *(("V3", value) for value in (b"ab", b"abcd", "abc", 1, None, np.void(b"ab"))),
]


@pytest.mark.parametrize(("dtype", "value"), NOT_HELD, ids=shown)
def test_padding_values_that_a_dtype_cannot_hold(dtype, value):
    packed = pack([np.zeros(2, dtype), np.zeros(1, dtype)])
    with unchanged(*packed), pytest.raises(ValueError, match=r"^padding_value is .*, which dtype .* cannot hold"):
        pad(packed, padding_value=value)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (1, r"^padding_value is 1, but the fields are id, at: pass a tuple of one value for each$"),
        ((1,), r"^padding_value is \(1,\), but the fields are id, at"),
        ([1, (2, 3)], r"^padding_value is \[1, \(2, 3\)\], but the fields are id, at"),
        ((300, (1, 2)), r"^padding_value\['id'\] is 300, which dtype int8 cannot hold"),
        ((1.5, (1, 2)), r"^padding_value\['id'\] is 1.5, which dtype int8 cannot hold$"),
        ((1, (2.0, 1e39)), r"^padding_value\['at'\]\['y'\] is 1e\+39, which dtype float32 cannot hold"),
        ((1, 2), r"^padding_value\['at'\] is 2, but the fields are x, y"),
        (np.void(b"123456789"), r"^padding_value is .*, but the fields are id, at"),
    ],
)
def test_padding_values_of_structures(value, match):
    packed = pack([np.zeros(2, [("id", "i1"), ("at", [("x", "f4"), ("y", "f4")])])])
    with unchanged(*packed), pytest.raises(ValueError, match=match):
        pad(packed, padding_value=value)


def test_results_that_int64_cannot_measure():
    many = np.broadcast_to(np.zeros(1, "i1"), (2**62,))
    refused(OverflowError, r"^lengths add up to more rows than int64 can count$", lambda: pack([many, many]))
    wide = np.broadcast_to(np.zeros(1), (1, 2**59))
    match = r"^the packed batch would have the shape \(4, 576460752303423488\) and dtype float64: more bytes than int64 can count$"
    refused(OverflowError, match, lambda: pack([wide] * 4))


def test_the_check_for_changed_inputs_can_fail():
    def changes(values: np.ndarray) -> None:
        values[0] = 7
        raise ValueError("changed")

    with pytest.raises(AssertionError, match="an input was changed"):
        refused(ValueError, "changed", changes, np.zeros(3))
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        refused(ValueError, "changed", lambda: None)
