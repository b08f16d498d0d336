"""Errors of the torch level: torch's own to the letter, and ours where torch goes on with a wrong result."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

import fastpack.torch as fp
from tests.torch_oracle import assert_same, outcome, unchanged

X = torch.arange(24.0).view(4, 3, 2)
PACKED = rnn.pack_padded_sequence(X, [4, 2, 1])
UNSORTED = rnn.pack_padded_sequence(X, [1, 4, 2], enforce_sorted=False)
SEQUENCES = [torch.ones(3, 2), torch.ones(1, 2)]
NAN = float("nan")


def integers(*values: int, dtype=torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def freed(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that starts inside a storage that holds nothing any more."""
    part = torch.cat([tensor, tensor])[len(tensor) :]
    part.untyped_storage().resize_(0)
    return part


# each is called with torch's module and with ours: both raise the same error
PACK_PADDED = {
    "empty": lambda m: m.pack_padded_sequence(torch.zeros(0, 3), [1, 1, 1]),
    "no batch": lambda m: m.pack_padded_sequence(torch.zeros(3, 0), integers()),
    "no width": lambda m: m.pack_padded_sequence(torch.zeros(4, 3, 0), [4, 2, 1]),
    "no dimension": lambda m: m.pack_padded_sequence(torch.tensor(1.0), [1]),
    "one dimension": lambda m: m.pack_padded_sequence(torch.zeros(3), [1, 1, 1]),
    "one dimension, batch first": lambda m: m.pack_padded_sequence(torch.zeros(3), [1, 1, 1], True),
    "no tensor": lambda m: m.pack_padded_sequence([[1.0]], [1]),
    "lengths of no dimension": lambda m: m.pack_padded_sequence(X, torch.tensor(3)),
    "lengths of two dimensions": lambda m: m.pack_padded_sequence(X, integers(4, 2, 1)[None]),
    "lengths on another device": lambda m: m.pack_padded_sequence(X, integers(4, 2, 1).to("meta")),
    "too few lengths": lambda m: m.pack_padded_sequence(X, [4, 2]),
    "too many lengths": lambda m: m.pack_padded_sequence(X, [4, 2, 1, 1]),
    "too many lengths, unsorted": lambda m: m.pack_padded_sequence(X, [1, 2, 4, 1], enforce_sorted=False),
    "no lengths": lambda m: m.pack_padded_sequence(X, []),
    "length 0": lambda m: m.pack_padded_sequence(X, [4, 2, 0]),
    "length 0, unsorted": lambda m: m.pack_padded_sequence(X, [0, 4, 2], enforce_sorted=False),
    "length 0 within": lambda m: m.pack_padded_sequence(X, [4, 0, 2]),
    "negative": lambda m: m.pack_padded_sequence(X, [4, 2, -1]),
    "negative within": lambda m: m.pack_padded_sequence(X, [4, -2, 1]),
    "negative and beyond memory": lambda m: m.pack_padded_sequence(X, [2**61, 2, -1]),
    "not sorted": lambda m: m.pack_padded_sequence(X, [1, 4, 2]),
    "not sorted, beyond memory": lambda m: m.pack_padded_sequence(X, [2, 2**61, 2]),
    "not sorted, NumPy's": lambda m: m.pack_padded_sequence(X, integers(1, 4, 2).numpy()),
    "None for lengths": lambda m: m.pack_padded_sequence(X, None),
    "a word for lengths": lambda m: m.pack_padded_sequence(X, "321"),
    "words for lengths": lambda m: m.pack_padded_sequence(X, ["4", "2", "1"]),
    "a number for lengths": lambda m: m.pack_padded_sequence(X, 3),
    "nested lengths": lambda m: m.pack_padded_sequence(X, [[4], [2], [1]]),
    "ragged lengths": lambda m: m.pack_padded_sequence(X, [[4], [2, 1]]),
    "a length beyond int64": lambda m: m.pack_padded_sequence(X, [2**70, 2, 1]),
    "batch_first of another type": lambda m: m.pack_padded_sequence(X, [4, 2, 1], 1),
    "no argument": lambda m: m.pack_padded_sequence(),
    "an unknown argument": lambda m: m.pack_padded_sequence(X, [4, 2, 1], padding_value=1),
    "emptied storage": lambda m: m.pack_padded_sequence(freed(X), [4, 2, 1]),
    "emptied lengths": lambda m: m.pack_padded_sequence(X, freed(integers(4, 2, 1))),
}
PAD_PACKED = {
    "total_length too small": lambda m: m.pad_packed_sequence(PACKED, total_length=3),
    "total_length 0": lambda m: m.pad_packed_sequence(PACKED, total_length=0),
    "total_length negative": lambda m: m.pad_packed_sequence(PACKED, total_length=-1),
    "total_length a float": lambda m: m.pad_packed_sequence(PACKED, total_length=4.5),
    "total_length a word": lambda m: m.pad_packed_sequence(PACKED, total_length="4"),
    "total_length a truth": lambda m: m.pad_packed_sequence(PACKED, total_length=True),
    "total_length beyond memory": lambda m: m.pad_packed_sequence(PACKED, total_length=2**60),
    "no steps": lambda m: m.pad_packed_sequence(PackedSequence(X, integers())),
    "too few rows": lambda m: m.pad_packed_sequence(PackedSequence(X, integers(3, 2))),
    "batch sizes of another dtype": lambda m: m.pad_packed_sequence(PackedSequence(X, integers(2, 2, dtype=torch.int32))),
    "data of no dimension": lambda m: m.pad_packed_sequence(PackedSequence(torch.tensor(1.0), integers(1))),
    "indices out of range": lambda m: m.pad_packed_sequence(UNSORTED._replace(unsorted_indices=integers(0, 1, 3))),
    "a negative index": lambda m: m.pad_packed_sequence(UNSORTED._replace(unsorted_indices=integers(0, -1, 2))),
    "more indices than sequences": lambda m: m.pad_packed_sequence(UNSORTED._replace(unsorted_indices=integers(0, 1, 2, 3))),
    "a tensor": lambda m: m.pad_packed_sequence(X),
    "a tuple": lambda m: m.pad_packed_sequence((X, integers(4))),
    "no batch sizes": lambda m: m.pad_packed_sequence(tuple.__new__(PackedSequence, (X, None, None, None))),
    "no data": lambda m: m.pad_packed_sequence(tuple.__new__(PackedSequence, (None, integers(4), None, None))),
    "batch_first of another type": lambda m: m.pad_packed_sequence(PACKED, "yes"),
    "padding value a word": lambda m: m.pad_packed_sequence(PACKED, padding_value="0"),
    "padding value None": lambda m: m.pad_packed_sequence(PACKED, padding_value=None),
    "padding value complex": lambda m: m.pad_packed_sequence(PACKED, padding_value=1j),
    "padding value NaN for integers, nothing to pad": lambda m: m.pad_packed_sequence(
        PackedSequence(X.long(), integers(4)), padding_value=NAN
    ),
    "emptied data": lambda m: m.pad_packed_sequence(PACKED._replace(data=freed(PACKED.data))),
    "unpack: no steps": lambda m: m.unpack_sequence(PackedSequence(X, integers())),
    "unpack: a tensor": lambda m: m.unpack_sequence(X),
    "unpack: an index out of range": lambda m: m.unpack_sequence(UNSORTED._replace(unsorted_indices=integers(0, 1, 7))),
    "unpack: no argument": lambda m: m.unpack_sequence(),
}
# what a list may be, for both functions that take one
LISTS = {
    "an empty list": lambda: [],
    "None": lambda: None,
    "a number": lambda: 3,
    "a word": lambda: "abc",
    "None within": lambda: [SEQUENCES[0], None],
    "a list within": lambda: [SEQUENCES[0], [[1.0, 2.0]]],
    "no dimension": lambda: [torch.tensor(1.0), torch.tensor(2.0)],
    "no dimension within": lambda: [SEQUENCES[0], torch.tensor(2.0)],
    "other widths": lambda: [SEQUENCES[0], torch.ones(1, 3)],
    "other widths, long": lambda: [torch.ones(3000, 2), torch.ones(2000, 3)],
    "other dimensions": lambda: [SEQUENCES[0], torch.ones(1, 2, 2)],
    "another device within": lambda: [SEQUENCES[0], SEQUENCES[1].to("meta")],
    "sparse": lambda: [item.to_sparse() for item in SEQUENCES],
    "an exhausted iterator": lambda: iter([]),
}
PACK_LIST = {
    "unsorted": lambda m: m.pack_sequence(SEQUENCES[::-1]),
    "an empty sequence": lambda m: m.pack_sequence([torch.ones(3, 2), torch.ones(0, 2)]),
    "an empty sequence, unsorted": lambda m: m.pack_sequence([torch.ones(0, 2), torch.ones(3, 2)], enforce_sorted=False),
    "an empty sequence within": lambda m: m.pack_sequence([torch.ones(3, 2), torch.ones(0, 2), torch.ones(1, 2)]),
    "all empty": lambda m: m.pack_sequence([torch.ones(0, 2)]),
    "no width": lambda m: m.pack_sequence([torch.ones(3, 0), torch.ones(1, 0)]),
    "a generator": lambda m: m.pack_sequence(item for item in SEQUENCES),
    "batch_first": lambda m: m.pack_sequence(SEQUENCES, batch_first=True),
}
PAD_LIST = {
    "side": lambda m: m.pad_sequence(SEQUENCES, padding_side="middle"),
    "side None": lambda m: m.pad_sequence(SEQUENCES, padding_side=None),
    "batch_first of another type": lambda m: m.pad_sequence(SEQUENCES, 1),
    "value a word": lambda m: m.pad_sequence(SEQUENCES, padding_value="a"),
    "value None": lambda m: m.pad_sequence(SEQUENCES, padding_value=None),
    "value complex": lambda m: m.pad_sequence(SEQUENCES, padding_value=1j),
    "value beyond floats": lambda m: m.pad_sequence(SEQUENCES, padding_value=10**400),
    "value beyond the dtype": lambda m: m.pad_sequence([item.to(torch.int8) for item in SEQUENCES], padding_value=300),
    "value NaN for integers": lambda m: m.pad_sequence([item.long() for item in SEQUENCES], padding_value=NAN),
    "value NaN for integers, nothing to pad": lambda m: m.pad_sequence([item.long() for item in SEQUENCES[:1]], padding_value=NAN),
    "value negative for unsigned": lambda m: m.pad_sequence([item.byte() for item in SEQUENCES], padding_value=-1),
    "no argument": lambda m: m.pad_sequence(),
}
UNPAD = {
    "too few lengths": lambda m: m.unpad_sequence(X.clone(), integers(4, 2)),
    "too many lengths": lambda m: m.unpad_sequence(X, integers(3, 2, 1, 1, 1), batch_first=True),
    "no dimension": lambda m: m.unpad_sequence(torch.tensor(1.0), integers(1)),
    "one dimension": lambda m: m.unpad_sequence(torch.ones(3), integers(1)),
    "lengths of no dimension": lambda m: m.unpad_sequence(X.clone(), torch.tensor(1)),
    "meta": lambda m: m.unpad_sequence(X.to("meta"), integers(4, 2, 1).to("meta")),
    "no argument": lambda m: m.unpad_sequence(),
}


def same_error(call) -> None:
    kind, message = outcome(call, rnn)
    assert kind is not None, "torch raises nothing"
    assert outcome(call, fp) == (kind, message)


@pytest.mark.parametrize("table", [PACK_PADDED, PAD_PACKED, PACK_LIST, PAD_LIST, UNPAD], ids=["pad", "packed", "list", "pad list", "unpad"])
def test_errors_are_torchs(table):
    wrong = {}
    for name, call in table.items():
        kind, message = outcome(call, rnn)
        ours = outcome(call, fp)
        if kind is None or ours != (kind, message):
            wrong[name] = (kind, message[:150], *ours)
    assert not wrong


@pytest.mark.parametrize("name", ["pack_sequence", "pad_sequence"])
@pytest.mark.parametrize("make", LISTS.values(), ids=LISTS)
def test_errors_of_lists_are_torchs(name, make):
    same_error(lambda module: getattr(module, name)(make()))


def test_same_error_goes_red():
    class Theirs:
        pad_sequence = staticmethod(lambda _: None)

    for call in (lambda m: m.pad_sequence(SEQUENCES), lambda m: m.unpad_sequence(X.clone(), integers(4, 2, 1))):
        with pytest.raises(AssertionError):
            same_error(call)


# ---- where torch goes on with a wrong result


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_lengths_beyond_the_padding(enforce_sorted):
    assert outcome(lambda: rnn.pack_padded_sequence(X, [5, 2, 1]))[0] is None
    for lengths in ([5, 2, 1], [2**61, 2, 1], [5, 2**40, 1]):
        if enforce_sorted and lengths[1] > lengths[0]:
            continue
        with unchanged(X), pytest.raises(RuntimeError, match=rf"lengths\[0\] is {lengths[0]}, but the padded batch has only 4 steps"):
            fp.pack_padded_sequence(X, lengths, enforce_sorted=enforce_sorted)
    with pytest.raises(RuntimeError, match=r"lengths\[1\] is 5, but the padded batch has only 4 steps"):
        fp.unpad_sequence(X, integers(1, 5, 2))
    with pytest.raises(RuntimeError, match=r"lengths\[1\] is -1, but a length is never negative"):
        fp.unpad_sequence(X, integers(1, -1, 2))


def test_too_few_lengths():
    assert outcome(lambda: rnn.pack_padded_sequence(X, [4, 2], enforce_sorted=False))[0] is None
    with pytest.raises(RuntimeError, match=r"Expected `len\(lengths\)` to be equal to batch_size, but got 2 \(batch_size=3\)"):
        fp.pack_padded_sequence(X, [4, 2], enforce_sorted=False)


@pytest.mark.parametrize(
    "lengths",
    [
        [3.7, 2, 1],
        [4.0, 2.0, 1.0],
        [True, True, True],
        [4, 2, True],
        (4, True, 1),
        [NAN, 1, 1],
        torch.tensor([4.0, 2, 1]),
        torch.tensor([True] * 3),
    ],
    ids=str,
)
def test_lengths_that_are_no_integers(lengths):
    calls = [lambda: fp.pack_padded_sequence(X, lengths), lambda: fp.pack_padded_sequence(X, lengths, enforce_sorted=False)]
    for call in (*calls, lambda: fp.unpad_sequence(X, lengths)):
        with pytest.raises(TypeError, match=r"lengths is of dtype torch\.\w+, not of an integer dtype"):
            call()


def test_rows_that_no_batch_size_counts():
    packed = PackedSequence(X.flatten(0, 1), integers(3, 2, 1))
    assert outcome(lambda: rnn.pad_packed_sequence(packed))[0] is None
    for function in (fp.pad_packed_sequence, fp.unpack_sequence):
        with pytest.raises(RuntimeError, match="batch_sizes add up to 6, but data has 12 rows"):
            function(packed)


@pytest.mark.parametrize("sizes", [(1, 2), (3, 1, 2), (0, 1), (1, -1, 2), (2, 2, 3)], ids=str)
def test_batch_sizes_that_grow(sizes):
    # for some of them torch writes lengths out of range, which ends the process or not
    data = torch.ones(sum(sizes), 2)
    for rows in (data, data.to("meta"), data.to_sparse()):
        for function in (fp.pad_packed_sequence, fp.unpack_sequence):
            with pytest.raises(RuntimeError, match=r"batch_sizes\[\d\] is \d, but batch sizes never grow, and batch_sizes\[\d\] is"):
                function(PackedSequence(rows, integers(*sizes)))


def test_batch_sizes_below_zero():
    for sizes in ([0, -1], [-1], [2, -1]):
        with pytest.raises(RuntimeError, match=rf"batch_sizes\[{len(sizes) - 1}\] is -1, but batch sizes are never negative"):
            fp.pad_packed_sequence(PackedSequence(torch.ones(1), integers(*sizes)))


def test_values_that_a_dtype_would_cut():
    sequences = [torch.ones(2, dtype=torch.int64), torch.tensor([1.5])]
    assert rnn.pad_sequence(sequences)[0, 1] == 1
    for long in (1, 2000):
        for function in (fp.pad_sequence, fp.pack_sequence):
            with pytest.raises(TypeError, match=r"sequences\[1\] is of torch.float32, but sequences\[0\] is of torch.int64, which cannot"):
                function([item.repeat(long) for item in sequences])


def test_sequences_without_memory():
    for make in (freed, lambda item: torch._efficientzerotensor(item.shape)):
        sequences = [torch.ones(2000, 2), make(torch.ones(1000, 2))]
        for function in (fp.pad_sequence, fp.pack_sequence):
            with pytest.raises(RuntimeError, match=r"sequences\[1\] has no memory"):
                function(sequences)


def test_allow_empty_says_what_is_wrong():
    for lengths, message in {
        (1, 4, 0): "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True",
        (9, 2, 0): r"lengths\[0\] is 9, but the padded batch has only 4 steps",
        (3, 0, -1): r"lengths\[2\] is -1, but a length is never negative",
    }.items():
        with pytest.raises(RuntimeError, match=message):
            fp.pack_padded_sequence(X, lengths, allow_empty=True)
    with pytest.raises(RuntimeError, match="must be sorted in decreasing order"):
        fp.pack_sequence([X[:2], X, X[:0]], allow_empty=True)
    with pytest.raises(RuntimeError, match="Cannot pack empty tensors"):
        fp.pack_padded_sequence(torch.ones(3, 0), integers(), allow_empty=True)
    with pytest.raises(TypeError, match="positional"):
        fp.pack_padded_sequence(X, [4, 2, 1], False, True, True)


# ---- whatever the fields

entries = st.lists(st.integers(-1, 5), max_size=5)
some_indices = st.one_of(st.none(), st.permutations(range(3)), entries)


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 8), st.one_of(entries.map(lambda sizes: sorted(sizes, reverse=True)), entries), some_indices, some_indices)
def test_any_fields_give_torchs_result_or_an_error(rows, sizes, order, places):
    fields = (integers(*index) if index is not None else None for index in (sizes, order, places))
    packed = tuple.__new__(PackedSequence, (torch.arange(2.0 * rows).view(rows, 2), *fields))
    for name in ("pad_packed_sequence", "unpack_sequence"):
        kind, _ = outcome(getattr(fp, name), packed)
        if kind is None and len(order or places or ()) <= max(sizes, default=0):  # torch refuses sequences without a row
            assert_same(getattr(fp, name)(packed), getattr(rnn, name)(packed))
        assert kind in (None, RuntimeError, IndexError)
