"""The kernels, in Numba's Python. Only the compiler imports them; at run time there is machine code."""

from fastpack.kernels import batches, fingerprint, layer_gradient, layout, padding, panels, recurrence, rows

__all__ = ["batches", "fingerprint", "layer_gradient", "layout", "padding", "panels", "recurrence", "rows"]
