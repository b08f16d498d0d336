"""torch.nn.utils.rnn's functions under torch's names, arguments, defaults and messages, by the kernels.

Each function has one fast way through. Whatever does not fit it, an unusual tensor or a mistake, is given to torch's own
function, which does the one slowly and raises its own error for the other. Only where torch would go on with a wrong result
is there an error of ours.
"""

from array import array
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import rnn as theirs
from torch.nn.utils.rnn import PackedSequence

from fastpack.layout import LengthFacts, measure_lengths
from fastpack.torch import moves
from fastpack.torch.autograd import Form, Padded, move
from fastpack.torch.bridge import PLAIN_TYPES, are_dense, is_dense, is_eager, needs_grad
from fastpack.torch.layout import TensorLayout, from_lengths, from_packed, is_vector, only_lengths

JOINED_BELOW = 4096  # bytes a sequence, see _as_listed


def pack_padded_sequence(
    input: Tensor, lengths: Tensor | list[int], batch_first: bool = False, enforce_sorted: bool = True, *, allow_empty: bool = False
) -> PackedSequence:
    """Pack a padded batch, as torch.nn.utils.rnn.pack_padded_sequence.

    Parameters
    ----------
    input : Tensor (T, B, ...), or (B, T, ...) where `batch_first`
    lengths : Tensor of int (B,), or list of int
        On the CPU; 1 <= lengths[i] <= T, or 0 where `allow_empty`.
    batch_first : bool
    enforce_sorted : bool
        Whether the lengths must not increase; the result then has no index tensors.
    allow_empty : bool
        Whether sequences of length 0 are accepted. They have no row, keep their place in `sorted_indices`, and sort last;
        the result then has index tensors even where `enforce_sorted`.

    Returns
    -------
    PackedSequence
        Equal lengths keep the caller's order, on every machine.

    Raises
    ------
    RuntimeError, IndexError
        As torch; and where a length is above T, or there are fewer lengths than sequences.
    TypeError
        `lengths` is not of integers.

    Examples
    --------
    >>> padded = torch.tensor([[[1.0], [2.0], [3.0]], [[9.0], [0.0], [0.0]]])
    >>> packed = pack_padded_sequence(padded, [3, 1], batch_first=True)
    >>> packed.data.flatten().tolist(), packed.batch_sizes.tolist()
    ([1.0, 9.0, 2.0, 3.0], [2, 1, 1])
    """
    if not (is_eager() and is_dense(input)):
        return theirs.pack_padded_sequence(input, lengths, batch_first, enforce_sorted)
    vector = _as_vector(lengths)
    shape = input.shape
    if vector is None or len(shape) < 2 or vector.shape[0] != shape[0 if batch_first else 1] or not (input.numel() or allow_empty):
        B = shape[0 if batch_first else 1] if len(shape) > 1 else 0
        problem = f"Expected `len(lengths)` to be equal to batch_size, but got {len(lengths)} (batch_size={B})"
        return _refused(input, lengths, batch_first, enforce_sorted, problem)
    facts = measure_lengths(vector.data_ptr(), vector.shape[0], shape[1 if batch_first else 0])
    problem = _problem(facts, vector, shape[1 if batch_first else 0], enforce_sorted, allow_empty)
    if problem:
        return _refused(input, lengths, batch_first, enforce_sorted, problem)
    layout = from_lengths(vector, facts.longest, facts.total)
    if needs_grad(input):
        data = move(Padded(batch_first, shape[1 if batch_first else 0]), Form.PACKED, layout, input)
    else:
        data = moves.pack_padded(input, layout, batch_first)
    return _packed_sequence(data, layout, enforce_sorted and facts.empty < 0)


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pad a packed batch, as torch.nn.utils.rnn.pad_packed_sequence.

    Parameters
    ----------
    sequence : PackedSequence
    batch_first : bool
    padding_value : float
    total_length : int, optional
        The number of steps of the result, at least that of the longest sequence, which it is otherwise.

    Returns
    -------
    padded : Tensor (T, B, ...), or (B, T, ...) where `batch_first`
        Contiguous.
    lengths : int64 Tensor (B,) on the CPU

    Raises
    ------
    ValueError, RuntimeError
        As torch; and where `batch_sizes` do not add up to the rows of `data`.

    Examples
    --------
    >>> packed = pack_sequence([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0])])
    >>> pad_packed_sequence(packed, batch_first=True)
    (tensor([[1., 2., 3.],
            [9., 0., 0.]]), tensor([3, 1]))
    """
    layout = _layout(sequence)
    if layout is None or (total_length is not None and (type(total_length) is not int or total_length < layout.num_steps)):
        return theirs.pad_packed_sequence(_whole(sequence), batch_first, padding_value, total_length)
    steps = layout.num_steps if total_length is None else total_length
    if needs_grad(sequence.data):
        padded = move(Form.PACKED, Padded(batch_first, steps, padding_value=padding_value), layout, sequence.data)
    else:
        padded = moves.unpack_padded(sequence.data, layout, batch_first, steps, padding_value)
    return padded, layout.lengths


def pack_sequence(sequences: list[Tensor], enforce_sorted: bool = True, *, allow_empty: bool = False) -> PackedSequence:
    """Pack a list of sequences, as torch.nn.utils.rnn.pack_sequence, but straight: nothing is padded on the way.

    Parameters
    ----------
    sequences : list of B Tensors (T_i, ...)
    enforce_sorted, allow_empty : bool
        As for `pack_padded_sequence`.

    Returns
    -------
    PackedSequence

    Raises
    ------
    RuntimeError
        As torch.
    TypeError
        A sequence is of a dtype whose values the first sequence's dtype cannot hold, such as floats beside integers.

    Examples
    --------
    >>> packed = pack_sequence([torch.tensor([9]), torch.tensor([1, 2, 3])], enforce_sorted=False)
    >>> packed.data.tolist(), packed.batch_sizes.tolist(), packed.sorted_indices.tolist()
    ([1, 9, 2, 3], [2, 1, 1], [1, 0])
    """
    listed = _as_listed(sequences)
    if listed is None:
        return theirs.pack_sequence(sequences, enforce_sorted)
    facts = measure_lengths(listed.lengths.data_ptr(), len(listed.tensors), 2**63 - 1)
    if _problem(facts, listed.lengths, facts.longest, enforce_sorted, allow_empty) or not (facts.total or allow_empty):
        return theirs.pack_sequence(sequences, enforce_sorted)
    layout = from_lengths(listed.lengths, facts.longest, facts.total)
    if listed.values is not None:
        data = moves.pack_ragged(listed.values, layout)
    elif listed.needs_grad:
        data = move(Form.LISTED, Form.PACKED, layout, *listed.tensors)
    else:
        data = moves.pack_listed(listed.tensors, layout)
    return _packed_sequence(data, layout, enforce_sorted and facts.empty < 0)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """Return the sequences of a packed batch, as torch.nn.utils.rnn.unpack_sequence.

    Parameters
    ----------
    packed_sequences : PackedSequence

    Returns
    -------
    list of B Tensors (T_i, ...)
        In the caller's order, each with memory of its own.

    Raises
    ------
    RuntimeError
        As for `pad_packed_sequence`.

    Examples
    --------
    >>> unpack_sequence(pack_sequence([torch.tensor([1, 2, 3]), torch.tensor([9])]))
    [tensor([1, 2, 3]), tensor([9])]
    """
    layout = _layout(packed_sequences)
    if layout is None:
        return theirs.unpack_sequence(_whole(packed_sequences))
    if needs_grad(packed_sequences.data):
        return list(move(Form.PACKED, Form.LISTED, layout, packed_sequences.data))
    return list(moves.unpack_listed(packed_sequences.data, layout))


def pad_sequence(
    sequences: Tensor | list[Tensor], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    """Pad a list of sequences, as torch.nn.utils.rnn.pad_sequence.

    Parameters
    ----------
    sequences : list of B Tensors (T_i, ...)
    batch_first : bool
    padding_value : float
    padding_side : 'right' or 'left'

    Returns
    -------
    Tensor (T, B, ...), or (B, T, ...) where `batch_first`

    Raises
    ------
    RuntimeError
        As torch.
    TypeError
        A sequence is of a dtype whose values the first sequence's dtype cannot hold, such as floats beside integers.

    Examples
    --------
    >>> pad_sequence([torch.tensor([1, 2, 3]), torch.tensor([9])], batch_first=True, padding_side="left")
    tensor([[1, 2, 3],
            [0, 0, 9]])
    """
    if isinstance(sequences, Iterable) and not isinstance(sequences, (list, tuple)):
        sequences = list(sequences)
    listed = _as_listed(sequences)
    if listed is None or padding_side not in ("right", "left"):
        return theirs.pad_sequence(sequences, batch_first, padding_value, padding_side)
    lengths = listed.lengths
    facts = measure_lengths(lengths.data_ptr(), len(listed.tensors), 2**63 - 1)
    form = Padded(batch_first, facts.longest, int(padding_side == "right"), padding_value)
    if listed.values is not None:
        return moves.pad_ragged(listed.values, lengths, *form)
    if listed.needs_grad:
        padded: Tensor = move(Form.LISTED, form, only_lengths(lengths), *listed.tensors)
        return padded
    return moves.pad_listed(listed.tensors, lengths, *form)


def unpad_sequence(padded_sequences: Tensor, lengths: Tensor, batch_first: bool = False) -> list[Tensor]:
    """Return the sequences of a padded batch, as torch.nn.utils.rnn.unpad_sequence, which changes its argument's shape.

    Parameters
    ----------
    padded_sequences : Tensor (T, B, ...), or (B, T, ...) where `batch_first`
        Left as it is.
    lengths : Tensor of int (B,)
        0 <= lengths[i] <= T.
    batch_first : bool

    Returns
    -------
    list of B Tensors (T_i, ...)

    Raises
    ------
    ValueError
        As torch, where there are not B lengths.
    RuntimeError
        A length is negative or above T.
    TypeError
        `lengths` is not of integers.

    Examples
    --------
    >>> unpad_sequence(torch.tensor([[1, 2, 3], [9, 0, 0]]), torch.tensor([3, 1]), batch_first=True)
    [tensor([1, 2, 3]), tensor([9])]
    """
    if not (is_eager() and is_dense(padded_sequences) and padded_sequences.dim() >= 2):
        # torch transposes its argument in place: give it one that is not the caller's
        return theirs.unpad_sequence(padded_sequences if batch_first else padded_sequences.transpose(0, 1), lengths, True)
    vector = _as_vector(lengths)
    B, T = padded_sequences.shape[:2] if batch_first else padded_sequences.shape[1::-1]
    if vector is None or vector.shape[0] != B:
        return theirs.unpad_sequence(padded_sequences if batch_first else padded_sequences.transpose(0, 1), lengths, True)
    facts = measure_lengths(vector.data_ptr(), B, T)
    problem = _problem(facts, vector, T, enforce_sorted=False, allow_empty=True)
    if problem:
        raise RuntimeError(problem)
    if needs_grad(padded_sequences):
        return list(move(Padded(batch_first, T), Form.LISTED, only_lengths(vector), padded_sequences))
    return list(moves.unpad_listed(padded_sequences, vector, batch_first))


def _as_vector(lengths: Any) -> Tensor | None:
    """Return lengths as a contiguous int64 vector of the CPU, or None where torch's own function shall say what is wrong."""
    if type(lengths) is Tensor and is_vector(lengths):
        return lengths
    if isinstance(lengths, (list, tuple)) and set(map(type, lengths)) <= {int}:
        return torch.tensor(lengths, dtype=torch.int64, device="cpu")
    given = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")  # which raises as torch does
    dtype = given.dtype
    if dtype is torch.bool or dtype.is_floating_point or dtype.is_complex:
        raise TypeError(f"lengths is of dtype {dtype}, not of an integer dtype: torch would cut its values, convert them yourself")
    return given.to(torch.int64).contiguous() if is_dense(given) and given.dim() == 1 else None


def _problem(facts: LengthFacts, lengths: Tensor, T: int, enforce_sorted: bool, allow_empty: bool) -> str:
    """Say what is wrong with lengths, for where torch does not; '' where nothing is."""
    if facts.negative >= 0:
        return f"lengths[{facts.negative}] is {int(lengths[facts.negative])}, but a length is never negative"
    if facts.empty >= 0 and not allow_empty:
        return f"lengths[{facts.empty}] is 0: pass allow_empty=True to accept sequences without any row"
    if facts.too_long >= 0:
        return f"lengths[{facts.too_long}] is {int(lengths[facts.too_long])}, but the padded batch has only {T} steps"
    if facts.rise >= 0 and enforce_sorted:
        return "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True."
    return "lengths add up to more rows than int64 can count" if facts.total < 0 else ""


def _refused(input: Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool, problem: str) -> PackedSequence:
    """Raise torch's error where it has one, and ours where torch would go on with a wrong result."""
    theirs.pack_padded_sequence(input, lengths, batch_first, enforce_sorted)
    raise RuntimeError(problem)


class _Listed(NamedTuple):
    """A list of sequences that the kernels take: of one dtype and one trailing shape."""

    tensors: Sequence[Tensor]
    lengths: Tensor  # (B,)
    needs_grad: bool
    values: Tensor | None  # all rows, one sequence after another, where short sequences were joined


def _as_listed(sequences: Any) -> _Listed | None:
    """Return sequences checked, or None where torch's own function shall convert, broadcast or refuse them.

    Short sequences are joined first: torch.cat looks at a tensor in 0.09 us, where asking it from Python for all that must
    be known before its address can be used takes 0.4. From 4 KB a sequence on, the copy would cost more than that.

    Raises
    ------
    TypeError
        torch would cut values of one dtype to fit another.
    """
    if not isinstance(sequences, (list, tuple)) or not sequences or not is_eager() or not set(map(type, sequences)) <= PLAIN_TYPES:
        return None
    try:
        shapes = [sequence.shape for sequence in sequences]
    except RuntimeError:  # a nested tensor has none
        return None
    first, shape = sequences[0], shapes[0]
    if not shape or set(map(len, shapes)) != {len(shape)}:
        return None
    counts, *trailing = zip(*shapes, strict=True)
    if any(len(set(sizes)) > 1 for sizes in trailing):
        return None
    lengths = torch.frombuffer(array("q", counts), dtype=torch.int64)  # torch.tensor takes 10 times as long
    wanted = torch.is_grad_enabled() and any([sequence.requires_grad for sequence in sequences])
    if not wanted and sum(counts) * prod(shape[1:]) * first.element_size() < JOINED_BELOW * len(sequences):
        try:
            values = torch.cat(sequences)
        except RuntimeError:
            return None
        if values.dtype is first.dtype and is_dense(values):
            return _Listed(sequences, lengths, False, values)
    if not are_dense(sequences) or not _are_of_one_dtype(sequences):
        return None
    return _Listed(sequences, lengths, wanted, None)


def _are_of_one_dtype(sequences: Sequence[Tensor]) -> bool:
    if len({sequence.dtype for sequence in sequences}) == 1:
        return True
    first = sequences[0].dtype
    for k, sequence in enumerate(sequences):
        if not torch.can_cast(sequence.dtype, first):
            raise TypeError(f"sequences[{k}] is of {sequence.dtype}, but sequences[0] is of {first}, which cannot hold its values")
    return False


def _layout(sequence: Any) -> TensorLayout | None:
    if not isinstance(sequence, PackedSequence) or not is_eager() or not is_dense(sequence.data) or sequence.data.dim() == 0:
        return None
    return from_packed(sequence)


def _whole(sequence: Any) -> Any:
    """Refuse a packed batch that torch would unpack in part: rows of `data` that no batch size counts."""
    if isinstance(sequence, PackedSequence) and is_eager() and sequence.batch_sizes.is_cpu and sequence.data.dim():
        counted, rows = int(sequence.batch_sizes.sum()), sequence.data.shape[0]
        if counted < rows:
            raise RuntimeError(f"batch_sizes add up to {counted}, but data has {rows} rows")
    return sequence


def _packed_sequence(data: Tensor, layout: TensorLayout, is_sorted: bool) -> PackedSequence:
    if is_sorted:
        return _assembled(data, layout.batch_sizes, None, None)
    return _assembled(data, layout.batch_sizes, layout.sorted_indices, layout.unsorted_indices)


def _assembled(*fields: Tensor | None) -> PackedSequence:
    # past PackedSequence.__new__, whose checks of its arguments hold by construction here and cost as much as the kernel
    return tuple.__new__(PackedSequence, fields)
