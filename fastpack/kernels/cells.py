"""LSTM, GRU and RNN as a few lines of vector arithmetic each. The formulas are those of torch.nn.LSTM, GRU and RNN.

A cell is given a unit's sums, as the tile left them in registers, and the states before, and returns the states after, and what its
gradient needs of the gates. Where it has no c, or does not read its own h, these are anything. What nobody uses LLVM leaves out.

A gradient is given what the cell kept, the state before and after (c of an LSTM, else h), and the gradient of h and what the
step after carried over beside its sums; it returns the gradients of the sums, and what it carries over to the step before.
"""

from typing import Any, NamedTuple

from fastpack import blocks
from fastpack.kernels.functions import sigmoid_fraction, tanh, tanh_fraction
from fastpack.kernels.simd import Vector, fma

Vectors = list[Vector]


class Cell(NamedTuple):
    """What the tile has to know of a cell."""

    formula: Any  # (sums, h before, c before) to (h, c, what to save)
    gradient: Any  # (saved, before, after, dh, carry) to (gradients of the sums, carry)
    output: Any  # (saved, after) to h, of a cell whose h may be projected
    from_x: tuple[int, ...]  # which sum each gate's row of weight_ih goes to
    from_h: tuple[int, ...]  # and of weight_hh
    sums: int
    saved: int
    reads_h: bool  # beyond the sums: a GRU keeps some of the unit's own h
    has_c: bool

    @property
    def carries(self) -> bool:
        """Whether a step's gradient reaches the one before by another way than the sums."""
        return self.reads_h or self.has_c


def lstm(sums: Vectors, _h: Vector, before: Vector) -> tuple[Vector, Vector, Vectors]:
    # A division for each product of two fractions. One for the whole of c would overflow where three gates are all but closed;
    # five, one a fraction, are as fast on AVX-512 and 5 % slower in float64 and without it.
    (i, i_), (f, f_), (o, o_) = sigmoid_fraction(sums[0]), sigmoid_fraction(sums[1]), sigmoid_fraction(sums[3])
    g, g_ = tanh_fraction(sums[2])
    forget = f / f_
    c = fma(forget, before, i * g / (i_ * g_))
    t, t_ = tanh_fraction(c)
    of_i_g, of_o = 1.0 / (i_ * g_), 1.0 / o_
    return o * t / (o_ * t_), c, [i * g_ * of_i_g, forget, g * i_ * of_i_g, o * of_o]


def lstm_gradient(saved: Vectors, before: Vector, after: Vector, dh: Vector, carry: Vector) -> tuple[Vectors, Vector]:
    i, f, g, o = saved
    t = tanh(after)
    dc = fma(dh * o, 1.0 - t * t, carry)
    d_o = dh * t * o * (1.0 - o)
    return [dc * g * i * (1.0 - i), dc * before * f * (1.0 - f), dc * i * (1.0 - g * g), d_o], dc * f


def lstm_output(saved: Vectors, after: Vector) -> Vector:
    return saved[3] * tanh(after)


def gru(sums: Vectors, h: Vector, c: Vector) -> tuple[Vector, Vector, Vectors]:
    (r, r_), (z, z_) = sigmoid_fraction(sums[0]), sigmoid_fraction(sums[1])
    reset, keep = r / r_, z / z_
    n, n_ = tanh_fraction(fma(reset, sums[3], sums[2]))
    return fma(keep, h, (z_ - z) * n / (z_ * n_)), c, [reset, keep, n / n_, sums[3]]  # z h + (1 - z) n


def gru_gradient(saved: Vectors, before: Vector, _after: Vector, dh: Vector, carry: Vector) -> tuple[Vectors, Vector]:
    r, z, n, q = saved
    dh = dh + carry
    dn = dh * (1.0 - z) * (1.0 - n * n)
    return [dn, dn * q * r * (1.0 - r), dh * (before - n) * z * (1.0 - z), dn * r], dh * z  # n over x, r, z, n over h


def rnn_tanh(sums: Vectors, _h: Vector, c: Vector) -> tuple[Vector, Vector, Vectors]:
    t, t_ = tanh_fraction(sums[0])
    return t / t_, c, []


def rnn_tanh_gradient(_saved: Vectors, _before: Vector, after: Vector, dh: Vector, carry: Vector) -> tuple[Vectors, Vector]:
    return [dh * (1.0 - after * after)], carry


def rnn_relu(sums: Vectors, _h: Vector, c: Vector) -> tuple[Vector, Vector, Vectors]:
    return (sums[0] < 0.0).where(0.0, sums[0]), c, []  # NaN stays NaN


def rnn_relu_gradient(_saved: Vectors, _before: Vector, after: Vector, dh: Vector, carry: Vector) -> tuple[Vectors, Vector]:
    return [(after <= 0.0).where(0.0, dh)], carry  # as torch also where h is NaN


def linear(sums: Vectors, _h: Vector, c: Vector) -> tuple[Vector, Vector, Vectors]:
    return sums[0], c, []


CELLS = {
    blocks.LSTM: Cell(lstm, lstm_gradient, lstm_output, (0, 1, 2, 3), (0, 1, 2, 3), sums=4, saved=4, reads_h=False, has_c=True),
    blocks.GRU: Cell(gru, gru_gradient, None, (0, 1, 2), (0, 1, 3), sums=4, saved=4, reads_h=True, has_c=False),
    blocks.RNN_TANH: Cell(rnn_tanh, rnn_tanh_gradient, None, (0,), (0,), sums=1, saved=0, reads_h=False, has_c=False),
    blocks.RNN_RELU: Cell(rnn_relu, rnn_relu_gradient, None, (0,), (0,), sums=1, saved=0, reads_h=False, has_c=False),
    blocks.LINEAR: Cell(linear, None, None, (0,), (0,), sums=1, saved=0, reads_h=False, has_c=False),
}
