"""The chain of trust for `layer_gradient`, and for what `recur` keeps for it: the twins and the kernel agree, however it is divided.

Here are shapes of the recurrence; shapes of the products with its gradients are in test_gradient_products.py, pieces of the steps in
test_gradient_pieces.py.
"""

from itertools import cycle, product
from typing import Any

import numpy as np
import pytest

from fastpack.cells import CELLS, lanes
from tests import backward_kernels
from tests.backward_kernels import Way, run_directions, run_forward, run_gradients, ways
from tests.backward_oracle import (
    Gradients,
    Kept,
    Saved,
    assert_all_close,
    assert_all_same,
    case_of,
    layer_case,
    padded,
    twin_forward,
    twin_layer,
)
from tests.guarded import Canaries, as_it_is
from tests.oracle import layout
from tests.recurrent_oracle import CLOSE, KINDS, Kind, assert_close, assert_same_arrays, run_at_once, run_kernel, ways_to_call

LENGTHS = [3, 0, 9, 9, 1, 2, 5, 0, 7]
MANY = np.random.default_rng(0).integers(0, 7, 61).tolist()  # more sequences than a tile has rows, or a table
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
each_shape = pytest.mark.parametrize(
    ("lengths", "H", "P"),
    [
        *((LENGTHS, 5, 0), (MANY, 21, 4), (LENGTHS, 40, 7), (MANY, 33, 32), (MANY, 70, 1)),
        *(([4, 4], 1, 0), ([5], 64, 0), ([2, 0, 7], 16, 15), ([0, 0], 9, 2), ([9] * 12 + [4] * 3, 33, 5)),
    ],
)


# ---- what recur keeps


def kept_of(saved: Saved) -> list[np.ndarray]:
    """Return what there is of `saved`."""
    return [item for item in saved if item is not None]


@each_kind
@each_dtype
@each_shape
def test_what_recur_keeps(kind: Kind, dtype: type, lengths: list[int], H: int, P: int):
    for reverse, states in product((0, 1), (True, False)):
        case = case_of(kind, lengths, 3, H, P, reverse, dtype)
        case = case if states else case._replace(states=[])
        expected = twin_forward(case, lanes(case.x.itemsize))
        without = run_kernel(kind, case.weights, case.x, case.indices, case.states, reverse)
        first = None
        of_units = [(shares, together) for shares in (1, 2, 7) for together in ways_to_call(shares)]
        for count, together in [(1, []), (2, []), (3, []), (5, []), *of_units]:
            canaries = Canaries()
            saved, after = run_forward(case, count, canaries, together)
            canaries.check()
            assert_same_arrays([saved.out, *after], [without[0], *without[1]])
            assert_close(kept_of(saved), kept_of(expected), CLOSE[case.x.dtype])
            first = first or kept_of(saved)
            assert_same_arrays(kept_of(saved), first)


@each_kind
@each_dtype
def test_gates_that_are_all_but_closed_or_open(kind: Kind, dtype: type):
    sums = [-1000, -110, -89, -50, -17.5, -1, 0, 1, 9, 20, 89, 110, 1000]
    gates = CELLS[kind.cell].gates  # each of which has a feature of its own
    layer = layer_case(kind, [1] * len(sums) ** gates, gates, 1, dtype=dtype)
    weights = layer.weights[0] | {"weight_ih": np.eye(gates, dtype=dtype)} | {"bias_ih": layer.weights[0]["bias_ih"] * 0}
    layer = layer._replace(weights=[weights], x=np.array(list(product(sums, repeat=gates)), dtype))
    case, (kept, _) = layer.direction(0), run_directions(layer)
    saved = twin_forward(case, lanes(layer.x.itemsize))
    assert_close(kept_of(kept.direction(0, 1)), kept_of(saved), CLOSE[layer.x.dtype])
    of_twin = Kept(saved.out, *(None if item is None else item[None] for item in saved[1:]))
    assert_all_close(run_gradients(layer, kept), twin_layer(layer, of_twin, lanes(layer.x.itemsize)))


# ---- all gradients


@each_kind
@each_dtype
@each_shape
def test_layer_gradient(kind: Kind, dtype: type, lengths: list[int], H: int, P: int):
    for D, states in product((1, 2), (True, False)):
        layer = layer_case(kind, lengths, 3, H, P, D, dtype, bias=states)
        layer = layer if states else layer._replace(states=[])
        kept, _ = run_directions(layer)
        expected = twin_layer(layer, kept, lanes(layer.x.itemsize))
        first = None
        for way in ways():
            canaries = Canaries()
            found = run_gradients(layer, kept, way, canaries)
            canaries.check()
            assert_all_close(found, expected)
            first = first or found
            assert_all_same(found, first)


@each_kind
@each_dtype
def test_gradients_that_are_not_given(kind: Kind, dtype: type):
    for D in (1, 2):
        whole = layer_case(kind, LENGTHS, 3, 21, 6, D, dtype)
        kept, _ = run_directions(whole)
        for out, *after in product((True, False), repeat=1 + len(whole.d_after)):
            has = [d if given else None for d, given in zip(whole.d_after, after, strict=True)]
            layer = whole._replace(d_out=whole.d_out if out else None, d_after=has)
            expected = twin_layer(layer, kept, lanes(layer.x.itemsize))
            first = None
            for way in ways():
                canaries = Canaries()
                found = run_gradients(layer, kept, way, canaries)
                canaries.check()
                assert_all_close(found, expected)
                first = first or found
                assert_all_same(found, first)


@each_kind
@pytest.mark.parametrize("D", [1, 2])
def test_gradients_of_no_sequences_are_zeros(kind: Kind, D: int):
    some = layer_case(kind, [2, 1], 3, 5, 2, D)
    none = some._replace(x=some.x[:0], indices=layout([]), d_out=some.d_out[:0], states=[state[:, :0] for state in some.states])
    none = none._replace(d_after=[d[:, :0] for d in some.d_after])
    kept, _ = run_directions(none)
    names = run_gradients(some, run_directions(some)[0]).keys()
    for way in ways():
        canaries = Canaries()
        found = run_gradients(none, kept, way, canaries)
        canaries.check()
        assert found.keys() == names
        assert not any(item.any() for item in found.values())


@each_kind
@each_dtype
def test_rows_of_a_padded_batch(kind: Kind, dtype: type):
    turns = cycle([Way(), Way(2, ((0, 1), (1, 2))), Way(2, ((0, 2),), together=1)])
    for lengths, P in product(([6] * 5, [6] * 30, [7], [1, 1, 1], [7, 7, 4, 2, 1, 0], sorted(MANY, reverse=True)), (0, 5)):
        for D, steps_first in product((1, 2), (False, True)):
            layer = layer_case(kind, lengths, 3, 19, P, D, dtype)
            kept, _ = run_directions(layer)
            expected = run_gradients(layer, kept)
            rows = [(item, padded(item, layer.indices, steps_first)) for item in (layer.x, kept.out, layer.d_out)]
            for (x, out, d_out), way in zip(product(*rows), turns, strict=False):
                canaries = Canaries()
                found = run_gradients(layer._replace(x=x, d_out=d_out), kept._replace(out=out), way, canaries)
                canaries.check()
                assert_all_same(found, expected)


@each_kind
@each_dtype
def test_recur_keeps_the_same_of_a_padded_batch(kind: Kind, dtype: type):
    for lengths, P in product(([6] * 5, [7, 7, 4, 2, 1, 0], sorted(MANY, reverse=True)), (0, 5)):
        for reverse, steps_first in product((0, 1), (False, True)):
            case = case_of(kind, lengths, 3, 19, P, reverse, dtype)
            saved, _ = run_forward(case)
            for shares, together in [(1, []), (2, []), (2, [(0, 2)])]:
                canaries = Canaries()
                again, _ = run_forward(case._replace(x=padded(case.x, case.indices, steps_first)), shares, canaries, together)
                canaries.check()
                np.testing.assert_array_equal(again.out, padded(saved.out, case.indices, steps_first))
                assert_same_arrays(kept_of(again)[1:], kept_of(saved)[1:])


@each_kind
@each_dtype
def test_what_is_given_is_not_changed(kind: Kind, dtype: type, monkeypatch: pytest.MonkeyPatch):
    there: list[np.ndarray] = []
    before: list[np.ndarray] = []

    def place(array: np.ndarray, alignment: int) -> np.ndarray:
        there.append(as_it_is(array, alignment))
        return there[-1]

    def run(*given: Any) -> None:
        before[:] = [array.copy() for array in there]
        run_at_once(*given)

    monkeypatch.setattr(backward_kernels, "run_at_once", run)
    for D, together, piece_rows in product((1, 2), (0, 1), (None, 9)):
        there.clear()
        layer = layer_case(kind, LENGTHS, 3, 21, 6, D, dtype)
        kept, _ = run_directions(layer)
        run_gradients(layer, kept, Way(2, ((0, 1), (1, 2)), together), place, piece_rows)
        is_given = [array.any() and not np.isnan(array).all() for array in before]  # else it is room: counters, or what is to be found
        assert len(before) == len(there)
        assert 12 < sum(is_given) < len(there)
        assert_same_arrays(*([array for array, given in zip(each, is_given, strict=True) if given] for each in (there, before)))


LARGE = [
    *((name, 1001, 100) for name in KINDS),
    *(("LSTM", 1024, 0), ("LSTM", 3100, 100), ("GRU", 1600, 0), ("tanh", 3100, 0), ("relu", 3100, 0)),  # more than is multiplied at a time
]


@each_dtype
@pytest.mark.parametrize(("name", "H", "P"), LARGE)
def test_large_weights(name: str, dtype: type, H: int, P: int):
    layer = layer_case(KINDS[name], [2, 3, 1], 50, H, P, 1, dtype)
    kept, _ = run_directions(layer)
    expected = twin_layer(layer, kept, lanes(layer.x.itemsize))
    first = None
    for way in (Way(), Way(2, ((0, 1), (1, 2))), Way(2, ((0, 1), (1, 2)), together=1), Way(3, ((0, 3),), together=1)):
        found = run_gradients(layer, kept, way)
        assert_all_close(found, expected)
        first = first or found
        assert_all_same(found, first)


# ---- sequences do not touch each other


def of_sequence(found: Gradients, indices: Any, i: int) -> Gradients:
    """Return what of gradients belongs to the caller's sequence i."""
    mine, states = rows_of(indices, i), ("h_0", "c_0")
    by_rows = ("x", "d_sums", "d_projected", "unprojected")
    return {name: item[:, [i]] if name in states else item[mine] for name, item in found.items() if name in (*states, *by_rows)}


def rows_of(indices: Any, i: int) -> list[int]:
    """Return the packed rows of the caller's sequence i."""
    sizes, _, places = indices
    return [end - size + places[i] for end, size in zip(np.cumsum(sizes), sizes, strict=True) if places[i] < size]


@each_kind
@each_dtype
@pytest.mark.parametrize(("D", "H"), [(1, 37), (2, 37), (1, 133)])
def test_the_same_bits_alone_and_in_any_batch(kind: Kind, dtype: type, D: int, H: int):
    lengths = MANY[:23]
    layer = layer_case(kind, lengths, 3, H, 9, D, dtype)
    found = run_gradients(layer, run_directions(layer)[0])
    for i in range(len(lengths)):
        rows = rows_of(layer.indices, i)
        alone = layer._replace(x=layer.x[rows], d_out=layer.d_out[rows], indices=layout([lengths[i]]))
        alone = alone._replace(states=[state[:, [i]] for state in layer.states], d_after=[d[:, [i]] for d in layer.d_after])
        again = run_gradients(alone, run_directions(alone)[0])
        assert_all_same(of_sequence(again, alone.indices, 0), of_sequence(found, layer.indices, i))


@each_kind
@each_dtype
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_in_its_sequence(kind: Kind, dtype: type, poison: float):
    some_ways = [Way(), Way(3, ((0, 1), (1, 3))), Way(3, ((0, 1), (1, 3)), together=1)]
    for D, way, pieces in product((1, 2), some_ways, (None, 70)):
        layer = layer_case(kind, MANY, 3, 21, 5, D, dtype)
        expected = run_gradients(layer, run_directions(layer)[0], way, piece_rows=pieces)
        sick = [i for i, length in enumerate(MANY) if length > 1][::3]
        for k, i in enumerate(sick):
            rows = rows_of(layer.indices, i)
            if k % 3 == 0:
                layer.d_out[rows[k % len(rows)], k % layer.d_out.shape[1]] = poison
            elif k % 3 == 1:
                layer.d_after[k % len(layer.d_after)][k % D, i, k % 5] = poison
            else:
                layer.x[rows[k % len(rows)], k % 3] = poison
        found = run_gradients(layer, run_directions(layer)[0], way, piece_rows=pieces)
        for i in range(len(MANY)):
            own = of_sequence(found, layer.indices, i)
            if i not in sick:
                assert_all_same(own, of_sequence(expected, layer.indices, i))
            elif np.isnan(poison) and kind.name != "RNN":
                assert any(np.isnan(item).any() for item in own.values())


def test_a_relu_of_nan_has_a_gradient():
    layer = layer_case(KINDS["relu"], [4, 2], 3, 5)
    kept, _ = run_directions(layer)
    kept.out[2, 1] = np.nan
    kept.out[4, 2] = 0.0
    expected, found = twin_layer(layer, kept, lanes(4)), run_gradients(layer, kept)
    assert_close([found["d_sums"], found["x"]], [expected["d_sums"], expected["x"]], CLOSE[layer.x.dtype])
    assert found["d_sums"][2, 0, 1] != 0
    assert found["d_sums"][4, 0, 2] == 0


# ---- the guards


@each_kind
@pytest.mark.parametrize("D", [1, 2])
def test_a_wrong_kernel_is_noticed(kind: Kind, D: int):
    layer = layer_case(kind, LENGTHS, 3, 21, 5, D)
    kept, _ = run_directions(layer)
    found = run_gradients(layer, kept)
    turned, negative = (
        [d[:, ::-1].copy() for d in layer.d_after],
        [weights | {"weight_hh": -weights["weight_hh"]} for weights in layer.weights],
    )
    wrong = [
        run_gradients(layer._replace(d_out=None), kept),
        run_gradients(layer._replace(d_after=turned), kept),
        run_gradients(layer._replace(weights=negative), kept),
        run_gradients(layer, Kept(np.roll(kept.out, 1, 0), kept.c, None if kept.gates is None else np.roll(kept.gates, 1, 1))),
    ]
    if D == 2:
        width = layer.d_out.shape[1] // 2
        wrong.append(run_gradients(layer._replace(d_out=np.roll(layer.d_out, width, 1)), kept))
        wrong.append(run_gradients(layer._replace(weights=layer.weights[::-1]), kept))
        wrong.append(run_gradients(layer._replace(d_after=[d[::-1] for d in layer.d_after]), kept))
    for other in wrong:
        with pytest.raises(AssertionError):
            assert_all_close(other, found)
        with pytest.raises(AssertionError):
            assert_close([other["x"]], [found["x"]], CLOSE[layer.x.dtype])
    for name, item in found.items():
        with pytest.raises(AssertionError):
            assert_all_same(found, found | {name: np.nextafter(item, 9)})
    with pytest.raises(AssertionError):
        assert_all_close({name: item for name, item in found.items() if name != "h_0"}, found)
    assert CELLS[kind.cell].saved * 21 == (0 if kept.gates is None else kept.gates.shape[2])
