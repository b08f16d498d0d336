"""Sequences of unequal length on the CPU, packed: only real steps, time-major, longest sequence first.

This is the NumPy level, which imports NumPy alone. `fastpack.torch` speaks torch's names and tensors.
"""

from typing import TYPE_CHECKING, Any

from fastpack.packed import Layout, Packed
from fastpack.packing import pack, pack_padded, pack_ragged, pad, unpack, unpack_ragged

if TYPE_CHECKING:
    from fastpack.recurrent import GRU, LSTM, RNN
    from fastpack.sampling import BinPackingBatchSampler, LengthGroupedBatchSampler, TokenBudgetBatchSampler, TokenBudgetStream

__version__ = "0.1.0"
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BinPackingBatchSampler",
    "Layout",
    "LengthGroupedBatchSampler",
    "Packed",
    "TokenBudgetBatchSampler",
    "TokenBudgetStream",
    "pack",
    "pack_padded",
    "pack_ragged",
    "pad",
    "unpack",
    "unpack_ragged",
]


def __getattr__(name: str) -> Any:
    """Import layers and samplers when they are first asked for: layers alone would add a fifth to the time of `import fastpack`."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("GRU", "LSTM", "RNN"):
        from fastpack import recurrent

        return getattr(recurrent, name)
    from fastpack import sampling

    return getattr(sampling, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
