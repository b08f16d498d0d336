"""The kernels, in Numba's Python. Only the compiler imports them; at run time there is machine code."""

from fastpack.kernels import backward, batches, fingerprint, inputs, layout, padding, panels, recurrence, rows, weights

__all__ = ["backward", "batches", "fingerprint", "inputs", "layout", "padding", "panels", "recurrence", "rows", "weights"]
