"""Layout and Packed: index maps, what follows from lengths alone, and what a packed batch says of itself."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn.utils import rnn

import fastpack
from bench.cases import Case, cases
from fastpack import Layout, Packed
from tests.oracle import assert_same, layout, unchanged

each_case = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)


def test_the_miniature():
    packed = fastpack.pack([np.array(list("abc")), np.array(["x"])])
    assert "".join(packed.data) == "axbc"
    assert packed.batch_sizes.tolist() == [2, 1, 1]
    assert packed.sorted_indices.tolist() == [0, 1]
    assert packed.unsorted_indices.tolist() == [0, 1]
    assert packed.lengths.tolist() == [3, 1]
    assert packed.offsets.tolist() == [0, 2, 3, 4]
    assert packed.num_sequences == 2
    assert repr(packed) == "Packed(2 sequences, up to 3 steps, 4 rows, 67% filled; data <U1 (4,))"


@each_case
def test_layout_of_lengths(case: Case):
    lengths = case.lengths
    found = Layout(lengths)
    sizes, order, places = layout(lengths)
    for name, expected in (("batch_sizes", sizes), ("sorted_indices", order), ("unsorted_indices", places), ("lengths", lengths)):
        assert getattr(found, name).dtype == np.int64
        np.testing.assert_array_equal(getattr(found, name), expected)
    assert (found.num_sequences, found.num_steps, found.num_rows) == (case.B, max(lengths), sum(lengths))
    np.testing.assert_array_equal(found.offsets, [0, *np.cumsum(sizes)])


@each_case
def test_index_maps(case: Case):
    lengths, found, N = case.lengths, Layout(case.lengths), int(sum(case.lengths))
    sizes, order, _ = layout(lengths)
    np.testing.assert_array_equal(found.sequences, np.concatenate([order[:size] for size in sizes]) if N else [])
    np.testing.assert_array_equal(found.steps, np.repeat(np.arange(len(sizes)), sizes))
    # packed row to (sequence, step) and back
    np.testing.assert_array_equal(found.rows(found.sequences, found.steps), np.arange(N))
    # packed order to ragged order and back
    np.testing.assert_array_equal(found.ragged_rows, case.offsets()[:-1][found.sequences] + found.steps)
    np.testing.assert_array_equal(found.ragged_rows[found.packed_rows], np.arange(N))
    np.testing.assert_array_equal(found.packed_rows[found.ragged_rows], np.arange(N))
    values = np.arange(N)
    packed = fastpack.pack_ragged(values, case.offsets())
    np.testing.assert_array_equal(packed.data, values[found.ragged_rows])
    np.testing.assert_array_equal(packed.data[found.packed_rows], values)


@each_case
def test_lengths_and_offsets_of_a_packed_batch(case: Case):
    packed = fastpack.pack(case.sequences())
    for found, expected in ((packed.lengths, case.lengths), (packed.offsets, Layout(case.lengths).offsets)):
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected)


def test_rows_broadcasts():
    found = Layout([3, 0, 1])
    assert found.rows(0, [0, 1, 2]).tolist() == [0, 2, 3]
    assert found.rows([0, 2], 0).tolist() == [0, 1]
    assert found.rows(np.array([[0], [2]], np.uint8), np.array([0], ">i2")).tolist() == [[0], [1]]
    assert found.rows(2, 0) == 1
    assert found.rows([], []).shape == (0,)


@pytest.mark.parametrize(
    ("sequence", "step", "error", "match"),
    [
        (3, 0, IndexError, r"sequence 3 is out of range: there are 3"),
        ([0, -1], 0, IndexError, r"sequence -1 is out of range"),
        (1, 0, IndexError, r"step 0 is out of range: sequence 1 has 0 steps"),
        (0, [0, 3], IndexError, r"step 3 is out of range: sequence 0 has 3 steps"),
        (0, -1, IndexError, r"step -1 is out of range"),
        (0, 1.0, TypeError, r"step is of dtype float64, not of an integer dtype"),
        (True, 0, TypeError, r"sequence is of dtype bool, not of an integer dtype"),
    ],
)
def test_rows_out_of_range(sequence, step, error, match):
    with pytest.raises(error, match=match):
        Layout([3, 0, 1]).rows(sequence, step)


def test_equal_lengths_keep_their_order():
    # torch's order among equal lengths is the build's and the CPU's from 17 sequences on: here it is the caller's
    assert Layout([2] * 100).sorted_indices.tolist() == list(range(100))
    assert Layout([1, 2] * 50).sorted_indices.tolist() == [*range(1, 100, 2), *range(0, 100, 2)]
    assert Layout([0, 1] * 50).sorted_indices.tolist() == [*range(1, 100, 2), *range(0, 100, 2)]


def test_a_layout_is_its_own():
    lengths = np.array([3, 1])
    found = Layout(lengths)
    lengths[:] = 7
    assert found.lengths.tolist() == [3, 1]
    assert found.sequences.tolist() == [0, 1, 0, 0]
    assert repr(found) == "Layout(2 sequences, up to 3 steps, 4 rows)"


LENGTHS = {
    "list": [2, 0, 3],
    "tuple": (2, 0, 3),
    "range": range(0, 3),
    "NumPy integers in a list": [np.int8(2), np.uint64(0), np.array(3)],
    "tensors in a list": [torch.tensor(2), torch.tensor(0), 3],
    "tensor": torch.tensor([2, 0, 3], dtype=torch.int32),
    "memoryview": memoryview(np.array([2, 0, 3])),
    "strided": np.array([2, 9, 0, 9, 3])[::2],
    "reversed": np.array([3, 0, 2])[::-1],
    "broadcast": np.broadcast_to(np.int64(3), 4),
    "read-only": np.frombuffer(bytes([2, 0, 3]), np.uint8),
    **{dtype: np.array([2, 0, 3], dtype) for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i2", ">u4", ">i8", ">u8")},
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_lengths_of_any_integers(kind: str):
    given = LENGTHS[kind]
    expected = [int(item) for item in given]
    with unchanged(given):
        found = Layout(given)
        packed = fastpack.pack_padded(np.zeros((len(expected), 3)), given)
    assert found.lengths.tolist() == packed.lengths.tolist() == expected
    assert [item.tolist() for item in packed[1:]] == [item.tolist() for item in layout(expected)]


def test_packed_is_a_named_tuple_like_torchs():
    packed = fastpack.pack([np.arange(3.0), np.arange(1.0)])
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    assert isinstance(packed, tuple)
    assert Packed._fields == rnn.PackedSequence._fields == ("data", "batch_sizes", "sorted_indices", "unsorted_indices")
    assert_same(Packed(data, batch_sizes, sorted_indices, unsorted_indices), packed)
    for again in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert type(again) is Packed
        assert_same(again, packed)


def test_a_batch_made_by_hand_is_shown_as_it_is():
    assert repr(Packed([1, 2], [2], [0, 1], None)) == "Packed([1, 2], [2], [0, 1], None)"
    nothing = np.arange(0)
    assert repr(Packed(np.arange(3), np.array([3]), nothing, nothing)) == "Packed(0 sequences, up to 1 steps, 3 rows; data int64 (3,))"


def test_a_batch_without_any_step():
    packed = fastpack.pack([np.zeros((0, 2)), np.zeros((0, 2))])
    assert repr(packed) == "Packed(2 sequences, up to 0 steps, 0 rows; data float64 (0, 2))"
    assert packed.lengths.tolist() == [0, 0]
    assert packed.offsets.tolist() == [0]
    assert [item.shape for item in fastpack.unpack(packed)] == [(0, 2), (0, 2)]
    assert fastpack.pad(packed)[0].shape == (2, 0, 2)
    assert fastpack.pad(packed, total_length=3, padding_value=5)[0].tolist() == [[[5.0, 5.0]] * 3] * 2
