"""Whether a list of sequences is one that the kernels take, and what is known of it then."""

from array import array
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastpack.checks import LARGEST, address
from fastpack.layout import LengthFacts, measure_lengths
from fastpack.torch.bridge import PLAIN_TYPES, are_dense, is_dense, is_eager
from fastpack.torch.moves import addresses_of, check_memory

JOINED_BELOW = 8192  # bytes a sequence, see as_listed
JOINED_SERIALLY = 1 << 15  # items in all, from which on torch.cat gives each tensor to all threads, if there are several


class Listed(NamedTuple):
    """A list of sequences that the kernels take: of one dtype and one trailing shape."""

    tensors: Sequence[Tensor]
    lengths: Tensor  # (B,)
    facts: LengthFacts
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
    RuntimeError
        A sequence has no memory.
    """
    if not isinstance(sequences, (list, tuple)) or not sequences or not is_eager() or not set(map(type, sequences)) <= PLAIN_TYPES:
        return None
    try:
        listed = _joined(sequences) or _apart(sequences)
    except (RuntimeError, IndexError):  # a nested tensor has no shape, a single value no dimension, a sparse tensor no address
        return None
    if listed is not None and listed.addresses is not None:
        check_memory(sequences, listed.addresses)
    return listed


def _joined(sequences: list[Tensor] | tuple[Tensor, ...]) -> Listed | None:
    """Return short sequences of one dtype one after another, where that is all that autograd has to know of them.

    What torch.cat has looked at in each tensor is asked of its result.
    """
    first, B = sequences[0], len(sequences)
    if first.requires_grad and torch.is_grad_enabled():
        return None
    items = np.fromiter(map(Tensor.numel, sequences), np.int64, B)
    facts = measure_lengths(address(items), B, LARGEST)
    total = facts.total
    if total * first.itemsize >= JOINED_BELOW * B or (total >= JOINED_SERIALLY and torch.get_num_threads() > 1):
        return None
    values = torch.cat(sequences)  # checks that rows are alike, but for a tensor (0,), which it passes over
    if values.requires_grad or values.dtype is not first.dtype or not is_dense(values):
        return None
    if facts.empty >= 0:
        shapes = [sequence.shape for sequence in sequences]
        return None if _are_rows_unlike(shapes) else Listed(sequences, *_measured([shape[0] for shape in shapes]), False, values)
    row_items = total // values.shape[0]
    items //= row_items
    facts = LengthFacts(facts.longest // row_items, values.shape[0], *facts[2:])
    return Listed(sequences, torch.from_numpy(items), facts, False, values)


def _apart(sequences: Sequence[Tensor]) -> Listed | None:
    shapes = [sequence.shape for sequence in sequences]
    counts = [shape[0] for shape in shapes]
    if _are_rows_unlike(shapes) or not _are_of_one_dtype(sequences):
        return None
    addresses = addresses_of(sequences)
    if not are_dense(sequences):
        return None
    needs_grad = torch.is_grad_enabled() and any(map(attrgetter("requires_grad"), sequences))
    return Listed(sequences, *_measured(counts), needs_grad, None, addresses)


def _measured(counts: list[int]) -> tuple[Tensor, LengthFacts]:
    lengths = torch.frombuffer(array("q", counts), dtype=torch.int64)  # torch.tensor takes 10 times as long
    return lengths, measure_lengths(lengths.data_ptr(), len(counts), LARGEST)


def _are_of_one_dtype(sequences: Sequence[Tensor]) -> bool:
    if len({sequence.dtype for sequence in sequences}) == 1:
        return True
    first = sequences[0].dtype
    for k, sequence in enumerate(sequences):
        if not torch.can_cast(sequence.dtype, first):
            raise TypeError(f"sequences[{k}] is of {sequence.dtype}, but sequences[0] is of {first}, which cannot hold its values")
    return False


def _are_rows_unlike(shapes: list[torch.Size]) -> bool:
    dimensions = len(shapes[0])
    if set(map(len, shapes)) != {dimensions}:
        return True
    return any([len({shape[d] for shape in shapes}) > 1 for d in range(1, dimensions)])
