"""Layers from files of weights, for the command line: .npz and .safetensors without torch, .pt, .pth and .bin by torch."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastpack
from fastpack import checks
from fastpack.recurrent import GRU, LSTM, RNN

RECURRENT = "weight_hh_l0"  # the weight that every layer has


class Model(NamedTuple):
    """A layer, and a digest of its weights and of fastpack's version."""

    layer: LSTM | GRU | RNN
    digest: str


def read(file: Any, prefix: str = "", nonlinearity: str = "") -> Model:
    """Return the layer whose weights are in a file, by the file's suffix and the weights' shapes.

    Parameters
    ----------
    file : path
        .npz, .safetensors (which needs that package), or .pt, .pth, .bin (which need torch, here alone): a state dict.
    prefix : str
        What stands before the names of the layer's weights; other entries are left alone.
    nonlinearity : str
        'tanh' or 'relu', which a state dict does not say: of an RNN, and of nothing else.

    Raises
    ------
    OSError
        The file cannot be read.
    ImportError
        What reads it is missing.
    TypeError, ValueError
        It is no such file, or has no such weights.
    """
    path = Path(file)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"the name must end in {', '.join(READERS)}")
    with open(path, "rb"):
        pass  # the readers' own errors are not of one kind
    found = reader(path)
    _check_prefix(found, prefix)
    mapping = {name: np.asarray(value) for name, value in found.items() if name.startswith(prefix)}
    layer = _layer(mapping, prefix, nonlinearity)
    digest = hashlib.sha256(fastpack.__version__.encode())
    for name in sorted(mapping):
        value = np.ascontiguousarray(mapping[name])
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return Model(layer, digest.hexdigest())


def _check_prefix(found: Mapping[str, Any], prefix: str) -> None:
    if prefix + RECURRENT not in found:
        prefixes = [name.removesuffix(RECURRENT) for name in found if name.endswith(RECURRENT)]
        hint = f"--prefix can be {', '.join(map(repr, prefixes))}" if prefixes else "it is no state dict with an LSTM, GRU or RNN"
        raise ValueError(f"there is no {prefix + RECURRENT!r}: {hint}")


def _layer(mapping: Mapping[str, Any], prefix: str, nonlinearity: str) -> LSTM | GRU | RNN:
    weight = mapping[prefix + RECURRENT]
    if weight.ndim != 2 or not weight.size:
        raise ValueError(f"{prefix + RECURRENT!r} has shape {weight.shape}, but is a matrix")
    gates = 4 if f"{prefix}weight_hr_l0" in mapping else len(weight) / weight.shape[1]
    if nonlinearity and gates != 1:
        raise ValueError("--nonlinearity is an RNN's, but the weights are not")
    if gates == 1:
        if not nonlinearity:
            raise ValueError("the weights are an RNN's, but do not say of which nonlinearity: pass --nonlinearity tanh or relu")
        checks.choice(nonlinearity, "--nonlinearity", ("tanh", "relu"))
        return RNN.from_state_dict(mapping, prefix, nonlinearity=nonlinearity)
    if gates not in (3, 4):
        raise ValueError(f"{prefix + RECURRENT!r} has shape {weight.shape}: an LSTM's has 4 rows for each column, a GRU's 3, an RNN's 1")
    return (GRU if gates == 3 else LSTM).from_state_dict(mapping, prefix)


def _from_npz(path: Path) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile's, zlib's, NumPy's
        raise ValueError(f"it is no .npz file of arrays: {error}") from error


def _from_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.numpy import load_file

    try:
        found: Mapping[str, Any] = load_file(path)
    except Exception as error:  # its own, and a KeyError where NumPy has no such dtype
        raise ValueError(f"it is no .safetensors file of arrays that NumPy has: {error}") from error
    return found


def _from_torch(path: Path) -> Mapping[str, Any]:
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value.detach() for name, value in found.items() if isinstance(value, torch.Tensor)}
    except Exception as error:  # pickle's, zipfile's, torch's
        raise ValueError(f"it is no state dict that torch.load(weights_only=True) reads: {' '.join(str(error).split())[:200]}") from error


READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".npz": _from_npz,
    ".safetensors": _from_safetensors,
    ".pt": _from_torch,
    ".pth": _from_torch,
    ".bin": _from_torch,
}
