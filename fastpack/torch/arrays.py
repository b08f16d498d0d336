"""Between NumPy arrays, ragged tensors and PackedSequence."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastpack import checks
from fastpack.checks import Int64Array
from fastpack.packed import Packed
from fastpack.packing import pack
from fastpack.torch.autograd import Form, move
from fastpack.torch.bridge import is_dense, is_eager
from fastpack.torch.layout import from_lengths, from_packed


def pack_ragged(values: Tensor, offsets: Any) -> PackedSequence:
    """Pack sequences that follow each other in one tensor, such as a nested jagged tensor's values and offsets.

    Parameters
    ----------
    values : Tensor (N, ...)
        The rows of all sequences, one sequence after another; differentiable.
    offsets : Tensor, array or list of int (B + 1,)
        Sequence i is `values[offsets[i]:offsets[i + 1]]`: the first is 0, the last N, and they never decrease. A sequence
        may be empty: it has no row, and sorts last.

    Returns
    -------
    PackedSequence
        With index tensors. `data` is on the device of `values`.

    Raises
    ------
    TypeError
        `values` is no tensor, or `offsets` is not of integers.
    ValueError
        `offsets` has fewer than two entries, does not start at 0, decreases, or does not end at N.

    Examples
    --------
    >>> packed = pack_ragged(torch.tensor([1, 2, 3, 9]), [0, 3, 4])
    >>> packed.data.tolist(), packed.batch_sizes.tolist()
    ([1, 9, 2, 3], [2, 1, 1])
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"values is a {type(values).__name__}, not a tensor: fastpack.pack_ragged takes arrays")
    if values.dim() == 0:
        raise ValueError("values has no dimension, but its first counts the rows")
    bounds = checks.offsets(offsets.detach().cpu().numpy() if isinstance(offsets, Tensor) else offsets, values.shape[0])
    if not (is_eager() and is_dense(values)):
        return _pack_by_index(values, bounds)
    lengths = torch.from_numpy(np.diff(bounds))
    layout = from_lengths(lengths, int(lengths.max()), values.shape[0])
    data = move(Form.RAGGED, Form.PACKED, layout, values)
    return PackedSequence(data, layout.batch_sizes, layout.sorted_indices, layout.unsorted_indices)


def _pack_by_index(values: Tensor, bounds: Int64Array) -> PackedSequence:
    # by what torch.compile can trace of NumPy, so without the kernels; all transforms and devices take it
    lengths = np.diff(bounds)
    order = np.argsort(-lengths, kind="stable")
    steps = np.arange(int(lengths.max()))[:, None]
    is_there = steps < lengths[order]
    indices = (bounds[order] + steps)[is_there], order, np.argsort(order)
    rows, *permutations = (torch.from_numpy(index).to(values.device) for index in indices)
    return PackedSequence(values[rows], torch.from_numpy(is_there.sum(axis=1)), *permutations)


def pack_numpy(sequences: Iterable[Any]) -> PackedSequence:
    """Pack NumPy arrays straight into a PackedSequence, without a tensor for each.

    Parameters
    ----------
    sequences : iterable of B arrays (T_i, ...)
        As for :func:`fastpack.pack`, of a dtype that torch has.

    Returns
    -------
    PackedSequence
        With index tensors; its tensors are not shared with the arrays.

    Raises
    ------
    TypeError, ValueError
        As :func:`fastpack.pack`; and where torch has no such dtype.

    Examples
    --------
    >>> pack_numpy([np.array([9]), np.array([1, 2, 3])]).data.tolist()
    [1, 9, 2, 3]
    """
    return as_torch(pack(sequences))


def as_torch(packed: Packed) -> PackedSequence:
    """Return a Packed as a PackedSequence that shares its memory.

    Parameters
    ----------
    packed : Packed

    Returns
    -------
    PackedSequence

    Raises
    ------
    TypeError
        torch has no such dtype.
    ValueError
        An array is read-only or has a negative stride, which a tensor cannot be or have, or is of foreign byte order; or
        `packed` is inconsistent.

    Examples
    --------
    >>> import fastpack
    >>> as_torch(fastpack.pack([np.array([1.0, 2.0])])).data
    tensor([1., 2.], dtype=torch.float64)
    """
    if not isinstance(packed, Packed):
        raise TypeError(f"packed is a {type(packed).__name__}, not a fastpack.Packed")
    data = checks.rows(packed.data, "data")
    *layout, _lengths = checks.layout(packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices, len(data))
    for name, array in zip(Packed._fields, (data, *layout), strict=True):
        if not array.flags.writeable:
            raise ValueError(f"{name} is read-only, and tensors never are: pass packed._replace({name}=packed.{name}.copy())")
    return PackedSequence(*map(torch.from_numpy, (data, *layout)))


def as_numpy(sequence: PackedSequence) -> Packed:
    """Return a PackedSequence as a Packed that shares its memory.

    Parameters
    ----------
    sequence : PackedSequence
        On the CPU, not recording gradients. Where it has no index tensors, the result's are new: the order as it is.

    Returns
    -------
    Packed

    Raises
    ------
    TypeError
        `sequence` is no PackedSequence, is on another device, or of a dtype that NumPy does not have.
    ValueError
        `sequence` is inconsistent.
    RuntimeError
        `data` requires grad: detach it first.

    Examples
    --------
    >>> from fastpack.torch import pack_sequence
    >>> as_numpy(pack_sequence([torch.tensor([1, 2, 3]), torch.tensor([9])])).data
    array([1, 9, 2, 3])
    """
    if not isinstance(sequence, PackedSequence):
        raise TypeError(f"sequence is a {type(sequence).__name__}, not a PackedSequence")
    data = sequence.data.numpy()
    layout = from_packed(sequence)
    if layout is None:
        raise ValueError("sequence is inconsistent: its batch_sizes grow or do not add up to its rows, or its indices are no permutations")
    return Packed(data, *(tensor.numpy() for tensor in layout[1:4]))
