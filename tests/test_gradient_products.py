"""The chain of trust for the products with gradients of sums: by weights, and by inputs and states. The twins and the kernels agree.

They are a part of `layer_gradient`: here are shapes of x and of weights, and more rows than are multiplied or summed up at a time.
"""

from itertools import combinations, cycle, product
from typing import Any

import numpy as np
import pytest

from fastpack import blocks, reference_layers
from fastpack.blocks import SUMMED
from fastpack.cells import CELLS, lanes
from tests.backward_kernels import Way, amid, assert_alone, found_on_the_way, room_for, run_directions, run_gradient_panels, run_gradients
from tests.backward_oracle import Layer, assert_all_close, assert_all_same, layer_case, padded, twin_layer
from tests.guarded import Canaries, as_it_is
from tests.recurrent_oracle import CLOSE, KINDS, Kind, assert_close

LENGTHS = [3, 0, 9, 9, 1, 2, 5, 0, 7]
MANY = np.random.default_rng(0).integers(0, 7, 61).tolist()
LONG = np.random.default_rng(1).integers(0, 90, 40).tolist()  # together more rows than are summed up at a time
assert sum(LONG) > 3 * SUMMED
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SOME_WAYS = [
    *(Way(), Way(2, ((0, 1), (1, 2))), Way(3, ((2, 3), (0, 1), (1, 2)), at_once=False), Way(7, ((0, 7),))),
    *(Way(50, ((20, 50), (0, 20))), Way(50, ((3, 50), (0, 1)), together=1)),
]


# ---- weights in gradient panels


@pytest.mark.parametrize("cell", CELLS)
@each_dtype
def test_gradient_panels(cell: int, dtype: type):
    sizes = [(1, 1), (3, 2), (7, 16), (16, 17), (5, 33), (33, 1), (32, 64), (70, 40), (4, 0)]
    for (H, columns), over_h in product(sizes, (0, 1) if cell != blocks.LINEAR else (0,)):
        weight = np.random.default_rng(0).standard_normal((CELLS[cell].gates * H, columns)).astype(dtype)
        canaries = Canaries()
        panels = run_gradient_panels(cell, over_h, weight, canaries)
        canaries.check()
        used = -(-columns // panels.shape[2])
        expected = np.full_like(panels[:used], np.nan)
        reference_layers.pack_gradient_panels(cell, over_h, weight, expected)
        np.testing.assert_array_equal(panels[:used], expected)
        assert np.isnan(panels[used:]).all()


# ---- all products, of one direction and of two, which add to the same gradient of x


@each_kind
@each_dtype
@pytest.mark.parametrize(
    ("lengths", "F", "H", "P"),
    [
        *((LENGTHS, 5, 5, 2), (MANY, 16, 16, 15), (LONG, 9, 21, 4), (LONG, 33, 40, 33), ([4, 4], 1, 2, 1), ([5], 64, 64, 63)),
        *(([7], 1, 1, 0), ([0, 0], 3, 5, 4), ([SUMMED], 3, 5, 2), ([SUMMED + 1], 100, 70, 33), ([2] * (SUMMED // 2) + [1], 2, 3, 2)),
        *((MANY, 0, 5, 4), ([1] * 103, 16, 16, 9), ([1], 70, 33, 0), ([1] * 207, 3, 40, 0), ([3] * 3, 20, 150, 1), ([9, 9], 150, 9, 5)),
    ],
)
def test_products(kind: Kind, dtype: type, lengths: list[int], F: int, H: int, P: int):
    for D, states in [(1, True), (2, True), (2, False)]:
        layer = layer_case(kind, lengths, F, H, P, D, dtype)
        layer = layer if states else layer._replace(states=[])
        kept, _ = run_directions(layer)
        expected = twin_layer(layer, kept, lanes(layer.x.itemsize))
        first = None
        for way in SOME_WAYS:
            canaries = Canaries()
            found = run_gradients(layer, kept, way, canaries)
            canaries.check()
            assert_all_close(found, expected)
            first = first or found
            assert_all_same(found, first)


@each_kind
@each_dtype
def test_products_of_a_padded_batch(kind: Kind, dtype: type):
    for lengths in ([6] * 5, [120] * 9, [7, 7, 4, 2, 1, 0], sorted(LONG, reverse=True)):
        for D, steps_first in product((1, 2), (False, True)):
            layer = layer_case(kind, lengths, 3, 19, 5, D, dtype)
            kept, _ = run_directions(layer)
            expected = run_gradients(layer, kept)
            rows = [(item, padded(item, layer.indices, steps_first)) for item in (layer.x, kept.out)]
            for way, (x, out) in product((SOME_WAYS[1], SOME_WAYS[-1]), product(*rows)):
                canaries = Canaries()
                found = run_gradients(layer._replace(x=x), kept._replace(out=out), way, canaries)
                canaries.check()
                assert_all_same(found, expected)


@each_kind
@each_dtype
def test_what_is_not_finite_stays_in_its_row(kind: Kind, dtype: type):
    lengths, sick = [1] * 200, np.arange(3, 200, 7)  # each row is a sequence
    for D, poison in product((1, 2), (np.nan, np.inf, 3e38)):
        layer = layer_case(kind, lengths, 21, 35, 4, D, dtype)
        kept, _ = run_directions(layer)
        expected = run_gradients(layer, kept)["x"]
        layer.d_out[sick] = poison
        found = run_gradients(layer, kept, SOME_WAYS[1])["x"]
        well = np.setdiff1d(np.arange(len(lengths)), sick)
        np.testing.assert_array_equal(found[well], expected[well])
        assert not np.isnan(poison) or np.isnan(found[sick]).all()


# ---- what is not wanted


def each_choice(names: list[str]) -> list[list[str]]:
    """Return all that may be wanted of a few names; of many none, one, all but one, and some random ones."""
    if len(names) <= 8:
        return [list(some) for count in range(len(names) + 1) for some in combinations(names, count)]
    chosen = np.random.default_rng(0).random((30, len(names))) < 0.5
    ones = np.eye(len(names), dtype=bool)
    return [[name for name, is_chosen in zip(names, row, strict=True) if is_chosen] for row in np.concatenate([ones, ~ones, chosen])]


@each_kind
@each_dtype
@pytest.mark.parametrize(("D", "P"), [(1, 0), (1, 6), (2, 6)])
def test_gradients_that_are_not_wanted(kind: Kind, dtype: type, D: int, P: int):
    layer = layer_case(kind, LENGTHS, 9, 21, P, D, dtype)
    kept, _ = run_directions(layer)
    expected = run_gradients(layer, kept)
    on_the_way = [name for name in ("d_sums", "d_projected", "unprojected") if name in expected]
    choices = each_choice([name for name in expected if name not in on_the_way])
    for wanted, way in zip(choices, cycle([Way(), Way(3, ((0, 1), (1, 3))), Way(2, ((0, 1), (1, 2)), together=1)]), strict=False):
        canaries = Canaries()
        found = run_gradients(layer, kept, way, canaries, wanted=wanted)
        canaries.check()
        assert_all_same(found, {name: expected[name] for name in expected if name in wanted + on_the_way})


@each_kind
def test_layers_without_biases(kind: Kind):
    for D, P in product((1, 2), (0, 6)):
        layer = layer_case(kind, LENGTHS, 9, 21, P, D, bias=False)
        kept, _ = run_directions(layer)
        expected = twin_layer(layer, kept, lanes(layer.x.itemsize))
        assert not any(name.startswith("bias") for name in expected)
        for way in SOME_WAYS:
            assert_all_close(run_gradients(layer, kept, way), expected)


# ---- the guards


def changed(layer: Layer, name: str, change: Any) -> Layer:
    """Return a layer with a weight of all directions changed."""
    return layer._replace(weights=[weights | {name: change(weights[name])} for weights in layer.weights])


@each_kind
@pytest.mark.parametrize("D", [1, 2])
def test_wrong_products_are_noticed(kind: Kind, D: int):
    layer = layer_case(kind, LENGTHS, 9, 21, 6, D)
    kept, _ = run_directions(layer)
    expected = twin_layer(layer, kept, lanes(4))
    fewer = layer._replace(d_out=layer.d_out.copy())
    fewer.d_out[7] = 0
    negative = changed(layer, "weight_ih", np.negative)
    wrong = {
        "weight_ih": [layer._replace(x=np.roll(layer.x, 1, 0)), layer._replace(x=layer.x[:, ::-1].copy()), fewer],
        "weight_hh": [layer._replace(states=[]), layer._replace(states=[state[:, ::-1].copy() for state in layer.states]), fewer],
        "bias_ih": [fewer],
        "bias_hh": [fewer],
        "x": [fewer, negative, layer._replace(weights=[layer.weights[0], *negative.weights[1:]]) if D == 2 else negative],
    }
    if "weight_hr" in expected:
        wrong["weight_hr"] = [fewer]
    for name, layers in wrong.items():
        for each in layers:
            found = run_gradients(each, kept)
            with pytest.raises(AssertionError):
                assert_close([found[name]], [expected[name]], CLOSE[found[name].dtype])
    missing = run_gradients(layer, kept, wanted=["x", "weight_ih"])
    with pytest.raises(AssertionError):
        assert_all_same(missing, run_gradients(layer, kept))


def test_what_is_written_beside_parts_of_rows_and_sums_is_noticed():
    for column in (0, 2, 6, -1):
        part, wide = amid(np.zeros((5, 3)), as_it_is)
        assert_alone(part, wide)
        wide[2, column] = 0
        with pytest.raises(AssertionError):
            assert_alone(part, wide)
    layer = layer_case(KINDS["LSTM"], LENGTHS, 9, 5, 2, dtype=np.float64)
    N = sum(LENGTHS)
    room = room_for(layer, Way(), N + 5, as_it_is)
    found_on_the_way(room, N, 2, 5)
    for memory, place in [(room.d_sums, (0, N)), (room.d_sums, (-1, 0)), (room.d_projected, (0, N)), (room.unprojected, (N,))]:
        memory[place] = 0
        with pytest.raises(AssertionError):
            found_on_the_way(room, N, 2, 5)
        memory[place] = np.nan
