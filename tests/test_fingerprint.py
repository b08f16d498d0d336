"""The fingerprint of arrays, by which a change of their content is noticed: against its twin, and on contents that are nearly alike."""

import numpy as np
import pytest

from fastpack import blocks, reference
from fastpack.headers import address
from fastpack.machine import run


def sums_of(arrays: list[np.ndarray], shares: int = 1) -> np.ndarray:
    places, nbytes = np.array([address(array) for array in arrays]), np.array([array.nbytes for array in arrays])
    found = np.zeros((shares, 2), np.int64)
    run(blocks.Fingerprint(address(places), address(nbytes), len(arrays), shares, address(found)), 0, shares)
    return found


@pytest.mark.parametrize("sizes", [[0], [1], [15, 16, 17], [33, 0, 5, 64, 1000], [1 << 12]], ids=str)
def test_the_fingerprint_is_its_twins(sizes: list[int]) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, 4 * size, np.uint8) for size in sizes]
    for shares in (1, 2, 3, 7):
        twin = np.zeros((shares, 2), np.int64)
        reference.fingerprint(arrays, shares, twin)
        np.testing.assert_array_equal(sums_of(arrays, shares), twin)
        np.testing.assert_array_equal(twin.sum(axis=0), sums_of(arrays)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("content", ["random", "zeros", "ones"])
def test_the_fingerprint_tells_contents_apart(content: str, dtype: type) -> None:
    generator = np.random.default_rng(1)
    array = generator.standard_normal((64, 48)).astype(dtype) if content == "random" else np.full((64, 48), content == "ones", dtype)
    others = [
        array * 0,
        array - 1,
        array + 1,
        array * 2,
        -array,
        array.T.copy(),
        array[::-1].copy(),
        array[:, ::-1].copy(),
        np.roll(array, 1),
    ]
    others += [np.roll(array, shift, axis) for shift in (8, 16, 32) for axis in (0, 1)]
    for k in (0, 1, 17, array.size - 1):
        for bit in (0, 22, 31):
            others.append(array.copy())
            others[-1].reshape(-1).view(np.int32)[k] ^= np.int32(1 << bit if bit < 31 else -(1 << 31))
    for one, other in generator.integers(0, array.size, (50, 2)):
        others.append(array.copy())
        others[-1].reshape(-1)[[one, other]] = array.reshape(-1)[[other, one]]
        others.append(array.copy())
        others[-1].reshape(-1)[[one, other]] *= -1
    for other in others:
        is_same = other.tobytes() == array.tobytes()
        assert (sums_of([other]) == sums_of([array])).all() == is_same
    halves = [array[:32], array[32:]]
    assert (sums_of(halves[::-1]) != sums_of(halves)).any() == (content == "random")


def test_the_fingerprint_reads_its_arrays_alone() -> None:
    memory = np.arange(4096, dtype=np.float32)
    for size in (1, 2, 5, 15, 16, 17, 40):
        part = memory[64 : 64 + size].copy()
        memory[64 : 64 + size] = part
        before = sums_of([memory[64 : 64 + size]])
        around = memory.copy()
        around[:64], around[64 + size :] = 7, 9
        np.testing.assert_array_equal(sums_of([around[64 : 64 + size]]), before)
