"""LSTM, GRU and RNN on NumPy arrays: against the twin and torch, whatever the strides, states, threads and company."""

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastpack
from fastpack import pack, unpack
from fastpack.cells import shares_units
from fastpack.recurrent import Recurrent
from tests.oracle import assert_same_bytes, unchanged, views
from tests.recurrent_oracle import (
    CLOSE,
    KINDS,
    Kind,
    assert_close,
    assert_same_arrays,
    batch_of,
    layer_of,
    run,
    states_of,
    twin,
    units_shared,
    weights_of,
)

LENGTHS = [3, 0, 9, 9, 1, 2, 5, 0, 7]
MANY = np.random.default_rng(0).integers(0, 9, 70).tolist()
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
laws = settings(max_examples=150, derandomize=True, deadline=None, database=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread_of_torch() -> Iterator[None]:
    """Keep torch from spinning on cores that are busy: its packed layers took a hundred times as long then."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- the results


@each_kind
@each_dtype
@pytest.mark.parametrize(("L", "D", "P"), [(1, 1, 0), (1, 2, 0), (2, 1, 0), (3, 2, 0), (1, 1, 4), (2, 2, 9)])
def test_as_the_twin(kind: Kind, dtype: type, L: int, D: int, P: int):
    P = P if kind.name == "LSTM" else 0
    for (F, H), lengths, bias in [((1, 10), LENGTHS, True), ((20, 17), MANY, False), ((33, 64), [4], True)]:
        given_weights = weights_of(kind, F, H, P, L, D, bias, dtype)
        layer, packed = layer_of(kind, given_weights), batch_of(lengths, F, dtype)
        for states in (states_of(kind, L * D, len(lengths), H, P, dtype), []):
            expected, after = twin(kind, given_weights, packed, states)
            with unchanged(*packed, *states, *given_weights.values()):
                found = run(layer, packed, states)
            assert [item.dtype for item in found] == [dtype] * len(found)
            assert_close(found, [expected, *after], CLOSE[np.dtype(dtype)])
            for num_threads in (2, 3, 100):
                assert_same_arrays(run(layer, packed, states, num_threads=num_threads), found)
            with units_shared():
                for num_threads in (1, 2, 3, 9):
                    assert_same_arrays(run(layer, packed, states, num_threads=num_threads), found)


@each_kind
@each_dtype
def test_every_size(kind: Kind, dtype: type):
    lengths = [3, 1, 0, 2]
    for H in range(1, 71):
        F = (H * 37) % 70 + 1
        given_weights, packed = weights_of(kind, F, H, dtype=dtype), batch_of(lengths, F, dtype)
        states = states_of(kind, 1, len(lengths), H, dtype=dtype)
        expected, after = twin(kind, given_weights, packed, states)
        assert_close(run(layer_of(kind, given_weights), packed, states), [expected, *after], CLOSE[np.dtype(dtype)])


@each_kind
@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_as_torch(kind: Kind, dtype: type, close: float):
    options = {"num_layers": 2, "bidirectional": True, "dtype": getattr(torch, np.dtype(dtype).name)}
    module = getattr(torch.nn, kind.name)(20, 50, **options, **kind.options)
    lengths = np.random.default_rng(3).integers(1, 30, 21).tolist()
    packed, states = batch_of(lengths, 20, dtype), states_of(kind, 4, len(lengths), 50, dtype=dtype)
    layer = layer_of(kind, module.state_dict())
    with torch.no_grad():
        theirs = torch.nn.utils.rnn.PackedSequence(*map(torch.from_numpy, packed))
        tensors = tuple(map(torch.from_numpy, states))
        output, after = module(theirs, tensors if len(tensors) == 2 else tensors[0])
    expected = [output.data, *(after if isinstance(after, tuple) else [after])]
    assert_close(run(layer, packed, states), [tensor.numpy() for tensor in expected], close)


@each_kind
def test_a_long_sequence_of_wide_rows(kind: Kind):
    torch.manual_seed(0)
    module = getattr(torch.nn, kind.name)(64, 384, **kind.options)
    packed = batch_of([300, 120, 3], 64)
    with torch.no_grad():
        output, _ = module(torch.nn.utils.rnn.PackedSequence(*map(torch.from_numpy, packed)))
    layer = layer_of(kind, module.state_dict())
    found = run(layer, packed)
    assert_close(found[:1], [output.data.numpy()], 1e-5)
    assert shares_units(kind.cell, 384, 384, 4, shares=2)
    for num_threads in (2, 3):
        assert_same_arrays(run(layer, packed, num_threads=num_threads), found)


# ---- states


@each_kind
@pytest.mark.parametrize("D", [1, 2])
def test_no_state_is_zeros(kind: Kind, D: int):
    layer, packed = layer_of(kind, weights_of(kind, 4, 6, L=2, D=D)), batch_of(LENGTHS, 4)
    zeros = [np.zeros((2 * D, len(LENGTHS), 6), np.float32)] * (2 if kind.name == "LSTM" else 1)
    expected = run(layer, packed, zeros)
    assert_same_arrays(run(layer, packed), expected)
    if kind.name == "LSTM":
        for state in ((None, None), [None, zeros[1]], (zeros[0], None)):
            assert_same_arrays(run(layer, packed, state), expected)


@each_kind
@each_dtype
def test_sequences_without_steps_keep_their_state(kind: Kind, dtype: type):
    layer = layer_of(kind, weights_of(kind, 3, 18, L=2, D=2, dtype=dtype))
    for lengths in ([2, 0, 0, 4, 0], [0], [0, 0, 0]):
        states = states_of(kind, 4, len(lengths), 18, dtype=dtype)
        for num_threads in (1, 2):
            data, *after = run(layer, batch_of(lengths, 3, dtype), states, num_threads=num_threads)
            assert data.shape == (sum(lengths), 36)
            empty = np.array(lengths) == 0
            for state, last in zip(states, after, strict=True):
                assert_same_bytes(last[:, empty], state[:, empty])
            for last in run(layer, batch_of(lengths, 3, dtype), num_threads=num_threads)[1:]:
                assert not last[:, empty].any()


@each_kind
@each_dtype
def test_a_state_carries_on_to_the_bit(kind: Kind, dtype: type):
    layer = layer_of(kind, weights_of(kind, 3, 21, L=2, dtype=dtype))
    sequences = unpack(batch_of(MANY, 3, dtype))
    whole = run(layer, pack(sequences), states_of(kind, 2, len(MANY), 21, dtype=dtype))
    first = pack([item[: 2 * len(item) // 3] for item in sequences])
    data, *after = run(layer, first, states_of(kind, 2, len(MANY), 21, dtype=dtype))
    second = pack([item[2 * len(item) // 3 :] for item in sequences])
    more, *last = run(layer, second, after)
    assert_same_arrays(last, whole[1:])
    both = zip(unpack(first._replace(data=data)), unpack(second._replace(data=more)), strict=True)
    assert_same_bytes(pack([np.concatenate(halves) for halves in both]).data, whole[0])


# ---- whatever memory


@each_kind
def test_any_strides(kind: Kind):
    layer = layer_of(kind, weights_of(kind, 3, 5, D=2))
    packed, states = batch_of([4, 0, 2, 7], 3), states_of(kind, 2, 4, 5)
    kinds = list(views(packed.data))
    for one, other in [*zip(kinds, kinds[1:] + kinds[:1], strict=True), *zip(kinds, kinds, strict=True)]:
        data = views(packed.data)[one]
        given_states = [views(state)[other] for state in states]
        expected = run(layer, packed._replace(data=np.array(data, order="C")), [np.array(state, order="C") for state in given_states])
        with unchanged(data, *given_states):
            assert_same_arrays(run(layer, packed._replace(data=data), given_states), expected)


def test_rows_that_are_parts_of_wider_rows_are_not_copied():
    packed = batch_of([4, 2], 3)
    wide = np.full((6, 8), np.nan, np.float32)
    wide[:, 2:5] = packed.data
    for data in (packed.data, wide[:, 2:5], wide[::2, 2:5], wide[:1, 7:4:-1][:, :0].reshape(0, 3), wide[:, 4:5], wide[::2, ::3][:, :1]):
        assert fastpack.checks.features(data, data.shape[1], data.dtype) is data
    for data in (wide[::-1, 2:5], wide[:, 4:1:-1], np.broadcast_to(wide[0, :3], (6, 3)), np.asfortranarray(packed.data)):
        found = fastpack.checks.features(data, 3, data.dtype)
        assert found is not data
        assert found.strides == (12, 4)
        assert_same_bytes(found, data)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_of_any_stride(rows: int):
    layer = layer_of(KINDS["GRU"], weights_of(KINDS["GRU"], 3, 5))
    packed = batch_of([rows], 3)
    memory = np.zeros((2, 2048), np.float32)
    memory[0, 7:10] = packed.data if rows else 0
    odd = packed._replace(data=memory[::2, 7:10][:rows])
    assert_same_arrays(run(layer, odd), run(layer, packed))


# ---- the same bits in any company


@st.composite
def batches(draw: st.DrawFn) -> tuple[Kind, Recurrent, list[np.ndarray], list[np.ndarray]]:
    """Draw a layer, sequences and a state for each."""
    kind, dtype = draw(st.sampled_from(list(KINDS.values()))), draw(st.sampled_from([np.float32, np.float64]))
    F, H = draw(st.sampled_from([1, 3, 16, 37])), draw(st.sampled_from([1, 5, 16, 17, 40, 70]))
    L, D = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    P = draw(st.integers(0, H - 1)) if kind.name == "LSTM" else 0
    lengths = draw(st.one_of(st.lists(st.integers(0, 12), min_size=1, max_size=9), st.lists(st.integers(0, 5), min_size=1, max_size=60)))
    layer = layer_of(kind, weights_of(kind, F, H, P, L, D, draw(st.booleans()), dtype))
    return kind, layer, unpack(batch_of(lengths, F, dtype)), states_of(kind, L * D, len(lengths), H, P, dtype)


@laws
@given(batches(), st.randoms(use_true_random=False), st.integers(2, 4))
def test_the_same_bits_alone_and_in_any_batch(batch, random, num_threads: int):
    _, layer, sequences, states = batch
    packed = pack(sequences)
    data, *after = run(layer, packed, states)
    outputs = unpack(packed._replace(data=data))
    assert_same_arrays(run(layer, packed, states, num_threads=num_threads), [data, *after])
    with units_shared():
        assert_same_arrays(run(layer, packed, states, num_threads=num_threads), [data, *after])

    order = list(range(len(sequences)))
    random.shuffle(order)
    kept = order[: random.randint(1, len(order))]
    fewer = pack([sequences[i] for i in kept])
    again, *last = run(layer, fewer, [state[:, kept] for state in states], num_threads=num_threads)
    assert_same_arrays(last, [state[:, kept] for state in after])
    assert_same_arrays(unpack(fewer._replace(data=again)), [outputs[i] for i in kept])

    i = kept[0]
    alone = pack([sequences[i]])
    assert_same_arrays(run(layer, alone, [state[:, [i]] for state in states]), [outputs[i], *(state[:, [i]] for state in after)])


@each_kind
@each_dtype
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_a_nan_or_an_infinity_stays_in_its_sequence(kind: Kind, dtype: type, poison: float):
    layer = layer_of(kind, weights_of(kind, 3, 20, L=2, D=2, dtype=dtype))
    sequences, states = unpack(batch_of(MANY, 3, dtype)), states_of(kind, 4, len(MANY), 20, dtype=dtype)
    expected = run(layer, pack(sequences), states)
    sick = [i for i, length in enumerate(MANY) if length > 1][::3]
    for k, i in enumerate(sick):
        if k % 2:
            sequences[i][len(sequences[i]) // 2, k % 3] = poison
        else:
            states[-1][k % 4, i, k % 20] = poison
    packed = pack(sequences)
    found = run(layer, packed, states)
    well = np.setdiff1d(np.arange(len(MANY)), sick)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert_same_bytes(one[:, well], other[:, well])
    for i, (one, other) in enumerate(zip(*(unpack(packed._replace(data=data[0])) for data in (found, expected)), strict=True)):
        assert (i in sick) or one.tobytes() == other.tobytes()
    if np.isnan(poison):
        assert all(any(np.isnan(state[:, i]).any() for state in found[1:]) for i in sick)
    for num_threads, shared in product((2, 3), (nullcontext, units_shared)):
        with shared():
            again = run(layer, packed, states, num_threads=num_threads)
        for one, other in zip(again, found, strict=True):  # which NaN it is, its sign and payload, may depend on the company
            np.testing.assert_array_equal(one, other)


def test_many_threads_with_one_layer():
    kind = KINDS["LSTM"]
    layer, packed = layer_of(kind, weights_of(kind, 8, 33, L=2, D=2)), batch_of(MANY, 8)
    expected, found = run(layer, packed), []

    def work(k: int) -> None:
        found.extend(run(layer, packed, num_threads=1 + k % 3) for _ in range(5))

    for shared in (nullcontext(), units_shared()):
        with shared:
            threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(found) == 60
    for item in found:
        assert_same_arrays(item, expected)


def test_another_result_is_noticed():
    kind = KINDS["GRU"]
    layer, packed, states = layer_of(kind, weights_of(kind, 3, 5)), batch_of(LENGTHS, 3), states_of(kind, 1, len(LENGTHS), 5)
    found = run(layer, packed, states)
    assert_same_arrays(found, found)
    for other in (
        run(layer, packed),
        run(layer_of(kind, weights_of(kind, 3, 5, seed=7)), packed, states),
        [np.nextafter(found[0], 9), found[1]],
        [found[0], -found[1]],
    ):
        with pytest.raises(AssertionError):
            assert_same_arrays(other, found)
