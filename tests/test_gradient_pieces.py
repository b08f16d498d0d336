"""The layer gradient in pieces of the steps.

Whatever the pieces, gradients of inputs and states have the same bits, and those of weights are close.
"""

from itertools import cycle, product
from typing import Any

import numpy as np
import pytest

from fastpack.blocks import SUMMED
from fastpack.cells import lanes
from tests import backward_kernels
from tests.backward_kernels import Room, Way, run_directions, run_gradients
from tests.backward_oracle import Gradients, assert_all_close, assert_all_same, layer_case, padded, twin_layer
from tests.guarded import Canaries
from tests.recurrent_oracle import KINDS, Kind

LENGTHS = [3, 0, 9, 9, 1, 2, 5, 0, 7]
MANY = np.random.default_rng(0).integers(0, 7, 61).tolist()
LONG = np.random.default_rng(1).integers(0, 90, 40).tolist()
assert sum(LONG) > 3 * SUMMED
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SOME_WAYS = [
    *(Way(), Way(3, ((0, 1), (1, 3))), Way(2, ((1, 2), (0, 1)), at_once=False)),
    *(Way(2, ((0, 1), (1, 2)), together=1), Way(7, ((6, 7),), together=1)),
]


def sizes_of_pieces(batch_sizes: np.ndarray) -> list[int]:
    """Return how many rows pieces may have, from those of the largest step to more than there are."""
    N, least = int(batch_sizes.sum()), int(batch_sizes.max(initial=0))
    return sorted(size for size in {least, least + 1, N // 3, N // 2, N - 1, N + 5} if size >= least)


def of_rows_and_states(found: Gradients) -> Gradients:
    """Return the gradients of x and of the initial states."""
    return {name: item for name, item in found.items() if name in ("x", "h_0", "c_0")}


def not_on_the_way(found: Gradients) -> Gradients:
    """Return gradients without what is in memory after a single piece only."""
    return {name: item for name, item in found.items() if name not in ("d_sums", "d_projected", "unprojected")}


@each_kind
@each_dtype
@pytest.mark.parametrize(
    ("lengths", "H", "P"),
    [
        *((LENGTHS, 5, 0), (MANY, 21, 4), (LENGTHS, 40, 7), (MANY, 33, 32), (MANY, 70, 1)),
        *(([4, 4], 1, 0), ([5], 64, 0), ([2, 0, 7], 16, 15), ([0, 0], 9, 2), ([9] * 12 + [4] * 3, 33, 5)),
    ],
)
def test_pieces_give_the_same_bits(kind: Kind, dtype: type, lengths: list[int], H: int, P: int):
    for D, states in [(1, True), (2, True), (2, False)]:
        layer = layer_case(kind, lengths, 3, H, P, D, dtype)
        layer = layer if states else layer._replace(states=[])
        kept, _ = run_directions(layer)
        whole, expected = run_gradients(layer, kept), not_on_the_way(twin_layer(layer, kept, lanes(layer.x.itemsize)))
        for piece_rows in sizes_of_pieces(layer.indices[0]):
            first = None
            for way in SOME_WAYS:
                canaries = Canaries()
                found = not_on_the_way(run_gradients(layer, kept, way, canaries, piece_rows))
                canaries.check()
                assert_all_same(of_rows_and_states(found), of_rows_and_states(whole))
                assert_all_close(found, expected)
                first = first or found
                assert_all_same(found, first)


@each_kind
@each_dtype
def test_pieces_of_more_rows_than_are_summed_up_at_a_time(kind: Kind, dtype: type):
    for D, lengths in product((1, 2), (LONG, [SUMMED + 40, 30])):
        layer = layer_case(kind, lengths, 9, 21, 5, D, dtype)
        kept, _ = run_directions(layer)
        whole, expected = run_gradients(layer, kept), not_on_the_way(twin_layer(layer, kept, lanes(layer.x.itemsize)))
        for piece_rows in (SUMMED, SUMMED + 40, sum(lengths) // 2 + 20):
            first = None
            for way in SOME_WAYS:
                canaries = Canaries()
                found = run_gradients(layer, kept, way, canaries, piece_rows)
                canaries.check()
                assert_all_same(of_rows_and_states(found), of_rows_and_states(whole))
                assert_all_close(found, expected)
                first = first or found
                assert_all_same(found, first)


@each_kind
def test_pieces_of_rows_of_a_padded_batch(kind: Kind):
    turns = cycle(SOME_WAYS)
    for lengths, D, steps_first in product(([6] * 5, [6], [7, 7, 4, 2, 1, 0]), (1, 2), (False, True)):
        layer = layer_case(kind, lengths, 3, 19, 5, D)
        kept, _ = run_directions(layer)
        rows = [(item, padded(item, layer.indices, steps_first)) for item in (layer.x, kept.out, layer.d_out)]
        for piece_rows in sizes_of_pieces(layer.indices[0]):
            expected = run_gradients(layer, kept, piece_rows=piece_rows)
            for (x, out, d_out), way in zip(product(*rows), turns, strict=False):
                canaries = Canaries()
                apart = layer._replace(x=x, d_out=d_out), kept._replace(out=out)
                found = run_gradients(*apart, way, canaries, piece_rows)
                canaries.check()
                assert_all_same(found, expected)


@each_kind
@each_dtype
def test_gradients_that_are_not_given_and_not_wanted_in_pieces(kind: Kind, dtype: type):
    for D in (1, 2):
        whole = layer_case(kind, LENGTHS, 3, 21, 6, D, dtype)
        kept, _ = run_directions(whole)
        for out, *after in product((True, False), repeat=1 + len(whole.d_after)):
            has = [d if given else None for d, given in zip(whole.d_after, after, strict=True)]
            layer = whole._replace(d_out=whole.d_out if out else None, d_after=has)
            expected = run_gradients(layer, kept, piece_rows=12)
            for wanted, way in product((["x"], ["h_0"], ["c_0", "bias_hh"], ["weight_hh", "x"]), SOME_WAYS):
                canaries = Canaries()
                found = run_gradients(layer, kept, way, canaries, 12, wanted)
                canaries.check()
                assert_all_same(found, {name: item for name, item in expected.items() if name in wanted})


def test_a_piece_in_the_memory_of_the_one_before_is_noticed(monkeypatch: pytest.MonkeyPatch):
    original = backward_kernels.room_for

    def room_in_one(*given: Any) -> Room:
        room = original(*given)
        return room._replace(other_sums=room.d_sums)

    for kind, D in product(KINDS.values(), (1, 2)):
        layer = layer_case(kind, LENGTHS, 3, 133, 0, D)
        kept, _ = run_directions(layer)
        expected = of_rows_and_states(run_gradients(layer, kept))
        with monkeypatch.context() as patch:
            patch.setattr(backward_kernels, "room_for", room_in_one)
            found = of_rows_and_states(run_gradients(layer, kept, piece_rows=7))
        with pytest.raises(AssertionError):
            assert_all_same(found, expected)


@each_kind
def test_a_piece_that_is_left_out_is_noticed(kind: Kind):
    layer = layer_case(kind, LENGTHS, 3, 21, 5, 1)
    kept, _ = run_directions(layer)
    found = run_gradients(layer, kept, piece_rows=7)
    silent = layer._replace(d_out=np.where(np.arange(len(layer.d_out))[:, None] < 7, 0, layer.d_out))
    other = run_gradients(silent, kept, piece_rows=7)
    for name in ("x", "h_0", "weight_ih", "bias_hh"):
        with pytest.raises(AssertionError):
            assert_all_close({name: other[name]}, {name: found[name]})
