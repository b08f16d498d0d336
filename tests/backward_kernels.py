"""The kernels of the backward pass, called as the library does, on memory that the test lays out: see `tests.guarded`.

What is given and found is as in `tests.backward_oracle`. Rows that may lie apart, those of x, out and their gradients, are parts of
wider rows here.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from fastpack import blocks, machine
from fastpack.blocks import D_WEIGHTS, GRADIENT_PANELS
from fastpack.cells import CELLS, arrivals_items, backward_items, d_sums_items, gradient_panel_items, lanes, weight_gradient_items
from fastpack.checks import address
from tests.backward_oracle import SUFFIXES, WEIGHTS, Case, Gradients, Kept, Layer, Maybe, Saved, Sums, on_the_way, with_c
from tests.guarded import Place, as_it_is
from tests.recurrent_oracle import run_at_once, run_kernel, widths

Calls = Sequence[tuple[int, int]]


class Way(NamedTuple):
    """How a call of `layer_gradient` is divided: into shares, which are done by these calls, all at once or one after another."""

    shares: int = 1
    calls: Calls = ((0, 1),)
    together: int = 0  # 1: shares of the recurrence are of hidden units
    at_once: bool = True


ALONE = Way()


def ways() -> list[Way]:
    """Return ways to divide a call: each share in a call of its own, several in one, a single one, and some more than once."""
    found = [
        *(ALONE, Way(2, ((0, 1), (1, 2))), Way(3, ((0, 1), (1, 3))), Way(7, ((0, 7),)), Way(5, ((4, 5),))),
        *(Way(4, ((2, 3), (0, 1), (3, 4), (1, 2)), at_once=False), Way(3, ((1, 2), (0, 3), (1, 2), (0, 1)), at_once=False)),
    ]
    return [way._replace(together=together) for together in (0, 1) for way in found]


def where(array: Maybe) -> int:
    """Return an array's address, 0 of none."""
    return 0 if array is None else address(array)


def strides(rows: Maybe) -> tuple[int, int]:
    """Return how many bytes it is from row to row, and from step to step of a padded batch."""
    return (0, 0) if rows is None else (rows.strides[0], 0 if rows.ndim == 2 else rows.strides[1])


def placed(array: Maybe, place: Place) -> Maybe:
    """Return an array in its place."""
    return None if array is None else place(array, array.itemsize)


def amid(rows: Maybe, place: Place) -> tuple[Maybe, np.ndarray]:
    """Return rows as parts of wider ones, which are NaN elsewhere, and these; of a padded batch sequences or steps may be first.

    The parts are in the middle, but at the end where a forbidden page is.
    """
    if rows is None:
        return None, np.empty(0)
    width, item = rows.shape[-1], rows.itemsize
    first, margin = {None: (width, 1), True: (0, 1), False: (1, 0)}[getattr(place, "before", None)]
    steps_first = rows.ndim == 3 and rows.strides[1] > rows.strides[0]
    shape = rows.swapaxes(0, 1).shape if steps_first else rows.shape
    wide = place(np.full((*shape[:-1], first + width + margin), np.nan, rows.dtype), item)
    wide = wide.swapaxes(0, 1) if steps_first else wide
    wide[..., first : first + width] = rows
    return wide[..., first : first + width], wide


def assert_alone(part: np.ndarray, wide: np.ndarray) -> None:
    """Fail where something was written beside parts of wider rows, which hold no NaN themselves."""
    assert np.isnan(wide).sum() == wide.size - part.size + np.isnan(part).sum()


def in_any_order(shares: int) -> list[tuple[int, int]]:
    """Return a call for each share."""
    return [(share, share + 1) for share in np.random.default_rng(shares).permutation(shares).tolist()]


def sums_room(cell: int, N: int, H: int, dtype: np.dtype) -> np.ndarray:
    """Return memory for the gradients of sums: (H / LANES * LANES / lanes, N, sums, lanes)."""
    n, sums = lanes(dtype.itemsize), CELLS[cell].sums
    return np.full((d_sums_items(cell, 1, H) // (sums * n), N, sums, n), np.nan, dtype)


def written(room: np.ndarray, H: int) -> np.ndarray:
    """Return the blocks that a kernel writes of the gradients of H units' sums."""
    used = -(-H // room.shape[3])
    assert np.isnan(room[used:]).all()
    return room[:used]


def run_gradient_panels(cell: int, over_h: int, weight: np.ndarray, place: Place = as_it_is) -> np.ndarray:
    """Return gradient panels as the kernel makes them: (columns / lanes, G * H, lanes)."""
    (K, columns), n, H = weight.shape, lanes(weight.itemsize), len(weight) // CELLS[cell].gates
    panels = place(np.full((gradient_panel_items(cell, H, columns) // max(1, K * n), K, n), np.nan, weight.dtype), 64)
    given = place(weight, weight.itemsize)
    block = blocks.PackGradientPanels(cell, over_h, weight.itemsize, n, address(given), H, columns, address(panels))
    for call in in_any_order(-(-columns // n)):
        machine.run(block, *call)
    return panels


def run_forward(case: Case, shares: int = 1, place: Place = as_it_is, together: Calls = ()) -> tuple[Saved, list[np.ndarray]]:
    """Run `recur` so that it keeps what gradients need; return that and the states after."""
    H, cell, N = widths(case.weights)[1], CELLS[case.kind.cell], int(case.indices[0].sum())
    c, gates = (placed(np.full((N, width), np.nan, case.x.dtype), place) if width else None for width in (cell.has_c * H, cell.saved * H))
    given = case.kind, case.weights, case.x, case.indices, case.states, case.reverse
    out, after = run_kernel(*given, shares, place, together, (c, gates))
    return Saved(out, c, gates), after


def run_directions(layer: Layer, shares: int = 1, place: Place = as_it_is, together: Calls = ()) -> tuple[Kept, list[np.ndarray]]:
    """Run `recur` in each direction; return what gradients need, and the states after."""
    each = [run_forward(layer.direction(k), shares, place, together) for k in range(len(layer.weights))]
    out, *kept = zip(*[saved for saved, _ in each], strict=True)
    after = [np.stack(states) for states in zip(*[states for _, states in each], strict=True)]
    return Kept(np.concatenate(out, 1), *(None if item[0] is None else np.stack(item) for item in kept)), after


class Room(NamedTuple):
    """What `layer_gradient` needs beside what is given and wanted."""

    d_sums: np.ndarray  # of a piece
    other_sums: Maybe  # None where there is one piece only
    d_projected: Maybe
    unprojected: Maybe
    workspace: np.ndarray
    products: np.ndarray


def room_for(layer: Layer, way: Way, most: int, place: Place) -> Room:
    """Return memory of just the sizes that the library calculates for pieces of up to `most` rows."""
    (P, H), dtype, cell, B = widths(layer.weights[0]), layer.x.dtype, layer.kind.cell, len(layer.indices[1])
    sums, is_projected = [place(sums_room(cell, most, H, dtype), 64) for _ in range(2)], "weight_hr" in layer.weights[0]
    d_projected = place(sums_room(blocks.LINEAR, most, P, dtype), 64) if is_projected else None
    unprojected = placed(np.full((most, H), np.nan, dtype), place) if is_projected else None
    items = backward_items(B if way.together else -(-B // way.shares), H, P), weight_gradient_items()
    shares = (place(np.full((way.shares, count), np.nan, dtype), 64) for count in items)
    return Room(sums[0], sums[1] if most < layer.indices[0].sum() else None, d_projected, unprojected, *shares)


def places_for(layer: Layer, wanted: Collection[str] | None, place: Place) -> Gradients:
    """Return memory for the gradients of initial states and weights, all or those that are wanted."""
    D, B, has_c = len(layer.weights), len(layer.indices[1]), CELLS[layer.kind.cell].has_c
    shapes = dict(zip(("h_0", "c_0")[: 1 + has_c], [(D, B, width) for width in widths(layer.weights[0])], strict=False))
    for weights, end in zip(layer.weights, SUFFIXES[:D], strict=True):
        shapes |= {name + end: weight.shape for name, weight in weights.items()}
    names = [name for name in shapes if wanted is None or name in wanted]
    return {name: place(np.full(shapes[name], np.nan, layer.x.dtype), layer.x.itemsize) for name in names}


def panels_of(layer: Layer, place: Place) -> list[Maybe]:
    """Return the gradient panels of each direction's weights."""
    found: list[Maybe] = []
    for weights in layer.weights:
        found += [run_gradient_panels(layer.kind.cell, over_h, weights[name], place) for over_h, name in enumerate(WEIGHTS[:2])]
        found.append(run_gradient_panels(blocks.LINEAR, 0, weights["weight_hr"], place) if "weight_hr" in weights else None)
    return found


def saved_of(kept: Kept, place: Place) -> Maybe:
    """Return each direction's gates and then its c in one piece of memory."""
    if kept.gates is None:
        return None
    parts = [part for k in range(len(kept.gates)) for part in (kept.gates[k], None if kept.c is None else kept.c[k])]
    return placed(np.concatenate([part.ravel() for part in parts if part is not None]), place)


def table_of(arrays: Sequence[Maybe], columns: int, place: Place) -> np.ndarray:
    """Return the addresses of arrays as a table."""
    return place(np.array([where(array) for array in arrays], np.int64).reshape(-1, columns), 8)


def run_gradients(
    layer: Layer,
    kept: Kept,
    way: Way = ALONE,
    place: Place = as_it_is,
    piece_rows: int | None = None,
    wanted: Collection[str] | None = None,
) -> Gradients:
    """Run `layer_gradient` in pieces of up to so many rows, or in one; return what is wanted, by the names of `twin_layer`.

    What was found on the way is there after a single piece only. The gradient of x is packed, wherever it was written: like x itself,
    but packed where x is padded and steps have less than B rows.
    """
    (P, H), D, (sizes, order, _), item = widths(layer.weights[0]), len(layer.weights), layer.indices, layer.x.itemsize
    N, F, B, T = int(sizes.sum()), layer.x.shape[-1], len(order), len(sizes)
    most = N if piece_rows is None else piece_rows
    room, panels, found = room_for(layer, way, most, place), panels_of(layer, place), places_for(layer, wanted, place)
    like_x = layer.x if layer.x.ndim == 2 or N == B * T else np.empty((N, F), layer.x.dtype)
    d_x, wide = amid(np.full_like(like_x, np.nan) if wanted is None or "x" in wanted else None, place)
    (x, _), (out, _), (d_out, _) = (amid(rows, place) for rows in (layer.x, kept.out, layer.d_out))
    states, d_after = ([placed(array, place) for array in with_c(pair)] for pair in (layer.states, layer.d_after))
    saved, order, sizes = saved_of(kept, place), place(order, 8), place(sizes, 8)
    d_weights = table_of([found.get(name + end) for end in SUFFIXES[:D] for name in WEIGHTS], D_WEIGHTS, place)
    table = table_of(panels, GRADIENT_PANELS, place)
    arrivals = place(np.zeros(arrivals_items(way.shares), np.int64), 8) if way.shares > 1 else None
    block = blocks.LayerGradient(
        *(layer.kind.cell, item, D, F, H, P, address(table), address(order), address(sizes), B, T, N),
        *(address(x), *strides(x), address(out), *strides(out), *map(where, states), where(saved)),
        *(where(d_out), *strides(d_out), *map(where, d_after)),
        *(where(d_x), *strides(d_x), where(found.get("h_0")), where(found.get("c_0")), address(d_weights)),
        *(most, *map(where, room[:4]), address(room.workspace), room.workspace.strides[0], address(room.products)),
        *(room.products.strides[0], way.together, where(arrivals), way.shares),
    )
    if way.at_once:
        run_at_once(block, way.calls)
    else:
        for call in way.calls:
            machine.run(block, *call)
    if d_x is not None:
        assert_alone(d_x, wide)
        found["x"] = d_x if d_x.ndim == 2 else d_x.swapaxes(0, 1).reshape(N, F)
    return found | found_on_the_way(room, N, P, H)


def found_on_the_way(room: Room, N: int, P: int, H: int) -> Gradients:
    """Return what a single piece of N rows left in memory, beside which nothing was written."""
    sums, projected = written(room.d_sums, H), None if room.d_projected is None else written(room.d_projected, P)
    if room.other_sums is not None:
        written(room.other_sums, H)
        return {}
    for rows in (sums, projected):
        assert rows is None or np.isnan(rows[:, N:]).all()
    assert room.unprojected is None or np.isnan(room.unprojected[N:]).all()
    projected, unprojected = (None, None) if projected is None else (projected[:, :N], room.unprojected[:N])
    return on_the_way(Sums(sums[:, :N], projected, unprojected, []), P, H)
