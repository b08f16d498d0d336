"""exp, sigmoid and tanh of vectors: one reduction and one polynomial for all three.

With x = n ln2 + d, n whole and |d| <= ln2 / 2, and t = tanh(d / 2):

    exp(x)      = 2^n (1 + t) / (1 - t)
    sigmoid(x)  = 2^n (1 + t) / ((1 - t) + 2^n (1 + t))
    tanh(x / 2) = ((2^n - 1) + (2^n + 1) t) / ((2^n + 1) + (2^n - 1) t)

t is taken where it is small, and what follows adds little error: over all numbers of float32, exp is right to 1.63 units in the
last place, sigmoid to 2.58, tanh to 2.59 (2.77 without fused instructions). Sigmoid and tanh also come as fractions, so that a
cell can multiply two and then divide once; in float32 each fraction is 14 instructions, in float64 18.
"""

from math import log
from typing import NamedTuple

from fastpack.kernels.simd import Vector, fma, horner

LN2 = log(2)


class Constants(NamedTuple):
    """What the formulas need to know of a floating-point type."""

    mantissa: int  # its bits
    bias: int  # of the exponent
    ln2: tuple[float, float]  # in two pieces, the first of so few bits that n times it is exact
    tanh: tuple[float, ...]  # tanh(r) / r by powers of r^2, highest first, for |r| <= ln2 / 4
    exp_ends: tuple[float, float]  # exp is 0 below, infinite above
    sigmoid_ends: tuple[float, float]  # sigmoid is 0 below, 1 above
    tanh_end: float  # tanh is 1 above
    scale: int  # sigmoid's fraction is 2^scale times itself, so that its numerator keeps all its digits


# The coefficients are minimax in relative error, found by Remez's exchange in 50 digits, for tanh(r) / r = 1 + r^2 P(r^2) with
# the 1 fixed, so that a tiny x is its own tanh; rounded to the type afterwards. Their errors are 2^-24.1 and 2^-57.8 (a
# coefficient less: 2^-15.6 and 2^-49.4). tests/test_functions.py does not know them.
CONSTANTS = {
    32: Constants(
        mantissa=23,
        bias=127,
        ln2=(0.693145751953125, 1.4286068203094173e-06),
        tanh=(0.13110453435133608, -0.33331268876320782, 1.0),
        exp_ends=(-104.0, 89.0),
        sigmoid_ends=(-104.0, 17.4),
        tanh_end=9.0,
        scale=25,
    ),
    64: Constants(
        mantissa=52,
        bias=1023,
        ln2=(0.6931471805598903, 5.497923018708371e-14),
        tanh=(
            0.0034447227086437273,
            -0.0088572994197313306,
            0.021869370434380014,
            -0.053968252778237597,
            0.13333333332781556,
            -0.33333333333332481,
            1.0,
        ),
        exp_ends=(-746.0, 710.0),
        sigmoid_ends=(-746.0, 38.0),
        tanh_end=19.1,
        scale=55,
    ),
}


def exp(x: Vector) -> Vector:
    """Return e to the power of x."""
    known = CONSTANTS[x.kind.bits]
    x = _clamp(x, *known.exp_ends)
    n, _ = _nearest(x, LN2)
    t = _tanh(_rest(x, n, *known.ln2), 0.5)
    # in two factors: one alone reaches neither the subnormal numbers nor 2^128
    half, first = _nearest(n, 2.0)
    _, second = _nearest(n - half, 1.0)
    return ((t + t) / (1.0 - t) + 1.0) * first * second


def sigmoid(x: Vector) -> Vector:
    """Return 1 / (1 + e^-x)."""
    numerator, denominator = sigmoid_fraction(x)
    return numerator / denominator


def tanh(x: Vector) -> Vector:
    """Return the hyperbolic tangent of x."""
    numerator, denominator = tanh_fraction(x)
    return numerator / denominator


def sigmoid_fraction(x: Vector) -> tuple[Vector, Vector]:
    """Return sigmoid(x)'s numerator and denominator, which is from 2^24 to 2^51 (float64: from 2^54 to 2^111)."""
    # What lost (AVX-512 on Zen 5, with the division; this one takes 7.4 cycles a vector): a polynomial for e^d in place of t
    # takes as long but errs by 3.4 units in the last place; e^-|x|, whose denominators stay below 2, but which has to choose a
    # numerator, 8.5 cycles; 2^n in two factors in place of a scaled fraction, 10.3. AVX-512's scalef saves an instruction, no time.
    known = CONSTANTS[x.kind.bits]
    one = x.full(2.0**known.scale)
    x = _clamp(x, *known.sigmoid_ends)
    n, power = _nearest(x, LN2, known.scale)
    t = _tanh(_rest(x, n, *known.ln2), 0.5)
    numerator = fma(power, t, power)
    return numerator, fma(t, -(2.0**known.scale), one) + numerator


def tanh_fraction(x: Vector) -> tuple[Vector, Vector]:
    """Return tanh(x)'s numerator and denominator, which is from 1/2 to 2^26 (float64: to 2^56)."""
    # What lost (as above; this one takes 6.5 cycles): x P(x^2) / Q(x^2) is 2 instructions less, but takes 6.6 cycles, and where
    # tanh is near 1 its roundings add up to 6 units in the last place, some of them beyond 1; (1 - e^-2|x|) / (1 + e^-2|x|), 8.1.
    # That -x gives the same bits, negative, is because all that is done with 2^n is as exact with 2^-n.
    known = CONSTANTS[x.kind.bits]
    x = _clamp(x, -known.tanh_end, known.tanh_end)
    n, power = _nearest(x, LN2 / 2)
    t = _tanh(_rest(x, n, LN2 / 2), 1.0)  # in one piece: where n is not 0, tanh hardly feels the error
    above, below = power + 1.0, 1.0 - power
    return fma(above, t, -below), fma(-below, t, above)  # -below, not power - 1: tanh(-0.0) is to be -0.0


def _clamp(x: Vector, low: float, high: float) -> Vector:
    """Return x or the end that it is beyond; NaN stays NaN. One instruction for each end."""
    x = (x < low).where(low, x)
    return (x > high).where(high, x)


def _nearest(x: Vector, unit: float, shift: int = 0) -> tuple[Vector, Vector]:
    """Return the whole number n nearest to x / unit, and 2^(n + shift)."""
    # A sum that is 1.5 * 2^mantissa or a little more has no digits after the point; its last bits are n + shift + bias,
    # and those moved to the exponent are the power
    mantissa, bias, *_ = CONSTANTS[x.kind.bits]
    whole = 1.5 * 2.0**mantissa + bias + shift
    total = fma(x, 1 / unit, x.full(whole))
    return total - whole, (total.bits() << mantissa).floats()


def _rest(x: Vector, n: Vector, *unit: float) -> Vector:
    """Return x - n * unit, `unit` being the sum of its pieces."""
    for piece in unit:
        x = fma(n, -piece, x)
    return x


def _tanh(d: Vector, part: float) -> Vector:
    """Return tanh(part * d) for |part * d| <= ln2 / 4; `part` is a power of 2."""
    coefficients = CONSTANTS[d.kind.bits].tanh
    powers = range(2 * len(coefficients) - 1, 0, -2)
    return d * horner(d * d, *(c * part**power for c, power in zip(coefficients, powers, strict=True)))
