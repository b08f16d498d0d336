"""What calls take in memory: the result, and O(B + T) beside it, a layer O(B H); and that nothing beside it is written."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

import fastpack
from tests.recurrent_oracle import KINDS, layer_of, weights_of

B, T, D = 256, 500, 40


def peak(work: Callable[[], object]) -> int:
    """Return the most bytes that `work` held at once, as far as Python and NumPy know."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = work()
        most = tracemalloc.get_traced_memory()[1] - before
        del result
    finally:
        tracemalloc.stop()
    return most


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    lengths = np.random.default_rng(0).integers(1, T + 1, B)
    return [np.ones((length, D), np.float32) for length in lengths]


def test_packing_needs_its_result_alone(sequences: list[np.ndarray]):
    packed = fastpack.pack(sequences)  # the kernels are open now
    values, offsets = fastpack.unpack_ragged(packed)
    padded, lengths = fastpack.pad(packed)
    turned = [np.asfortranarray(item) for item in sequences]
    results = {
        "pack": (lambda: fastpack.pack(sequences), packed.data),
        "pack of any strides": (lambda: fastpack.pack(turned), packed.data),
        "pack_padded": (lambda: fastpack.pack_padded(padded, lengths), packed.data),
        "pack_ragged": (lambda: fastpack.pack_ragged(values, offsets), packed.data),
        "pad": (lambda: fastpack.pad(packed), padded),
        "unpack": (lambda: fastpack.unpack(packed), values),
        "unpack_ragged": (lambda: fastpack.unpack_ragged(packed), values),
    }
    factors = {name: peak(work) / result.nbytes for name, (work, result) in results.items()}
    assert all(1.0 <= factor < 1.05 for factor in factors.values()), factors


def test_a_copy_would_be_noticed(sequences: list[np.ndarray]):
    packed = fastpack.pack(sequences)
    assert peak(lambda: fastpack.pack([item.copy() for item in sequences])) > 1.9 * packed.data.nbytes
    assert peak(lambda: fastpack.pack_padded(*fastpack.pad(packed))) > 1.9 * packed.data.nbytes


def test_a_layer_needs_its_result_alone(sequences: list[np.ndarray]):
    packed = fastpack.pack(sequences)
    wide = packed._replace(data=np.ones((len(packed.data), D + 3), np.float32)[:, 1 : 1 + D])
    for name, kind in KINDS.items():
        for L, directions in [(1, 1), (1, 2), (2, 1), (3, 2)]:
            layer = layer_of(kind, weights_of(kind, D, 16, L=L, D=directions))
            for batch, num_threads in [(packed, 1), (packed, 2), (wide, 1)]:
                output, _ = layer(batch, num_threads=num_threads)
                factor = peak(lambda layer=layer, batch=batch, n=num_threads: layer(batch, num_threads=n)) / output.data.nbytes
                # layers upon each other pass rows on in one more of the kind
                assert min(L, 2) <= factor < min(L, 2) + 0.06, (name, L, directions, factor)


def test_a_single_packed_row_of_any_stride():
    # its stride, which NumPy keeps, once passed for the row's size: what lay behind the result was written over
    memory = np.arange(4096.0).reshape(2, 2048)
    packed = fastpack.pack([memory[0, :1], memory[0, :0]])
    odd = packed._replace(data=memory[::2, 7])
    assert odd.data.strides == (2 * 2048 * 8,)
    behind = np.full((3, 2048), 5.0)  # a result in the middle, to see what is written beside it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastpack.checks, "empty", lambda shape, dtype, _: np.ndarray(shape, dtype, behind[1]))
        assert fastpack.unpack_ragged(odd)[0].tolist() == [7.0]
        assert (behind.ravel() != 5.0).sum() == 1
        assert fastpack.pad(odd)[0].tolist() == [[7.0], [0.0]]
        assert (behind.ravel() != 5.0).sum() == 2
