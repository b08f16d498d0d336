"""torch.nn.utils.rnn's six functions against torch's own: every field, dtype, stride and option."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

import fastpack.torch as fp
from bench.cases import with_bytes
from tests.torch_oracle import (
    FUNCTIONS,
    assert_packed,
    assert_same,
    every_dtype,
    outcome,
    packed_by_torch,
    padded_by_hand,
    random_tensor,
    torch_called,
    unchanged,
    views,
)

laws = settings(max_examples=120, derandomize=True, deadline=None, database=None)
each_dtype = pytest.mark.parametrize("dtype", every_dtype(), ids=str)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
TRAILINGS = [(), (1,), (3,), (2, 3), (1, 2, 1), (2, 1, 3, 2), (0,), (2, 0)]
LENGTHS = [2, 5, 1, 5, 3, 3]


def sequences_of(dtype=torch.float32, trailing=(), lengths=LENGTHS) -> list[torch.Tensor]:
    return [random_tensor((length, *trailing), dtype, seed) for seed, length in enumerate(lengths)]


def laid_out(sequences, batch_first=True) -> torch.Tensor:
    """Return a padded batch with something behind each sequence."""
    return padded_by_hand(sequences, max(map(len, sequences)), 1, batch_first=batch_first)


# ---- the registry of cases


@pytest.mark.parametrize("case", with_bytes(1 << 23), ids=lambda case: case.name)
def test_every_way_in_and_out(case):
    padded, lengths = torch.from_numpy(case.padded()), torch.from_numpy(case.lengths)
    sequences = [torch.from_numpy(item) for item in case.sequences()]
    expected = packed_by_torch(padded, lengths.tolist(), batch_first=True)
    with torch_called() as called, unchanged(padded, lengths, *sequences[:5]):
        packed = fp.pack_padded_sequence(padded, lengths, True, False, allow_empty=True)
        assert_packed(packed, expected)
        assert_packed(fp.pack_padded_sequence(padded.transpose(0, 1).contiguous(), lengths, False, False, allow_empty=True), expected)
        assert_packed(fp.pack_sequence(sequences, False, allow_empty=True), expected)
        assert_same(fp.unpack_sequence(packed), sequences)
        assert_same(fp.unpad_sequence(padded, lengths, batch_first=True), sequences)
        for batch_first in (True, False):
            whole = padded_by_hand(sequences, padded.shape[1], 1, batch_first=batch_first)
            assert_same(fp.pad_sequence(sequences, batch_first, 1), whole)
            out = fp.pad_packed_sequence(packed, batch_first, 1, padded.shape[1])
            assert_same(out, (whole, lengths))
            assert out[0].is_contiguous()
    assert not called


# ---- dtypes and strides


@each_dtype
@pytest.mark.parametrize("trailing", TRAILINGS, ids=str)
def test_dtypes(dtype, trailing):
    sequences = sequences_of(dtype, trailing)
    padded = laid_out(sequences)
    with torch_called() as called:
        packed = fp.pack_sequence(sequences, enforce_sorted=False, allow_empty=True)
        assert_packed(packed, packed_by_torch(padded, LENGTHS, True))
        assert_packed(fp.pack_padded_sequence(padded, LENGTHS, True, False, allow_empty=True), packed)
        assert_same(fp.unpack_sequence(packed), sequences)
        assert_same(fp.pad_sequence(sequences, True, 1), padded)
        assert_same(fp.pad_packed_sequence(packed, True, 1)[0], padded)
        assert_same(fp.unpad_sequence(padded.transpose(0, 1), torch.tensor(LENGTHS)), sequences)
    assert not called


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64, torch.complex128], ids=str)
@pytest.mark.parametrize("trailing", [(), (3,), (1, 2), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("name", list(views(torch.zeros(2, 3, 4, 5))))
def test_strides(dtype, trailing, name):
    shape = (len(LENGTHS), 6, *trailing)
    for batch_first in (True, False):
        padded = views(random_tensor(shape if batch_first else (shape[1], shape[0], *trailing), dtype)).get(name)
        if padded is None:  # channels last is of four dimensions
            return
        rows = padded if batch_first else padded.transpose(0, 1)
        with torch_called() as called, unchanged(padded):
            packed = fp.pack_padded_sequence(padded, LENGTHS, batch_first, False)
            sequences = fp.unpad_sequence(padded, torch.tensor(LENGTHS), batch_first)
        assert_packed(packed, packed_by_torch(rows.detach().clone(), LENGTHS, True))
        assert_same(sequences, [row[:length].clone() for row, length in zip(rows, LENGTHS, strict=True)])
        strided = [views(sequence)[name] if name != "channels last" else sequence for sequence in sequences]
        with unchanged(*strided):
            assert_same(fp.pad_sequence(strided, batch_first, 1), padded_by_hand(strided, 5, 1, batch_first=batch_first))
            assert_packed(fp.pack_sequence(strided, False), packed_by_torch(padded_by_hand(strided, 5), LENGTHS, True))
        wide = PackedSequence(views(packed.data)[name] if name != "channels last" else packed.data, *packed[1:])
        assert_same(fp.unpack_sequence(wide), rnn.unpack_sequence(wide))
        assert_same(fp.pad_packed_sequence(wide, batch_first), rnn.pad_packed_sequence(wide, batch_first))
        assert not called


def test_long_sequences_of_unlike_strides():
    # beyond the size below which short sequences are joined first
    lengths = [700, 3, 512, 700, 1]
    for trailing in [(), (5,), (2, 3)]:
        for name in views(torch.zeros(1, *trailing)):
            sequences = sequences_of(trailing=trailing, lengths=lengths)
            sequences = [views(item)[name] if k % 2 else item for k, item in enumerate(sequences)]
            with torch_called() as called, unchanged(*sequences):
                packed, padded = fp.pack_sequence(sequences, False), fp.pad_sequence(sequences, True, padding_side="left")
            assert not called
            assert_packed(packed, packed_by_torch(padded_by_hand(sequences, 700), lengths, True))
            assert_same(padded, padded_by_hand(sequences, 700, side="left"))


# ---- properties

lengths_of_batches = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@laws
@given(
    lengths_of_batches,
    st.sampled_from([torch.bool, torch.int8, torch.float16, torch.float32, torch.int64]),
    st.sampled_from(TRAILINGS[:5]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
def test_torch_and_fastpack_agree(lengths, dtype, trailing, batch_first, enforce_sorted, more):
    lengths = sorted(lengths, reverse=True) if enforce_sorted else lengths
    sequences = sequences_of(dtype, trailing, lengths)
    padded = padded_by_hand(sequences, max(lengths) + more, 1, batch_first=batch_first)
    expected = packed_by_torch(padded, lengths, batch_first, enforce_sorted)
    packed = fp.pack_padded_sequence(padded, lengths, batch_first, enforce_sorted, allow_empty=True)
    assert_packed(packed, expected)
    assert_packed(fp.pack_sequence(sequences, enforce_sorted, allow_empty=True), expected)
    assert_same(fp.pad_packed_sequence(packed, batch_first, 1, max(lengths) + more), (padded, torch.tensor(lengths)))
    assert_same(fp.unpack_sequence(packed), sequences)
    for side in ("right", "left"):
        assert_same(fp.pad_sequence(sequences, batch_first, 1, side), rnn.pad_sequence(sequences, batch_first, 1, side))
    if min(lengths):
        assert_same(fp.pad_packed_sequence(packed, batch_first), rnn.pad_packed_sequence(packed, batch_first))
        assert_same(fp.unpack_sequence(packed), rnn.unpack_sequence(packed))


@pytest.mark.parametrize("lengths", [[0], [0, 0, 0], [3, 0], [0, 3], [2, 0, 2, 0, 1], [4, 4, 0, 0], [1]])
@pytest.mark.parametrize("trailing", [(), (2,), (0,)], ids=str)
def test_empty_sequences(lengths, trailing):
    sequences = sequences_of(trailing=trailing, lengths=lengths)
    for enforce_sorted in (False, True) if sorted(lengths, reverse=True) == lengths else (False,):
        for batch_first in (True, False):
            padded = padded_by_hand(sequences, max(lengths), batch_first=batch_first)
            expected = packed_by_torch(padded, lengths, batch_first, enforce_sorted)
            packed = fp.pack_padded_sequence(padded, lengths, batch_first, enforce_sorted, allow_empty=True)
            assert_packed(packed, expected)
            assert_packed(fp.pack_sequence(sequences, enforce_sorted, allow_empty=True), expected)
            assert (packed.sorted_indices is None) == (enforce_sorted and 0 not in lengths)
            assert_same(fp.unpack_sequence(packed), sequences)
            assert_same(fp.pad_packed_sequence(packed, batch_first), (padded, torch.tensor(lengths)))
            longer = padded_by_hand(sequences, max(lengths) + 2, 7, batch_first=batch_first)
            assert_same(fp.pad_packed_sequence(packed, batch_first, 7, max(lengths) + 2), (longer, torch.tensor(lengths)))


# ---- arguments


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_torchs(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (fp, rnn))
    ours = {key: item for key, item in ours.items() if item.kind is not inspect.Parameter.KEYWORD_ONLY}
    assert [(key, item.default, item.kind) for key, item in ours.items()] == [
        (key, item.default, item.kind) for key, item in theirs.items()
    ]


def test_lengths_of_every_kind():
    padded = random_tensor((6, len(LENGTHS), 2), torch.float32)
    expected = packed_by_torch(padded, LENGTHS)
    vector = torch.tensor(LENGTHS)
    kinds = [LENGTHS, tuple(LENGTHS), vector.numpy(), list(vector), [item.item() for item in vector.numpy()], list(vector.numpy())]
    kinds += [vector.to(dtype) for dtype in INTEGERS]
    kinds += [torch.stack([vector, -vector], 1)[:, 0], torch.nn.Parameter(vector.clone(), requires_grad=False)]
    for lengths in kinds:
        assert_packed(fp.pack_padded_sequence(padded, lengths, enforce_sorted=False), expected)
        assert_same(fp.unpad_sequence(padded, lengths), [padded[:length, i].clone() for i, length in enumerate(LENGTHS)])


@pytest.mark.parametrize("value", [0.0, -0.0, 1, -1.7, 300, float("nan"), float("inf"), True, 2**40, -1], ids=str)
@each_dtype
def test_padding_values(dtype, value):
    sequences = sequences_of(dtype, (2,), [1, 3, 2])
    packed = fp.pack_sequence(sequences, False)
    by_hand = padded_by_hand(sequences, 3, value) if outcome(padded_by_hand, sequences, 3, value)[0] is None else None
    for call in (
        lambda module: module.pad_sequence(sequences, True, value),
        lambda module: module.pad_packed_sequence(packed, True, value)[0],
    ):
        kind, message = outcome(call, rnn)
        if kind in (None, NotImplementedError):  # torch cannot index unsigned types and the like
            assert_same(call(fp), by_hand)
        else:
            assert outcome(call, fp) == (kind, message)


def test_total_length():
    import numpy as np

    for lengths in (LENGTHS, [3, 3, 3]):
        packed = fp.pack_sequence(sequences_of(trailing=(2,), lengths=lengths), False)
        for total in (max(lengths), 9, np.int64(9), torch.tensor(9)):
            with torch_called() as called:
                found = fp.pad_packed_sequence(packed, total_length=total)
            assert not called
            assert_same(found, rnn.pad_packed_sequence(packed, total_length=int(total)))


@pytest.mark.parametrize("make", [tuple, iter, lambda items: (item for item in items), list, dict.fromkeys, torch.stack])
def test_pad_sequence_takes_every_iterable(make):
    sequences = sequences_of(trailing=(2,), lengths=[3, 3])
    assert_same(fp.pad_sequence(make(sequences)), rnn.pad_sequence(make(sequences)))


def test_pack_sequence_takes_what_torch_takes():
    sequences = sequences_of(trailing=(2,), lengths=[3, 3])
    for members in (tuple(sequences), torch.stack(sequences)):
        assert_packed(fp.pack_sequence(members), rnn.pack_sequence(members))


@pytest.mark.parametrize("rows", [3, 3000])
def test_members_that_torch_converts(rows):
    wide, narrow = torch.randn(rows, 2, dtype=torch.float64), torch.randn(rows - 1, 2)
    for sequences in (
        [wide, narrow],
        [wide, narrow.bfloat16()],
        [narrow, wide[: rows - 2]],
        [wide.long(), narrow > 0],
        [narrow, wide[:1, :1]],
    ):
        assert_same(fp.pad_sequence(sequences), rnn.pad_sequence(sequences))
        assert_packed(fp.pack_sequence(sequences), rnn.pack_sequence(sequences))


def test_unpad_sequence_leaves_its_argument():
    padded = torch.arange(6).view(3, 2)
    with unchanged(padded):
        fp.unpad_sequence(padded, torch.tensor([3, 1]))


# ---- what comes back


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_result_is_a_packed_sequence_like_any(enforce_sorted, tmp_path):
    sequences = sequences_of(trailing=(3,), lengths=[4, 2, 1])
    packed = fp.pack_sequence(sequences, enforce_sorted)
    saved = io.BytesIO()
    torch.save(packed, saved)
    saved.seek(0)
    copies = [copy.copy(packed), copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), torch.load(saved, weights_only=False)]
    for one in copies:
        assert_packed(one, packed)
        assert_same(fp.unpack_sequence(one), sequences)
    assert packed.to(torch.float32) is packed
    double, meta = packed.double(), packed.to("meta")
    assert (double.data.dtype, meta.data.device.type, meta.batch_sizes.device.type) == (torch.float64, "meta", "cpu")
    assert_same(fp.unpack_sequence(double), [item.double() for item in sequences])
    assert not packed.is_cuda
    assert not packed.is_pinned()
    data, batch_sizes, order, places = packed
    assert_packed(PackedSequence(data, batch_sizes, order, places), packed)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_results_feed_an_lstm(bidirectional):
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(3, 4, bidirectional=bidirectional)
    sequences = [torch.randn(length, 3) for length in LENGTHS]
    out, (h, _) = lstm(fp.pack_sequence(sequences, enforce_sorted=False))
    assert_same(fp.unpack_sequence(out)[1].shape, torch.Size([5, 8 if bidirectional else 4]))
    for i, (sequence, found) in enumerate(zip(sequences, fp.unpack_sequence(out), strict=True)):
        alone, (h_alone, _) = lstm(sequence.unsqueeze(1))
        torch.testing.assert_close(found, alone.squeeze(1))
        torch.testing.assert_close(h[:, i], h_alone[:, 0])


def test_parts_can_be_changed_each_for_itself():
    packed = fp.pack_sequence(sequences_of(lengths=[3, 2]), False)
    first, second = fp.unpack_sequence(packed)
    before = second.clone()
    first.fill_(5)
    assert_same(second, before)
    assert_same(fp.unpack_sequence(packed)[1], before)
    assert first._version == 1
    assert second._version == 0


# ---- the comparisons can fail


def test_comparisons_go_red():
    packed = packed_by_torch(torch.randn(2, 3), [3, 1], True)
    data, sizes, order, places = packed
    wrong = [
        (data.clone().neg_(), sizes, order, places),
        (data.double(), sizes, order, places),
        (data, sizes.int(), order, places),
        (data, sizes, None, None),
        (data, sizes, places.flip(0), order),
        (data[:, None], sizes, order, places),
        (data.requires_grad_(), sizes, order, places),
    ]
    for fields in wrong:
        with pytest.raises(AssertionError):
            assert_packed(tuple.__new__(PackedSequence, fields), packed_by_torch(torch.zeros(2, 3), [3, 1], True))
    with pytest.raises(AssertionError):
        assert_packed(tuple(packed), packed)
    for one, other in [(0.0, -0.0), (1.0, float("nan"))]:
        with pytest.raises(AssertionError):
            assert_same(torch.tensor(one), torch.tensor(other))
    with pytest.raises(AssertionError):
        assert_same([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)])


def test_unchanged_goes_red():
    tensor = torch.zeros(3, 2)
    for change in (lambda: tensor[0].fill_(1), lambda: tensor.transpose_(0, 1)):
        with pytest.raises(AssertionError, match="changed"), unchanged(tensor):
            change()


def test_spy_sees_torch_called():
    with torch_called() as called:
        fp.pad_sequence([torch.zeros(2, device="meta")])
    assert called == ["pad_sequence"]


def test_every_view_is_as_it_says():
    strides = {name: view.stride() for name, view in views(torch.arange(120.0).view(2, 3, 4, 5)).items()}
    assert strides.pop("parameter") == strides.pop("contiguous") == strides.pop("shifted") == strides.pop("strange strides of single sizes")
    assert len(set(strides.values())) == len(strides) == 6
