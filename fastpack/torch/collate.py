"""From the samples of a batch to packed sequences and stacked rest: what a DataLoader calls in its worker."""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import default_collate

from fastpack.torch import transit
from fastpack.torch.arrays import pack_numpy, pack_ragged
from fastpack.torch.rnn_utils import pack_sequence, pad_packed_sequence
from fastpack.torch.samples import EMPTY, PACKED, columns_of, is_container, rebuilt, unlike

Rule = Callable[[str, Any], bool]

READ_AS = {int: torch.int64, bool: torch.int64, float: torch.float64}
RAISED_AS: dict[type, type[Exception]] = {TypeError: TypeError, AttributeError: TypeError, ValueError: ValueError}
STACKED_BELOW = 1 << 15  # bytes: from here on, stacking straight into shared memory, as torch does in workers, is worth it


class PackCollate:
    """Make a batch of samples: sequences are packed, the rest is stacked as torch's `default_collate` does it.

    A sample is a sequence, or a tuple, named tuple, list, dict or dataclass of fields, nested at will; a batch has the same form,
    with a tuple's fields in a list, as torch has it. (In dataclasses torch's `pin_memory` finds no tensors, unless they have a
    method of that name; in all other forms it does.) A field's name is the way to it: "tokens", "1" for the second of a tuple,
    "inputs.frames" for what is nested; "" for a sample that is nothing but a sequence.

    Unless `fields` says so, a field is a sequence where it has a dimension: any tensor or array but those of a single value, and
    any list of numbers. That holds for a vector of fixed size as well. Whether lengths happen to be equal never matters, so
    the form of all batches is one. Numbers, strings and tensors without dimension are stacked.

    Sequences of the same lengths share their index tensors: tokens and their targets have the same order, row by row. Those of
    other lengths have a layout of their own. What is stacked has the order of the samples, as `unpack_sequence` gives it.

    Parameters
    ----------
    fields : str, int, iterable of them, or callable, optional
        The names of the fields that are sequences; all others are stacked. Or a rule, called with a field's name and the first
        sample's value, which says so for each field, and has to give the same answer for each batch.
    padded : iterable of str or int, or mapping
        The names of the sequences that are wanted padded, or what each is padded with; 0 otherwise. In their place the batch has
        `(padded, lengths)`, as `pad_packed_sequence` returns it.
    batch_first : bool
        Whether padded sequences are (B, T, ...) or (T, B, ...).
    allow_empty : bool
        Whether sequences of length 0 are accepted, as of `pack_sequence`.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        When called: a field cannot be packed or stacked (the message names it, and the first sample that does not fit), samples
        have different fields, or a name is none of theirs. A list is taken as samples; a batch that its dataset has finished
        itself, such as one of `RaggedDataset`, is passed on.

    Examples
    --------
    >>> collate = PackCollate()
    >>> packed, label = collate([(torch.tensor([9]), 0), (torch.tensor([1, 2, 3]), 1)])
    >>> packed.data.tolist(), packed.batch_sizes.tolist(), label
    ([1, 9, 2, 3], [2, 1, 1], tensor([0, 1]))

    >>> samples = [{"tokens": [9], "tags": [0], "box": [5, 6]}, {"tokens": [1, 2, 3], "tags": [1, 0, 1], "box": [7, 8]}]
    >>> batch = PackCollate("tokens", padded={"tags": -100})(samples)
    >>> batch["tokens"].data, batch["box"]
    (tensor([1, 9, 2, 3]), [tensor([5, 7]), tensor([6, 8])])
    >>> batch["tags"]
    (tensor([[   0, -100, -100],
            [   1,    0,    1]]), tensor([1, 3]))
    """

    def __init__(
        self,
        fields: str | int | Iterable[str | int] | Rule | None = None,
        *,
        padded: Iterable[str | int] | Mapping[str | int, float] = (),
        batch_first: bool = True,
        allow_empty: bool = False,
    ) -> None:
        self.rule = fields if callable(fields) else None
        self.names = None if fields is None or callable(fields) else _names(fields, "fields")
        values = dict(padded) if isinstance(padded, Mapping) else dict.fromkeys(_names(padded, "padded"), 0.0)
        _names(values, "padded")
        self.padding_values = {str(name): value for name, value in values.items()}
        self.named = frozenset({*self.padding_values, *(self.names or ())})
        self.batch_first, self.allow_empty = batch_first, allow_empty

    def __call__(self, samples: Any) -> Any:
        """Return the batch of a list of samples."""
        if transit.in_worker_process():
            transit.send_small_tensors_as_bytes()
        if type(samples) is not list:
            return samples
        if not samples:
            raise ValueError("there is no sample: a batch needs at least one")
        batch = _Batch(self)
        made = batch.of("", samples)
        if not self.named <= batch.seen:
            raise ValueError(f"the samples have no field {min(self.named - batch.seen)!r}, but {sorted(batch.seen)}")
        return made

    def is_sequence(self, name: str, values: Sequence[Any]) -> bool:
        """Whether the field of this name, whose values in the samples are given, is packed or padded."""
        if name in self.padding_values:
            return True
        if self.names is not None:
            return name in self.names
        first = values[0]
        if self.rule is not None and (_are_lists_of_numbers(values) or not is_container(first)):
            return bool(self.rule(name, first))
        if isinstance(first, (Tensor, np.ndarray)):
            return first.ndim > 0
        return isinstance(first, PackedSequence) or _are_lists_of_numbers(values)  # the former to be refused


class _Batch:
    """One batch in the making: the layouts and the names of fields so far."""

    def __init__(self, collate: PackCollate) -> None:
        self.collate = collate
        self.layouts: list[_Layout] = []
        self.seen: set[str] = set()

    def of(self, name: str, values: Sequence[Any]) -> Any:
        """Return what B samples' values of a field become."""
        collate = self.collate
        is_sequence = collate.is_sequence(name, values)
        if not is_sequence and is_container(values[0]):
            prefix = f"{name}." if name else ""
            try:
                columns = columns_of(values)
            except ValueError as error:
                raise ValueError(f"{_said(name)}: {error}") from None
            return rebuilt(values[0], [self.of(f"{prefix}{key}", column) for key, column in columns.items()])
        self.seen.add(name)
        try:
            if not is_sequence:
                return _stacked(values)
            packed = self._sharing(_packed(values, collate.allow_empty))
        except Exception as error:
            problem = unlike(values, is_sequence, collate.allow_empty) or str(error)
            kind = RAISED_AS.get(type(error), RuntimeError)
            raise kind(f"{_said(name)}: {problem}") from error
        if name not in collate.padding_values:
            return packed
        return pad_packed_sequence(packed, collate.batch_first, collate.padding_values[name])

    def _sharing(self, packed: PackedSequence) -> PackedSequence:
        """Return the batch with the index tensors of an earlier field, if they are equal: one order, and one copy that is sent."""
        layout = _Layout(*cast(Any, packed[1:]))
        for earlier in self.layouts:
            if earlier.sorted_indices.device == layout.sorted_indices.device and all(map(torch.equal, earlier, layout)):
                return packed._replace(**earlier._asdict())
        self.layouts.append(layout)
        return packed


class _Layout(NamedTuple):
    """The index tensors of a packed field."""

    batch_sizes: Tensor
    sorted_indices: Tensor
    unsorted_indices: Tensor


def _packed(values: Sequence[Any], allow_empty: bool) -> PackedSequence:
    """Return sequences packed: tensors, arrays or lists."""
    first = values[0]
    if isinstance(first, Tensor):
        return pack_sequence(list(values), enforce_sorted=False, allow_empty=allow_empty)
    kinds = set(map(type, values))
    if kinds == {list}:
        return _pack_lists(values, allow_empty)
    if not all(issubclass(kind, np.ndarray) for kind in kinds):
        raise TypeError(f"{type(first).__name__} is no sequence")
    if not allow_empty and not all(map(len, values)):
        raise ValueError(EMPTY)
    return pack_numpy(values)


def _pack_lists(lists: Sequence[list[Any]], allow_empty: bool) -> PackedSequence:
    if not _are_lists_of_numbers(lists):
        return pack_sequence(list(map(torch.tensor, lists)), enforce_sorted=False, allow_empty=allow_empty)
    if not allow_empty and not all(lists):
        raise ValueError(EMPTY)
    kinds = set(map(type, chain.from_iterable(lists)))
    if len(kinds) != 1:
        found = " and ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
        raise TypeError(f"lists of {found} have no dtype that is the same in each batch: have the dataset make tensors of them")
    (kind,) = kinds
    dtype = torch.get_default_dtype() if kind is float else torch.bool if kind is bool else torch.int64
    return pack_ragged(_as_tensor(kind, chain.from_iterable(lists)).to(dtype), [0, *accumulate(map(len, lists))])


def _as_tensor(kind: type, numbers: Iterable[Any]) -> Tensor:
    """Return one number at least as a tensor of int64 or float64; torch.tensor takes four times as long."""
    return torch.frombuffer(array("d" if kind is float else "q", numbers), dtype=READ_AS[kind])


def _stacked(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, PackedSequence):  # default_collate would stack its tensors, and nothing would tell
        raise TypeError(f"sample 0 is {PACKED}")
    if type(first) in (int, float) and len(set(map(type, values))) == 1:
        return _as_tensor(type(first), values)
    if type(first) is Tensor and first.layout is torch.strided and first.nbytes * len(values) < STACKED_BELOW:
        return torch.stack(list(values))  # default_collate would do so as well, but put it in shared memory in a worker
    return default_collate(cast(Any, values))


def _are_lists_of_numbers(values: Sequence[Any]) -> bool:
    """Whether a field's values are lists whose first item is a number; that the others are is seen to when they are packed."""
    if type(values[0]) is not list or set(map(type, values)) != {list}:
        return False
    return type(next(chain.from_iterable(values), 0)) in READ_AS


def _names(given: Any, argument: str) -> frozenset[str]:
    names = [given] if isinstance(given, (str, int)) else list(given)
    for name in names:
        if type(name) not in (str, int):
            raise TypeError(f"{argument} has {name!r}, but names are strings, or integers for places in a tuple")
    return frozenset(map(str, names))


def _said(name: str) -> str:
    return f"field {name!r}" if name else "samples"
