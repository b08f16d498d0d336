"""Whether a list of sequences is one that the kernels take, and what is known of it then."""

from array import array
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastpack.torch.bridge import PLAIN_TYPES, are_dense, is_dense, is_eager
from fastpack.torch.moves import addresses_of, check_memory

JOINED_BELOW = 8192  # bytes a sequence, see as_listed


class Listed(NamedTuple):
    """A list of sequences that the kernels take: of one dtype and one trailing shape."""

    tensors: Sequence[Tensor]
    lengths: Tensor  # (B,)
    needs_grad: bool
    values: Tensor | None = None  # all rows, one sequence after another, where short sequences were joined
    addresses: "array[int] | None" = None  # (B,), where they were not


def as_listed(sequences: Any) -> Listed | None:
    """Return sequences checked, or None where torch's own function shall convert, broadcast or refuse them.

    Short sequences are joined first: torch.cat looks at a tensor in 0.09 us, where asking it from Python for all that must
    be known before its address can be used takes 0.4. From 8 KB a sequence on, the copy would cost more than that.

    Raises
    ------
    TypeError
        torch would cut values of one dtype to fit another.
    """
    if not isinstance(sequences, (list, tuple)) or not sequences or not is_eager() or not set(map(type, sequences)) <= PLAIN_TYPES:
        return None
    try:
        shapes = [sequence.shape for sequence in sequences]
        counts, *trailing = zip(*shapes, strict=True)
    except (RuntimeError, ValueError):  # a nested tensor has no shape; not all have as many dimensions, or none has any
        return None
    first, shape = sequences[0], shapes[0]
    if any([len(set(sizes)) > 1 for sizes in trailing]):
        return None
    lengths = torch.frombuffer(array("q", counts), dtype=torch.int64)  # torch.tensor takes 10 times as long
    wanted = torch.is_grad_enabled() and any([sequence.requires_grad for sequence in sequences])
    if not wanted and sum(counts) * prod(shape[1:]) * first.element_size() < JOINED_BELOW * len(sequences):
        try:
            values = torch.cat(sequences)
        except RuntimeError:
            return None
        if values.dtype is first.dtype and is_dense(values):
            return Listed(sequences, lengths, False, values)
    if not _are_of_one_dtype(sequences):
        return None
    try:
        addresses = addresses_of(sequences)
    except RuntimeError:  # not strided memory
        return None
    if not are_dense(sequences):
        return None
    check_memory(sequences, addresses)
    return Listed(sequences, lengths, wanted, None, addresses)


def _are_of_one_dtype(sequences: Sequence[Tensor]) -> bool:
    if len({sequence.dtype for sequence in sequences}) == 1:
        return True
    first = sequences[0].dtype
    for k, sequence in enumerate(sequences):
        if not torch.can_cast(sequence.dtype, first):
            raise TypeError(f"sequences[{k}] is of {sequence.dtype}, but sequences[0] is of {first}, which cannot hold its values")
    return False
