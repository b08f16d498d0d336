"""The form of samples: tuples, named tuples, lists, dicts and dataclasses; taken apart, put together again, and compared."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

EMPTY = "a sequence of length 0: pass allow_empty=True to accept sequences without any row"
PACKED = "a PackedSequence, but what is packed are tensors: give its sequences (unpack_sequence) in its place"


def is_container(value: Any) -> bool:
    """Whether a value has fields."""
    if isinstance(value, (Tensor, np.ndarray, PackedSequence, int, float, str)):  # the last for speed: most labels are
        return False
    return isinstance(value, (tuple, list, Mapping)) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def columns_of(values: Sequence[Any]) -> dict[Any, Sequence[Any]]:
    """Return the fields of containers that are alike, each as its B values.

    Raises
    ------
    ValueError
        They are not alike.
    """
    first = values[0]
    keys = _keys(first)
    if len(set(map(type, values))) > 1:
        raise ValueError(_unlike_forms(values))
    if isinstance(first, (tuple, list)):
        try:
            return dict(zip(keys, zip(*values, strict=True), strict=True))
        except ValueError:
            raise ValueError(_unlike_forms(values)) from None
    if not isinstance(first, Mapping):
        return {key: [getattr(value, key) for value in values] for key in keys}
    if not all([value.keys() == keys for value in values]):
        raise ValueError(_unlike_forms(values))
    return {key: [value[key] for value in values] for key in keys}


def rebuilt(first: Any, made: list[Any]) -> Any:
    """Return a container like `first`, with the fields `made`; a list in place of a tuple, as torch's default_collate has it."""
    if isinstance(first, (tuple, list)):
        return type(first)(*made) if hasattr(first, "_fields") else made
    if isinstance(first, Mapping):
        fields = dict(zip(first, made, strict=True))
        if isinstance(first, MutableMapping):
            clone = copy.copy(first)  # it may have more than its fields, as a defaultdict does
            clone.update(fields)
            return clone
        return type(first)(fields)  # type: ignore[call-arg]
    clone = copy.copy(first)  # past __init__, which is there for samples
    for key, field in zip(_keys(first), made, strict=True):
        object.__setattr__(clone, key, field)
    return clone


def unlike(values: Sequence[Any], are_sequences: bool, allow_empty: bool) -> str:
    """Say which of a field's values, or of sequences, does not fit the first, and why; '' where that is not the reason."""
    first = values[0]
    for k, value in enumerate(values):
        if are_sequences and isinstance(value, PackedSequence):
            return f"sample {k} is {PACKED}"
        if are_sequences and not (isinstance(value, (Tensor, np.ndarray)) and value.ndim) and type(value) is not list:
            return f"sample {k} is {_described(value)}, which is no sequence"
        if isinstance(value, (Tensor, np.ndarray)) and isinstance(first, (Tensor, np.ndarray)):
            shapes = (value.shape[1:], first.shape[1:]) if are_sequences else (value.shape, first.shape)
            if shapes[0] != shapes[1] or value.ndim != first.ndim:
                way_out = "" if are_sequences else "; if it is a sequence, name it among `fields`"
                return f"sample {k} is of shape {tuple(value.shape)}, but sample 0 of {tuple(first.shape)}{way_out}"
        if type(value) is not type(first) or getattr(value, "dtype", None) != getattr(first, "dtype", None):
            return f"sample {k} is {_described(value)}, but sample 0 is {_described(first)}"
        if are_sequences and not allow_empty and not len(value):
            return f"sample {k} is {EMPTY}"
    return ""


def _keys(value: Any) -> Any:
    if isinstance(value, (tuple, list)):  # which is quicker to ask than what is abstract
        return getattr(value, "_fields", range(len(value)))
    if isinstance(value, Mapping):
        return value.keys()
    return [field.name for field in dataclasses.fields(value)]


def _unlike_forms(values: Sequence[Any]) -> str:
    first = values[0]
    for k, value in enumerate(values):
        if type(value) is not type(first):
            return f"sample {k} is {_described(value)}, but sample 0 is {_described(first)}"
        if _keys(value) != _keys(first):
            return f"sample {k} has {_listed(_keys(value))}, but sample 0 has {_listed(_keys(first))}"
    return "samples are not alike"


def _listed(keys: Iterable[Any]) -> str:
    return f"{len(keys)} items" if isinstance(keys, range) else f"the fields {sorted(map(str, keys))}"


def _described(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    kind = type(value).__name__
    return f"of type {kind}" + (f" and dtype {dtype}" if dtype is not None else "")
