"""The kernels of the backward pass, called as the library does, on memory that the test lays out: see `tests.guarded`.

What is given and found is as in `tests.backward_oracle`. Rows that may lie apart, those of x, out and their gradients, are parts of
wider rows here.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from fastpack import blocks, machine
from fastpack.cells import CELLS, arrivals_items, backward_items, d_sums_items, gradient_panel_items, lanes, weight_gradient_items
from fastpack.checks import address
from tests.backward_oracle import Case, Maybe, Products, Saved, Sums, shapes_of, with_c
from tests.guarded import Place, as_it_is
from tests.recurrent_oracle import Kind, Weights, run_at_once, run_kernel, widths

Calls = Sequence[tuple[int, int]]


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


def run_backward(
    case: Case,
    saved: Saved,
    shares: int = 1,
    place: Place = as_it_is,
    together: Calls = (),
    wanted: Sequence[bool] = (True, True),
    cuts: Sequence[int] = (),
) -> Sums:
    """Run `recur_backward`. The shares are of sequences, or, with `together`, of hidden units: see `run_kernel`.

    It is run for the pieces into which the steps `cuts` divide the batch, one after another against the order of steps.
    """
    (P, H), cell, item, dtype = widths(case.weights), case.kind.cell, case.x.itemsize, case.x.dtype
    sizes, order = (place(vector, 8) for vector in case.indices[:2])
    B, projected, pieces = len(order), "weight_hr" in case.weights, pieces_of(case.indices[0], cuts)
    N = max(piece.N for piece in pieces)
    panels = run_gradient_panels(cell, 1, case.weights["weight_hh"], place)
    projection = run_gradient_panels(blocks.LINEAR, 0, case.weights["weight_hr"], place) if projected else None
    (out, _), (d_out, _) = amid(saved.out, place), amid(case.d_out, place)
    states, d_after = ([placed(item, place) for item in with_c(pair)] for pair in (case.states, case.d_after))
    has = [True, CELLS[cell].has_c]
    d_states = [placed(np.full((B, width), np.nan, dtype), place) if has[k] and wanted[k] else None for k, width in enumerate((P, H))]
    rows = B if together else -(-B // shares)
    workspace = place(np.full((shares, backward_items(rows, H, P)), np.nan, dtype), 64)
    c, gates = (placed(array, place) for array in saved[1:])
    found: list[Sums] = []
    later = later_sums = None
    for piece in pieces if case.reverse else reversed(pieces):
        d_sums = place(sums_room(cell, N, H, dtype), 64)
        d_projected = place(sums_room(blocks.LINEAR, N, P, dtype), 64) if projected else None
        unprojected = placed(np.full((piece.N, H), np.nan, dtype), place) if projected else None
        arrivals = place(np.zeros(arrivals_items(shares), np.int64), 8) if together else None
        later_row = 0 if later is None or not case.reverse else later.N - int(sizes[later.last - 1])
        block = blocks.RecurBackward(
            *(cell, item, case.reverse, H, P, address(panels), where(projection), address(order), address(sizes), B, len(sizes)),
            *(*piece[:3], N, address(out), *strides(out), *map(where, states), where(c), where(gates)),
            *(where(d_out), *strides(d_out), *map(where, d_after)),
            *(address(d_sums), where(later_sums), later_row, where(d_projected), where(unprojected), *map(where, d_states)),
            *(address(workspace), workspace.strides[0], where(arrivals), shares),
        )
        if together:
            run_at_once(block, together)
        else:
            for call in in_any_order(shares):
                machine.run(block, *call)
        assert np.isnan(d_sums[:, piece.N :]).all()
        parts = written(d_sums, H)[:, : piece.N], None if d_projected is None else written(d_projected, P)[:, : piece.N]
        found.append(Sums(*parts, unprojected, d_states))
        later, later_sums = piece, d_sums
    return joined(found if case.reverse else found[::-1])


class Piece(NamedTuple):
    """Steps of a batch, and their packed rows."""

    first: int
    last: int
    row: int
    N: int

    def of(self, rows: Maybe) -> Maybe:
        """Return the rows from the piece's first on, packed, or of a padded batch (B, T, ...) in packed order."""
        return None if rows is None else rows[self.row :] if rows.ndim == 2 else rows[:, self.first :]


def pieces_of(sizes: np.ndarray, cuts: Sequence[int]) -> list[Piece]:
    """Return the pieces between steps."""
    rows = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    return [Piece(first, last, rows[first], rows[last] - rows[first]) for first, last in pairwise([0, *cuts, len(sizes)])]


def joined(found: list[Sums]) -> Sums:
    """Return what was found for pieces as one."""
    d_sums, d_projected, unprojected, d_states = zip(*found, strict=True)
    projected = (None, None) if unprojected[0] is None else (np.concatenate(d_projected, 1), np.concatenate(unprojected))
    return Sums(np.concatenate(d_sums, 1), *projected, d_states[0])


def roomy(d_sums: np.ndarray, cell: int, H: int, place: Place) -> np.ndarray:
    """Return gradients of sums in the memory that they have in the library."""
    room = sums_room(cell, d_sums.shape[1], H, d_sums.dtype)
    room[: len(d_sums)] = d_sums
    return place(room, 64)


def run_input(
    kind: Kind,
    weight_ih: np.ndarray,
    d_sums: np.ndarray,
    d_x: np.ndarray,
    add: int,
    calls: Iterable[tuple[int, int]],
    place: Place = as_it_is,
) -> np.ndarray:
    """Run `input_gradient` on the packed rows of each pair (begin, end), over rows like d_x; `add` is to what is there."""
    F, H, N = weight_ih.shape[1], len(weight_ih) // CELLS[kind.cell].gates, d_sums.shape[1]
    panels = run_gradient_panels(kind.cell, 0, weight_ih, place)
    (found, wide), given = amid(d_x, place), roomy(d_sums, kind.cell, H, place)
    sizes = kind.cell, d_x.itemsize, F, H
    block = blocks.InputGradient(*sizes, address(panels), address(given), N, d_x.shape[0], add, address(found), *strides(found))
    for call in calls:
        machine.run(block, *call)
    assert_alone(found, wide)
    return found


def run_weights(
    products: Products, shares: int = 1, place: Place = as_it_is, wanted: Sequence[str] = (), cuts: Sequence[int] = ()
) -> Weights:
    """Run `weight_gradient`, in pieces as `run_backward`; return the gradients by their names, all or those that are wanted."""
    cell, reverse, H, x, (sizes, order, _), out, h_0, d_sums = products
    item, F, P = x.itemsize, x.shape[-1], 0 if out is None else out.shape[-1]
    pieces = pieces_of(sizes, cuts)
    shapes = shapes_of(products)
    found = {name: placed(np.full(shapes[name], np.nan, x.dtype), place) for name in wanted or shapes}
    workspace = place(np.full((shares, weight_gradient_items()), np.nan, x.dtype), 64)
    (x, _), (out, _) = amid(x, place), amid(out, place)
    h_0, sizes, order = placed(h_0, place), place(sizes, 8), place(order, 8)
    for add, piece in enumerate(pieces if reverse else reversed(pieces)):
        room, some, outs = roomy(d_sums[:, piece.row : piece.row + piece.N], cell, H, place), piece.of(x), piece.of(out)
        block = blocks.WeightGradient(
            *(cell, item, reverse, F, H, P, address(order), address(sizes), len(order), len(sizes), piece.first, piece.N, room.shape[1]),
            *(address(some), *strides(some), where(outs), *strides(outs), where(h_0), address(room), min(add, 1)),
            *(where(found.get(name)) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
            *(address(workspace), workspace.strides[0], shares),
        )
        for call in in_any_order(shares):
            machine.run(block, *call)
    return found
