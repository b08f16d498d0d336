"""pack, pack_padded, pack_ragged, pad, unpack and unpack_ragged against the twin and torch: every dtype, shape and stride."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch.nn.utils import rnn

from bench.cases import Case, cases
from fastpack import Packed, pack, pack_padded, pack_ragged, pad, unpack, unpack_ragged
from tests.conftest import shown
from tests.oracle import ALL_DTYPES, assert_packed, assert_same, assert_same_bytes, random_array, row_bytes, unchanged, views

each_case = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda dtype: dtype.str + "x" * bool(dtype.names) + str(dtype.itemsize))
TRAILINGS = [(), (1,), (3,), (2, 3), (1, 2, 1), (2, 1, 3, 2)]
LENGTHS = [2, 0, 5, 1, 5, 0, 3]


def sequences_of(dtype, trailing: tuple[int, ...] = (), lengths=LENGTHS) -> list[np.ndarray]:
    return [random_array((length, *trailing), dtype, seed) for seed, length in enumerate(lengths)]


# ---- the registry of cases


@each_case
def test_every_way_in_and_out(case: Case):
    sequences, padded, values, offsets = case.sequences(), case.padded(), case.values(), case.offsets()
    with unchanged(padded, values, offsets, *sequences[:8]):
        packed = pack(sequences)
        assert_same(pack_padded(padded, case.lengths), packed)
        assert_same(pack_padded(padded.swapaxes(0, 1).copy(), case.lengths, batch_first=False), packed)
        assert_same(pack_ragged(values, offsets), packed)
    assert_packed(packed, sequences)
    with unchanged(*packed):
        again, their_offsets = unpack_ragged(packed)
        parts = unpack(packed)
        out, lengths = pad(packed, padding_value=1, total_length=int(max(case.lengths)))
    assert_same_bytes(again, values)
    assert_same_bytes(their_offsets, offsets)
    for part, item in zip(parts, sequences, strict=True):
        assert_same_bytes(part, item)
    np.testing.assert_array_equal(lengths, case.lengths)
    for i, item in enumerate(sequences):
        padded[i, len(item) :] = 1
    assert_same_bytes(out, padded)


@each_case
def test_torch_packs_and_pads_alike(case: Case):
    sequences = [item for item in case.sequences() if len(item)]
    if not sequences:
        sequences = [np.ones((1, *case.trailing), case.dtype)]
    stably = sorted(sequences, key=len, reverse=True)  # torch's own order of equal lengths is not the same everywhere
    theirs = rnn.pack_sequence([torch.from_numpy(item) for item in stably])
    ours = pack(sequences)
    np.testing.assert_array_equal(theirs.data.numpy(), ours.data)
    np.testing.assert_array_equal(theirs.batch_sizes.numpy(), ours.batch_sizes)
    for batch_first in (True, False):
        padded, lengths = pad(pack(stably), batch_first=batch_first, padding_value=1, total_length=len(stably[0]) + 2)
        expected = rnn.pad_packed_sequence(theirs, batch_first, 1, len(stably[0]) + 2)
        np.testing.assert_array_equal(padded, expected[0].numpy())
        np.testing.assert_array_equal(lengths, expected[1].numpy())


# ---- dtypes and shapes


@each_dtype
@pytest.mark.parametrize("trailing", TRAILINGS, ids=str)
def test_every_dtype_keeps_its_bits(dtype: np.dtype, trailing: tuple[int, ...]):
    sequences = sequences_of(dtype, trailing)
    packed = pack(sequences)
    assert_packed(packed, sequences)
    for part, item in zip(unpack(packed), sequences, strict=True):
        assert_same_bytes(part, item)
    values = np.ndarray((sum(LENGTHS), *trailing), dtype, bytearray(b"".join(item.tobytes() for item in sequences)))
    offsets = np.cumsum([0, *LENGTHS])
    assert_same(pack_ragged(values, offsets), packed)
    assert_same_bytes(unpack_ragged(packed)[0], values)
    padded, _ = pad(packed, total_length=6)
    assert_same(pack_padded(padded, LENGTHS), packed)
    for row, item in zip(padded, sequences, strict=True):
        assert row[: len(item)].tobytes() == item.tobytes()
        assert row[len(item) :].tobytes() == bytes((6 - len(item)) * packed.data[:1].nbytes)  # 0, the gaps of a structure too


@pytest.mark.parametrize(
    ("dtype", "trailing"), [("S0", ()), ("U0", (2,)), ("V0", ()), ("V0", (3,)), ("f4", (0,)), ("i8", (2, 0, 3)), ("U3", (0, 2))]
)
def test_rows_without_bytes(dtype: str, trailing: tuple[int, ...]):
    sequences = [np.ndarray((length, *trailing), dtype) for length in LENGTHS]  # np.zeros would make S1 of S0
    packed = pack(sequences)
    assert_packed(packed, sequences)
    assert [item.shape for item in unpack(packed)] == [item.shape for item in sequences]
    padded, lengths = pad(packed, total_length=7)
    assert (padded.dtype, padded.shape) == (np.dtype(dtype), (len(LENGTHS), 7, *trailing))
    assert lengths.tolist() == LENGTHS
    assert_same(pack_padded(padded, LENGTHS), packed)
    assert_same(pack_ragged(np.ndarray((sum(LENGTHS), *trailing), dtype), np.cumsum([0, *LENGTHS])), packed)


@pytest.mark.parametrize("item_bytes", [*range(1, 35), 63, 64, 65, 100, 1023, 1024, 1025, 4096])
def test_every_width_of_a_row(item_bytes: int):
    sequences = sequences_of(f"V{item_bytes}", lengths=[0, 40, 3, 40, 17, 1, 16, 39, 5, 40, 40, 33, 2, 18, 40, 35, 38, 40, 40])
    packed = pack(sequences)
    assert_packed(packed, sequences)
    for part, item in zip(unpack(packed), sequences, strict=True):
        assert_same_bytes(part, item)


# ---- strides


@pytest.mark.parametrize("dtype", ["i1", "f4", ">f8", "g", "U3", "V7"])
@pytest.mark.parametrize("trailing", TRAILINGS, ids=str)
def test_sequences_of_any_strides(dtype: str, trailing: tuple[int, ...]):
    found = views(random_array((6, *trailing), dtype))
    for name, item in found.items():  # all members with the same strides
        members = [item, item[:3], item[:1], item[:0], item[2:]]
        with unchanged(*members):
            assert_packed(pack(members), members)
            assert_packed(pack_ragged(item, [0, 2, 2, 6]), [item[:2], item[2:2], item[2:]])
        assert item.shape == (6, *trailing), name
    members = [item[:length] for item, length in zip(found.values(), (6, 3, 5, 0, 1, 4, 2, 6, 1), strict=True)]
    with unchanged(*members):  # each member with its own
        assert_packed(pack(members), members)


@pytest.mark.parametrize("dtype", ["i1", "f4", ">f8", "U3"])
@pytest.mark.parametrize("trailing", TRAILINGS, ids=str)
@pytest.mark.parametrize("batch_first", [True, False])
def test_padded_batches_of_any_strides(dtype: str, trailing: tuple[int, ...], batch_first: bool):
    lengths = [3, 0, 4, 1, 4] if batch_first else [3, 0, 5, 5]
    for name, batch in views(random_array((5, 4, *trailing), dtype)).items():
        by_sequence = batch if batch_first else batch.swapaxes(0, 1)
        with unchanged(batch):
            packed = pack_padded(batch, lengths, batch_first)
        assert_packed(packed, [row[:length] for row, length in zip(by_sequence, lengths, strict=True)])
        assert batch.shape == (5, 4, *trailing), name


def test_strides_that_are_never_taken():
    # of a dimension of size 1 or 0 NumPy keeps any stride: following it would read elsewhere
    memory = np.arange(12.0)
    odd = np.lib.stride_tricks.as_strided
    one_step = odd(memory, (1, 3), (10**12, 8))
    one_column = odd(memory, (3, 1), (8, 10**12))
    assert_packed(
        pack([one_step, memory[:6].reshape(2, 3), odd(memory, (0, 3), (-(10**12), 8))]),
        [one_step, memory[:6].reshape(2, 3), memory[:0].reshape(0, 3)],
    )
    assert_packed(pack([one_step]), [memory[:3].reshape(1, 3)])
    assert_packed(pack([one_column, memory[:2].reshape(2, 1)]), [memory[:3].reshape(3, 1), memory[:2].reshape(2, 1)])
    assert_packed(pack_ragged(one_column, [0, 1, 3]), [memory[:1].reshape(1, 1), memory[1:3].reshape(2, 1)])
    assert_packed(pack_padded(odd(memory, (1, 3), (10**12, 8)), [2]), [memory[:2]])
    assert_packed(pack_padded(odd(memory, (3, 1), (8, 10**12)), [1, 0, 1]), [memory[:1], memory[:0], memory[2:3]])


def test_packed_fields_of_any_strides():
    sequences = sequences_of("f4", (3,))
    packed = pack(sequences)
    strided = Packed(np.asfortranarray(packed.data), *(np.repeat(item, 2)[::2].astype(">i4") for item in packed[1:]))
    listed = Packed(packed.data.tolist(), *(item.tolist() for item in packed[1:]))
    with unchanged(*strided):
        for found, expected in zip(unpack(strided), sequences, strict=True):
            assert_same_bytes(found, expected)
    assert_same_bytes(pad(strided)[0], pad(packed)[0])
    np.testing.assert_array_equal(pad(listed)[0], pad(packed)[0].astype(float))
    np.testing.assert_array_equal(strided.lengths, packed.lengths)


# ---- what counts as an array


class Described:
    """As pandas has it: an object with a method named mask that NumPy can make an array of."""

    def mask(self, _condition: object) -> None: ...

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.arange(3)


class Subclass(np.ndarray):
    def __len__(self) -> int:
        return 1000  # a subclass may say anything: what counts is its memory


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([[1, 2], [3]], [np.array([1, 2]), np.array([3])]),
        (([1.5], (2, 3.5)), [np.array([1.5]), np.array([2, 3.5])]),
        ([[1, 2], []], [np.array([1, 2]), np.array([], int)]),
        ([[], [[1, 2]], ()], [np.zeros((0, 2), int), np.array([[1, 2]]), np.zeros((0, 2), int)]),
        ([[], np.ones((2, 3), "f4")], [np.zeros((0, 3), "f4"), np.ones((2, 3), "f4")]),
        ([[], []], [np.zeros(0), np.zeros(0)]),
        ((np.arange(n) for n in (1, 3)), [np.arange(1), np.arange(3)]),
        ({"a": np.arange(2)}.values(), [np.arange(2)]),
        (np.arange(6).reshape(2, 3), [np.arange(3), np.arange(3, 6)]),
        (np.array([np.arange(3), np.arange(2)], object), [np.arange(3), np.arange(2)]),
        ([torch.arange(3), torch.arange(2)], [np.arange(3), np.arange(2)]),
        ([range(3), memoryview(b"ab").cast("b").toreadonly().tolist()], [np.arange(3), np.array([97, 98])]),
        ([bytearray(b"ab"), np.array([7], "u1")], [np.array([97, 98], "u1"), np.array([7], "u1")]),
        ([Described(), np.arange(2)], [np.arange(3), np.arange(2)]),
        ([np.arange(3).view(Subclass)], [np.arange(3)]),
        ([["ab", "c"], ["de"]], [np.array(["ab", "c"]), np.array(["de"])]),
        ([np.rec.array([(1, 2.0)], "i4,f8")], [np.array([(1, 2.0)], "i4,f8")]),
    ],
    ids=shown,
)
def test_what_can_be_read_as_sequences(given, expected):
    packed = pack(given)
    assert type(packed.data) is np.ndarray
    assert packed.data.dtype.names == expected[0].dtype.names
    assert_packed(packed._replace(data=packed.data.view(expected[0].dtype)), expected)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrices():
    assert_packed(pack([np.matrix([[1, 2], [3, 4]]), np.matrix([[5, 6]])]), [np.array([[1, 2], [3, 4]]), np.array([[5, 6]])])
    assert_packed(pack_padded(np.matrix([[1, 2], [3, 4]]), [1, 2]), [np.array([1]), np.array([3, 4])])
    assert_packed(pack_ragged(np.matrix([[1, 2], [3, 4]]), [0, 2]), [np.array([[1, 2], [3, 4]])])


def test_lists_in_place_of_arrays():
    assert_packed(pack_padded([[1, 2], [3, 4]], (1, 2)), [np.array([1]), np.array([3, 4])])
    assert_packed(pack_ragged([1, 2, 3], [0, 1, 3]), [np.array([1]), np.array([2, 3])])


def test_rows_of_the_padding_are_never_read():
    batch = np.full((2, 4), np.nan, "f4")
    batch[0, :3], batch[1, :1] = 1, 2
    with np.errstate(all="raise"):
        assert pack_padded(batch, [3, 1]).data.tolist() == [1, 2, 1, 1]


def test_results_are_new_memory():
    item, padded = np.arange(4.0), np.arange(4.0).reshape(1, 4)
    for packed in (pack([item]), pack_padded(padded, [4]), pack_ragged(item, [0, 4])):
        for out in (packed.data, unpack(packed)[0], unpack_ragged(packed)[0], pad(packed)[0]):
            assert not any(np.shares_memory(out, given) for given in (item, padded) if out is not given)
            assert out.flags.writeable
        assert not np.shares_memory(unpack(packed)[0], packed.data)


# ---- pad


@pytest.mark.parametrize("dtype", ["i1", "f4", "i8", "c16", "V7", "V1500"])
@pytest.mark.parametrize("trailing", [(), (3,), (2, 5)], ids=str)
def test_pad_in_every_way(dtype: str, trailing: tuple[int, ...]):
    sequences = sequences_of(dtype, trailing)
    packed = pack(sequences)
    value = np.dtype(dtype).type(7) if dtype[0] != "V" else np.void(random_array((), dtype, 3).tobytes())
    for batch_first, side, total, multiple in product((True, False), ("right", "left"), (None, 5, 6, 11), (1, 4, 5)):
        steps = -(-(total or 5) // multiple) * multiple
        expected = np.empty((len(sequences), steps, *trailing), dtype)
        expected[...] = value
        for row, item in zip(expected, sequences, strict=True):
            row[slice(len(item)) if side == "right" else slice(steps - len(item), None)] = item
        with unchanged(*packed):
            padded, lengths = pad(
                packed, batch_first=batch_first, padding_value=value, total_length=total, padding_side=side, multiple_of=multiple
            )
        assert padded.flags.c_contiguous
        assert_same_bytes(padded, expected if batch_first else expected.swapaxes(0, 1))
        assert lengths.dtype == np.int64
        assert lengths.tolist() == LENGTHS


HELD = [  # where nothing else is said, the value itself
    *(("?", True), ("?", 1.0, True), ("?", np.False_, False)),
    *(("i1", -128), ("i1", 3.0, 3), ("i1", np.True_, 1), ("u8", 2**64 - 1), ("i8", np.float32(2), 2), ("i4", np.array(7), 7)),
    *(("f2", 65504), ("f2", 0.1, np.float16(0.1)), ("f4", np.inf), ("f4", -np.inf), ("f4", 1e-60, 0.0), ("f4", torch.tensor(1.5), 1.5)),
    *(("f8", 2**70, 2.0**70), ("f8", True, 1.0), (">f4", 1.5), ("f8", np.longdouble(2)), ("f8", Fraction(1, 4), 0.25)),
    *(("F", 1 + 2j), ("D", 3), ("D", complex(0, np.inf)), ("D", np.complex64(1j))),
    *(("S3", "abc", b"abc"), ("S3", b"a"), ("S3", b""), ("U2", "é"), ("U2", np.str_("ab"))),
    *(("M8[s]", "2020-01-01", np.datetime64("2020-01-01")), ("M8[s]", np.datetime64("2020", "D")), ("M8[ms]", date(2020, 1, 1))),
    *(("m8[s]", 5), ("m8[ms]", np.timedelta64(5, "s")), ("m8[ms]", timedelta(days=1))),
    *(("V2", b"ab", np.void(b"ab")), ("V2", np.void(b"ab"))),
    *(("i4,f8", (1, 2.5)), ("i4,f8", np.array((3, 4.0), "i4,f8")[()])),
]


@pytest.mark.parametrize("held", HELD, ids=lambda held: f"{held[0]} {held[1]!r}")
def test_padding_values_that_a_dtype_holds(held: tuple):
    dtype, value, expected = held[0], held[1], held[-1]
    padded, _ = pad(pack([np.zeros(2, dtype), np.zeros(1, dtype)]), padding_value=value)
    wanted = np.zeros((), dtype)
    wanted[()] = expected
    assert_same_bytes(padded[1, 1:], wanted.reshape(1))
    assert padded[0].tolist() == np.zeros(2, dtype).tolist()


def test_padding_value_beyond_float64():
    value = np.finfo(np.longdouble).max
    assert pad(pack([np.zeros(2, "g"), np.zeros(1, "g")]), padding_value=value)[0].tolist()[1][1] == value


def test_padding_values_that_are_no_number():
    def padding(dtype, value):
        return pad(pack([np.zeros(2, dtype), np.zeros(1, dtype)]), padding_value=value)[0][1, 1]

    assert np.isnan(padding("f2", np.nan))
    assert np.isnan(padding("c8", np.nan).real)
    for dtype in ("M8[s]", "m8[s]"):
        assert np.isnat(padding(dtype, "NaT"))
        assert np.isnat(padding(dtype, np.dtype(dtype[:2]).type("NaT")))
    assert np.signbit(padding("f4", -0.0))
    nested = np.dtype([("id", "i2"), ("at", [("x", "f4"), ("y", "f4")]), ("box", "u1", (2, 2))])
    held = padding(nested, (1, (2.5, 3), 4))
    assert held.tolist()[:2] == (1, (2.5, 3.0))
    assert held["box"].tolist() == [[4, 4], [4, 4]]


@each_dtype
@pytest.mark.parametrize("zero", [0, 0.0, np.int8(0), np.float64(0)], ids=repr)
def test_zero_pads_any_dtype(dtype: np.dtype, zero):
    padded, _ = pad(pack([random_array((2,), dtype), random_array((1,), dtype)]), padding_value=zero)
    assert padded[1, 1:].tobytes() == bytes(dtype.itemsize)


# ---- threads and processes


def test_eight_threads_at_once():
    everything = [case for case in cases() if case.B * case.row_bytes < 50_000]
    expected = {case.name: pack(case.sequences()) for case in everything}
    inputs = {case.name: case.sequences() for case in everything}

    def work(k: int) -> int:
        for case in np.random.default_rng(k).permutation(np.arange(len(everything))):
            name = everything[case].name
            packed = pack(inputs[name])
            assert_same(packed, expected[name])
            again = unpack(packed)
            assert all(one.tobytes() == other.tobytes() for one, other in zip(again, inputs[name], strict=True))
            assert_same(pack_padded(*pad(packed)), packed)
        return len(everything)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [len(everything)] * 8


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_goes_on():
    sequences = sequences_of("f4", (3,))
    expected = pack(sequences)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert_same(pack(sequences), expected)
            assert_same(pack_padded(*pad(expected)), expected)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- the guards above can fail


@pytest.mark.parametrize("field", Packed._fields)
def test_a_wrong_packed_batch_is_noticed(field: str):
    sequences = sequences_of("f4")
    packed = pack(sequences)
    wrong = getattr(packed, field).copy()
    wrong.view(np.uint8)[-1] ^= 1
    with pytest.raises(AssertionError):
        assert_packed(packed._replace(**{field: wrong}), sequences)
    with pytest.raises(AssertionError):
        assert_same(packed._replace(**{field: wrong}), packed)


def test_other_wrongs_are_noticed():
    sequences = sequences_of("f4")
    packed = pack(sequences)
    for wrong in (packed.data.astype("f8"), packed.data.view("i4"), packed.data[:, None], np.repeat(packed.data, 2)[::2]):
        with pytest.raises(AssertionError):
            assert_packed(packed._replace(data=wrong), sequences)
    with pytest.raises(AssertionError):  # an order of ties that is none of ours
        assert_packed(pack(sequences[::-1]), sequences)
    memory = np.zeros(9)
    with pytest.raises(AssertionError, match="an input was changed"), unchanged(memory[::2]):
        memory[1] = 1
    assert [len(row_bytes(item)) for item in sequences] == [a - b for b, a in pairwise(np.cumsum([0, *LENGTHS]))]
