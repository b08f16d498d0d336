"""The cells of recurrent layers: how many gates each has, and how much memory the kernels need for it."""

from typing import NamedTuple

from fastpack import machine
from fastpack.blocks import AHEAD, GRU, LINE, LINEAR, LSTM, RNN_RELU, RNN_TANH, SUMMED, VECTOR_BYTES

LANES = 16  # of the widest vectors, float32's with AVX-512: memory is laid out for them on every CPU level


class Cell(NamedTuple):
    """What tells one cell from another, outside the kernels."""

    gates: int  # weight_ih has so many times H rows
    sums: int  # how many sums over the inputs a unit has: of a GRU's n, those over x and over h are apart
    has_c: bool
    saved: int  # how many items a unit has that gradients need, beside h and c: i, f, g, o; r, z, n and n's sum over h


CELLS = {
    LSTM: Cell(gates=4, sums=4, has_c=True, saved=4),
    GRU: Cell(gates=3, sums=4, has_c=False, saved=4),
    RNN_TANH: Cell(gates=1, sums=1, has_c=False, saved=0),
    RNN_RELU: Cell(gates=1, sums=1, has_c=False, saved=0),
    LINEAR: Cell(gates=1, sums=1, has_c=False, saved=0),
}


def panel_items(cell: int, F: int, H: int, P: int) -> int:
    """Return how many items the panels of one direction of a layer take."""
    gates, sums, *_ = CELLS[cell]
    return _whole(H) * (sums + gates * (F + P))


def workspace_items(cell: int, rows: int, H: int, P: int) -> int:
    """Return how many items one share of `recur` needs, which has up to `rows` rows in a step."""
    ahead = AHEAD * CELLS[cell].sums * _whole(H)
    tables = 7 * max(rows, AHEAD) * 2  # of addresses; one takes the place of two float32
    unprojected = max(rows, AHEAD) * H if P != H else 0
    return _whole(ahead + tables + P + unprojected)


def gradient_panel_items(cell: int, H: int, columns: int) -> int:
    """Return how many items the gradient panels of a weight (gates * H, columns) take."""
    return CELLS[cell].gates * H * _whole(columns)


def d_sums_items(cell: int, N: int, H: int) -> int:
    """Return how many items the gradients of a direction's sums take."""
    return N * CELLS[cell].sums * _whole(H)


def backward_items(rows: int, H: int, P: int) -> int:
    """Return how many items one share of a recurrence's gradients needs, which has up to `rows` rows in a step."""
    tables = 10 * rows * 2  # of addresses; one takes the place of two float32
    return _whole(rows * (2 * H + P) + tables + max(H, P))


def weight_gradient_items() -> int:
    """Return how many items one share of the gradients of weights needs."""
    return SUMMED * (2 * 2 + 3 * LANES) + 3 * LANES  # two tables of addresses, three vectors of columns, and as many zeros


def arrivals_items(shares: int) -> int:
    """Return how many int64 threads need that do a call's phases together: one in common and one for each share."""
    return LINE * (1 + shares)


def _whole(items: int) -> int:
    return -(-items // LANES) * LANES


def lanes(item_bytes: int) -> int:
    """Return how many items a vector has on the CPU level in use."""
    return VECTOR_BYTES.get(machine.library().level, 16) // item_bytes


def shares_units(cell: int, H: int, P: int, item_bytes: int, shares: int) -> bool:
    """Whether shares of `recur` should be of hidden units rather than of sequences.

    Each thread then reads its part of the weights only. That wins where weights do not fit the second-level cache beside all else: 1.9
    to 2.1 times one thread for H of 256 to 1024 where shares of sequences made it 1.7 to 1.8, and for a single sequence 1.7 to 2.1.
    With weights of 256 KB (H = 128) it is no better, and waiting for each other at every step costs the more the shorter these are.
    """
    weights = CELLS[cell].gates * H * P * item_bytes
    return shares > 1 and weights >= 1 << 19 and 2 * LANES * shares <= H
