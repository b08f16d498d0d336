"""The chain of trust: torch and the plain NumPy twin agree, the twin and the kernel agree, in any split of the work, byte by byte."""

import inspect
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.utils import rnn

from bench.cases import Case, with_bytes
from fastpack import blocks, machine, reference, reference_layers
from fastpack.checks import address
from tests.oracle import layout, random_array

CASES = with_bytes(600_000)
GUARD = 64
HOMES = ("batch first", "time first", "with gaps")
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_home = pytest.mark.parametrize("home", HOMES)


def memory(shape: tuple[int, ...], home: str = "batch first") -> tuple[np.ndarray, np.ndarray]:
    """Return guarded memory, and within it an array (B, T, row bytes), or of any other shape where it is contiguous."""
    outer = {
        "batch first": lambda: shape,
        "time first": lambda: (shape[1], shape[0], *shape[2:]),
        "with gaps": lambda: (shape[0], shape[1] + 1, shape[2] + 3),
    }[home]()
    whole = np.full(2 * GUARD + int(np.prod(outer)), 0xA5, np.uint8)
    inner = whole[GUARD:-GUARD].reshape(outer)
    view = {"batch first": lambda: inner, "time first": lambda: inner.swapaxes(0, 1), "with gaps": lambda: inner[:, :-1, :-3]}[home]()
    return whole, view


def assert_alike(kernel: Callable[[np.ndarray], None], twin: Callable[[np.ndarray], None], *shape_and_home) -> None:
    """Compare what both leave in guarded memory, every byte outside their output included."""
    (found, out), (expected, twin_out) = memory(*shape_and_home), memory(*shape_and_home)
    kernel(out)
    twin(twin_out)
    np.testing.assert_array_equal(found, expected)


def splits(N: int) -> list[list[tuple[int, int]]]:
    """Return ways to divide the rows 0 to N into shares, out of order."""
    random = np.random.default_rng(N)
    ways = [[0, N], [0, N // 2, N], [0, 1, N - 1, N], [0, *sorted(random.integers(0, N + 1, 9).tolist()), N]] if N > 1 else [[0, N]]
    return [random.permutation(list(pairwise(cuts))).tolist() for cuts in ways]


def in_shares(block, shares) -> None:
    for begin, end in shares:
        machine.run(block, begin, end)


def pointers(arrays: list[np.ndarray]) -> np.ndarray:
    return np.array([address(item) for item in arrays], np.int64)


# ---- the twins stand for the kernels

BLOCKS = [item for item in vars(blocks).values() if isinstance(item, type) and issubclass(item, tuple) and hasattr(item, "_fields")]


def test_every_kernel_has_a_twin_with_its_argument_names():
    assert len(BLOCKS) >= 17
    known = "strides", "row_shape"  # by an array itself
    scratch = {"workspace", "arrivals", "products", "bins", "rooms", "following", "fitting"}  # for a kernel alone
    scratch |= {"d_sums", "other_sums", "d_projected", "unprojected"}  # of pieces of the steps
    for block in BLOCKS:
        name = machine.kernel_name(block)
        twin = getattr(reference, name, None) or getattr(reference_layers, name)
        addresses = [name for name, hint in block.__annotations__.items() if hint.__metadata__ != ("int64",)]
        arrays = [name for name in addresses if name not in known and name not in scratch]
        taken = list(inspect.signature(twin).parameters)
        assert [name for name in taken if name in addresses] == arrays
        assert set(taken) <= set(block._fields)


# ---- torch and the twin


@each_case
def test_torch_packs_as_the_twin(case: Case):
    sequences = [item for item in case.sequences() if len(item)]  # torch takes no sequence without steps
    if not sequences:
        sequences = [np.zeros((1, *case.trailing), case.dtype)]
    sequences.sort(key=len, reverse=True)
    lengths = [len(item) for item in sequences]
    sizes, order, _ = layout(lengths)
    theirs = rnn.pack_sequence([torch.from_numpy(item) for item in sequences], enforce_sorted=True)
    data = np.empty((sum(lengths), *case.trailing), case.dtype)
    reference.pack_listed(sequences, order, sizes, data)
    np.testing.assert_array_equal(order, np.arange(len(lengths)))
    np.testing.assert_array_equal(theirs.batch_sizes.numpy(), sizes)
    np.testing.assert_array_equal(theirs.data.numpy(), data)

    padded, their_lengths = (item.numpy() for item in rnn.pad_packed_sequence(theirs, batch_first=True, padding_value=1))
    again = np.empty_like(padded)
    reference.pad_packed(again, np.ones(case.trailing, case.dtype), np.array(lengths), order, sizes, data)
    np.testing.assert_array_equal(padded, again)
    np.testing.assert_array_equal(their_lengths, lengths)


# ---- the twin and the kernel: rows


def pack_padded_block(case: Case, padded: np.ndarray, indices, packed: np.ndarray) -> blocks.PackPadded:
    sizes, order, _ = indices
    return blocks.PackPadded(
        address(padded), *padded.strides[:2], case.row_bytes, address(order), address(sizes), len(sizes), address(packed)
    )


@each_case
@each_home
def test_pack_padded(case: Case, home: str):
    indices = sizes, order, _ = layout(case.lengths)
    B, T, N, D = case.B, len(sizes), int(sum(case.lengths)), case.row_bytes
    whole, padded = memory((B, T, D), home)
    whole[:] = random_array(whole.shape, np.uint8)
    before = whole.copy()
    for shares in splits(N):
        assert_alike(
            lambda packed, shares=shares: in_shares(pack_padded_block(case, padded, indices, packed), shares),
            lambda packed: reference.pack_padded(padded, order, sizes, packed),
            (N, D),
        )
    np.testing.assert_array_equal(whole, before)


@each_case
@each_home
def test_pad_packed(case: Case, home: str):
    sizes, order, _ = layout(case.lengths)
    B, T, N, D = case.B, len(sizes), int(sum(case.lengths)), case.row_bytes
    rows, padding_row, lengths = random_array((N, D), np.uint8, 1), random_array((D,), np.uint8, 2), case.lengths
    if not N:  # then there is nothing but padding, which is fill_padding's
        return
    for steps in (T, T + 2):

        def run(out: np.ndarray, shares, steps=steps) -> None:
            home = address(out), *out.strides[:2], D, address(padding_row), address(lengths), B, steps
            in_shares(blocks.PadPacked(*home, address(order), address(sizes), T, address(rows), N), shares)

        for shares in splits(N):
            assert_alike(
                lambda out, shares=shares, run=run: run(out, shares),
                lambda out: reference.pad_packed(out, padding_row, lengths, order, sizes, rows),
                (B, steps, D),
                home,
            )


@each_case
@pytest.mark.parametrize("gap", [0, 5])
def test_pack_and_unpack_ragged(case: Case, gap: int):
    sizes, order, _ = layout(case.lengths)
    offsets, N, D = case.offsets(), int(sum(case.lengths)), case.row_bytes
    source, rows = random_array((N, D + gap), np.uint8), random_array((N, D), np.uint8, 1)

    def run(kind: type, values: np.ndarray, packed: np.ndarray, shares) -> None:
        where = (address(values), address(offsets), D + gap, D, address(order), address(sizes), len(sizes))
        in_shares(kind(*where, address(packed)), shares)

    for shares in splits(N):
        assert_alike(
            lambda out, shares=shares: run(blocks.PackRagged, source, out, shares),
            lambda out: reference.pack_ragged(source[:, :D], offsets, order, sizes, out),
            (N, D),
        )
        assert_alike(
            lambda out, shares=shares: run(blocks.UnpackRagged, out, rows, shares),
            lambda out: reference.unpack_ragged(out[:, :D], offsets, order, sizes, rows),
            (N, D + gap),
        )


@each_case
@pytest.mark.parametrize("gap", [0, 5])
def test_pack_and_unpack_listed(case: Case, gap: int):
    sizes, order, _ = layout(case.lengths)
    N, D = int(sum(case.lengths)), case.row_bytes
    memory_shape = (N + case.B, D + gap)
    starts = np.cumsum([0, *case.lengths[:-1]]) + np.arange(case.B)  # a row that nobody owns after each sequence

    def parts(memory: np.ndarray) -> list[np.ndarray]:
        return [memory[start : start + length, :D] for start, length in zip(starts, case.lengths, strict=True)]

    def run(kind: type, memory: np.ndarray, packed: np.ndarray, shares) -> None:
        first_rows = pointers(parts(memory))
        in_shares(kind(address(first_rows), D + gap, D, address(order), address(sizes), len(sizes), address(packed)), shares)

    source, rows = random_array(memory_shape, np.uint8), random_array((N, D), np.uint8, 1)
    for shares in splits(N):
        assert_alike(
            lambda out, shares=shares: run(blocks.PackListed, source, out, shares),
            lambda out: reference.pack_listed(parts(source), order, sizes, out),
            (N, D),
        )
        assert_alike(
            lambda out, shares=shares: run(blocks.UnpackListed, out, rows, shares),
            lambda out: reference.unpack_listed(parts(out), order, sizes, rows),
            memory_shape,
        )


SCATTERED = [Case("gaps", 33, (4, 3, size), "uint8") for size in (1, 2, 3, 4, 8, 16, 40)] + [
    Case("sentences", 20, (2, 5, 4), "uint8"),
    Case("steep", 9, (7, 8), "uint8"),
    Case("ties", 50, (1, 1, 4), "uint8"),
    Case("ties", 50, (2, 1, 3, 2, 8), "uint8"),
]


@pytest.mark.parametrize("case", SCATTERED, ids=lambda case: case.name)
def test_pack_scattered(case: Case):
    sizes, order, _ = layout(case.lengths)
    *row_shape, item_bytes = case.trailing
    D, N = len(row_shape), int(sum(case.lengths))
    sequences = []
    for i, length in enumerate(case.lengths):  # each with strides of its own
        shape = (int(length), *row_shape)
        axes = np.random.default_rng(i).permutation(1 + D)
        memory = random_array((*(2 * shape[axis] for axis in axes), item_bytes), np.uint8, i)
        view = memory[tuple(slice(None, None, 2) if k % 2 else slice(None, shape[axis]) for k, axis in enumerate(axes))]
        view = view.transpose(*np.argsort(axes), 1 + D)
        sequences.append(view[::-1] if i % 3 else view)
    turned = np.moveaxis(random_array((*row_shape, N, item_bytes), np.uint8), D, 0)
    alike = np.split(turned, np.cumsum(case.lengths)[:-1])  # all with the same strides

    def run(parts: list[np.ndarray], apart: int, packed: np.ndarray, shares) -> None:
        strides = np.array([item.strides[:-1] for item in (parts if apart else parts[:1])], np.int64)
        first_rows, shape = pointers(parts), np.array(row_shape, np.int64)
        where = (address(first_rows), address(strides), apart, address(shape), D, item_bytes, case.row_bytes)
        in_shares(blocks.PackScattered(*where, address(order), address(sizes), len(sizes), address(packed)), shares)

    for shares in splits(N):
        assert_alike(
            lambda out, shares=shares: run(sequences, 1 + D, out, shares),
            lambda out: reference.pack_scattered(sequences, order, sizes, out),
            (N, *case.trailing),
        )
        assert_alike(
            lambda out, shares=shares: run(alike, 0, out, shares),
            lambda out: reference.pack_scattered(alike, order, sizes, out),
            (N, *case.trailing),
        )


# ---- the twin and the kernel: where stored sequences are

WRONG_BOUNDS = [(0, 9), (-1, 4), (4, 3), (2, 2**31 - 1), (2**63 - 1, 2**63 - 1), (-(2**63), 2**63 - 1)]


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("chunks", [1, 2, 7])
@pytest.mark.parametrize("moved", [0, 1])  # storage may begin at any address, as in a file
def test_locate(chunks: int, dtype: str, moved: int):
    random = np.random.default_rng(chunks)
    counts = random.integers(1, 9, chunks)
    firsts, origins = np.cumsum([0, *counts]), random.integers(0, 2**31 - 100, chunks)
    rows, values = np.full(chunks, 8), random.integers(2**20, 2**40, chunks)
    good = [origin + np.sort(random.integers(0, 9, (count, 2)), 1) for origin, count in zip(origins, counts, strict=True)]
    for wrong in (None, *WRONG_BOUNDS):
        pairs = [each.astype(dtype) for each in good]
        if wrong:
            info = np.iinfo(dtype)
            pairs[-1][-1] = np.clip(np.array(wrong, object) + int(origins[-1]), info.min, info.max).astype(dtype)
        memory = [np.empty(each.nbytes + moved, np.uint8) for each in pairs]
        for home, each in zip(memory, pairs, strict=True):
            home[moved:] = np.frombuffer(each.tobytes(), np.uint8)
        places = pointers([home[moved:] for home in memory])
        item_bytes = pairs[0].itemsize
        for indices in (np.arange(firsts[-1]), random.integers(0, firsts[-1], 50), np.arange(0)):
            found, expected = (tuple(np.full(count + 1, 7, np.int64) for count in (len(indices), len(indices), 3)) for _ in range(2))
            where = (address(firsts), chunks, address(places), 2 * item_bytes, item_bytes, 0xFFFFFFFF if dtype == "uint32" else -1)
            rest = (address(origins), address(rows), address(values), 48, *map(address, found))
            machine.run(blocks.Locate(address(indices), len(indices), *where, *rest))
            reference.locate(indices, firsts, pairs, origins, rows, values, 48, *(out[:-1] for out in expected))
            assert [out.tolist() for out in found] == [out.tolist() for out in expected]
            wrong_one = np.flatnonzero(indices == firsts[-1] - 1)[:1].tolist() if wrong else []
            assert found[2][2] == (wrong_one or [-1])[0]


def test_locate_reads_overlapping_bounds_and_counts_beyond_int64():
    offsets, indices = np.array([0, 2**62, 2**62 + 3]), np.array([1, 0, 0])
    places = pointers([offsets])
    firsts, rows, nothing = np.array([0, 2]), np.array([2**62 + 3]), np.zeros(1, np.int64)
    first_rows, lengths, facts = (np.empty(3, np.int64) for _ in range(3))
    home = (address(firsts), 1, address(places), 8, 8, -1, address(nothing), address(rows), address(nothing), 1)
    machine.run(blocks.Locate(address(indices), 3, *home, address(first_rows), address(lengths), address(facts)))
    assert (lengths.tolist(), first_rows.tolist()) == ([3, 2**62, 2**62], [2**62, 0, 0])
    assert facts.tolist() == [2**62, -1, -1]
    reference.locate(indices, firsts, [np.stack([offsets[:-1], offsets[1:]], 1)], nothing, rows, nothing, 1, first_rows, lengths, facts)
    assert facts.tolist() == [2**62, -1, -1]


@each_case
def test_a_share_writes_its_own_rows_alone(case: Case):
    indices = sizes, order, _ = layout(case.lengths)
    N, D = int(sum(case.lengths)), case.row_bytes
    padded = random_array((case.B, len(sizes), D), np.uint8)
    complete = np.empty((N, D), np.uint8)
    reference.pack_padded(padded, order, sizes, complete)

    def twin(out: np.ndarray, begin: int, end: int) -> None:
        out[begin:end] = complete[begin:end]

    for begin, end in {(0, N), (N // 3, N // 3), (N // 3, min(N, N // 3 + 1)), (N // 3, N), (0, N // 3)}:
        assert_alike(
            lambda out, begin=begin, end=end: machine.run(pack_padded_block(case, padded, indices, out), begin, end),
            lambda out, begin=begin, end=end: twin(out, begin, end),
            (N, D),
        )


# ---- the twin and the kernel: sequences dealt like cards


@each_case
@pytest.mark.parametrize("shares", [1, 2, 3])
def test_copy_listed(case: Case, shares: int):
    lengths, D = case.lengths, case.row_bytes
    B, T = len(lengths), int(max(lengths))
    for source_gap, target_gap in ((0, 0), (2, 0), (0, 3)):
        source = random_array((B, T + 1, D + source_gap), np.uint8)[:, :, :D]

        def run(out: np.ndarray, source=source, target_gap=target_gap) -> None:
            first, targets = pointers(list(source)), pointers(list(out))
            strides = (source.strides[1], D + target_gap)
            block = blocks.CopyListed(address(first), strides[0], address(targets), strides[1], D, address(lengths), B, shares)
            in_shares(block, [(k, k + 1) for k in range(shares)][::-1])

        assert_alike(
            run,
            lambda out, source=source: reference.copy_listed(list(source), list(out[:, :, :D]), lengths),
            (B, T + 1, D + target_gap),
        )


@each_case
@each_home
@pytest.mark.parametrize("after", [0, 1])
def test_fill_padding(case: Case, home: str, after: int):
    lengths, D = case.lengths, case.row_bytes
    B, T = len(lengths), int(max(lengths)) + 2
    padding_row = random_array((D,), np.uint8, 3)
    for shares in (1, 3):

        def run(padded: np.ndarray, shares=shares) -> None:
            where = (address(padded), *padded.strides[:2], B, shares)
            block = blocks.FillPadding(address(padding_row), D, address(lengths), T, after, *where)
            in_shares(block, [(k, k + 1) for k in range(shares)][::-1])

        assert_alike(run, lambda padded: reference.fill_padding(padding_row, lengths, after, padded), (B, T, D), home)


@each_case
@each_home
@pytest.mark.parametrize("after", [0, 1])
def test_pad_and_unpad_ragged(case: Case, home: str, after: int):
    offsets, N, D = case.offsets(), int(sum(case.lengths)), case.row_bytes
    B, T = case.B, int(max(case.lengths)) + 2
    padding_row, values = random_array((D,), np.uint8, 3), random_array((N, D), np.uint8)
    whole, source = memory((B, T, D), home)
    whole[:] = random_array(whole.shape, np.uint8)
    for shares in (1, 3):
        dealt = [(k, k + 1) for k in range(shares)][::-1]

        def pad(padded: np.ndarray, shares=shares, dealt=dealt) -> None:
            where = (address(padding_row), D, T, after, address(padded), *padded.strides[:2], B, shares)
            in_shares(blocks.PadRagged(address(values), address(offsets), *where), dealt)

        def unpad(out: np.ndarray, shares=shares, dealt=dealt) -> None:
            where = (D, T, after, address(source), *source.strides[:2], B, shares)
            in_shares(blocks.UnpadRagged(address(out), address(offsets), *where), dealt)

        assert_alike(pad, lambda padded: reference.pad_ragged(values, offsets, padding_row, after, padded), (B, T, D), home)
        assert_alike(unpad, lambda out: reference.unpad_ragged(out, offsets, after, source), (N, D))


# ---- the guards above can fail

MINIATURE = Case("ties", 9, (3,), "uint8")


@pytest.mark.parametrize("wrong", ["last row missing", "a byte too many", "a byte before", "two rows exchanged", "one bit"])
def test_a_wrong_kernel_is_noticed(wrong: str):
    indices = sizes, order, _ = layout(MINIATURE.lengths)
    N, D = int(sum(MINIATURE.lengths)), MINIATURE.row_bytes
    padded = random_array((MINIATURE.B, len(sizes), D), np.uint8)

    def kernel(out: np.ndarray) -> None:
        machine.run(pack_padded_block(MINIATURE, padded, indices, out), 0, N - 1 if wrong == "last row missing" else N)
        at = {"a byte too many": GUARD + N * D, "a byte before": GUARD - 1, "one bit": GUARD + 5}.get(wrong)
        if at is not None:
            out.base[at] ^= 1
        if wrong == "two rows exchanged":
            out[[0, 1]] = out[[1, 0]]

    with pytest.raises(AssertionError, match="Arrays are not equal"):
        assert_alike(kernel, lambda out: reference.pack_padded(padded, order, sizes, out), (N, D))
