"""stand-in until the math helper's arrives"""
from fastpack.kernels.simd import Vector, fma, horner, rint, absolute
def exp_neg(x):  # x <= 0
    x = (x < -87.0).where(-87.0, x)
    n = rint(x * 1.4426950408889634)
    r = fma(n, -0.693359375, x); r = fma(n, 2.12194440e-4, r)
    p = horner(r, 1.9875691500e-4, 1.3981999507e-3,8.3334519073e-3,4.1665795894e-2,1.6666665459e-1,5.0000001201e-1)
    p = fma(p, r * r, r + 1.0)
    e = (n.to_integers() + (127 if x.kind.bits == 32 else 1023)) << (23 if x.kind.bits == 32 else 52)
    return p * e.floats()
def sigmoid_fraction(x):
    e = exp_neg(-absolute(x))
    return (x < 0.0).where(e, 1.0), e + 1.0
def tanh_fraction(x):
    e = exp_neg(absolute(x) * -2.0)
    n = 1.0 - e
    return (x < 0.0).where(-n, n), e + 1.0
