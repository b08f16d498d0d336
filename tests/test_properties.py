"""Laws that hold for any lengths, dtypes, shapes and strides; hypothesis looks for the input that breaks one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastpack import Layout, Packed, pack, pack_padded, pack_ragged, pad, unpack, unpack_ragged
from tests.oracle import ALL_DTYPES, all_bytes, assert_packed, assert_same, assert_same_bytes, random_array, row_bytes, unchanged

# the same examples on every machine and in every run; a slow machine is no failure
laws = settings(max_examples=150, derandomize=True, deadline=None, database=None)

lengths_of_any_kind = st.one_of(
    st.lists(st.integers(0, 40), min_size=1, max_size=40),
    st.lists(st.integers(0, 2), min_size=1, max_size=80),
    st.lists(st.sampled_from([0, 1, 15, 16, 17, 33, 100]), min_size=1, max_size=40),
)
dtypes = st.one_of(
    st.sampled_from(ALL_DTYPES),
    hnp.scalar_dtypes(),
    hnp.array_dtypes(hnp.scalar_dtypes(), allow_subarrays=True, max_size=3),
    hnp.byte_string_dtypes(max_len=70),
)
trailing_shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@st.composite
def strided(draw: st.DrawFn, shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    """Draw an array of any strides: cut out of another, with steps, turned around, its dimensions exchanged, or broadcast."""
    axes = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in shape]
    still = [draw(st.integers(0, 9)) == 0 for _ in shape]
    memory_shape = [1 if still[axis] else abs(steps[axis]) * shape[axis] + 1 for axis in axes]
    memory = random_array(tuple(memory_shape), dtype, seed).transpose(np.argsort(axes))
    cut = [slice(None) if still[k] else slice(None, None, steps[k]) for k in range(len(shape))]
    view = memory[tuple(cut)][tuple(slice(None) if still[k] else slice(0, shape[k]) for k in range(len(shape)))]
    view = np.broadcast_to(view, shape)
    assert view.shape == shape
    return view


@st.composite
def batches(draw: st.DrawFn, strides: bool = True) -> list[np.ndarray]:
    """Draw sequences of one dtype and trailing shape, with strides of their own where `strides`."""
    lengths, dtype, trailing = draw(lengths_of_any_kind), draw(dtypes), draw(trailing_shapes)
    if strides and draw(st.booleans()):
        lengths = lengths[:6]
        return [draw(strided((length, *trailing), dtype, k)) for k, length in enumerate(lengths)]
    return [random_array((length, *trailing), dtype, k) for k, length in enumerate(lengths)]


@laws
@given(batches())
def test_packing_is_as_defined_and_changes_no_input(sequences: list[np.ndarray]):
    with unchanged(*sequences):
        packed = pack(sequences)
    assert_packed(packed, sequences)


@laws
@given(batches())
def test_round_trip(sequences: list[np.ndarray]):
    for found, expected in zip(unpack(pack(sequences)), sequences, strict=True):
        assert_same_bytes(found, expected)


@laws
@given(batches(strides=False), st.booleans(), st.integers(0, 3))
def test_every_way_gives_the_same_bits(sequences: list[np.ndarray], batch_first: bool, more: int):
    packed = pack(sequences)
    values, offsets = unpack_ragged(packed)
    assert_same(pack_ragged(values, offsets), packed)
    longest = max(map(len, sequences))
    padded, lengths = pad(packed, batch_first=batch_first, total_length=longest + more)
    assert_same(pack_padded(padded, lengths, batch_first), packed)
    assert_same_bytes(values, unpack_ragged(pack_padded(padded, lengths, batch_first))[0])


@laws
@given(st.data())
def test_padded_and_ragged_of_any_strides(data: st.DataObject):
    lengths, dtype, trailing = data.draw(lengths_of_any_kind), data.draw(dtypes), data.draw(trailing_shapes)
    padded = data.draw(strided((len(lengths), max(lengths), *trailing), dtype, 0))
    values = data.draw(strided((sum(lengths), *trailing), dtype, 1))
    offsets = np.cumsum([0, *lengths])
    with unchanged(padded, values, offsets):
        assert_packed(pack_padded(padded, lengths), [row[:length] for row, length in zip(padded, lengths, strict=True)])
        assert_packed(
            pack_padded(padded.swapaxes(0, 1), lengths, batch_first=False), [row[:n] for row, n in zip(padded, lengths, strict=True)]
        )
        assert_packed(pack_ragged(values, offsets), np.split(values, offsets[1:-1]))


@laws
@given(batches(strides=False), st.randoms(use_true_random=False))
def test_permuting_the_sequences_permutes_the_results(sequences: list[np.ndarray], random):
    order = list(range(len(sequences)))
    random.shuffle(order)
    packed, other = pack(sequences), pack([sequences[i] for i in order])
    assert_same_bytes(other.batch_sizes, packed.batch_sizes)
    assert_same_bytes(other.lengths, packed.lengths[order])
    for k, item in enumerate(unpack(other)):
        assert_same_bytes(item, unpack(packed)[order[k]])
    # where no two are equally long, the packed rows do not depend on the order at all
    lengths = [len(item) for item in sequences if len(item)]
    if len(set(lengths)) == len(lengths):
        assert_same_bytes(other.data, packed.data)


@laws
@given(batches(strides=False), st.data())
def test_a_longer_sequence_begins_like_its_prefix(sequences: list[np.ndarray], data: st.DataObject):
    cut = data.draw(st.integers(0, max(map(len, sequences))))
    whole, prefix = pack(sequences), pack([item[:cut] for item in sequences])
    assert_same_bytes(prefix.batch_sizes, whole.batch_sizes[:cut])
    # equal lengths keep their order, and those that are cut to one length are ordered anew
    for full, begin in zip(unpack(whole), unpack(prefix), strict=True):
        assert_same_bytes(begin, full[: len(begin)])
    sorted_already = pack(sorted(sequences, key=len, reverse=True))
    sorted_prefix = pack([item[:cut] for item in sorted(sequences, key=len, reverse=True)])
    assert_same_bytes(sorted_prefix.data, sorted_already.data[: len(sorted_prefix.data)])


@laws
@given(batches(strides=False))
def test_alone_as_in_a_batch(sequences: list[np.ndarray]):
    together = pack(sequences)
    rows = Layout([len(item) for item in sequences])
    for i, item in enumerate(sequences):
        alone = pack([item])
        np.testing.assert_array_equal(row_bytes(alone.data), row_bytes(together.data)[rows.rows(i, np.arange(len(item)))])


@laws
@given(lengths_of_any_kind)
def test_the_maps_of_a_layout_are_inverse(lengths: list[int]):
    found, N = Layout(lengths), sum(lengths)
    B, T = found.num_sequences, found.num_steps
    np.testing.assert_array_equal(found.sorted_indices[found.unsorted_indices], np.arange(B))
    np.testing.assert_array_equal(found.ragged_rows[found.packed_rows], np.arange(N))
    np.testing.assert_array_equal(found.packed_rows[found.ragged_rows], np.arange(N))
    np.testing.assert_array_equal(found.rows(found.sequences, found.steps), np.arange(N))
    assert found.batch_sizes.sum() == N
    assert T == 0 or (found.batch_sizes[0] <= B and found.batch_sizes[-1] >= 1)
    assert np.all(np.diff(found.batch_sizes) <= 0)
    # stable: by falling length, and among equals by rising index
    keys = [(-lengths[i], i) for i in found.sorted_indices]
    assert keys == sorted(keys)


@laws
@given(batches(strides=False), st.booleans(), st.integers(0, 5), st.integers(1, 7))
def test_padding_on_either_side(sequences: list[np.ndarray], batch_first: bool, more: int, multiple_of: int):
    packed, longest = pack(sequences), max(map(len, sequences))
    options = {"batch_first": batch_first, "total_length": longest + more, "multiple_of": multiple_of}
    steps = -(-(longest + more) // multiple_of) * multiple_of
    for side in ("right", "left"):
        padded, _ = pad(packed, padding_side=side, **options)
        padded = padded if batch_first else padded.swapaxes(0, 1)
        assert padded.shape == (len(sequences), steps, *sequences[0].shape[1:])
        for row, item in zip(padded, sequences, strict=True):
            kept = row[: len(item)] if side == "right" else row[steps - len(item) :]
            rest = row[len(item) :] if side == "right" else row[: steps - len(item)]
            assert_same_bytes(kept, item)
            assert not any(all_bytes(rest))


@laws
@given(
    st.lists(st.integers(-1, 4), max_size=5),
    st.lists(st.integers(-1, 4), max_size=4),
    st.lists(st.integers(-1, 4), max_size=4),
    st.integers(0, 12),
)
def test_only_consistent_batches_are_moved(batch_sizes: list[int], sorted_indices: list[int], unsorted_indices: list[int], N: int):
    B = len(sorted_indices)
    consistent = (
        sorted(sorted_indices) == list(range(B)) != []
        and unsorted_indices == np.argsort(sorted_indices).tolist()
        and sum(batch_sizes) == N
        and all(1 <= size <= before for before, size in zip([B, *batch_sizes], batch_sizes, strict=False))
    )
    packed = Packed(np.arange(N), batch_sizes, sorted_indices, unsorted_indices)
    if consistent:
        assert_same_bytes(pack(unpack(packed)).batch_sizes, np.array(batch_sizes, np.int64))
    else:
        for refuses in (unpack, unpack_ragged, pad, lambda packed: packed.lengths):
            with pytest.raises(ValueError, match=r"batch_sizes|sorted_indices"):
                refuses(packed)
