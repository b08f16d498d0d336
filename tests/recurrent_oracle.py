"""What the tests of recurrent layers compare with: the plain NumPy twin in float64, direction by direction or through all layers.

`run_kernel` calls the kernels as the library does, on memory that the test lays out: see `tests.guarded`.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastpack
from fastpack import Packed, blocks, machine, pack, reference_layers
from fastpack.cells import CELLS, arrivals_items, lanes, panel_items, workspace_items
from fastpack.checks import address
from fastpack.recurrent import Recurrent
from tests.guarded import Place, as_it_is
from tests.oracle import assert_same_bytes


class Kind(NamedTuple):
    """A cell, and what it is called at each level."""

    cell: int
    name: str  # of the class, torch's and ours
    options: dict[str, str]  # of the class


KINDS = {
    "LSTM": Kind(blocks.LSTM, "LSTM", {}),
    "GRU": Kind(blocks.GRU, "GRU", {}),
    "tanh": Kind(blocks.RNN_TANH, "RNN", {"nonlinearity": "tanh"}),
    "relu": Kind(blocks.RNN_RELU, "RNN", {"nonlinearity": "relu"}),
}
# to float64
CLOSE = {np.dtype(np.float32): 3e-6, np.dtype(np.float64): 1e-13}

Weights = dict[str, np.ndarray]


def weights_of(
    kind: Kind, F: int, H: int, P: int = 0, L: int = 1, D: int = 1, bias: bool = True, dtype: Any = np.float32, seed: int = 0
) -> Weights:
    """Return a state dict of torch's names; P is 0 without projection."""
    random, rows = np.random.default_rng(seed), CELLS[kind.cell].gates * H
    found = {}
    for layer in range(L):
        for way in ("", "_reverse")[:D]:
            shapes = {"weight_ih": (rows, D * (P or H) if layer else F), "weight_hh": (rows, P or H)}
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else {}
            shapes |= {"weight_hr": (P, H)} if P else {}
            for part, shape in shapes.items():
                found[f"{part}_l{layer}{way}"] = random.uniform(-1.5, 1.5, shape).astype(dtype) / dtype(np.sqrt(H))
    return found


def states_of(kind: Kind, directions: int, B: int, H: int, P: int = 0, dtype: Any = np.float32, seed: int = 1) -> list[np.ndarray]:
    """Return distinct initial states that are not 0: h, and c if the cell has it."""
    random = np.random.default_rng(seed)
    return [random.uniform(-0.9, 0.9, (directions, B, width)).astype(dtype) for width in [P or H, H][: 1 + CELLS[kind.cell].has_c]]


def batch_of(lengths: Sequence[int], F: int, dtype: Any = np.float32, seed: int = 2) -> Packed:
    """Return a packed batch of random rows."""
    random = np.random.default_rng(seed)
    return pack([random.standard_normal((length, F)).astype(dtype) for length in lengths])


def widths(weights: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Return P and H of the weights of one direction."""
    P, H = weights["weight_hr"].shape if "weight_hr" in weights else weights["weight_hh"].shape[1:] * 2
    return P, H


def of_direction(weights: Weights, suffix: str) -> Weights:
    """Return the weights of one direction of one layer, by their names without the suffix."""
    return {name.removesuffix(suffix): weight for name, weight in weights.items() if name[name.index("_l") :] == suffix}


# ---- the twin


def twin_direction(
    kind: Kind, weights: Mapping[str, np.ndarray], x: np.ndarray, indices: Any, states: Sequence[np.ndarray], reverse: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Run the twin in one direction, in float64: packed rows x (N, F) and states (B, ...) to rows (N, P) and states."""
    panels, projection = twin_panels(kind, weights, 4)
    sizes, order, _ = indices
    before = [state.astype(np.float64) for state in states] or [None, None]
    after = [np.full((len(order), width), np.nan) for width in widths(weights)[: 1 + CELLS[kind.cell].has_c]]
    out = np.full((len(x), widths(weights)[0]), np.nan)
    h_0, c_0, *_ = *before, None
    h_n, c_n, *_ = *after, None
    double_x = x.astype(np.float64)
    reference_layers.recur(kind.cell, reverse, panels, projection, order, sizes, double_x, out, h_0, c_0, h_n, c_n, None, None)
    return out, after


def twin_panels(kind: Kind, weights: Mapping[str, np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the panels of a direction, and of its projection, in float64 and with n lanes."""
    double = {part: weight.astype(np.float64) for part, weight in weights.items()}
    (P, H), F = widths(weights), double["weight_ih"].shape[1]
    gates, sums, *_ = CELLS[kind.cell]
    panels = np.full((-(-H // n), sums + gates * (F + P), n), np.nan)
    biases = double.get("bias_ih"), double.get("bias_hh")
    reference_layers.pack_panels(kind.cell, double["weight_ih"], double["weight_hh"], *biases, panels)
    if "weight_hr" not in double:
        return panels, None
    projection = np.full((-(-P // n), 1 + H, n), np.nan)
    reference_layers.pack_panels(blocks.LINEAR, double["weight_hr"], np.empty((P, 0)), None, None, projection)
    return panels, projection


def twin(kind: Kind, weights: Weights, packed: Packed, states: Sequence[np.ndarray] = ()) -> tuple[np.ndarray, list[np.ndarray]]:
    """Run the twin through all layers, in float64; states as torch's, none for zeros."""
    suffixes = list(dict.fromkeys(name[name.index("_l") :] for name in weights))
    D = 2 if "_l0_reverse" in suffixes else 1
    rows, after = packed.data, []
    for layer in range(len(suffixes) // D):
        halves = []
        for k in range(layer * D, layer * D + D):
            of_k = of_direction(weights, suffixes[k]), rows, packed[1:], [state[k] for state in states]
            half, last = twin_direction(kind, *of_k, reverse=k % D)
            halves.append(half)
            after.append(last)
        rows = np.concatenate(halves, axis=1)
    return rows, [np.stack(item) for item in zip(*after, strict=True)]


# ---- the kernels


def run_pack_panels(cell: int, ih: np.ndarray, hh: Any, bias_ih: Any, bias_hh: Any, place: Place = as_it_is) -> np.ndarray:
    """Return panels as the kernel makes them: (units / lanes, what a unit has, lanes)."""
    gates, sums, *_ = CELLS[cell]
    (rows, F), P, n = ih.shape, 0 if hh is None else hh.shape[1], lanes(ih.itemsize)
    has = sums + gates * (F + P)
    panels = place(np.full((panel_items(cell, F, rows // gates, P) // (has * n), has, n), np.nan, ih.dtype), 64)
    placed = [None if item is None else place(item, item.itemsize) for item in (ih, hh, bias_ih, bias_hh)]
    where = [0 if item is None else address(item) for item in placed]
    machine.run(blocks.PackPanels(cell, ih.itemsize, n, *where, F, rows // gates, P, address(panels)), 0, len(panels))
    return panels


def run_kernel(
    kind: Kind,
    weights: Mapping[str, np.ndarray],
    x: np.ndarray,
    indices: Any,
    states: Sequence[np.ndarray],
    reverse: int,
    shares: int = 1,
    place: Place = as_it_is,
    together: Sequence[tuple[int, int]] = (),
    saved: Sequence[np.ndarray | None] = (None, None),
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Run the kernels in one direction; x is packed (N, F), or padded, row r of step t being x[r, t], and out is alike.

    The shares are of sequences, one after another; or of hidden units, those from `begin` to `end` of each pair in `together` in
    one call, and all calls at once. `saved` are c and gates, to be written.
    """
    item, (P, H) = x.itemsize, widths(weights)
    x = place(x, item) if x.flags.c_contiguous else place(x.swapaxes(0, 1), item).swapaxes(0, 1)
    biases = weights.get("bias_ih"), weights.get("bias_hh")
    panels = run_pack_panels(kind.cell, weights["weight_ih"], weights["weight_hh"], *biases, place)
    projection = run_pack_panels(blocks.LINEAR, weights["weight_hr"], None, None, None, place) if "weight_hr" in weights else None
    sizes, order = (place(vector, 8) for vector in indices[:2])
    B, has_c = len(order), CELLS[kind.cell].has_c
    wide = place(np.full((*x.shape[:-1], 2 * P), np.nan, x.dtype), item)
    out = wide[..., reverse * P : (1 + reverse) * P]
    before = [place(state, item) for state in states]
    after = [place(np.full((B, width), np.nan, x.dtype), item) for width in (P, H)[: 1 + has_c]]
    rows = B if together else -(-B // shares)
    workspace = place(np.full((shares, workspace_items(kind.cell, rows, H, P)), np.nan, x.dtype), 64)
    arrivals = place(np.zeros(arrivals_items(shares), np.int64), 8) if together else None
    h_0, c_0, *_ = *map(address, before), 0, 0
    h_n, c_n, *_ = *map(address, after), 0
    block = blocks.Recur(
        cell=kind.cell,
        item_bytes=item,
        reverse=reverse,
        F=x.shape[-1],
        H=H,
        P=P,
        panels=address(panels),
        projection=0 if projection is None else address(projection),
        sorted_indices=address(order),
        batch_sizes=address(sizes),
        B=B,
        T=len(sizes),
        x=address(x),
        x_row_bytes=x.strides[0],
        x_step_bytes=0 if x.ndim == 2 else x.strides[1],
        out=address(out),
        out_row_bytes=out.strides[0],
        out_step_bytes=0 if out.ndim == 2 else out.strides[1],
        h_0=h_0,
        c_0=c_0,
        h_n=h_n,
        c_n=c_n,
        c=0 if saved[0] is None else address(saved[0]),
        gates=0 if saved[1] is None else address(saved[1]),
        workspace=address(workspace),
        workspace_bytes=workspace.strides[0],
        arrivals=0 if arrivals is None else address(arrivals),
        shares=shares,
    )
    if together:
        run_at_once(block, together)
    else:
        for share in np.random.default_rng(shares).permutation(shares).tolist():
            machine.run(block, share, share + 1)
    assert np.isnan(wide[..., (1 - reverse) * P : (2 - reverse) * P]).all()  # the other direction's half
    return out, after


def run_at_once(block: tuple[Any, ...], calls: Sequence[tuple[int, int]]) -> None:
    """Run a kernel's shares, those of each pair (begin, end) in a thread."""
    threads = [threading.Thread(target=machine.run, args=(block, *call)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ways_to_call(shares: int) -> list[list[tuple[int, int]]]:
    """Return what may be passed as `together`: each share in a call of its own, all in one, one apart, and a single one, which does all."""
    each, all_in_one, the_first_apart = [(k, k + 1) for k in range(shares)], [(0, shares)], [(0, 1), (1, shares)]
    return [each, all_in_one, the_first_apart, each[-1:]] if shares > 1 else [each]


# ---- the NumPy level


def layer_of(kind: Kind, mapping: Any, prefix: str = "") -> Recurrent:
    """Return the layer whose weights are in `mapping`."""
    return getattr(fastpack, kind.name).from_state_dict(mapping, prefix, **kind.options)


def run(layer: Recurrent, packed: Packed, states: Sequence[np.ndarray] = (), **options: int) -> list[np.ndarray]:
    """Return the output's rows and the states after it, as a list also where the layer has one."""
    state = None if not states else tuple(states) if isinstance(layer, fastpack.LSTM) else states[0]
    output, after = layer(packed, state, **options)
    assert all(one is other for one, other in zip(output[1:], packed[1:], strict=True))
    return [output.data, *(after if isinstance(after, tuple) else [after])]


@contextmanager
def units_shared() -> Iterator[None]:
    """Have threads share hidden units, in layers of any size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastpack.recurrent.shares_units", lambda *_: True)
        yield


def assert_same_arrays(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Compare arrays bit for bit."""
    for one, other in zip(found, expected, strict=True):
        assert_same_bytes(one, other)


def assert_close(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], close: float) -> None:
    """Compare arrays by the largest difference, of outputs up to 1 or in relation to the largest of all; a NaN is none that matches."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        difference = np.abs(one.astype(np.float64) - other)
        assert np.all(difference <= close * max(1.0, np.abs(other).max(initial=0))), difference.max()
