"""torch.nn.utils.rnn's functions under torch's names, arguments, defaults and messages, by the kernels.

Each function has one fast way through. Whatever does not fit it, an unusual tensor or a mistake, is given to torch's own
function, which does the one slowly and raises its own error for the other. Only where torch would go on with a wrong result
is there an error of ours.
"""

import operator
from array import array
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import rnn as theirs
from torch.nn.utils.rnn import PackedSequence

from fastpack.layout import LengthFacts, measure_lengths
from fastpack.torch import moves
from fastpack.torch.autograd import Form, Padded, move
from fastpack.torch.bridge import is_dense, is_eager, needs_grad
from fastpack.torch.layout import TensorLayout, check_batch_sizes, from_lengths, from_packed, is_vector, only_lengths
from fastpack.torch.listed import as_listed

REALS = {float, int, bool}


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
    if not (is_eager() and is_dense(input) and input.dim() > 1 and type(batch_first) is bool):
        return theirs.pack_padded_sequence(input, lengths, batch_first, enforce_sorted)
    vector = _as_vector(lengths)
    B, T = input.shape[:2] if batch_first else input.shape[1::-1]
    if vector is None or vector.shape[0] != B or not (input.numel() or (allow_empty and B)):
        # torch raises for all of these but a wrong count of lengths that it sorts
        theirs.pack_padded_sequence(input, lengths, batch_first, enforce_sorted)
        raise RuntimeError(f"Expected `len(lengths)` to be equal to batch_size, but got {len(lengths)} (batch_size={B})")
    facts = measure_lengths(vector.data_ptr(), B, T)
    problem = _problem(facts, vector, T, enforce_sorted, allow_empty)
    if problem:
        if not allow_empty and _is_refused_by_torch(facts, enforce_sorted):
            theirs.pack_padded_sequence(input, lengths, batch_first, enforce_sorted)
        raise RuntimeError(problem)
    layout = from_lengths(vector, facts.longest, facts.total)
    recorded = needs_grad(input)
    data = move(Padded(batch_first, T), Form.PACKED, layout, input) if recorded else moves.pack_padded(input, layout, batch_first)
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
    steps = 0 if layout is None else layout.num_steps if total_length is None else _as_count(total_length)
    if layout is None or steps < layout.num_steps or type(batch_first) is not bool or type(padding_value) not in REALS:
        return theirs.pad_packed_sequence(_whole(sequence), batch_first, padding_value, total_length)
    if needs_grad(sequence.data):
        padded = move(Form.PACKED, Padded(batch_first, steps, padding_value=padding_value), layout, sequence.data)
    else:
        padded = moves.unpack_padded(sequence.data, layout, batch_first, steps, padding_value)
    return padded, layout.lengths


def pack_sequence(sequences: list[Tensor], enforce_sorted: bool = True, *, allow_empty: bool = False) -> PackedSequence:
    """Pack a list of sequences, as torch.nn.utils.rnn.pack_sequence, but nothing is padded on the way; short ones are joined.

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
    listed = as_listed(sequences)
    if listed is None:
        return theirs.pack_sequence(sequences, enforce_sorted)
    facts = listed.facts
    problem = _problem(facts, listed.lengths, facts.longest, enforce_sorted, allow_empty)
    if problem and allow_empty:  # torch would first refuse what is empty
        raise RuntimeError(problem)
    if problem or not (allow_empty or listed.tensors[0].shape[1:].numel()):
        return theirs.pack_sequence(sequences, enforce_sorted)
    layout = from_lengths(listed.lengths, facts.longest, facts.total)
    if listed.values is not None:
        data = moves.pack_ragged(listed.values, layout)
    elif listed.needs_grad:
        data = move(Form.LISTED, Form.PACKED, layout, *listed.tensors)
    else:
        data = moves.pack_listed(listed.tensors, layout, listed.addresses)
    return _packed_sequence(data, layout, enforce_sorted and facts.empty < 0)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """Return the sequences of a packed batch, as torch.nn.utils.rnn.unpack_sequence.

    Parameters
    ----------
    packed_sequences : PackedSequence

    Returns
    -------
    list of B Tensors (T_i, ...)
        In the caller's order: parts of one new block of memory. Clone one that shall outlive the others, or be saved alone.

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
    listed = as_listed(sequences)
    fits = type(batch_first) is bool and type(padding_value) in REALS and padding_side in ("right", "left")
    if listed is None or not fits:
        return theirs.pad_sequence(sequences, batch_first, padding_value, padding_side)
    lengths = listed.lengths
    form = Padded(batch_first, listed.facts.longest, int(padding_side == "right"), float(padding_value))  # -1 fits no uint8, says torch
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
        Parts of one new block of memory, as those of `unpack_sequence`.

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
    taken = is_eager() and is_dense(padded_sequences) and padded_sequences.dim() >= 2
    vector = _as_vector(lengths) if taken else None
    if vector is None or vector.shape[0] != padded_sequences.shape[0 if batch_first else 1]:
        # torch transposes its argument in place: give it one that is not the caller's
        return theirs.unpad_sequence(padded_sequences if batch_first else padded_sequences.transpose(0, 1), lengths, True)
    B, T = padded_sequences.shape[:2] if batch_first else padded_sequences.shape[1::-1]
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
        try:
            return torch.frombuffer(array("q", lengths), dtype=torch.int64)  # in half the time of torch.tensor
        except (OverflowError, ValueError):  # beyond int64; or empty, which a buffer cannot be
            return torch.tensor(lengths, dtype=torch.int64, device="cpu")
    try:
        given = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        return None
    dtype = given.dtype
    if isinstance(lengths, (list, tuple)) and any([isinstance(length, bool) for length in lengths]):
        dtype = torch.bool  # which torch makes 0 and 1 of, beside numbers
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
        return "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True: you can pass `enforce_sorted=False`"
    return "lengths add up to more rows than int64 can count" if facts.total < 0 else ""


def _is_refused_by_torch(facts: LengthFacts, enforce_sorted: bool) -> bool:
    """Whether torch raises for such lengths. Where it would not, it must not even try: it makes room for the longest."""
    return facts.negative >= 0 or facts.empty >= 0 or (facts.rise >= 0 and enforce_sorted)


def _as_count(value: Any) -> int:
    """Return an integer of any type, such as NumPy's, as Python's own; -1 where it is none, for torch to refuse."""
    try:
        return -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return -1


def _layout(sequence: Any) -> TensorLayout | None:
    if not isinstance(sequence, PackedSequence) or not is_eager() or not is_dense(sequence.data) or sequence.data.dim() == 0:
        return None
    return from_packed(sequence)


def _whole(sequence: Any) -> Any:
    """Return a packed batch for torch to unpack; refused where torch would leave rows of `data` out, or write out of range."""
    if not isinstance(sequence, PackedSequence) or not is_eager():
        return sequence
    check_batch_sizes(sequence.data, sequence.batch_sizes)
    return sequence


def _packed_sequence(data: Tensor, layout: TensorLayout, is_sorted: bool) -> PackedSequence:
    if is_sorted:
        return _assembled(data, layout.batch_sizes, None, None)
    return _assembled(data, layout.batch_sizes, layout.sorted_indices, layout.unsorted_indices)


def _assembled(*fields: Tensor | None) -> PackedSequence:
    # past PackedSequence.__new__, whose checks of its arguments hold by construction here and cost as much as the kernel
    return tuple.__new__(PackedSequence, fields)
