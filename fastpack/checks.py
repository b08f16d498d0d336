"""Each rule on arguments of the NumPy level, and its message, once."""

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fastpack.layout import LengthFacts, measure_layout, measure_lengths

Array = npt.NDArray[Any]
Int64Array = npt.NDArray[np.int64]
LARGEST = 2**63 - 1


def address(array: Array) -> int:
    """Return where an array's first element is."""
    where: int = array.ctypes.data
    return where


def array(value: Any, name: str) -> Array:
    """Return `value` as a plain array of values that can be moved as bytes."""
    if type(value) is not np.ndarray:
        if isinstance(value, (str, bytes, dict, set, frozenset)) or value is None:
            raise TypeError(f"{name} is {_described(value)}, not an array of rows: pass an array, or a list of numbers")
        if hasattr(value, "mask"):
            raise TypeError(f"{name} is a masked array, whose mask would be lost: pass {name}.filled(...) or {name}.compressed()")
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} is not a regular array: {error}") from error
    if value.dtype.hasobject or value.dtype.kind == "T":
        raise TypeError(
            f"{name} is of dtype {value.dtype}, whose values are references to Python objects: convert it to a dtype of fixed size"
        )
    result: Array = value
    return result


def rows(value: Any, name: str, dimensions: int = 1) -> Array:
    """Return `value` as an array of at least so many dimensions."""
    result = array(value, name)
    if result.ndim < dimensions:
        raise ValueError(f"{name} has {result.ndim} dimensions, but needs at least {dimensions}: its shape is {result.shape}")
    return result


def integers(value: Any, name: str) -> Int64Array:
    """Return `value`, a list, tuple or array of integers, as a contiguous int64 vector."""
    if isinstance(value, (list, tuple)) and not _all_integers(value):
        k = next(k for k, item in enumerate(value) if not _is_integer(item))
        raise TypeError(f"{name}[{k}] is {value[k]!r}, not an integer: convert it, or drop it")
    given = value if isinstance(value, (list, tuple)) else array(value, name)
    try:
        found = np.asarray(given, dtype=np.int64 if len(given) == 0 and isinstance(given, (list, tuple)) else None)
    except (OverflowError, TypeError) as error:
        raise TypeError(f"{name} cannot be read as a vector of integers: {error}") from error
    if found.dtype.kind not in "iu":
        if found.dtype == object:
            raise ValueError(f"{name} has an entry beyond the range of int64")
        raise TypeError(f"{name} is of dtype {found.dtype}, not of an integer dtype: convert it, as by {name}.astype(np.int64)")
    if found.ndim != 1:
        raise ValueError(f"{name} has the shape {found.shape}, but needs one dimension")
    if found.dtype.kind == "u" and found.size and found.max() > LARGEST:
        raise ValueError(f"{name}[{int(found.argmax())}] is {found.max()}, beyond the range of int64")
    return np.ascontiguousarray(found, dtype=np.int64)


def lengths(value: Any, B: int | None = None, limit: int = LARGEST, steps_of: str = "padded") -> tuple[Int64Array, LengthFacts]:
    """Return checked lengths and their facts; `limit` is how many steps the array named `steps_of` has."""
    vector = integers(value, "lengths")
    if B is not None and len(vector) != B:
        raise ValueError(f"lengths has {len(vector)} entries, but {steps_of} has {B} sequences: pass one length for each")
    if len(vector) == 0:
        raise ValueError("lengths is empty: a batch needs at least one sequence")
    facts = measure_lengths(address(vector), len(vector), limit)
    if facts.negative >= 0:
        raise ValueError(f"lengths[{facts.negative}] is {vector[facts.negative]}, but a length is 0 or more")
    if facts.too_long >= 0:
        k = facts.too_long
        raise ValueError(f"lengths[{k}] is {vector[k]}, but {steps_of} has only {limit} steps")
    if facts.total < 0:
        raise OverflowError("lengths add up to more rows than int64 can count")
    return vector, facts


def offsets(value: Any, N: int) -> Int64Array:
    """Return checked offsets of sequences that follow each other in N rows."""
    vector = integers(value, "offsets")
    if len(vector) < 2:
        raise ValueError(f"offsets has {len(vector)} entries, but needs B + 1, at least 2: 0, then where each sequence ends")
    if vector[0] != 0:
        raise ValueError(f"offsets[0] is {vector[0]}, but offsets start at 0: cut values and offsets to the part that you mean")
    falls = np.flatnonzero(vector[1:] < vector[:-1])
    if len(falls):
        k = int(falls[0]) + 1
        raise ValueError(f"offsets[{k}] is {vector[k]}, but offsets never decrease and offsets[{k - 1}] is {vector[k - 1]}")
    if vector[-1] != N:
        raise ValueError(f"offsets[{len(vector) - 1}] is {vector[-1]}, but offsets end at the number of rows, and values has {N}")
    return vector


def sequences(value: Iterable[Any]) -> list[Array]:
    """Return the arrays of a list of sequences, all of one dtype and one trailing shape."""
    if isinstance(value, (str, bytes, dict, set, frozenset)) or not isinstance(value, Iterable):
        raise TypeError(f"sequences is {_described(value)}, not a list of arrays: pass a list with one array a sequence")
    arrays = [
        item if type(item) is np.ndarray and not item.dtype.hasobject else array(item, f"sequences[{k}]") for k, item in enumerate(value)
    ]
    if not arrays:
        raise ValueError("sequences is empty: a batch needs at least one sequence")
    first = arrays[0]
    if first.ndim == 0:
        raise ValueError(f"sequences[0] is the single value {first[()]!r}, not a sequence of rows: give it a first dimension for the steps")
    dtype, trailing, dimensions = first.dtype, first.shape[1:], first.ndim
    for k, item in enumerate(arrays):
        if item.dtype is not dtype and item.dtype != dtype:
            raise TypeError(f"sequences[{k}] is of dtype {item.dtype}, but sequences[0] is of {dtype}: convert them to one dtype first")
        if item.ndim != dimensions or item.shape[1:] != trailing:
            raise ValueError(
                f"sequences[{k}] has rows of shape {item.shape[1:]}, but those of sequences[0] have {trailing}: its shape is {item.shape}"
            )
    return arrays


def layout(batch_sizes: Any, sorted_indices: Any, unsorted_indices: Any, N: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return the three checked vectors of a packed batch of N rows."""
    sizes = integers(batch_sizes, "batch_sizes")
    order, places = integers(sorted_indices, "sorted_indices"), integers(unsorted_indices, "unsorted_indices")
    B = len(order)
    if B == 0:
        raise ValueError("sorted_indices is empty: a packed batch has at least one sequence")
    if len(places) != B:
        raise ValueError(f"unsorted_indices has {len(places)} entries, but sorted_indices has {B}")
    facts = measure_layout(address(sizes), len(sizes), address(order), address(places), B)
    if facts.bad_step >= 0:
        t = facts.bad_step
        above = f"batch_sizes[{t - 1}] is {sizes[t - 1]}" if t else f"there are {B} sequences"
        raise ValueError(f"batch_sizes[{t}] is {sizes[t]}, but batch sizes are at least 1 and never grow, and {above}")
    if facts.total != N:
        raise ValueError(f"batch_sizes add up to {facts.total}, but data has {N} rows")
    if facts.bad_index >= 0:
        k = facts.bad_index
        if not 0 <= order[k] < B:
            raise ValueError(f"sorted_indices[{k}] is {order[k]}, but it is a permutation of 0 to {B - 1}")
        raise ValueError(
            f"unsorted_indices[{order[k]}] is {places[order[k]]}, but sorted_indices[{k}] is {order[k]}: each must be the inverse permutation of the other"
        )
    return sizes, order, places


def padding(value: Any, dtype: np.dtype[Any]) -> Array:
    """Return `value` as a scalar of `dtype` that holds it exactly, or rounded where both are floating."""
    zero = np.zeros((), dtype)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0 and dtype.kind not in "iufc":
        return zero  # 0 is every dtype's zero, as np.zeros has it
    refusal = f"padding_value is {value!r}, which dtype {dtype} cannot hold"
    try:
        with np.errstate(all="raise", under="ignore"):
            held = np.empty((), dtype)
            held[()] = value
    except (ValueError, TypeError, OverflowError, FloatingPointError) as error:
        raise ValueError(f"{refusal}: {error}") from error
    if not _holds(held, value):
        raise ValueError(refusal)
    return held


def _holds(held: Array, value: Any) -> bool:
    """Whether nothing but the rounding of a float was lost when `held` was made of `value`."""
    given = np.asarray(value)
    kind = held.dtype.kind
    if kind in "iub":
        return given.dtype.kind in "iubf" and bool(held == given)
    if kind in "fc":
        if given.dtype.kind not in "iubfc" or (given.dtype.kind == "c" and kind == "f"):
            return False
        return bool(np.isfinite(held) == np.isfinite(given))
    if kind in "SU":
        return given.dtype.kind in "SU" and len(held[()]) == len(given[()])
    return True


def count(value: Any, name: str, least: int) -> int:
    """Return `value` as an integer of at least `least`."""
    if not _is_integer(value):
        raise TypeError(f"{name} is {value!r}, not an integer")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} is {number}, but needs at least {least}")
    return number


def choice(value: Any, name: str, among: tuple[str, ...]) -> str:
    """Return `value`, one of `among`."""
    if value not in among:
        raise ValueError(f"{name} is {value!r}, but can only be {' or '.join(map(repr, among))}")
    chosen: str = value
    return chosen


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _all_integers(values: list[Any] | tuple[Any, ...]) -> bool:
    kinds = set(map(type, values))
    return kinds <= {int} or all(map(_is_integer, values))


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
