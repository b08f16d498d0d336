"""What each kernel is given: one named tuple a kernel, the only place where its arguments are named.

A kernel receives the address of a block of int64. The block is made from one of these tuples (`machine.run`), and the
entry that unpacks it again is made from the same tuple (`compiler`), so the two cannot disagree. An annotation says what
an argument is: `Size` is a number, the others are addresses, turned into a pointer once, at the kernel's entry.

Letters: B sequences, T steps, N packed rows, F input features, H hidden units. Sizes and strides are in bytes where their name says so.
"""

from fastpack.blocks.arguments import Bytes, Int64s, Pointers, Size
from fastpack.blocks.layers import (
    AHEAD,
    D_WEIGHTS,
    GRADIENT_PANELS,
    GRU,
    KEY,
    LINE,
    LINEAR,
    LSTM,
    RNN_RELU,
    RNN_TANH,
    SUMMED,
    VECTOR_BYTES,
    Fingerprint,
    LayerGradient,
    PackGradientPanels,
    PackPanels,
    Recur,
)
from fastpack.blocks.layouts import CutInARow, FirstFit, Locate, MeasureLayout, MeasureLengths, OffsetsOf, SortByLength
from fastpack.blocks.rows import (
    CopyListed,
    FillPadding,
    PackListed,
    PackPadded,
    PackRagged,
    PackScattered,
    PadPacked,
    PadRagged,
    UnpackListed,
    UnpackRagged,
    UnpadRagged,
)

__all__ = [
    "AHEAD",
    "D_WEIGHTS",
    "GRADIENT_PANELS",
    "GRU",
    "KEY",
    "LINE",
    "LINEAR",
    "LSTM",
    "RNN_RELU",
    "RNN_TANH",
    "SUMMED",
    "VECTOR_BYTES",
    "Bytes",
    "CopyListed",
    "CutInARow",
    "FillPadding",
    "Fingerprint",
    "FirstFit",
    "Int64s",
    "LayerGradient",
    "Locate",
    "MeasureLayout",
    "MeasureLengths",
    "OffsetsOf",
    "PackGradientPanels",
    "PackListed",
    "PackPadded",
    "PackPanels",
    "PackRagged",
    "PackScattered",
    "PadPacked",
    "PadRagged",
    "Pointers",
    "Recur",
    "Size",
    "SortByLength",
    "UnpackListed",
    "UnpackRagged",
    "UnpadRagged",
]
