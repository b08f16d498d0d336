"""LSTM, GRU and RNN as a few lines of vector arithmetic each. The formulas are those of torch.nn.LSTM, GRU and RNN.

A cell is given a unit's sums, as the tile left them in registers, and the states before, and returns the states after. Where it
has no c, or does not read its own h, these are anything.
"""

from typing import Any, NamedTuple

from fastpack import blocks
from fastpack.kernels.functions import sigmoid_fraction, tanh_fraction
from fastpack.kernels.simd import Vector, fma


class Cell(NamedTuple):
    """What the tile has to know of a cell."""

    formula: Any  # (sums, h before, c before) to (h, c)
    from_x: tuple[int, ...]  # which sum each gate's row of weight_ih goes to
    from_h: tuple[int, ...]  # and of weight_hh
    sums: int
    reads_h: bool  # beyond the sums: a GRU keeps some of the unit's own h
    has_c: bool


def lstm(sums: list[Vector], _h: Vector, before: Vector) -> tuple[Vector, Vector]:
    # A division for each product of two fractions. One for the whole of c would overflow where three gates are all but closed;
    # five, one a fraction, are as fast on AVX-512 and 5 % slower in float64 and without it.
    (i, i_), (f, f_), (o, o_) = sigmoid_fraction(sums[0]), sigmoid_fraction(sums[1]), sigmoid_fraction(sums[3])
    g, g_ = tanh_fraction(sums[2])
    c = fma(f / f_, before, i * g / (i_ * g_))
    t, t_ = tanh_fraction(c)
    return o * t / (o_ * t_), c


def gru(sums: list[Vector], h: Vector, c: Vector) -> tuple[Vector, Vector]:
    (r, r_), (z, z_) = sigmoid_fraction(sums[0]), sigmoid_fraction(sums[1])
    n, n_ = tanh_fraction(fma(r / r_, sums[3], sums[2]))
    return fma(z / z_, h, (z_ - z) * n / (z_ * n_)), c  # z h + (1 - z) n


def rnn_tanh(sums: list[Vector], _h: Vector, c: Vector) -> tuple[Vector, Vector]:
    t, t_ = tanh_fraction(sums[0])
    return t / t_, c


def rnn_relu(sums: list[Vector], _h: Vector, c: Vector) -> tuple[Vector, Vector]:
    return (sums[0] < 0.0).where(0.0, sums[0]), c  # NaN stays NaN


def linear(sums: list[Vector], _h: Vector, c: Vector) -> tuple[Vector, Vector]:
    return sums[0], c


CELLS = {
    blocks.LSTM: Cell(lstm, (0, 1, 2, 3), (0, 1, 2, 3), sums=4, reads_h=False, has_c=True),
    blocks.GRU: Cell(gru, (0, 1, 2), (0, 1, 3), sums=4, reads_h=True, has_c=False),
    blocks.RNN_TANH: Cell(rnn_tanh, (0,), (0,), sums=1, reads_h=False, has_c=False),
    blocks.RNN_RELU: Cell(rnn_relu, (0,), (0,), sums=1, reads_h=False, has_c=False),
    blocks.LINEAR: Cell(linear, (0,), (0,), sums=1, reads_h=False, has_c=False),
}
