"""The chain of trust for recurrent layers: torch and the twin agree, the twin and the kernels agree, in memory that shows slips."""

import signal
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import rnn

from fastpack import blocks, machine, reference, reference_layers
from fastpack.blocks import AHEAD
from fastpack.cells import CELLS
from tests.conftest import Child
from tests.guarded import Canaries
from tests.oracle import layout
from tests.recurrent_oracle import (
    CLOSE,
    KINDS,
    Kind,
    assert_close,
    assert_same_arrays,
    batch_of,
    of_direction,
    run_kernel,
    run_pack_panels,
    states_of,
    twin,
    twin_direction,
    ways_to_call,
    weights_of,
)
from tests.torch_oracle import layer_of_torch

ROOT = Path(__file__).parent.parent
LENGTHS = [3, 0, 9, 9, 1, 2, 5, 0, 7]
MANY = np.random.default_rng(0).integers(0, 7, 61).tolist()  # more sequences than a tile has rows, or a table
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(autouse=True, scope="module")
def one_thread_of_torch() -> Iterator[None]:
    """Keep torch from spinning on cores that are busy: its packed layers took a hundred times as long then."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- torch and the twin


def test_the_cells_have_the_same_codes():
    assert [getattr(reference_layers, name) for name in ("LSTM", "GRU", "RNN_TANH", "RNN_RELU", "LINEAR")] == list(CELLS)
    for cell, known in CELLS.items():
        counts = reference_layers.GATES.get(cell, 1), reference_layers.SUMS.get(cell, 1), reference_layers.SAVED.get(cell, 0)
        assert counts == (known.gates, known.sums, known.saved)


def torchs(kind: Kind, weights: dict[str, np.ndarray], L: int, D: int, packed, states) -> tuple[np.ndarray, list[np.ndarray]]:
    """Run torch's packed layer, which takes no sequence without steps."""
    has = packed.lengths[packed.sorted_indices] > 0
    order = packed.sorted_indices[has]
    tensors = [torch.from_numpy(state[:, order]) for state in states]
    with torch.no_grad():
        batch = rnn.PackedSequence(torch.from_numpy(packed.data), torch.from_numpy(packed.batch_sizes))
        out, after = layer_of_torch(kind, weights, L, D)(batch, tuple(tensors) if len(tensors) == 2 else tensors[0])
    found = []
    for before, state in zip(states, after if len(states) == 2 else [after], strict=True):
        found.append(before.copy())  # of a sequence without steps
        found[-1][:, order] = state.numpy()
    return out.data.numpy(), found


@each_kind
@pytest.mark.parametrize(("L", "D", "P", "bias"), [(1, 1, 0, True), (1, 2, 0, False), (2, 2, 0, True), (3, 1, 2, True), (2, 2, 3, False)])
def test_torch_runs_as_the_twin(kind: Kind, L: int, D: int, P: int, bias: bool):
    P = P if kind.name == "LSTM" else 0
    weights = weights_of(kind, 3, 5, P, L, D, bias, np.float64)
    packed, states = batch_of(LENGTHS, 3, np.float64), states_of(kind, L * D, len(LENGTHS), 5, P, np.float64)
    data, after = torchs(kind, weights, L, D, packed, states)
    expected, expected_after = twin(kind, weights, packed, states)
    assert_close([data, *after], [expected, *expected_after], 2e-15)


# ---- the twin and the kernels


@each_kind
@each_dtype
def test_pack_panels(kind: Kind, dtype: type):
    for F, H, P in [(1, 1, 0), (3, 5, 2), (2, 16, 0), (7, 17, 5), (33, 31, 0), (4, 32, 1), (1, 70, 33)]:
        for bias in (True, False):
            weights = of_direction(weights_of(kind, F, H, P, bias=bias, dtype=dtype), "_l0")
            given = weights["weight_ih"], weights["weight_hh"], weights.get("bias_ih"), weights.get("bias_hh")
            canaries = Canaries()
            panels = run_pack_panels(kind.cell, *given, place=canaries)
            canaries.check()
            expected = np.full_like(panels, np.nan)
            reference_layers.pack_panels(kind.cell, *given, expected)
            np.testing.assert_array_equal(panels, expected)
        if P:
            panels = run_pack_panels(blocks.LINEAR, weights["weight_hr"], None, None, None)
            expected = np.full_like(panels, np.nan)
            reference_layers.pack_panels(blocks.LINEAR, weights["weight_hr"], np.empty((P, 0), dtype), None, None, expected)
            np.testing.assert_array_equal(panels, expected)


@each_kind
@each_dtype
@pytest.mark.parametrize(("lengths", "F", "H", "P"), [(LENGTHS, 3, 5, 0), (MANY, 9, 21, 0), (LENGTHS, 5, 40, 7), (MANY, 2, 33, 32)])
def test_recur(kind: Kind, dtype: type, lengths: list[int], F: int, H: int, P: int):
    P = P if kind.name == "LSTM" else 0
    weights, indices = of_direction(weights_of(kind, F, H, P, dtype=dtype), "_l0"), layout(lengths)
    x = batch_of(lengths, F, dtype).data
    given = [state[0] for state in states_of(kind, 1, len(lengths), H, P, dtype)]
    for reverse, states in product((0, 1), (given, [])):
        expected, expected_after = twin_direction(kind, weights, x, indices, states, reverse)
        first = None
        for shares in (1, 2, 3, 5):
            canaries = Canaries()
            out, after = run_kernel(kind, weights, x, indices, states, reverse, shares, canaries)
            canaries.check()
            assert_close([out, *after], [expected, *expected_after], CLOSE[x.dtype])
            bits = [item.tobytes() for item in (out, *after)]
            first = first or bits
            assert bits == first, f"{shares} shares"


@each_kind
@each_dtype
@pytest.mark.parametrize(("lengths", "F", "H", "P"), [([5], 3, 40, 9), ([2, 0, 7], 9, 21, 1), (MANY, 2, 70, 33), ([4, 4], 1, 1, 0)])
def test_shares_of_hidden_units(kind: Kind, dtype: type, lengths: list[int], F: int, H: int, P: int):
    P = P if kind.name == "LSTM" else 0
    weights, indices = of_direction(weights_of(kind, F, H, P, dtype=dtype), "_l0"), layout(lengths)
    x, states = batch_of(lengths, F, dtype).data, [state[0] for state in states_of(kind, 1, len(lengths), H, P, dtype)]
    for reverse, given in product((0, 1), (states, [])):
        expected, expected_after = run_kernel(kind, weights, x, indices, given, reverse)
        for shares in (1, 2, 3, 7):  # 7 are more than there are blocks of H, and of P
            for together in ways_to_call(shares):
                canaries = Canaries()
                out, after = run_kernel(kind, weights, x, indices, given, reverse, shares, canaries, together)
                canaries.check()
                assert_same_arrays([out, *after], [expected, *expected_after])


AROUND = [  # what is multiplied ahead: steps with up to AHEAD / 2 rows, as many of them as make up to AHEAD rows
    *([2 * AHEAD + 3], [3] * (AHEAD // 2 - 1), [3] * (AHEAD // 2), [3] * (AHEAD // 2 + 1), [AHEAD // 8] * 7),
    *([9] * (AHEAD // 2) + [4] * 3, [1, 2, 3, 4] * (AHEAD // 4), list(range(AHEAD + 2)), [2] * AHEAD, [2] * (AHEAD + 1)),
    *([0], [0, 0, 0], [1], [0, 1, 0]),
]


@each_kind
@each_dtype
def test_around_what_is_multiplied_ahead(kind: Kind, dtype: type):
    F, H, P = 3, 33, 5 if kind.name == "LSTM" else 0
    weights = of_direction(weights_of(kind, F, H, P, dtype=dtype), "_l0")
    for lengths, reverse in product(AROUND, (0, 1)):
        indices, x = layout(lengths), batch_of(lengths, F, dtype).data
        states = [state[0] for state in states_of(kind, 1, len(lengths), H, P, dtype)]
        expected, expected_after = twin_direction(kind, weights, x, indices, states, reverse)
        found = None
        for shares, together in [(1, ()), (2, ()), (3, ()), (5, ()), (2, [(0, 2)]), (3, [(0, 2), (2, 3)])]:
            canaries = Canaries()
            out, after = run_kernel(kind, weights, x, indices, states, reverse, shares, canaries, together)
            canaries.check()
            assert_close([out, *after], [expected, *expected_after], CLOSE[x.dtype])
            found = found or [out, *after]
            assert_same_arrays([out, *after], found)


@each_kind
def test_no_features_and_no_biases(kind: Kind):
    weights, indices = of_direction(weights_of(kind, 0, 21, bias=False), "_l0"), layout(LENGTHS)
    x, states = np.empty((sum(LENGTHS), 0), np.float32), [state[0] for state in states_of(kind, 1, len(LENGTHS), 21)]
    for reverse in (0, 1):
        expected, expected_after = twin_direction(kind, weights, x, indices, states, reverse)
        out, after = run_kernel(kind, weights, x, indices, states, reverse)
        assert_close([out, *after], [expected, *expected_after], CLOSE[x.dtype])


@each_kind
@each_dtype
def test_rows_of_a_padded_batch(kind: Kind, dtype: type):
    F, H = 3, 19
    weights = of_direction(weights_of(kind, F, H, dtype=dtype), "_l0")
    for lengths in ([6] * 5, [6] * 30, [7, 7, 4, 2, 1, 0], sorted(MANY, reverse=True)):
        indices = layout(lengths)
        states = [state[0] for state in states_of(kind, 1, len(lengths), H, dtype=dtype)]
        packed = batch_of(lengths, F, dtype)
        padded = np.full((len(lengths), max(lengths), F), np.nan, dtype)
        reference.unpack_listed(list(padded), indices[1], indices[0], packed.data)
        for reverse, time_first in product((0, 1), (False, True)):
            rows = np.ascontiguousarray(padded.swapaxes(0, 1)).swapaxes(0, 1) if time_first else padded
            expected, expected_after = run_kernel(kind, weights, packed.data, indices, states, reverse)
            canaries = Canaries()
            out, after = run_kernel(kind, weights, rows, indices, states, reverse, place=canaries)
            canaries.check()
            again = np.empty_like(expected)
            reference.pack_padded(out, indices[1], indices[0], again)
            for one, other in zip([again, *after], [expected, *expected_after], strict=True):
                np.testing.assert_array_equal(one, other)
            behind = np.arange(max(lengths)) >= np.array(lengths)[:, None]
            assert np.isnan(out[behind]).all()  # padding is not written


# ---- memory

EVERY_SIZE = """
import numpy as np
from fastpack import machine
from tests.guarded import ForbiddenPages
from tests.oracle import layout
from tests.recurrent_oracle import KINDS, batch_of, of_direction, run_kernel, states_of, ways_to_call, weights_of

lengths = [2, 0, 3, 1, 3, 1, 1]
indices = layout(lengths)
for kind in KINDS.values():
    for H in range(1, 71):
        F, P = (H * 37) % 70 + 1, H // 2 if H % 3 == 0 and kind.name == "LSTM" else 0
        for dtype in (np.float32, np.float64):
            weights = of_direction(weights_of(kind, F, H, P, dtype=dtype), "_l0")
            states = [state[0] for state in states_of(kind, 1, len(lengths), H, P, dtype)]
            x, bits = batch_of(lengths, F, dtype).data, set()
            {slip}
            for before, together in [(True, ()), (False, ()), (True, ways_to_call(1 + H % 3)[0]), (False, ways_to_call(1 + H % 3)[-1])]:
                place = ForbiddenPages(before)
                out, after = run_kernel(kind, weights, x, indices, states, H % 2, 1 + H % 3, place, together)
                bits.add(b"".join(item.tobytes() for item in (out, *after)))
            assert len(bits) == 1
print(machine.library().level)
"""


def test_no_byte_beside_an_array_is_touched(child: Child):
    level = machine.library().level  # test_levels has this file run at each; a compiled one is none to choose
    level = level if level in machine.cpu_levels() else machine.cpu_levels()[0]
    assert child(EVERY_SIZE.format(slip=""), PYTHONPATH=ROOT, FASTPACK_CPU=level) == f"{level}\n"


@pytest.mark.parametrize("slip", ["x = x[:-1]", "states = [states[0][:-1], *states[1:]]", "indices = (indices[0], indices[1][:-1])"])
def test_a_byte_beside_an_array_would_be_noticed(slip: str, child: Child):
    child(EVERY_SIZE.format(slip=slip), PYTHONPATH=ROOT, status=-signal.SIGSEGV)


@each_kind
def test_a_wrong_kernel_is_noticed(kind: Kind):
    weights, indices, states = of_direction(weights_of(kind, 3, 5), "_l0"), layout(LENGTHS), states_of(kind, 1, len(LENGTHS), 5)
    x, given = batch_of(LENGTHS, 3).data, [state[0] for state in states]
    out, after = run_kernel(kind, weights, x, indices, given, 0)
    for wrong in (
        run_kernel(kind, weights, x, indices, given, 1),  # the other direction
        run_kernel(kind, weights, x, indices, [], 0),  # zeros in place of the states
        run_kernel(kind, weights, x, indices, [state[::-1] for state in given], 0),  # states in another order
        run_kernel(kind, weights | {"bias_hh": weights["bias_ih"]}, x, indices, given, 0),
        (np.nextafter(out, 9) + np.float32(1e-5), after),
        (np.where(np.arange(len(out)) == 7, np.nan, out.T).T, after),
    ):
        with pytest.raises(AssertionError):
            assert_close([wrong[0], *wrong[1]], [out, *after], CLOSE[out.dtype])
    canaries = Canaries()
    run_kernel(kind, weights, x, indices, given, 0, place=canaries)
    for memory, start, end in canaries.placed:
        for at in (start - 1, end):
            memory[at] ^= 1
            with pytest.raises(AssertionError, match="written"):
                canaries.check()
            memory[at] ^= 1
