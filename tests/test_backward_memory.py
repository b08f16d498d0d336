"""The kernels of the backward pass in memory that ends where it must: each array before or behind a forbidden page."""

import signal
from pathlib import Path

import numpy as np
import pytest

from fastpack import machine
from fastpack.blocks import SUMMED
from tests.backward_kernels import run_backward, run_forward, run_input, run_weights
from tests.backward_oracle import Products, case_of
from tests.conftest import Child
from tests.guarded import Canaries
from tests.recurrent_oracle import KINDS

ROOT = Path(__file__).parent.parent

EVERY_SIZE = """
import numpy as np
from fastpack import blocks, machine
from tests.backward_kernels import run_backward, run_forward, run_input, run_weights
from tests.backward_oracle import Products, case_of, of_units
from tests.guarded import ForbiddenPages
from tests.recurrent_oracle import KINDS, ways_to_call

def found_of(case, H, P, shares, place, together):
    kind, indices = case.kind, case.indices
    saved, after = run_forward(case, shares, place, together)
    {slip}
    sums = run_backward(case, saved, shares, place, together)
    found = [*after, of_units(sums.d_sums, H), *(item for item in sums.d_states if item is not None)]
    N = len(case.x)
    found.append(run_input(kind, case.weights["weight_ih"], sums.d_sums, case.x, H % 2, [(N // 3, N), (0, N // 3)], place))
    h_0 = case.states[0]
    found += run_weights(Products(kind.cell, case.reverse, H, case.x, indices, saved.out, h_0, sums.d_sums), shares, place).values()
    if P:
        rows = sums.unprojected, indices, None, None, sums.d_projected
        found += run_weights(Products(blocks.LINEAR, case.reverse, P, *rows), shares, place).values()
    return b"".join(item.tobytes() for item in found)

def check(kind, lengths, F, H, P, dtype):
    case = case_of(kind, lengths, F, H, P, H % 2, dtype)
    shares = 1 + H % 3
    ways = [(True, ()), (False, ()), (True, ways_to_call(shares)[0]), (False, ways_to_call(shares)[-1])]
    assert len({{found_of(case, H, P, shares, ForbiddenPages(before), together) for before, together in ways}}) == 1

for kind in KINDS.values():
    for dtype in (np.float32, np.float64):
        for H in range(1, 71):
            check(kind, [2, 0, 3, 1, 3, 1, 1], (H * 37) % 70 + 1, H, H // 2 if H % 3 == 0 and kind.name == "LSTM" else 0, dtype)
        check(kind, [{SUMMED}, 60, 2], 3, 21, 0, dtype)
print(machine.library().level)
"""


def test_no_byte_beside_an_array_is_touched(child: Child):
    level = machine.library().level  # test_levels has this file run at each; a compiled one is none to choose
    level = level if level in machine.cpu_levels() else machine.cpu_levels()[0]
    assert child(EVERY_SIZE.format(slip="", SUMMED=SUMMED), PYTHONPATH=ROOT, FASTPACK_CPU=level) == f"{level}\n"


@pytest.mark.parametrize(
    "slip",
    [
        *("saved = saved._replace(out=saved.out[:-1])", "saved = saved._replace(c=saved.c[:-1])"),
        *("saved = saved._replace(gates=saved.gates[:-1])", "saved = saved._replace(gates=saved.gates[:, :-1])"),
        *("case = case._replace(d_out=case.d_out[:-1])", "case = case._replace(d_after=[case.d_after[0][:-1], case.d_after[1]])"),
        *("case = case._replace(x=case.x[:-1])", "case = case._replace(states=[case.states[0][:-1], case.states[1]])"),
        *("case = case._replace(states=[case.states[0], case.states[1][:-1]])", "indices = (indices[0], indices[1][:-1], None)"),
    ],
)
def test_a_byte_beside_an_array_would_be_noticed(slip: str, child: Child):
    child(EVERY_SIZE.format(slip=slip, SUMMED=SUMMED), PYTHONPATH=ROOT, status=-signal.SIGSEGV)


def test_a_byte_beside_an_array_would_be_noticed_where_it_is_written():
    case = case_of(KINDS["LSTM"], [3, 0, 9, 2], 3, 5, 2)
    canaries = Canaries()
    saved, _ = run_forward(case, place=canaries)
    d_sums = run_backward(case, saved, place=canaries).d_sums
    run_input(case.kind, case.weights["weight_ih"], d_sums, case.x, 0, [(0, len(case.x))], canaries)
    run_weights(Products(case.kind.cell, 0, 5, case.x, case.indices, saved.out, None, d_sums), place=canaries)
    canaries.check()
    for memory, start, end in canaries.placed:
        for at in (start - 1, end):
            memory[at] ^= 1
            with pytest.raises(AssertionError, match="written"):
                canaries.check()
            memory[at] ^= 1
    assert len(canaries.placed) > 20
    assert np.isfinite(d_sums[0, :, :, :5]).all()
