"""Reading the headers of many arrays at once: the same as their attributes, or not done at all."""

from collections.abc import Iterator

import numpy as np
import pytest

import fastpack
from fastpack import headers
from tests.oracle import ALL_DTYPES, assert_packed, assert_same, random_array, views

MANY = headers.AT_ONCE + 9


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What is known of arrays' layout is found out anew, before and after."""
    headers._trusted = None
    yield
    headers._trusted = None


def assert_headers(arrays: list[np.ndarray]) -> None:
    found, expected = headers.at_once(arrays), headers.one_by_one(arrays)
    assert found is not None
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == np.int64
        assert one.flags.c_contiguous
        np.testing.assert_array_equal(one, other)


def test_the_layout_is_known_here():
    assert headers.layout_is_known()  # else every long list is slow, and the tests below show nothing
    assert np.ndarray.__basicsize__ >= 8 * headers.WORDS


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_headers_of_every_dtype(dtype: np.dtype):
    assert_headers([random_array((k % 5, 3), dtype) for k in range(MANY)])


@pytest.mark.parametrize("shape", [(6,), (6, 1), (4, 2, 3), (2, 0), (0, 3), (1,) * 32], ids=str)
def test_headers_of_any_shape_and_strides(shape: tuple[int, ...]):
    base = random_array(shape, "f4")
    some = [base, base[::-1], base[:1], base[:0], base[::2], np.broadcast_to(base[:1], base.shape)]
    if len(shape) < 30:  # which takes a dimension more
        some += views(base).values()
    assert_headers((some * MANY)[:MANY])
    assert_headers([base] * MANY)


def test_reshaped_in_place():
    arrays = [np.arange(6.0) for _ in range(MANY)]
    for item in arrays:
        item.shape = (2, 3)
    assert_headers(arrays)


def test_what_is_not_read_at_once():
    base = np.zeros((3, 2))
    assert headers.at_once([base] * (headers.AT_ONCE - 1)) is None
    assert headers.at_once([base] * MANY + [base[0]]) is None
    assert headers.at_once([base] * MANY + [base.astype("f4")]) is None
    assert headers.at_once([np.array(1.0)] * MANY) is None  # no dimension, so no first row


class Subclass(np.ndarray):
    """May be laid out in any way behind its beginning, and may say anything of itself."""

    shape = (99,)  # type: ignore[assignment]


def test_subclasses_are_made_arrays_first():
    sequences = [np.arange(float(k)) for k in range(MANY)]
    assert_packed(fastpack.pack([item.view(Subclass) for item in sequences]), sequences)


def test_long_lists_are_refused_as_short_ones_are():
    base = np.zeros((3, 2))
    for odd, match in (
        (base[0], r"sequences\[25\] has rows"),
        (base.T, r"sequences\[25\] has rows"),
        (base[0, 0], r"sequences\[25\] is the single"),
    ):
        with pytest.raises(ValueError, match=match):
            fastpack.pack([base] * MANY + [np.asarray(odd)])
    with pytest.raises(TypeError, match=r"sequences\[25\] is of dtype float32"):
        fastpack.pack([base] * MANY + [base.astype("f4")])
    with pytest.raises(TypeError, match=r"sequences\[0\] is of dtype object"):
        fastpack.pack([base.astype(object)] * MANY)
    with pytest.raises(ValueError, match=r"sequences\[0\] is the single value"):
        fastpack.pack([np.array(1.0)] * MANY)


def test_equal_dtypes_that_are_two_objects():
    sequences = [random_array((3,), np.dtype([("a", "i2"), ("b", "S3")])) for _ in range(MANY)]
    assert len({id(item.dtype) for item in sequences}) > 1
    assert_packed(fastpack.pack(sequences), sequences)


LAYOUTS = {
    "data elsewhere": {"DATA": headers.BASE},
    "dimensions elsewhere": {"ND": headers.DATA},
    "dtype elsewhere": {"DESCR": headers.BASE},
    "shape and strides exchanged": {"DIMENSIONS": headers.STRIDES, "STRIDES": headers.DIMENSIONS},
    "more than an array holds": {"WORDS": 10**6},
}


@pytest.mark.parametrize("change", LAYOUTS)
@pytest.mark.usefixtures("forgotten")
def test_another_layout_is_noticed_and_attributes_are_read(change: str, monkeypatch: pytest.MonkeyPatch):
    sequences = [random_array((k, 3), "f4") for k in range(MANY)]
    expected = fastpack.pack(sequences)
    headers._trusted = None
    for name, value in LAYOUTS[change].items():
        monkeypatch.setattr(headers, name, value)
    assert not headers.layout_is_known()
    assert headers.at_once(sequences) is None
    assert_same(fastpack.pack(sequences), expected)


@pytest.mark.usefixtures("forgotten")
def test_on_another_python_attributes_are_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.implementation.name", "pypy")
    assert not headers.layout_is_known()
    sequences = [random_array((k, 3), "f4") for k in range(MANY)]
    assert_packed(fastpack.pack(sequences), sequences)
