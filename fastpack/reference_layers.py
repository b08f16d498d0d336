"""The plain NumPy twins of the kernels of recurrent layers, forward and backward: see reference.py. A gradient is `d_` + name.

Letters: B sequences, T steps, N packed rows; F input features, H hidden units, P the width of the state h; G gates.

Gates and the gradients of sums are in blocks of `lanes` hidden units, as are weights in panels: see `recur` and `recur_backward`,
which is a part of `layer_gradient`, as are `input_gradient` and `weight_gradient`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Int64Array = npt.NDArray[np.int64]

LSTM, GRU, RNN_TANH, RNN_RELU, LINEAR = range(5)
GATES = {LSTM: 4, GRU: 3}  # of the others 1
SAVED = {LSTM: 4, GRU: 4}  # of the others 0
SUMS = {LSTM: 4, GRU: 4}  # of the others 1: of a GRU's n, those over x and over h are apart


# ---- forward


def pack_panels(cell: int, weight_ih: Array, weight_hh: Array, bias_ih: Array | None, bias_hh: Array | None, panels: Array) -> None:
    """Lay weights out as panels (units / lanes, what a unit has, lanes), with zeros for units beyond H.

    A unit has what its sums start from, then for each of x's F items a weight a gate, then for each of h's P items.
    """
    gates = GATES.get(cell, 1)
    H = len(weight_ih) // gates
    w_ih, w_hh = (weight.reshape(gates, H, weight.shape[1]) for weight in (weight_ih, weight_hh))
    b_ih, b_hh = (np.zeros((gates, H)) if bias is None else bias.reshape(gates, H) for bias in (bias_ih, bias_hh))
    starts = b_ih + b_hh
    if cell == GRU:  # its n has two sums, as r multiplies that over h alone
        starts = np.stack([*starts[:2], b_ih[2], b_hh[2]])
    panels[:] = 0
    for unit in range(H):
        block, lane = divmod(unit, panels.shape[2])
        panels[block, :, lane] = [*starts[:, unit], *w_ih[:, unit].T.flat, *w_hh[:, unit].T.flat]


def recur(
    cell: int,
    reverse: int,
    panels: Array,
    projection: Array | None,
    sorted_indices: Int64Array,
    batch_sizes: Int64Array,
    x: Array,
    out: Array,
    h_0: Array | None,
    c_0: Array | None,
    h_n: Array,
    c_n: Array | None,
    c: Array | None,
    gates: Array | None,
) -> None:
    """Run a cell along packed rows x (N, F), to `out` (N, P); `reverse` is from each sequence's last step to its first.

    States are in the caller's order: h_0 and h_n (B, P), c_0 and c_n (B, H), where None is zeros, or a cell without c.

    For gradients, unless None: c (N, H) after each step, and `gates` (N, saved * H). Its columns are in blocks of as many units as
    panels have lanes, each [gate][unit], the last with the units that are left and no gaps. The gates are an LSTM's i, f, g, o and
    a GRU's r, z, n and n's sum over h.
    """
    h_now = np.zeros_like(h_n) if h_0 is None else h_0[sorted_indices]
    c_now = np.zeros_like(h_now if c_n is None else c_n) if c_0 is None else c_0[sorted_indices]
    H, P = c_now.shape[1], h_now.shape[1]
    starts, w_ih, w_hh = _unpacked(panels, cell, x.shape[1], H)
    for rows in _steps(batch_sizes, reverse):
        size = rows.stop - rows.start  # the other sequences wait for their first step, or have had their last
        over_x, over_h = np.tensordot(x[rows], w_ih, 1), np.tensordot(h_now[:size], w_hh, 1)  # (size, G, H)
        h_t, c_t, saved = _cell(cell, starts, over_x, over_h, h_now[:size], c_now[:size])
        if projection is not None:
            h_t = h_t @ _unpacked(projection, LINEAR, H, P)[1][:, 0]
        out[rows], h_now[:size], c_now[:size] = h_t, h_t, c_t
        if c is not None:
            c[rows] = c_t
        if gates is not None:
            items, units = _places(len(saved), H, panels.shape[2])
            gates[rows] = np.stack(saved, 1)[:, items, units]
    h_n[sorted_indices] = h_now
    if c_n is not None:
        c_n[sorted_indices] = c_now


def _cell(cell: int, starts: Array, over_x: Array, over_h: Array, h: Array, c: Array) -> tuple[Array, Array, list[Array]]:
    """Return the next h (before its projection) and c, and the gates, from the sums over x and over h: torch's formulas."""
    sums = [*np.moveaxis(starts[: over_x.shape[1]] + over_x + over_h, 1, 0)]  # by gate
    if cell == LSTM:
        i, f, g, o = _sigmoid(sums[0]), _sigmoid(sums[1]), np.tanh(sums[2]), _sigmoid(sums[3])
        c = f * c + i * g
        return o * np.tanh(c), c, [i, f, g, o]
    if cell == GRU:
        r, z, n_over_h = _sigmoid(sums[0]), _sigmoid(sums[1]), starts[3] + over_h[:, 2]
        n = np.tanh(starts[2] + over_x[:, 2] + r * n_over_h)
        return (1 - z) * n + z * h, c, [r, z, n, n_over_h]
    return np.tanh(sums[0]) if cell == RNN_TANH else np.maximum(sums[0], 0), c, []


def _unpacked(panels: Array, cell: int, F: int, H: int) -> tuple[Array, Array, Array]:
    """Return what panels hold: the sums' starts (sums, H), weight_ih (F, G, H) and weight_hh (P, G, H)."""
    gates = GATES.get(cell, 1)
    units = panels.swapaxes(0, 1).reshape(panels.shape[1], -1)[:, :H]
    starts, weights = np.split(units, [SUMS.get(cell, 1)])
    w_ih, w_hh = np.split(weights.reshape(-1, gates, H), [F])
    return starts, w_ih, w_hh


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) is infinite, and 1 / inf the 0 that it should be
        return 1 / (1 + np.exp(-x))


# ---- backward


def pack_gradient_panels(cell: int, over_h: int, weight: Array, panels: Array) -> None:
    """Lay a weight (G * H, columns) out as panels (columns / lanes, G * H, lanes), with zeros for columns beyond the last.

    Its rows are in the order in which a row of the gradients of sums is read: by blocks of `lanes` units, each [gate][unit], the
    last with the units that are left and no gaps. The gates of an LSTM are i, f, g, o, of a GRU n, r, z over x and r, z, n over h.
    """
    K, lanes = panels.shape[1:]
    gates = GATES.get(cell, 1)
    in_order = weight.reshape(gates, K // gates, -1)[_order(cell, over_h)]
    rows = in_order[_places(gates, K // gates, lanes)]
    panels[:] = 0
    for block, first in zip(panels, range(0, weight.shape[1], lanes), strict=False):
        part = rows[:, first : first + lanes]
        block[:, : part.shape[1]] = part


def recur_backward(
    cell: int,
    reverse: int,
    panels: Array,
    projection: Array | None,
    sorted_indices: Int64Array,
    batch_sizes: Int64Array,
    out: Array,
    h_0: Array | None,
    c_0: Array | None,
    c: Array | None,
    gates: Array | None,
    d_out: Array | None,
    d_h_n: Array | None,
    d_c_n: Array | None,
    d_sums: Array,
    d_projected: Array | None,
    unprojected: Array | None,
    d_h_0: Array | None,
    d_c_0: Array | None,
) -> None:
    """From the gradients of what `recur` returned, d_out (N, P), d_h_n (B, P) and d_c_n (B, H), None for zeros, find those before it.

    These are d_h_0 and d_c_0, unless None, and those of the sums: d_sums (units / lanes, N, sums, lanes), anything beyond H. The sums of
    an LSTM are i, f, g, o; of a GRU n over x, r, z, n over h; of the others one. Of a projection, d_projected (states / lanes, N, 1,
    lanes) are the gradients of the states h, and `unprojected` (N, H) is what was projected to them.

    `out`, c (N, H) and `gates` are as `recur` wrote them; `panels` and `projection` the gradient panels of weight_hh and weight_hr.
    """
    (N, P), B, lanes = out.shape, len(sorted_indices), panels.shape[2]
    H = panels.shape[1] // GATES.get(cell, 1)
    w_hh = _gradient_weight(panels, cell, 1, P)
    saved = np.empty((N, SAVED.get(cell, 0), H), out.dtype)
    if gates is not None:
        items, units = _places(SAVED[cell], H, lanes)
        saved[:, items, units] = gates
    if unprojected is not None and c is not None:
        unprojected[:] = saved[:, 3] * np.tanh(c)
    h_before = _states_before(out, h_0, sorted_indices, batch_sizes, reverse)
    c_before = None if c is None else _states_before(c, c_0, sorted_indices, batch_sizes, reverse)
    d_h = np.zeros((B, P), out.dtype) if d_h_n is None else d_h_n[sorted_indices]
    d_c = np.zeros((B, H), out.dtype) if d_c_n is None else d_c_n[sorted_indices]
    for rows in _steps(batch_sizes, 1 - reverse):
        size = rows.stop - rows.start
        kept: Array | float  # of the gradient of h, by the h before
        d_h_t = d_h[:size] + (0 if d_out is None else d_out[rows])
        if projection is not None:
            _write_blocks(d_projected, rows, d_h_t[:, None])
            d_h_t = d_h_t @ _gradient_weight(projection, LINEAR, 0, H)[0]
        if c is not None and c_before is not None:
            d_t, kept, d_c[:size] = _lstm_gradient(saved[rows], c[rows], c_before[rows], d_h_t, d_c[:size])
        elif cell == GRU:
            d_t, kept = _gru_gradient(saved[rows], h_before[rows], d_h_t)
        else:
            d_t, kept = _rnn_gradient(cell, out[rows], d_h_t)
        _write_blocks(d_sums, rows, d_t)
        d_h[:size] = kept + np.tensordot(d_t[:, -len(w_hh) :], w_hh, 2)
    if d_h_0 is not None:
        d_h_0[sorted_indices] = d_h
    if d_c_0 is not None:
        d_c_0[sorted_indices] = d_c


def _lstm_gradient(gates: Array, c: Array, c_before: Array, d_h: Array, d_c: Array) -> tuple[Array, float, Array]:
    """Return the gradients of the sums (size, 4, H), what reaches the h before other than through them, and that of the c before."""
    i, f, g, o = np.moveaxis(gates, 1, 0)
    t = np.tanh(c)
    d_c = d_c + d_h * o * (1 - t * t)
    d_i, d_f, d_g, d_o = d_c * g * i * (1 - i), d_c * c_before * f * (1 - f), d_c * i * (1 - g * g), d_h * t * o * (1 - o)
    return np.stack([d_i, d_f, d_g, d_o], 1), 0, d_c * f


def _gru_gradient(gates: Array, h_before: Array, d_h: Array) -> tuple[Array, Array]:
    """Return the gradients of the sums (size, 4, H), and what reaches the h before other than through them."""
    r, z, n, n_over_h = np.moveaxis(gates, 1, 0)
    d_n = d_h * (1 - z) * (1 - n * n)
    d_r, d_z = d_n * n_over_h * r * (1 - r), d_h * (h_before - n) * z * (1 - z)
    return np.stack([d_n, d_r, d_z, d_n * r], 1), d_h * z


def _rnn_gradient(cell: int, h: Array, d_h: Array) -> tuple[Array, float]:
    """Return the gradients of the sums (size, 1, H), and what reaches the h before other than through them."""
    return (d_h * (1 - h * h) if cell == RNN_TANH else np.where(h <= 0, 0, d_h))[:, None], 0  # a NaN stays one, as in torch


def input_gradient(cell: int, panels: Array, d_sums: Array, add: int, d_x: Array) -> None:
    """From gradients of sums (units / lanes, N, sums, lanes) to those of packed rows d_x (N, F); `add` is to what d_x holds."""
    weight = _gradient_weight(panels, cell, 0, d_x.shape[1])
    by_gate = _by_gate(d_sums, cell, 0, panels.shape[1])
    d_x[:] = (d_x if add else 0) + by_gate @ weight.reshape(panels.shape[1], -1)


def weight_gradient(
    cell: int,
    reverse: int,
    sorted_indices: Int64Array,
    batch_sizes: Int64Array,
    x: Array,
    out: Array | None,
    h_0: Array | None,
    d_sums: Array,
    d_weight_ih: Array | None,
    d_weight_hh: Array | None,
    d_bias_ih: Array | None,
    d_bias_hh: Array | None,
) -> None:
    """From gradients of sums (units / lanes, N, sums, lanes) to those of weights and biases, as torch has them; None: not wanted.

    A projection's weight is weight_ih of LINEAR, x being what was projected; it has no `out`.
    """
    if d_weight_ih is not None:
        d_weight_ih[:] = _by_gate(d_sums, cell, 0, len(d_weight_ih)).T @ x
    if d_weight_hh is not None and out is not None:
        d_weight_hh[:] = _by_gate(d_sums, cell, 1, len(d_weight_hh)).T @ _states_before(out, h_0, sorted_indices, batch_sizes, reverse)
    for over_h, d_bias in enumerate((d_bias_ih, d_bias_hh)):
        if d_bias is not None:
            d_bias[:] = _by_gate(d_sums, cell, over_h, len(d_bias)).sum(0)


def layer_gradient(
    cell: int,
    panels: Sequence[Sequence[Array | None]],
    sorted_indices: Int64Array,
    batch_sizes: Int64Array,
    x: Array,
    out: Array,
    h_0: Array | None,
    c_0: Array | None,
    saved: Sequence[Sequence[Array | None]],
    d_out: Array | None,
    d_h_n: Array | None,
    d_c_n: Array | None,
    d_x: Array | None,
    d_h_0: Array | None,
    d_c_0: Array | None,
    d_weights: Sequence[Sequence[Array | None]],
) -> None:
    """From the gradients of what `recur` returned in each direction to those of a layer's inputs, initial states and weights.

    Of each direction `panels` are the gradient panels of weight_ih, weight_hh and weight_hr, `saved` the gates and c, and `d_weights` what
    is to be found of weight_ih, weight_hh, bias_ih, bias_hh and weight_hr. Rows of `out` have the directions side by side.
    """
    P = out.shape[1] // len(panels)
    for reverse, (over_x, over_h, projection) in enumerate(panels):
        if over_x is None or over_h is None:
            raise ValueError(f"only a projection may have no panels, those of direction {reverse} are not there")
        own, (gates, c), (_, H, lanes) = slice(reverse * P, (reverse + 1) * P), saved[reverse], over_h.shape
        H //= GATES.get(cell, 1)
        d_sums = np.empty((-(-H // lanes), len(x), SUMS.get(cell, 1), lanes), out.dtype)
        has = projection is not None
        d_projected, unprojected = np.empty((-(-P // lanes), len(x), 1, lanes), out.dtype), np.empty((len(x), H), out.dtype)
        h, c_before, d_h, d_c, d_h_before, d_c_before = (
            None if states is None else states[reverse] for states in (h_0, c_0, d_h_n, d_c_n, d_h_0, d_c_0)
        )
        recur_backward(
            *(cell, reverse, over_h, projection, sorted_indices, batch_sizes, out[:, own], h, c_before, c, gates),
            *(None if d_out is None else d_out[:, own], d_h, d_c, d_sums, d_projected if has else None, unprojected if has else None),
            *(d_h_before, d_c_before),
        )
        if d_x is not None:
            input_gradient(cell, over_x, d_sums, reverse, d_x)
        *d_parts, d_weight_hr = d_weights[reverse]
        weight_gradient(cell, reverse, sorted_indices, batch_sizes, x, out[:, own], h, d_sums, *d_parts)
        if has:
            of_rows = unprojected, None, None, d_projected
            weight_gradient(LINEAR, reverse, sorted_indices, batch_sizes, *of_rows, d_weight_hr, None, None, None)


# ---- where things are


def _steps(batch_sizes: Int64Array, reverse: int) -> list[slice]:
    """Return the packed rows of each step, first step first, or last."""
    ends = np.cumsum(batch_sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, batch_sizes.tolist(), strict=True)][:: -1 if reverse else 1]


def _states_before(states: Array, state_0: Array | None, sorted_indices: Int64Array, batch_sizes: Int64Array, reverse: int) -> Array:
    """Return the state that each packed row began with, of the states (N, H) or (N, P) after each row."""
    now = np.zeros((len(sorted_indices), states.shape[1]), states.dtype) if state_0 is None else state_0[sorted_indices]
    before = np.empty_like(states)
    for rows in _steps(batch_sizes, reverse):
        size = rows.stop - rows.start
        before[rows], now[:size] = now[:size], states[rows]
    return before


def _places(count: int, H: int, lanes: int) -> tuple[Array, Array]:
    """Return which of `count` items and which unit is at each of count * H places: in blocks of `lanes` units, each [item][unit]."""
    blocks = [range(first, min(first + lanes, H)) for first in range(0, H, lanes)]
    items, units = np.array([(item, unit) for block in blocks for item in range(count) for unit in block]).reshape(-1, 2).T
    return items, units


def _order(cell: int, over_h: int) -> list[int]:
    """Return the gates of weight_ih, or weight_hh, in the order of the gradients of sums, where a GRU's n over x comes first."""
    return [2, 0, 1] if cell == GRU and not over_h else list(range(GATES.get(cell, 1)))


def _gradient_weight(panels: Array, cell: int, over_h: int, columns: int) -> Array:
    """Return the weight (G, H, columns) that gradient panels hold."""
    _, K, lanes = panels.shape
    gates = GATES.get(cell, 1)
    in_order = np.empty((gates, K // gates, columns), panels.dtype)
    in_order[_places(gates, K // gates, lanes)] = panels.swapaxes(0, 1).reshape(K, -1)[:, :columns]
    weight = np.empty_like(in_order)
    weight[_order(cell, over_h)] = in_order
    return weight


def _by_gate(d_sums: Array, cell: int, over_h: int, rows: int) -> Array:
    """Return the gradients of sums as (N, G * H), in the order of the `rows` = G * H rows of torch's weight_ih, or weight_hh."""
    gates, (count, N, sums, lanes) = GATES.get(cell, 1), d_sums.shape
    units = np.moveaxis(d_sums, 0, 2).reshape(N, sums, count * lanes)[..., : rows // gates]  # (N, sums, H)
    by_gate = np.empty((N, gates, rows // gates), d_sums.dtype)
    by_gate[:, _order(cell, over_h)] = units[:, -gates:] if over_h else units[:, :gates]
    return by_gate.reshape(N, rows)


def _write_blocks(blocks: Any, rows: slice, values: Array) -> None:
    """Write values (size, sums, H) to rows of blocks (H / lanes, N, sums, lanes), and zeros beyond H."""
    blocks[:, rows] = 0
    lanes = blocks.shape[3]
    for block, first in zip(blocks, range(0, values.shape[2], lanes), strict=False):
        part = values[..., first : first + lanes]
        block[rows, :, : part.shape[2]] = part
