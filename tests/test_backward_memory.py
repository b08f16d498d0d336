"""The kernels of the backward pass in memory that ends where it must: each array before or behind a forbidden page."""

import signal
from pathlib import Path

import numpy as np
import pytest

from fastpack import machine
from fastpack.blocks import SUMMED
from tests.backward_kernels import run_directions, run_gradients
from tests.backward_oracle import layer_case
from tests.conftest import Child
from tests.guarded import Canaries
from tests.recurrent_oracle import KINDS

ROOT = Path(__file__).parent.parent

EVERY_SIZE = """
import numpy as np
from fastpack import machine
from tests import backward_kernels
from tests.backward_kernels import Way, run_directions, run_gradients
from tests.backward_oracle import layer_case
from tests.guarded import ForbiddenPages
from tests.recurrent_oracle import KINDS, ways_to_call

def less(name, items):
    # what the library calculates, less by so many items
    original = getattr(backward_kernels, name)
    setattr(backward_kernels, name, lambda *sizes: original(*sizes) - items)

def found_of(layer, way, before, piece_rows):
    place = ForbiddenPages(before)
    kept, after = run_directions(layer, way.shares, place, way.calls if way.together else ())
    {slip}
    found = run_gradients(layer, kept, way, place, piece_rows)
    return b"".join(item.tobytes() for item in [*after, *found.values()])

def check(kind, lengths, F, H, P, D, dtype):
    layer = layer_case(kind, lengths, F, H, P, D, dtype)
    shares, N = 1 + H % 3, sum(lengths)
    of_sequences = [Way(shares, tuple(calls)) for calls in (ways_to_call(shares)[0], ways_to_call(shares)[-1])]
    of_units = [way._replace(together=1) for way in of_sequences]
    piece_rows = (None, int(layer.indices[0].max()), N // 2 + len(lengths))[H // 3 % 3]
    ways = zip(of_sequences + of_units, (True, False, False, True))
    assert len({{found_of(layer, way, before, piece_rows) for way, before in ways}}) == 1

for kind in KINDS.values():
    for dtype in (np.float32, np.float64):
        for H in range(1, 71):
            P = H // 2 if H % 3 == 0 and kind.name == "LSTM" else 0
            check(kind, [2, 0, 3, 1, 3, 1, 1], (H * 37) % 70 + 1, H, P, 1 + H % 2, dtype)
        for H in (20, 25):  # in one piece, in two
            check(kind, [{SUMMED}, 60, 2], 3, H, 0, 2, dtype)
print(machine.library().level)
"""


def test_no_byte_beside_an_array_is_touched(child: Child):
    level = machine.library().level  # test_levels has this file run at each; a compiled one is none to choose
    level = level if level in machine.cpu_levels() else machine.cpu_levels()[0]
    assert child(EVERY_SIZE.format(slip="", SUMMED=SUMMED), PYTHONPATH=ROOT, FASTPACK_CPU=level) == f"{level}\n"


@pytest.mark.parametrize(
    "slip",
    [
        *("kept = kept._replace(out=kept.out[:-1])", "kept = kept._replace(c=kept.c[:, :-1])"),
        *("kept = kept._replace(gates=kept.gates[:, :-1])", "kept = kept._replace(gates=kept.gates[..., :-1])"),
        *("layer = layer._replace(d_out=layer.d_out[:-1])", "layer = layer._replace(x=layer.x[:-1])"),
        *(f"layer = layer._replace(d_after=[d[:, : -1 if k == {k} else None] for k, d in enumerate(layer.d_after)])" for k in range(2)),
        *(f"layer = layer._replace(states=[h[:, : -1 if k == {k} else None] for k, h in enumerate(layer.states)])" for k in range(2)),
        "layer = layer._replace(indices=(layer.indices[0], layer.indices[1][:-1], None))",
        *("less('backward_items', 16)", "less('weight_gradient_items', 16)", "less('gradient_panel_items', 16)"),
        *("less('d_sums_items', 16)", "less('arrivals_items', 8)"),
    ],
)
def test_a_byte_beside_an_array_would_be_noticed(slip: str, child: Child):
    child(EVERY_SIZE.format(slip=slip, SUMMED=SUMMED), PYTHONPATH=ROOT, status=-signal.SIGSEGV)


def test_a_byte_beside_an_array_would_be_noticed_where_it_is_written():
    layer = layer_case(KINDS["LSTM"], [3, 0, 9, 2], 3, 5, 2, 2)
    canaries = Canaries()
    kept, _ = run_directions(layer, place=canaries)
    found = run_gradients(layer, kept, place=canaries, piece_rows=6)
    canaries.check()
    for memory, start, end in canaries.placed:
        for at in (start - 1, end):
            memory[at] ^= 1
            with pytest.raises(AssertionError, match="written"):
                canaries.check()
            memory[at] ^= 1
    assert len(canaries.placed) > 40
    assert all(np.isfinite(item).all() for item in found.values())
