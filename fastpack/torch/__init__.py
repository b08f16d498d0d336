"""torch.nn.utils.rnn's functions and torch.nn's recurrent layers by fastpack's kernels, and ways between tensors and arrays."""

try:
    from torch.nn.utils.rnn import PackedSequence
    from torch.version import __version__ as _version
except ModuleNotFoundError as error:
    raise ImportError("fastpack.torch needs torch 2.10 or later: pip install 'fastpack[torch]'") from error
if tuple(map(int, _version.split(".")[:2])) < (2, 10):  # without the C interface that parallel calls
    raise ImportError(f"fastpack.torch needs torch 2.10 or later, but torch {_version} is installed: pip install 'fastpack[torch]'")

from fastpack.torch.accelerate import accelerate, restore
from fastpack.torch.arrays import as_numpy, as_torch, pack_numpy, pack_ragged
from fastpack.torch.dataset import RaggedDataset
from fastpack.torch.modules import GRU, LSTM, RNN, path
from fastpack.torch.rnn_utils import (
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
    unpad_sequence,
)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "PackedSequence",
    "RaggedDataset",
    "accelerate",
    "as_numpy",
    "as_torch",
    "pack_numpy",
    "pack_padded_sequence",
    "pack_ragged",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "path",
    "restore",
    "unpack_sequence",
    "unpad_sequence",
]
