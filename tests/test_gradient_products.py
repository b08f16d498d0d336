"""The chain of trust for the products with gradients of sums: by weights, and by inputs and states. The twins and the kernels agree."""

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from fastpack import blocks, reference_layers
from fastpack.blocks import SUMMED
from fastpack.cells import CELLS, lanes
from tests.backward_kernels import run_gradient_panels, run_input, run_weights
from tests.backward_oracle import Products, in_blocks, twin_input, twin_weights
from tests.guarded import Canaries
from tests.oracle import layout
from tests.recurrent_oracle import CLOSE, KINDS, Kind, assert_close, assert_same_arrays

ALL_KINDS = KINDS | {"linear": Kind(blocks.LINEAR, "linear", {})}
each_kind = pytest.mark.parametrize("kind", ALL_KINDS.values(), ids=ALL_KINDS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
LENGTHS = [3, 0, 9, 9, 1, 2, 5, 0, 7]
MANY = np.random.default_rng(0).integers(0, 7, 61).tolist()
LONG = np.random.default_rng(1).integers(0, 90, 40).tolist()  # together more rows than are summed up at a time
assert sum(LONG) > 3 * SUMMED


def normal(*shape: int, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def sums_of(cell: int, N: int, H: int, dtype: Any, seed: int = 3) -> np.ndarray:
    """Return gradients of sums, in blocks, with NaN beyond H."""
    return in_blocks(normal(N, CELLS[cell].sums, H, dtype=dtype, seed=seed), lanes(np.dtype(dtype).itemsize))


# ---- weights in gradient panels


@each_kind
@each_dtype
def test_gradient_panels(kind: Kind, dtype: type):
    sizes = [(1, 1), (3, 2), (7, 16), (16, 17), (5, 33), (33, 1), (32, 64), (70, 40), (4, 0)]
    for (H, columns), over_h in product(sizes, (0, 1) if kind.cell != blocks.LINEAR else (0,)):
        weight = normal(CELLS[kind.cell].gates * H, columns, dtype=dtype)
        canaries = Canaries()
        panels = run_gradient_panels(kind.cell, over_h, weight, canaries)
        canaries.check()
        used = -(-columns // panels.shape[2])
        expected = np.full_like(panels[:used], np.nan)
        reference_layers.pack_gradient_panels(kind.cell, over_h, weight, expected)
        np.testing.assert_array_equal(panels[:used], expected)
        assert np.isnan(panels[used:]).all()


# ---- by weights: gradients of inputs


def splits(N: int) -> list[list[tuple[int, int]]]:
    """Return ways to do N rows: at once, one by one, last first, in parts."""
    at_once, one_by_one = [(0, N)], [(n, n + 1) for n in range(N)]
    edges = [0, *sorted(np.random.default_rng(N).integers(0, N + 1, 4).tolist()), N]
    return [at_once, one_by_one[::-1], list(pairwise(edges))]


@each_kind
@each_dtype
@pytest.mark.parametrize(
    ("N", "F", "H"), [(7, 1, 1), (36, 5, 21), (103, 16, 16), (1, 70, 33), (50, 33, 70), (207, 3, 40), (5, 64, 64), (9, 20, 150)]
)
def test_input_gradient(kind: Kind, dtype: type, N: int, F: int, H: int):
    weight, d_sums = normal(CELLS[kind.cell].gates * H, F, dtype=dtype) / dtype(np.sqrt(H)), sums_of(kind.cell, N, H, dtype)
    there = normal(N, F, dtype=dtype, seed=5)
    for add in (0, 1):
        expected = twin_input(kind, weight, d_sums, there if add else None)
        first = None
        for calls in splits(N):
            canaries = Canaries()
            found = run_input(kind, weight, d_sums, there if add else np.full_like(there, np.nan), add, calls, canaries)
            canaries.check()
            assert_close([found], [expected], CLOSE[there.dtype])
            first = [found] if first is None else first
            assert_same_arrays([found], first)


@each_kind
@each_dtype
@pytest.mark.parametrize("H", [1024, 1001, 3100])  # the last is more than is multiplied at a time also of one gate
def test_input_gradient_of_large_weights(kind: Kind, dtype: type, H: int):
    F, N = 50, 11
    weight, d_sums = normal(CELLS[kind.cell].gates * H, F, dtype=dtype) / dtype(np.sqrt(H)), sums_of(kind.cell, N, H, dtype)
    expected = twin_input(kind, weight, d_sums)
    nothing = np.full((N, F), np.nan, dtype)
    found = [run_input(kind, weight, d_sums, nothing, 0, calls) for calls in splits(N)]
    assert_close(found, [expected] * 3, CLOSE[expected.astype(dtype).dtype])
    assert_same_arrays(found, found[:1] * 3)


@each_kind
@each_dtype
def test_input_gradient_in_rows_of_a_padded_batch(kind: Kind, dtype: type):
    F, H = 19, 21
    weight = normal(CELLS[kind.cell].gates * H, F, dtype=dtype)
    for B, T in [(1, 7), (5, 6), (30, 7), (3, 1)]:
        d_sums, there = sums_of(kind.cell, B * T, H, dtype), normal(B * T, F, dtype=dtype, seed=5)
        for add, sequences_first in product((0, 1), (False, True)):
            steps = there.reshape(T, B, F).swapaxes(0, 1)
            rows = np.ascontiguousarray(steps) if sequences_first else steps
            expected = run_input(kind, weight, d_sums, there, add, [(0, B * T)])
            for calls in splits(B * T):
                canaries = Canaries()
                found = run_input(kind, weight, d_sums, rows, add, calls, canaries)
                canaries.check()
                np.testing.assert_array_equal(found.swapaxes(0, 1).reshape(B * T, F), expected)


@each_kind
@each_dtype
def test_what_is_not_finite_stays_in_its_row(kind: Kind, dtype: type):
    N, F, H = 40, 21, 35
    weight, d_sums = normal(CELLS[kind.cell].gates * H, F, dtype=dtype), sums_of(kind.cell, N, H, dtype)
    there = normal(N, F, dtype=dtype, seed=5)
    for add, poison in product((0, 1), (np.nan, np.inf, 3e38)):
        expected = run_input(kind, weight, d_sums, there, add, [(0, N)])
        sick = d_sums.copy()
        sick[1, 3::7, 0, 1] = poison
        found = run_input(kind, weight, sick, there, add, [(0, N)])
        well = np.setdiff1d(np.arange(N), np.arange(3, N, 7))
        np.testing.assert_array_equal(found[well], expected[well])
        assert not np.isnan(poison) or np.isnan(found[3::7]).all()


# ---- by inputs and states: gradients of weights


def products_of(kind: Kind, lengths: list[int], F: int, H: int, P: int, reverse: int, dtype: Any, states: bool = True) -> Products:
    """Return random inputs, states and gradients of sums, those of LINEAR without states."""
    N, B, indices = sum(lengths), len(lengths), layout(lengths)
    x, d_sums = normal(N, F, dtype=dtype), sums_of(kind.cell, N, H, dtype)
    if kind.cell == blocks.LINEAR:
        return Products(kind.cell, reverse, H, x, indices, None, None, d_sums)
    h_0 = normal(B, P, dtype=dtype, seed=8) if states else None
    return Products(kind.cell, reverse, H, x, indices, normal(N, P, dtype=dtype, seed=7), h_0, d_sums)


@each_kind
@each_dtype
@pytest.mark.parametrize(
    ("lengths", "F", "H", "P"),
    [
        *((LENGTHS, 5, 5, 5), (MANY, 16, 16, 16), (LONG, 9, 21, 4), (LONG, 33, 40, 40), ([4, 4], 1, 1, 1), ([5], 64, 64, 64)),
        *(([0, 0], 3, 5, 5), ([SUMMED], 3, 5, 2), ([SUMMED + 1], 100, 70, 33), ([2] * (SUMMED // 2) + [1], 2, 3, 3), (MANY, 0, 5, 5)),
    ],
)
def test_weight_gradient(kind: Kind, dtype: type, lengths: list[int], F: int, H: int, P: int):
    for reverse, states in product((0, 1), (True, False)):
        products = products_of(kind, lengths, F, H, P, reverse, dtype, states)
        expected = twin_weights(products)
        first = None
        for shares in (1, 2, 3, 7, 50):
            canaries = Canaries()
            found = run_weights(products, shares, canaries)
            canaries.check()
            for name, gradient in found.items():
                assert_close([gradient], [expected[name]], CLOSE[gradient.dtype])
            first = first or found
            assert_same_arrays(list(found.values()), list(first.values()))


@each_kind
@each_dtype
@pytest.mark.parametrize("lengths", [LENGTHS, [6] * 5, LONG])
def test_weight_gradient_in_pieces(kind: Kind, dtype: type, lengths: list[int]):
    for reverse, states in product((0, 1), (True, False)):
        products = products_of(kind, sorted(lengths, reverse=True), 9, 21, 5, reverse, dtype, states)
        rows = [None if item is None else in_steps(item, products.indices, True) for item in (products.x, products.out)]
        expected = twin_weights(products)
        for cuts in ([max(lengths) // 2], [1, 2, 3, max(lengths) - 1]):
            first = None
            for shares, (x, out) in product((1, 3), ((products.x, products.out), rows)):
                canaries = Canaries()
                found = run_weights(products._replace(x=x, out=out), shares, canaries, cuts=cuts)
                canaries.check()
                for name, gradient in found.items():
                    assert_close([gradient], [expected[name]], CLOSE[gradient.dtype])
                first = first or found
                assert_same_arrays(list(found.values()), list(first.values()))


@each_kind
@each_dtype
def test_gradients_of_weights_that_are_not_wanted(kind: Kind, dtype: type):
    products = products_of(kind, LENGTHS, 9, 21, 6, 0, dtype)
    expected = run_weights(products)
    for some in product((True, False), repeat=len(expected)):
        wanted = [name for name, is_wanted in zip(expected, some, strict=True) if is_wanted]
        for shares in (1, 3) if wanted else ():
            canaries = Canaries()
            found = run_weights(products, shares, canaries, wanted)
            canaries.check()
            assert list(found) == wanted
            assert_same_arrays(list(found.values()), [expected[name] for name in wanted])


@each_kind
@each_dtype
def test_weight_gradient_of_a_padded_batch(kind: Kind, dtype: type):
    for lengths in ([6] * 5, [120] * 9, [7, 7, 4, 2, 1, 0], sorted(LONG, reverse=True)):
        for reverse, steps_first in product((0, 1), (False, True)):
            products = products_of(kind, lengths, 3, 19, 5, reverse, dtype)
            rows = [None if item is None else in_steps(item, products.indices, steps_first) for item in (products.x, products.out)]
            expected = list(run_weights(products).values())
            for x, out in product((rows[0], products.x), (rows[1], products.out)):
                canaries = Canaries()
                found = run_weights(products._replace(x=x, out=out), 2, canaries)
                canaries.check()
                assert_same_arrays(list(found.values()), expected)


def in_steps(rows: np.ndarray, indices: Any, steps_first: bool) -> np.ndarray:
    """Return packed rows as a padded batch in packed order, with NaN behind each sequence."""
    sizes, order, _ = indices
    found = np.full((len(sizes), len(order), rows.shape[1]), np.nan, rows.dtype)
    found[np.arange(len(order)) < sizes[:, None]] = rows
    return found.swapaxes(0, 1) if steps_first else np.ascontiguousarray(found.swapaxes(0, 1))


@each_kind
@each_dtype
def test_weight_gradients_of_large_weights(kind: Kind, dtype: type):
    products = products_of(kind, [5, 3, 4], 40, 1024, 100, 1, dtype)
    found = run_weights(products, 3)
    assert_close(list(found.values()), [twin_weights(products)[name] for name in found], CLOSE[products.x.dtype])


# ---- the guards


@each_kind
def test_wrong_products_are_noticed(kind: Kind):
    products = products_of(kind, LENGTHS, 9, 21, 6, 0, np.float32)
    expected = twin_weights(products)
    backwards = products._replace(d_sums=products.d_sums[:, ::-1].copy())
    wrong = {name: [run_weights(backwards)[name]] for name in ("weight_ih", "weight_hh") if name in expected}
    if kind.cell != blocks.LINEAR:
        wrong["weight_hh"] += [run_weights(products._replace(**one))["weight_hh"] for one in ({"reverse": 1}, {"h_0": None})]
    fewer = products_of(kind, LENGTHS, 9, 21, 6, 0, np.float32)
    fewer.d_sums[1, 7] = 0
    wrong["bias_ih"] = [run_weights(fewer)["bias_ih"]]
    for name, gradients in wrong.items():
        for gradient in gradients:
            with pytest.raises(AssertionError):
                assert_close([gradient], [expected[name]], CLOSE[gradient.dtype])
    weight, there = normal(CELLS[kind.cell].gates * 21, 9, dtype=np.float32), normal(sum(LENGTHS), 9, dtype=np.float32)
    expected_x = twin_input(kind, weight, products.d_sums)
    for other in (
        run_input(kind, weight, products.d_sums, there, 1, [(0, len(there))]),
        run_input(kind, weight, products.d_sums, there, 0, [(1, len(there))]),
        run_input(kind, -weight, products.d_sums, there, 0, [(0, len(there))]),
        run_input(kind, weight, backwards.d_sums, there, 0, [(0, len(there))]),
    ):
        with pytest.raises(AssertionError):
            assert_close([other], [expected_x], CLOSE[other.dtype])
