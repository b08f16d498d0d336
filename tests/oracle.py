"""What the tests compare with: the plain NumPy twin, byte by byte, and arrays of every dtype and stride to compare on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from fastpack import Packed, reference

DTYPES = [
    *("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g", "F", "D", "G"),
    *("M8[s]", "M8[ns]", "m8[ms]", "S1", "S3", "S64", "U1", "U5", "V1", "V7", "V40", ">i2", ">u8", ">f4", ">c16", ">M8[D]", ">U2"),
    "i4,f8",  # structured
    [("id", ">i2"), ("at", [("x", "f4"), ("y", "f8")]), ("name", "U3"), ("box", "i1", (2, 3))],  # nested, with a part of 2 x 3
]
PADDED_STRUCT = np.dtype([("flag", "?"), ("value", "f8"), ("last", "i2")], align=True)  # with gaps between and behind its fields
ALL_DTYPES = [*map(np.dtype, DTYPES), PADDED_STRUCT]


def random_array(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    """Return any bytes at all: quiet and signalling NaNs, truths other than 0 and 1, what lies between a structure's fields."""
    dtype = np.dtype(dtype)
    return np.ndarray(shape, dtype, bytearray(np.random.default_rng(seed).bytes(max(1, prod(shape) * dtype.itemsize))))


def all_bytes(array: np.ndarray) -> bytes:
    """Return the bytes of each item: tobytes alone leaves out what lies between the fields of a structure."""
    return (array.view(f"V{array.itemsize}") if array.itemsize and not array.dtype.hasobject else array).tobytes()


def row_bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of each row: uint8 array (len(array), bytes of a row)."""
    return np.frombuffer(all_bytes(array), np.uint8).reshape(len(array), prod(array.shape[1:]) * array.itemsize)


def layout(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return batch_sizes, sorted_indices and unsorted_indices by the twin."""
    vector = np.array(lengths, np.int64)
    order, places = np.full_like(vector, -1), np.full_like(vector, -1)
    sizes = np.full(max(vector, default=0), -1, np.int64)
    reference.sort_by_length(vector, sizes, order, places, np.empty(len(vector) + 1, np.int64))
    return sizes, order, places


def assert_packed(packed: Packed, sequences: Sequence[np.ndarray]) -> None:
    """Compare with what the twin makes of the bytes of `sequences`."""
    lengths = [len(item) for item in sequences]
    first = sequences[0]
    sizes, order, places = layout(lengths)
    rows = [row_bytes(item) for item in sequences]
    data = np.full((sum(lengths), rows[0].shape[1]), 0xA5, np.uint8)
    reference.pack_listed(rows, order, sizes, data)
    assert packed.data.dtype == first.dtype
    assert packed.data.shape == (sum(lengths), *first.shape[1:])
    assert packed.data.flags.c_contiguous
    np.testing.assert_array_equal(row_bytes(packed.data), data)
    for found, expected in zip(packed[1:], (sizes, order, places), strict=True):
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected)


def assert_same_bytes(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare two arrays of any dtype: bits, shape and dtype."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert all_bytes(found) == all_bytes(expected)


def assert_same(found: Packed, expected: Packed) -> None:
    """Compare two packed batches bit for bit."""
    for one, other in zip(found, expected, strict=True):
        assert_same_bytes(one, other)


@contextmanager
def unchanged(*arrays: Any) -> Iterator[None]:
    """Fail where the memory of an array, what lies between its items too, is not afterwards what it was."""

    def snapshot() -> list[Any]:
        return [(all_bytes(base(item)), item.shape, item.strides) if isinstance(item, np.ndarray) else repr(item) for item in arrays]

    def base(item: np.ndarray) -> np.ndarray:
        while isinstance(item.base, np.ndarray):
            item = item.base
        return item

    before = snapshot()
    try:
        yield
    finally:
        assert snapshot() == before, "an input was changed"


def views(array: np.ndarray) -> dict[str, np.ndarray]:
    """Return arrays of the shape of `array` (T, ...) and of other strides, in memory of their own."""
    T = len(array)
    found = {"contiguous": array.copy(), "fortran": np.asfortranarray(array), "reversed": array[::-1].copy()[::-1]}
    spread = random_array((2 * T + 1, *array.shape[1:]), array.dtype, 5)
    found["every second"] = spread[1::2][:T]
    found["broadcast"] = np.broadcast_to(random_array((1, *array.shape[1:]), array.dtype, 6), array.shape)
    wide = random_array((T, *(size + 2 for size in array.shape[1:])), array.dtype, 7)
    found["cut"] = wide[(slice(None), *(slice(1, size + 1) for size in array.shape[1:]))]
    found["turned"] = random_array(array.shape[::-1], array.dtype, 8).transpose()
    found["read-only"] = array.copy()
    found["read-only"].flags.writeable = False
    shifted = bytearray(array.nbytes + 1)
    found["unaligned"] = np.ndarray(array.shape, array.dtype, shifted, offset=1)
    found["unaligned"][...] = array
    return found
