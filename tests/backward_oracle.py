"""The backward pass by the twins, in float64: of one direction, step by step of the way, and of a layer as a whole."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastpack import blocks, reference, reference_layers
from fastpack.cells import CELLS
from tests.oracle import layout
from tests.recurrent_oracle import (
    CLOSE,
    Kind,
    Weights,
    assert_close,
    assert_same_arrays,
    batch_of,
    of_direction,
    states_of,
    twin_panels,
    weights_of,
    widths,
)

Maybe = np.ndarray | None
Gradients = dict[str, np.ndarray]  # by names: see twin_layer
WEIGHTS = "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"  # of a direction, in the kernel's order
SUFFIXES = "", "_reverse"


class Case(NamedTuple):
    """One direction of a layer and what it is called with, and the gradients of what it returns."""

    kind: Kind
    weights: Weights
    x: np.ndarray  # (N, F), or padded (B, T, F)
    indices: Any
    states: list[np.ndarray]  # h (B, P), and c (B, H) if the cell has it; or none
    reverse: int
    d_out: Maybe  # of the shape of `out`
    d_after: list[Maybe]  # of h_n and c_n


class Layer(NamedTuple):
    """A layer in all its directions and what it is called with, and the gradients of what it returns."""

    kind: Kind
    weights: list[Weights]  # of each direction
    x: np.ndarray  # (N, F), or padded (B, T, F)
    indices: Any
    states: list[np.ndarray]  # h (D, B, P), and c (D, B, H) if the cell has it; or none
    d_out: Maybe  # (N, D * P), or padded
    d_after: list[Maybe]  # of h_n and c_n

    def direction(self, k: int) -> Case:
        """Return one direction; rows have to be packed."""
        P, _ = widths(self.weights[0])
        states, d_after = ([None if item is None else item[k] for item in pair] for pair in (self.states, self.d_after))
        d_out = None if self.d_out is None else self.d_out[:, k * P : (k + 1) * P]
        return Case(self.kind, self.weights[k], self.x, self.indices, states, k, d_out, d_after)


class Saved(NamedTuple):
    """What the backward pass is given of the forward pass in one direction."""

    out: np.ndarray
    c: Maybe  # (N, H)
    gates: Maybe  # (N, saved * H)


class Kept(NamedTuple):
    """The same of all directions."""

    out: np.ndarray  # (N, D * P), or padded
    c: Maybe  # (D, N, H)
    gates: Maybe  # (D, N, saved * H)

    def direction(self, k: int, P: int) -> Saved:
        """Return what is of one direction; rows have to be packed."""
        c, gates = (None if item is None else item[k] for item in self[1:])
        return Saved(self.out[:, k * P : (k + 1) * P], c, gates)


class Sums(NamedTuple):
    """What the twin `recur_backward` finds."""

    d_sums: np.ndarray  # (H / lanes, N, sums, lanes), anything beyond H
    d_projected: Maybe  # (P / lanes, N, 1, lanes)
    unprojected: Maybe  # (N, H)
    d_states: list[Maybe]


class Products(NamedTuple):
    """What the twin `weight_gradient` is given. A projection, of P rows of weights, is LINEAR with P in place of H, and has no `out`."""

    cell: int
    reverse: int
    H: int
    x: np.ndarray  # (N, F), or padded (B, T, F)
    indices: Any
    out: Maybe
    h_0: Maybe
    d_sums: np.ndarray  # (H / lanes, N, sums, lanes)


def shapes_of(products: Products) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the gradients that there are of `products`."""
    rows = CELLS[products.cell].gates * products.H
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, products.x.shape[-1]), "bias_ih": (rows,)}
    if products.out is None:
        return shapes
    return shapes | {"weight_hh": (rows, products.out.shape[-1]), "bias_hh": (rows,)}


def case_of(
    kind: Kind, lengths: Sequence[int], F: int, H: int, P: int = 0, reverse: int = 0, dtype: Any = np.float32, bias: bool = True
) -> Case:
    """Return a case with all that can be given; P is that of cells which can be projected."""
    P = P if kind.name == "LSTM" else 0
    weights = of_direction(weights_of(kind, F, H, P, bias=bias, dtype=dtype), "_l0")
    states, d_after = ([state[0] for state in states_of(kind, 1, len(lengths), H, P, dtype, seed)] for seed in (1, 5))
    d_out = batch_of(lengths, P or H, dtype, seed=4).data
    return Case(kind, weights, batch_of(lengths, F, dtype).data, layout(lengths), states, reverse, d_out, d_after)


def layer_case(
    kind: Kind, lengths: Sequence[int], F: int, H: int, P: int = 0, D: int = 1, dtype: Any = np.float32, bias: bool = True
) -> Layer:
    """Return a layer of D directions with all that can be given, likewise."""
    P = P if kind.name == "LSTM" else 0
    weights = weights_of(kind, F, H, P, 1, D, bias, dtype)
    states, d_after = (states_of(kind, D, len(lengths), H, P, dtype, seed) for seed in (1, 5))
    x, d_out = (batch_of(lengths, width, dtype, seed).data for width, seed in ((F, 2), (D * (P or H), 4)))
    return Layer(kind, [of_direction(weights, "_l0" + end) for end in SUFFIXES[:D]], x, layout(lengths), states, d_out, d_after)


def in_double(case: Any) -> Any:
    """Return a tuple, list or dict with all floating-point arrays in float64."""
    if isinstance(case, np.ndarray):
        return case.astype(np.float64) if case.dtype.kind == "f" else case
    if isinstance(case, dict):
        return {name: in_double(item) for name, item in case.items()}
    if isinstance(case, tuple | list) and not isinstance(case, Kind):
        items = [in_double(item) for item in case]
        return type(case)(*items) if hasattr(case, "_fields") else type(case)(items)
    return case


def of_units(d_sums: np.ndarray, H: int) -> np.ndarray:
    """Return gradients of sums without what is beyond H: (N, sums, H)."""
    count, N, sums, n = d_sums.shape
    return np.moveaxis(d_sums, 0, 2).reshape(N, sums, count * n)[..., :H]


def padded(rows: np.ndarray, indices: Any, steps_first: bool) -> np.ndarray:
    """Return packed rows as a padded batch (B, T, ...) in packed order, with NaN behind each sequence."""
    sizes, order, _ = indices
    found = np.full((len(order), len(sizes), *rows.shape[1:]), np.nan, rows.dtype)
    reference.unpack_listed(list(found), np.arange(len(order)), sizes, rows)
    return np.ascontiguousarray(found.swapaxes(0, 1)).swapaxes(0, 1) if steps_first else found


def with_c(pair: Sequence[Maybe]) -> list[Maybe]:
    """Return what is of h and of c, of which the latter may be missing."""
    return [*pair, None, None][:2]


# ---- twins


def twin_forward(case: Case, n: int) -> Saved:
    """Run the twin forward in float64, with n lanes."""
    kind, weights, x, (sizes, order, _), states, *_ = in_double(case)
    (P, H), cell = widths(weights), CELLS[kind.cell]
    out, h_n, c_n = (np.full(shape, np.nan) for shape in ((len(x), P), (len(order), P), (len(order), H)))
    c, gates = (np.full((len(x), width), np.nan) for width in (H, cell.saved * H))
    saved = Saved(out, c if cell.has_c else None, gates if cell.saved else None)
    after = with_c([h_n, c_n][: 1 + cell.has_c])
    reference_layers.recur(
        kind.cell, case.reverse, *twin_panels(kind, weights, n), order, sizes, x, out, *with_c(states), *after, *saved[1:]
    )
    return saved


def twin_gradient_panels(cell: int, over_h: int, weight: np.ndarray, n: int) -> np.ndarray:
    """Return gradient panels in float64: (columns / lanes, G * H, lanes)."""
    panels = np.full((-(-weight.shape[1] // n), len(weight), n), np.nan)
    reference_layers.pack_gradient_panels(cell, over_h, weight.astype(np.float64), panels)
    return panels


def twin_backward(case: Case, saved: Saved, n: int) -> Sums:
    """Run the twin of recur_backward, from what was saved with n lanes."""
    (kind, weights, x, (sizes, order, _), states, _, d_out, d_after), given = in_double(case), in_double(saved)
    (P, H), N, B = widths(weights), len(x), len(order)
    panels = twin_gradient_panels(kind.cell, 1, weights["weight_hh"], n)
    d_sums = np.full((-(-H // n), N, CELLS[kind.cell].sums, n), np.nan)
    projection = d_projected = unprojected = None
    if "weight_hr" in weights:
        projection = twin_gradient_panels(blocks.LINEAR, 0, weights["weight_hr"], n)
        d_projected, unprojected = np.full((-(-P // n), N, 1, n), np.nan), np.full((N, H), np.nan)
    d_states = with_c([np.full((B, width), np.nan) for width in (P, H)[: 1 + CELLS[kind.cell].has_c]])
    before = *given[:1], *with_c(states), *given[1:]
    outputs = d_sums, d_projected, unprojected, *d_states
    reference_layers.recur_backward(kind.cell, case.reverse, panels, projection, order, sizes, *before, d_out, *with_c(d_after), *outputs)
    return Sums(d_sums, d_projected, unprojected, d_states)


def twin_input(kind: Kind, weight_ih: np.ndarray, d_sums: np.ndarray, d_x: Maybe = None) -> np.ndarray:
    """Return the gradient of the input rows, added to d_x if there is one."""
    panels = twin_gradient_panels(kind.cell, 0, weight_ih, d_sums.shape[3])
    found = np.full((d_sums.shape[1], weight_ih.shape[1]), np.nan) if d_x is None else d_x.astype(np.float64)
    reference_layers.input_gradient(kind.cell, panels, d_sums.astype(np.float64), int(d_x is not None), found)
    return found


def twin_weights(products: Products) -> Weights:
    """Return the gradients of the weights and biases over x, and over h where there is `out`."""
    cell, reverse, _, x, (sizes, order, _), out, h_0, d_sums = in_double(products)
    found = {name: np.full(shape, np.nan) for name, shape in shapes_of(products).items()}
    outputs = (found.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    reference_layers.weight_gradient(cell, reverse, order, sizes, x, out, h_0, d_sums, *outputs)
    return found


def twin_gradients(case: Case, n: int = 4) -> tuple[np.ndarray, list[Maybe], Weights]:
    """Return the gradients of x, the initial states and the weights, all twins one after another."""
    saved = twin_forward(case, n)
    sums = twin_backward(case, saved, n)
    return twin_input(case.kind, case.weights["weight_ih"], sums.d_sums), sums.d_states, twin_all_weights(case, saved.out, sums)


def twin_all_weights(case: Case, out: np.ndarray, sums: Sums) -> Weights:
    """Return the gradients of the weights that there are."""
    P, H = widths(case.weights)
    h_0 = with_c(case.states)[0]
    found = twin_weights(Products(case.kind.cell, case.reverse, H, case.x, case.indices, out, h_0, sums.d_sums))
    found = {name: item for name, item in found.items() if name in case.weights}
    if sums.d_projected is not None:
        products = Products(blocks.LINEAR, case.reverse, P, sums.unprojected, case.indices, None, None, sums.d_projected)
        found["weight_hr"] = twin_weights(products)["weight_ih"]
    return found


def twin_layer(layer: Layer, kept: Kept, n: int) -> Gradients:
    """Return all gradients of a layer, from what was kept with n lanes.

    They are those of x, h_0, c_0 and each direction's weights, `weight_ih_reverse` as an example, and what was found on the way in the
    last direction: d_sums (N, sums, H), and of a projection d_projected (N, 1, P) and unprojected (N, H).
    """
    (P, H), D, (sizes, order, _), B = widths(layer.weights[0]), len(layer.weights), layer.indices, len(layer.indices[1])
    found = {"x": np.full(layer.x.shape, np.nan), "h_0": np.full((D, B, P), np.nan)}
    found |= {"c_0": np.full((D, B, H), np.nan)} if CELLS[layer.kind.cell].has_c else {}
    for weights, end in zip(layer.weights, SUFFIXES[:D], strict=True):
        found |= {name + end: np.full(weight.shape, np.nan) for name, weight in weights.items()}
    d_weights = [[found.get(name + end) for name in WEIGHTS] for end in SUFFIXES[:D]]
    double, kept_in_double = in_double(layer), in_double(kept)
    saved = [kept_in_double.direction(k, P)[:0:-1] for k in range(D)]  # gates, then c
    reference_layers.layer_gradient(
        *(layer.kind.cell, [twin_panels_of(layer.kind, weights, n) for weights in layer.weights], order, sizes),
        *(double.x, kept_in_double.out, *with_c(double.states), saved, double.d_out, *with_c(double.d_after)),
        *(found["x"], found["h_0"], found.get("c_0"), d_weights),
    )
    last = twin_backward(layer.direction(D - 1), kept.direction(D - 1, P), n)
    return found | on_the_way(last, P, H)


def twin_panels_of(kind: Kind, weights: Weights, n: int) -> list[Maybe]:
    """Return the gradient panels of one direction: of weight_ih, weight_hh and weight_hr, None where there is none."""
    found: list[Maybe] = [twin_gradient_panels(kind.cell, over_h, weights[name], n) for over_h, name in enumerate(WEIGHTS[:2])]
    return [*found, twin_gradient_panels(blocks.LINEAR, 0, weights["weight_hr"], n) if "weight_hr" in weights else None]


def on_the_way(sums: Sums, P: int, H: int) -> Gradients:
    """Return what was found on the way by names, without what is beyond H."""
    found = {"d_sums": of_units(sums.d_sums, H)}
    if sums.d_projected is None or sums.unprojected is None:
        return found
    return found | {"d_projected": of_units(sums.d_projected, P), "unprojected": sums.unprojected}


# ---- comparisons, name by name


def assert_all_close(found: Gradients, expected: Gradients) -> None:
    """Compare with gradients in float64."""
    assert found.keys() == expected.keys()
    for name, item in found.items():
        assert_close([item], [expected[name]], CLOSE[item.dtype])


def assert_all_same(found: Gradients, expected: Gradients) -> None:
    """Compare bit for bit."""
    assert found.keys() == expected.keys()
    for name, item in found.items():
        assert_same_arrays([item], [expected[name]])
