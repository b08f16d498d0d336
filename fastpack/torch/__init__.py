"""torch.nn.utils.rnn's functions by fastpack's kernels, on real PackedSequence objects, and ways between them and arrays."""

from torch.nn.utils.rnn import PackedSequence

from fastpack.torch.arrays import as_numpy, as_torch, pack_numpy, pack_ragged
from fastpack.torch.bridge import path
from fastpack.torch.rnn_utils import (
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
    unpad_sequence,
)

__all__ = [
    "PackedSequence",
    "as_numpy",
    "as_torch",
    "pack_numpy",
    "pack_padded_sequence",
    "pack_ragged",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "path",
    "unpack_sequence",
    "unpad_sequence",
]
