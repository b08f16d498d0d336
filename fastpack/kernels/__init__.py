"""The kernels, in Numba's Python. Only the compiler imports them; at run time there is machine code."""

from fastpack.kernels import fingerprint, layout, padding, panels, recurrence, rows

__all__ = ["fingerprint", "layout", "padding", "panels", "recurrence", "rows"]
