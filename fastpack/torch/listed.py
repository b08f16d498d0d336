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
        counts = [shape[0] for shape in shapes]
    except (RuntimeError, IndexError):  # a nested tensor has no shape, a single value no dimension
        return None
    first, row_bytes = sequences[0], prod(shapes[0][1:]) * sequences[0].element_size()
    lengths = torch.frombuffer(array("q", counts), dtype=torch.int64)  # torch.tensor takes 10 times as long
    wanted = torch.is_grad_enabled() and any([sequence.requires_grad for sequence in sequences])
    if not wanted and sum(counts) * row_bytes < JOINED_BELOW * len(sequences):
        try:
            values = torch.cat(sequences)  # checks that rows are alike, but for a tensor (0,), which it passes over
        except RuntimeError:
            return None
        if values.dtype is first.dtype and is_dense(values) and not (0 in counts and _are_rows_unlike(shapes)):
            return Listed(sequences, lengths, False, values)
    if _are_rows_unlike(shapes):
        return None
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


def _are_rows_unlike(shapes: list[torch.Size]) -> bool:
    if len(set(map(len, shapes))) > 1:
        return True
    return any([len(set(sizes)) > 1 for sizes in list(zip(*shapes, strict=True))[1:]])
