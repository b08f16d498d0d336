"""The chain of trust for `recur_backward`, and for what `recur` keeps for it: the twins and the kernels agree, whatever the shares."""

from itertools import product

import numpy as np
import pytest

from fastpack import reference
from fastpack.cells import CELLS, lanes
from tests.backward_kernels import run_backward, run_forward
from tests.backward_oracle import Case, Saved, Sums, case_of, of_units, twin_backward, twin_forward
from tests.guarded import Canaries
from tests.recurrent_oracle import CLOSE, KINDS, Kind, assert_close, assert_same_arrays, run_kernel, ways_to_call, widths

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


def kept(saved: Saved) -> list[np.ndarray]:
    """Return what there is of `saved`."""
    return [item for item in saved if item is not None]


def found_of(sums: Sums, weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return what there is of `sums`, without what is beyond H."""
    P, H = widths(weights)
    found = [of_units(sums.d_sums, H)]
    if sums.d_projected is not None:
        found += [of_units(sums.d_projected, P), sums.unprojected]
    return found + [item for item in sums.d_states if item is not None]


def ways(lengths: list[int]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return numbers of shares, and how they are called together, if they are of units."""
    of_sequences = [(shares, []) for shares in (1, 2, 3, 5)]
    return of_sequences + [(shares, together) for shares in (1, 2, 7) for together in ways_to_call(shares)]


# ---- what recur keeps


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
        for shares, together in ways(lengths):
            canaries = Canaries()
            saved, after = run_forward(case, shares, canaries, together)
            canaries.check()
            assert_same_arrays([saved.out, *after], [without[0], *without[1]])
            assert_close(kept(saved), kept(expected), CLOSE[case.x.dtype])
            first = first or kept(saved)
            assert_same_arrays(kept(saved), first)


@each_kind
@each_dtype
def test_gates_that_are_all_but_closed_or_open(kind: Kind, dtype: type):
    sums = [-1000, -110, -89, -50, -17.5, -1, 0, 1, 9, 20, 89, 110, 1000]
    gates = CELLS[kind.cell].gates  # each of which has a feature of its own
    case = case_of(kind, [1] * len(sums) ** gates, gates, 1, dtype=dtype)
    weights = case.weights | {"weight_ih": np.eye(gates, dtype=dtype)} | {"bias_ih": case.weights["bias_ih"] * 0}
    case = case._replace(weights=weights, x=np.array(list(product(sums, repeat=gates)), dtype))
    saved, _ = run_forward(case)
    expected = twin_forward(case, lanes(case.x.itemsize))
    assert_close(kept(saved), kept(expected), CLOSE[case.x.dtype])
    gradients = found_of(twin_backward(case, expected, lanes(case.x.itemsize)), case.weights)
    assert_close(found_of(run_backward(case, saved), case.weights), gradients, CLOSE[case.x.dtype])


# ---- recur_backward


@each_kind
@each_dtype
@each_shape
def test_recur_backward(kind: Kind, dtype: type, lengths: list[int], H: int, P: int):
    for reverse, states in product((0, 1), (True, False)):
        case = case_of(kind, lengths, 3, H, P, reverse, dtype)
        case = case if states else case._replace(states=[])
        saved, _ = run_forward(case)
        expected = found_of(twin_backward(case, saved, lanes(case.x.itemsize)), case.weights)
        first = None
        for shares, together in ways(lengths):
            canaries = Canaries()
            found = found_of(run_backward(case, saved, shares, canaries, together), case.weights)
            canaries.check()
            assert_close(found, expected, CLOSE[case.x.dtype])
            first = first or found
            assert_same_arrays(found, first)


@each_kind
@each_dtype
def test_gradients_that_are_not_given_and_not_wanted(kind: Kind, dtype: type):
    whole = case_of(kind, LENGTHS, 3, 21, 6, 0, dtype)
    for reverse, out, *after in product((0, 1), *[(True, False)] * (1 + len(whole.d_after))):
        has = [d if given else None for d, given in zip(whole.d_after, after, strict=True)]
        case = whole._replace(reverse=reverse, d_out=whole.d_out if out else None, d_after=has)
        saved, _ = run_forward(case)
        expected = found_of(twin_backward(case, saved, lanes(case.x.itemsize)), case.weights)
        for shares, together in [(1, []), (3, []), (3, [(0, 1), (1, 3)])]:
            canaries = Canaries()
            sums = run_backward(case, saved, shares, canaries, together)
            canaries.check()
            assert_close(found_of(sums, case.weights), expected, CLOSE[case.x.dtype])
            for wanted in product((True, False), repeat=2):
                fewer = run_backward(case, saved, shares, together=together, wanted=wanted)
                part = [d if is_wanted else None for d, is_wanted in zip(sums.d_states, wanted, strict=True)]
                assert_same_arrays(found_of(fewer, case.weights), found_of(sums._replace(d_states=part), case.weights))


@each_kind
@each_dtype
def test_rows_of_a_padded_batch(kind: Kind, dtype: type):
    for lengths, P in product(([6] * 5, [6] * 30, [7, 7, 4, 2, 1, 0], sorted(MANY, reverse=True)), (0, 5)):
        for reverse, time_first in product((0, 1), (False, True)):
            case = case_of(kind, lengths, 3, 19, P, reverse, dtype)
            saved, _ = run_forward(case)
            expected = found_of(run_backward(case, saved), case.weights)
            rows = [padded(item, case, time_first) for item in (saved.out, case.d_out, case.x)]
            for shares, together in [(1, []), (2, []), (2, [(0, 2)])]:
                for out, d_out in product((saved.out, rows[0]), (case.d_out, rows[1])):
                    canaries = Canaries()
                    sums = run_backward(case._replace(d_out=d_out), saved._replace(out=out), shares, canaries, together)
                    canaries.check()
                    assert_same_arrays(found_of(sums, case.weights), expected)
                canaries = Canaries()
                again, _ = run_forward(case._replace(x=rows[2]), shares, canaries, together)
                canaries.check()
                np.testing.assert_array_equal(again.out, rows[0])
                assert_same_arrays(kept(again)[1:], kept(saved)[1:])


def padded(rows: np.ndarray, case: Case, time_first: bool) -> np.ndarray:
    """Return packed rows as a padded batch (B, T, ...) in packed order, with NaN behind each sequence."""
    sizes, order, _ = case.indices
    found = np.full((len(order), len(sizes), *rows.shape[1:]), np.nan, rows.dtype)
    reference.unpack_listed(list(found), np.arange(len(order)), sizes, rows)
    return np.ascontiguousarray(found.swapaxes(0, 1)).swapaxes(0, 1) if time_first else found


@each_kind
@each_dtype
@pytest.mark.parametrize(("H", "P"), [(1024, 0), (1001, 100)])
def test_large_weights(kind: Kind, dtype: type, H: int, P: int):
    case = case_of(kind, [2, 3, 1], 3, H, P, 0, dtype)
    saved, _ = run_forward(case)
    expected = found_of(twin_backward(case, saved, lanes(case.x.itemsize)), case.weights)
    first = None
    for shares, together in [(1, []), (2, []), (2, [(0, 1), (1, 2)]), (3, [(0, 3)])]:
        found = found_of(run_backward(case, saved, shares, together=together), case.weights)
        assert_close(found, expected, CLOSE[case.x.dtype])
        first = first or found
        assert_same_arrays(found, first)


# ---- in pieces


def ways_to_cut(T: int) -> list[list[int]]:
    """Return ways to divide T steps: each alone, in the middle, into a few pieces."""
    some = {1, T // 3, T // 3 + 1, T - 1} - {0, T}
    return [list(range(1, T)), [T // 2] if T > 1 else [], sorted(some)]


@each_kind
@each_dtype
@each_shape
def test_pieces_give_the_same_bits(kind: Kind, dtype: type, lengths: list[int], H: int, P: int):
    for reverse, states in product((0, 1), (True, False)):
        case = case_of(kind, lengths, 3, H, P, reverse, dtype)
        case = case if states else case._replace(states=[])
        saved, _ = run_forward(case)
        expected = found_of(run_backward(case, saved), case.weights)
        for cuts in ways_to_cut(max(lengths)) if any(lengths) else ():
            for shares, together in [(1, []), (3, []), (2, [(0, 1), (1, 2)])]:
                canaries = Canaries()
                found = found_of(run_backward(case, saved, shares, canaries, together, cuts=cuts), case.weights)
                canaries.check()
                assert_same_arrays(found, expected)


@each_kind
def test_pieces_of_rows_of_a_padded_batch(kind: Kind):
    for lengths, reverse, time_first in product(([6] * 5, [7, 7, 4, 2, 1, 0]), (0, 1), (False, True)):
        case = case_of(kind, lengths, 3, 19, 5, reverse)
        saved, _ = run_forward(case)
        expected = found_of(run_backward(case, saved), case.weights)
        apart = case._replace(d_out=padded(case.d_out, case, time_first)), saved._replace(out=padded(saved.out, case, time_first))
        for cuts in ways_to_cut(max(lengths)):
            assert_same_arrays(found_of(run_backward(*apart, cuts=cuts), case.weights), expected)


# ---- sequences do not touch each other


def of_sequence(found: list[np.ndarray], case: Case, i: int) -> list[np.ndarray]:
    """Return what of gradients belongs to the caller's sequence i; those of states come last."""
    sizes, _, places = case.indices
    mine = [end - size + places[i] for end, size in zip(np.cumsum(sizes), sizes, strict=True) if places[i] < size]
    of_rows = len(found) - len(case.states)
    return [item[mine] for item in found[:of_rows]] + [item[i] for item in found[of_rows:]]


@each_kind
@each_dtype
@pytest.mark.parametrize(("reverse", "H"), [(0, 37), (1, 37), (0, 133)])
def test_the_same_bits_alone_and_in_any_batch(kind: Kind, dtype: type, reverse: int, H: int):
    lengths = MANY[:23]
    case = case_of(kind, lengths, 3, H, 9, reverse, dtype)
    saved, _ = run_forward(case)
    found = found_of(run_backward(case, saved), case.weights)
    for i in range(len(lengths)):
        rows, d_rows = (of_sequence([item], case._replace(states=[]), i)[0] for item in (case.x, case.d_out))
        alone = case_of(kind, [lengths[i]], 3, H, 9, reverse, dtype)._replace(x=rows, d_out=d_rows, weights=case.weights)
        alone = alone._replace(states=[state[[i]] for state in case.states], d_after=[d[[i]] for d in case.d_after])
        again = found_of(run_backward(alone, run_forward(alone)[0]), case.weights)
        assert_same_arrays(of_sequence(again, alone, 0), of_sequence(found, case, i))


@each_kind
@each_dtype
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_in_its_sequence(kind: Kind, dtype: type, poison: float):
    for reverse, shares, together in product((0, 1), (1, 3), ([], [(0, 1), (1, 3)])):
        if shares < 3 and together:
            continue
        case = case_of(kind, MANY, 3, 21, 5, reverse, dtype)
        expected = found_of(run_backward(case, run_forward(case)[0]), case.weights)
        sick = [i for i, length in enumerate(MANY) if length > 1][::3]
        places = [of_sequence([np.arange(len(case.x))], case._replace(states=[]), i)[0] for i in sick]
        for k, (i, rows) in enumerate(zip(sick, places, strict=True)):
            if k % 3 == 0:
                case.d_out[rows[k % len(rows)], k % case.d_out.shape[1]] = poison
            elif k % 3 == 1:
                case.d_after[k % len(case.d_after)][i, k % 5] = poison
            else:
                case.x[rows[k % len(rows)], k % 3] = poison
        found = found_of(run_backward(case, run_forward(case)[0], shares, together=together), case.weights)
        for i in range(len(MANY)):
            if i not in sick:
                assert_same_arrays(of_sequence(found, case, i), of_sequence(expected, case, i))
            elif np.isnan(poison) and kind.name != "RNN":
                assert any(np.isnan(item).any() for item in of_sequence(found, case, i))


def test_a_relu_of_nan_has_a_gradient():
    kind = KINDS["relu"]
    case = case_of(kind, [4, 2], 3, 5)
    saved, _ = run_forward(case)
    saved.out[2, 1] = np.nan
    saved.out[4, 2] = 0.0
    expected = found_of(twin_backward(case, saved, lanes(4)), case.weights)
    found = found_of(run_backward(case, saved), case.weights)
    assert_close(found, expected, CLOSE[case.x.dtype])
    assert found[0][2, 0, 1] != 0
    assert found[0][4, 0, 2] == 0


# ---- the guards


@each_kind
def test_a_wrong_kernel_is_noticed(kind: Kind):
    case = case_of(kind, LENGTHS, 3, 21, 5)
    saved, _ = run_forward(case)
    found = found_of(run_backward(case, saved), case.weights)
    turned = [state[::-1].copy() for state in case.d_after]
    for wrong in (
        run_backward(case._replace(reverse=1), saved),
        run_backward(case._replace(d_out=None), saved),
        run_backward(case._replace(d_after=turned), saved),
        run_backward(case._replace(weights=case.weights | {"weight_hh": -case.weights["weight_hh"]}), saved),
        run_backward(case, Saved(np.roll(saved.out, 1, 0), saved.c, None if saved.gates is None else np.roll(saved.gates, 1, 0))),
    ):
        with pytest.raises(AssertionError):
            assert_close(found_of(wrong, case.weights), found, CLOSE[case.x.dtype])
    with pytest.raises(AssertionError):
        assert_same_arrays(found, [np.nextafter(found[0], 9), *found[1:]])
    assert CELLS[kind.cell].saved * 21 == (0 if saved.gates is None else saved.gates.shape[1])
