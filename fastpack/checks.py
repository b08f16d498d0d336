"""Each rule on arguments of the NumPy level, and its message, once."""

import cmath
import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastpack import headers
from fastpack.headers import Array as Array
from fastpack.headers import Headers
from fastpack.headers import Int64Array as Int64Array
from fastpack.headers import address as address
from fastpack.layout import LengthFacts, measure_layout, measure_lengths

LARGEST = 2**63 - 1
ROWS = "an array of rows: pass an array, or a list of numbers"
INTEGERS = "a vector of integers: pass an array of them, a list or a tuple"


def array(value: Any, name: str, wanted: str = ROWS) -> Array:
    """Return `value` as a plain array of values that can be moved as bytes."""
    if type(value) is not np.ndarray:
        if value is None or isinstance(value, (str, bytes, dict, set, frozenset)):
            raise TypeError(f"{name} is {described(value)}, not {wanted}")
        if any(map(_is_masked, value)) if isinstance(value, (list, tuple)) else _is_masked(value):
            raise TypeError(f"{name} is a masked array, whose mask would be lost: pass .filled(...) or .compressed() of it")
        given = value
        try:
            value = np.asarray(given)
        except ValueError as error:
            raise ValueError(f"{name} is not a regular array: {error}") from error
        except (TypeError, RuntimeError) as error:  # as of a tensor that NumPy cannot hold, or that is part of a graph
            raise TypeError(f"{name} cannot be read as a NumPy array: {error}") from error
        if value.dtype == object and value.ndim == 0:
            raise TypeError(f"{name} is {described(given)}, not {wanted}")
    if value.dtype.hasobject:
        raise TypeError(
            f"{name} is of dtype {value.dtype}, whose values are references to Python objects: convert it to a dtype of fixed size"
        )
    result: Array = value
    return result


def empty(shape: tuple[int, ...], dtype: Any, name: str) -> Array:
    """Return new memory for a result. Unlike np.empty, which widens an itemsize of 0, it is of exactly this dtype."""
    try:
        return np.ndarray(shape, dtype)
    except (ValueError, OverflowError) as error:
        raise OverflowError(f"{name} would have the shape {shape} and dtype {np.dtype(dtype)}: more bytes than int64 can count") from error


def rows(value: Any, name: str, dimensions: int = 1) -> Array:
    """Return `value` as an array of at least so many dimensions."""
    result = array(value, name)
    if result.ndim < dimensions:
        raise ValueError(f"{name} has {result.ndim} dimensions, but needs at least {dimensions}: its shape is {result.shape}")
    return result


def integers(value: Any, name: str) -> Int64Array:
    """Return `value`, a list, tuple or array of integers, as a contiguous int64 vector."""
    if isinstance(value, (list, tuple)):
        return _from_list(value, name)
    found = array(value, name, INTEGERS)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name} is of dtype {found.dtype}, not of an integer dtype: convert it, as by {name}.astype(np.int64)")
    if found.ndim != 1:
        raise ValueError(f"{name} has the shape {found.shape}, but needs one dimension")
    if found.dtype.kind == "u" and found.size and found.max() > LARGEST:
        k = int(np.argmax(found > LARGEST))
        raise ValueError(f"{name}[{k}] is {found[k]}, beyond the range of int64")
    return np.ascontiguousarray(found, dtype=np.int64)


def _from_list(values: list[Any] | tuple[Any, ...], name: str) -> Int64Array:
    if not set(map(type, values)) <= {int}:
        for k, item in enumerate(values):
            if not _is_integer(item):
                raise TypeError(f"{name}[{k}] is {item!r}, not an integer: convert it, or drop it")
        values = list(map(operator.index, values))
    try:
        return np.array(values, np.int64)
    except OverflowError:
        k = next(k for k, item in enumerate(values) if not -LARGEST - 1 <= item <= LARGEST)
        raise ValueError(f"{name}[{k}] is {values[k]}, beyond the range of int64") from None


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


def sequences(value: Iterable[Any]) -> tuple[list[Array], Headers]:
    """Return the arrays of a list of sequences, all of one dtype and one trailing shape, and where their rows are."""
    # an array or a tensor of one value says that it is iterable
    if isinstance(value, (str, bytes, dict, set, frozenset)) or not isinstance(value, Iterable) or getattr(value, "shape", None) == ():
        raise TypeError(f"sequences is {described(value)}, not a list of arrays: pass a list with one array a sequence")
    if hasattr(value, "batch_sizes"):
        raise TypeError(f"sequences is {described(value)}, which is packed already: take it apart with unpack first")
    arrays = list(value)
    if not set(map(type, arrays)) <= {np.ndarray}:
        arrays = _converted(arrays)
    if not arrays:
        raise ValueError("sequences is empty: a batch needs at least one sequence")
    found = headers.at_once(arrays)
    if found is None or arrays[0].dtype.hasobject or (found.shapes[:, 1:] != found.shapes[0, 1:]).any():
        _alike(arrays)
        found = headers.one_by_one(arrays)
    return arrays, found


def _alike(arrays: list[Array]) -> None:
    """Refuse the first array that is not as the first is."""
    first = arrays[0]
    dtype, trailing, dimensions = first.dtype, first.shape[1:], first.ndim
    if dtype.hasobject:
        array(first, "sequences[0]")
    for k, item in enumerate(arrays):
        shape = item.shape
        if not shape:
            raise ValueError(
                f"sequences[{k}] is the single value {item[()]!r}, not a sequence of rows: give it a first dimension for the steps"
            )
        if item.dtype is not dtype and item.dtype != dtype:
            raise TypeError(
                f"sequences[{k}] is of dtype {item.dtype}, but sequences[0] is of {dtype}: convert them to one dtype first, as by .astype"
            )
        if len(shape) != dimensions or (dimensions > 1 and shape[1:] != trailing):
            raise ValueError(
                f"sequences[{k}] has rows of shape {shape[1:]}, but those of sequences[0] have {trailing}: its shape is {shape}, "
                "and only the first dimension may differ"
            )


def _converted(items: list[Any]) -> list[Array]:
    """Return arrays in place of lists and the like. An empty list has no dtype and no trailing shape: it takes the others'."""
    arrays = {k: array(item, f"sequences[{k}]") for k, item in enumerate(items) if not (isinstance(item, (list, tuple)) and len(item) == 0)}
    first = next(iter(arrays.values()), np.empty(0))
    nothing = empty((0, *first.shape[1:]), first.dtype, "an empty list")
    return [arrays.get(k, nothing) for k in range(len(items))]


def layout(batch_sizes: Any, sorted_indices: Any, unsorted_indices: Any, N: int) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
    """Return the three checked vectors of a packed batch of N rows, and the lengths of its sequences."""
    sizes = integers(batch_sizes, "batch_sizes")
    order, places = integers(sorted_indices, "sorted_indices"), integers(unsorted_indices, "unsorted_indices")
    B = len(order)
    if B == 0:
        raise ValueError("sorted_indices is empty: a packed batch has at least one sequence")
    if len(places) != B:
        raise ValueError(f"unsorted_indices has {len(places)} entries, but sorted_indices has {B}")
    lengths = np.empty(B, np.int64)
    facts = measure_layout(address(sizes), len(sizes), address(order), address(places), B, address(lengths))
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
            f"unsorted_indices[{order[k]}] is {places[order[k]]}, but sorted_indices[{k}] is {order[k]}: "
            "each must be the inverse permutation of the other"
        )
    return sizes, order, places, lengths


def features(data: Array, F: int, dtype: np.dtype[Any]) -> Array:
    """Return rows (N, F) whose items lie side by side, copied only where they do not."""
    if data.dtype != dtype:
        raise TypeError(
            f"data is of dtype {data.dtype}, but the layer's weights are of {dtype}: convert one, as by packed.data.astype(np.{dtype})"
        )
    if data.ndim != 2 or data.shape[1] != F:
        raise ValueError(f"data has the shape {data.shape}, but needs (rows, input_size), and the layer's input_size is {F}")
    row_bytes, item_bytes = data.strides
    if data.flags.aligned and (F == 1 or item_bytes == data.itemsize) and row_bytes >= F * data.itemsize:
        return data
    return np.array(data, order="C")  # not np.ascontiguousarray, which would leave a single row's odd stride as it is


def state(value: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an initial state, contiguous."""
    found = array(value, name)
    if found.dtype != dtype:
        raise TypeError(f"{name} is of dtype {found.dtype}, but the layer's weights are of {dtype}: convert it, as by .astype(np.{dtype})")
    if found.shape != shape:
        raise ValueError(f"{name} has the shape {found.shape}, but needs (layers times directions, sequences, width), here {shape}")
    return np.require(found, requirements=["C", "A"])


def padding(value: Any, dtype: np.dtype[Any], name: str = "padding_value") -> Array:
    """Return `value` as an array () of `dtype`, which holds it exactly, or rounded where it is a float; 0 is every dtype's zero."""
    if getattr(value, "shape", None) == () and not isinstance(value, np.generic):
        value = np.asarray(value)[()]  # an array or a tensor of one value
    held: Array = np.ndarray((), dtype, bytearray(max(dtype.itemsize, 1)))  # zero, the gaps between fields too
    if _is_zero(value):
        return held
    refusal = f"{name} is {value!r}, which dtype {dtype} cannot hold"
    try:
        with np.errstate(all="raise", under="ignore"):
            kept = _put_fields(value, held, name) if dtype.names is not None else _put(value, held)
    except (ValueError, TypeError, OverflowError, FloatingPointError) as error:
        raise error if str(error).startswith(name) else ValueError(f"{refusal}: {error}") from error
    if not kept:
        raise ValueError(refusal)
    return held


def _put(value: Any, held: Array) -> bool:
    """Store `value` in `held` and return whether nothing but the rounding of a float was lost."""
    kind = held.dtype.kind
    if kind in "biufc":
        if not (_is_number(value) or isinstance(value, np.bool)) or (kind != "c" and isinstance(value, (complex, np.complexfloating))):
            return False
        held[...] = value
        return bool(held.item() == value) if kind in "biu" else bool(np.isfinite(held)) or not cmath.isfinite(value)
    if kind in "SU":
        if not isinstance(value, (str, bytes) if kind == "S" else str):
            return False
        held[...] = value
        return bool(held.item() == (value.encode() if kind == "S" and isinstance(value, str) else value))
    if kind in "mM":
        if value is None or (kind == "M" and _is_number(value)):
            return False
        moment = np.datetime64(value) if kind == "M" else np.timedelta64(value)
        held[...] = moment
        return bool(np.isnat(moment) or held == moment)
    if held.dtype.type is np.void:
        raw = value.tobytes() if isinstance(value, np.void) else value
        if not isinstance(raw, bytes) or len(raw) != held.itemsize:
            return False
        value = np.void(raw)
    held[...] = value
    return True


def _put_fields(value: Any, held: Array, name: str) -> bool:
    """Store a structured value of the same dtype, or a tuple of one value a field."""
    if isinstance(value, np.void) and value.dtype == held.dtype:
        held[...] = value
        return True
    names = held.dtype.names or ()
    if not isinstance(value, tuple) or len(value) != len(names):
        raise ValueError(f"{name} is {value!r}, but the fields are {', '.join(names)}: pass a tuple of one value for each")
    for field, part in zip(names, value, strict=True):
        held[field] = padding(part, held.dtype[field].base, f"{name}[{field!r}]")
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
    if not isinstance(value, str) or value not in among:
        raise ValueError(f"{name} is {value!r}, but can only be {' or '.join(map(repr, among))}")
    chosen: str = value
    return chosen


def _is_integer(value: Any) -> bool:
    """Whether Python takes `value` as an index; a bool, NumPy's or a tensor's too, is a truth and no count."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Number) and not isinstance(value, np.timedelta64)  # which NumPy counts among the integers


def _is_zero(value: Any) -> bool:
    """Whether `value` is the number 0, and not -0.0, which is a value of its own."""
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.timedelta64)):
        return False
    return bool(value == 0) and math.copysign(1.0, value) > 0


def _is_masked(value: Any) -> bool:
    return isinstance(value, np.ndarray) and hasattr(value, "mask")  # without importing numpy.ma


def counted(number: int, noun: str) -> str:
    """Return so many of something in words: 1 batch, 2 batches."""
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def described(value: Any) -> str:
    """Return what kind of object `value` is."""
    kind = type(value).__name__
    return "None" if value is None else f"an {kind}" if kind[0] in "aeiouAEIOU" else f"a {kind}"
