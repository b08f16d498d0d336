"""What a layer's call takes in memory: its output, and for layers upon each other one more; the rest is small."""

from pathlib import Path

import pytest

from tests.conftest import Child

# by how many times the output's size a process's peak grows with a call on 100,000 rows
CODE = """
import sys, torch
import fastpack.torch as fp

torch.set_num_threads(1)
layer = fp.LSTM(4, 128, num_layers=int(sys.argv[1]))
lengths = [int(length) for length in torch.linspace(1, 3125, 64)]
lengths[-1] += 100_000 - sum(lengths)
packed = fp.PackedSequence(torch.randn(100_000, 4), *fp.pack_sequence([torch.empty(n, 0) for n in lengths], False, allow_empty=True)[1:])
few = fp.pack_sequence([torch.randn(2, 4), torch.randn(1, 4)])


def peak():  # not getrusage's, which begins with what the parent had when it forked
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))


with torch.inference_mode():
    layer(few)
    before = peak()
    output, _ = layer(packed)
    print((peak() - before) / (output.data.numel() * 4))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of a process's memory")
@pytest.mark.parametrize(("layers", "outputs"), [(1, 1), (2, 2), (3, 2)])
def test_a_call_needs_its_output_and_little_else(layers: int, outputs: int, child: Child) -> None:
    found = float(child(CODE, str(layers)))
    assert outputs - 0.05 < found < outputs + 0.1
