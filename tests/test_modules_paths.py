"""Which code a layer's call runs, and that calls which the kernels do not take give torch's results and gradients."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

import fastpack.torch as fp
from tests.conftest import Child
from tests.layers import F, H, assert_close, flat, packed, pair, states, torch_called
from tests.test_paths import DispatchMode, FunctionMode, Subclass
from tests.torch_oracle import outcome

pytestmark = pytest.mark.usefixtures("one_thread")
NOT_DENSE = "torch: a tensor is sparse, nested, quantised, without memory, or a lazy negation or conjugate"
SIZES = torch.tensor([3, 2, 1])
MODE = "torch: a transform, trace, compilation or mode is active"


KINDS = {
    "bfloat16": (lambda x: x.bfloat16(), "torch: there are tensors of torch.bfloat16, not all of torch.float32 or torch.float64"),
    "float16": (lambda x: x.half(), "torch: there are tensors of torch.float16, not all of torch.float32 or torch.float64"),
    "a subclass": (lambda x: x.as_subclass(Subclass), "torch: a tensor is a Subclass"),
    "lazily negated": (lambda x: torch._neg_view(-x), NOT_DENSE),
}


@pytest.mark.parametrize(("make", "why"), KINDS.values(), ids=KINDS)
def test_other_tensors_go_to_torch(make: Callable, why: str) -> None:
    theirs, ours = pair("LSTM", dtype=make(torch.ones(1)).dtype)
    batch, hx = make(torch.randn(6, F)), tuple(map(make, torch.randn(2, 1, 3, H)))
    with torch.no_grad(), torch_called() as called:
        for layer_input, given in ((PackedSequence(batch, SIZES), None), (PackedSequence(batch, SIZES), hx), (batch, None)):
            assert fp.path(ours, layer_input, given) == why
            end = outcome(theirs, layer_input, given)
            assert outcome(ours, layer_input, given) == end
            if end[0] is None:
                assert_close(ours(layer_input, given), theirs(layer_input, given))
    assert set(called) == {"LSTM"}


def test_tensors_without_memory_of_their_own_never_reach_the_kernels() -> None:
    _, ours = pair("LSTM")
    for batch in (torch._efficientzerotensor((6, F)), torch.eye(F).to_sparse(), torch.eye(F).to_mkldnn()):
        with torch.no_grad():
            assert fp.path(ours, batch) == NOT_DENSE
            assert fp.path(ours, PackedSequence(batch, SIZES)).startswith("torch: ")
            assert fp.path(ours, torch.ones(3, F), (batch, batch)).startswith("torch: ")


def test_other_weights_go_to_torch() -> None:
    for change in (lambda weight: torch._neg_view(-weight), lambda weight: weight.as_subclass(Subclass)):
        theirs, ours = pair("GRU")
        ours._flat_weights[1] = change(theirs.weight_hh_l0.detach())
        ours._parameters["weight_hh_l0"] = ours._flat_weights[1]
        batch = packed()
        with torch.no_grad(), torch_called() as called:
            assert_close(ours(batch), theirs(batch))
        assert called == ["GRU"]


def test_mixed_dtypes_go_to_torch() -> None:
    _, ours = pair("GRU")
    batch = packed()
    said = "torch: there are tensors of torch.float32 and torch.float64, not all of torch.float32 or torch.float64"
    assert fp.path(ours, batch, states(ours, batch).double()) == said
    assert fp.path(ours, packed(torch.float64)) == said
    assert fp.path(ours, batch, 5) == "torch: a tensor is a int"
    assert fp.path(ours, 5) == "torch: a tensor is a int"
    assert fp.path(nn.GRU(F, H), batch) == "torch: the layer is a torch.nn.modules.rnn.GRU"


@pytest.mark.parametrize("mode", [FunctionMode, DispatchMode, lambda: torch.device("cpu"), FakeTensorMode])
def test_modes_see_torch(mode: Callable) -> None:
    theirs, ours = pair("LSTM")
    batch = packed()
    if mode is FakeTensorMode:
        with mode(allow_non_fake_inputs=True):
            assert fp.path(ours, batch) == MODE
            assert ours(torch.empty(5, 3, F))[0].shape == (5, 3, H)
        return
    with mode(), torch.no_grad():
        assert fp.path(ours, batch) == MODE
        assert_close(ours(batch), theirs(batch))
    with torch.no_grad():
        assert fp.path(ours, batch) == "kernels"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transforms_go_to_torch() -> None:
    theirs, ours = pair("GRU")
    x = torch.randn(2, 5, 3, F)
    parameters = dict(theirs.named_parameters())
    for transform in (
        lambda layer: torch.func.grad(lambda given: layer(given)[0].square().sum())(x[0]),
        lambda layer: torch.func.grad(lambda given: torch.func.functional_call(layer, given, (x[0],))[0].sum())(parameters)["weight_hh_l0"],
        lambda layer: torch.func.jacrev(lambda given: layer(given)[1])(x[0]),
        lambda layer: torch.func.functionalize(lambda given: layer(given)[0])(x[0]),
    ):
        assert torch.equal(transform(ours), transform(theirs))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x[0], torch.ones_like(x[0]))
        assert fp.path(ours, dual) == MODE
        assert torch.equal(forward_ad.unpack_dual(ours(dual)[0]).tangent, forward_ad.unpack_dual(theirs(dual)[0]).tangent)


# ---- autograd


@pytest.mark.parametrize("what", ["a weight", "the input", "a state", "nothing"])
def test_what_needs_a_gradient_is_recorded(what: str) -> None:
    _, ours = pair("LSTM")
    ours.requires_grad_(False)
    ours.bias_hh_l0.requires_grad_(what == "a weight")
    batch = packed()
    hx = states(ours, batch)
    hx[1].requires_grad_(what == "a state")
    batch.data.requires_grad_(what == "the input")
    wanted = what != "nothing"
    assert fp.path(ours, batch, hx) == "kernels"
    assert [tensor.requires_grad for tensor in flat(ours(batch, hx))] == [wanted] * 3
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert fp.path(ours, batch, hx) == "kernels"
            assert [tensor.is_inference() for tensor in flat(ours(batch, hx))] == [context is torch.inference_mode] * 3


def test_gradients_where_sequences_have_no_rows() -> None:
    _, ours = pair("LSTM", torch.float64, num_layers=2, bidirectional=True)
    batch = packed(torch.float64, [0, 2, 0, 1])
    hx = tuple(state.requires_grad_() for state in states(ours, batch))
    output, after = ours(batch, hx)
    (output.data.sum() + sum(map(torch.sum, after))).backward()
    for state in hx:
        assert (state.grad[:, [0, 2]] == 1).all()
        assert (state.grad[:, [1, 3]] != 1).all()
    assert ours.weight_hh_l1_reverse.grad.abs().sum() > 0
    empty = packed(torch.float64, [0, 0])
    assert ours(empty)[0].data.shape == (0, 2 * H)


# ---- tracing and scripting


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traces_and_scripts_are_torchs() -> None:
    theirs, ours = pair("LSTM", num_layers=2, bidirectional=True)
    example, other = torch.randn(5, 3, F), torch.randn(7, 2, F)
    traced, scripted = torch.jit.trace(ours, example), torch.jit.script(nn.Sequential(ours))
    with torch.no_grad():
        for found in (traced(other), scripted(other)):
            assert_close(found, theirs(other))
    assert "aten::lstm" in str(traced.graph)
    assert type(ours) is fp.LSTM


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_run_without_fastpack(strict: bool) -> None:
    for cell in ("LSTM", "GRU"):
        theirs, ours = pair(cell)
        x = torch.randn(5, 3, F)
        exported = torch.export.export(nn.Sequential(ours), (x,), strict=strict)
        assert "fastpack" not in str(exported.graph)
        with torch.no_grad():
            assert_close(exported.module()(x), theirs(x))


# ---- processes

PROGRAM = """
import sys, torch
import fastpack.torch as fp

layer = fp.LSTM(8, 64, bidirectional=True)
batch = fp.pack_sequence([torch.ones(length, 8) for length in (60, 50, 1, 40)], enforce_sorted=False)

def work(k):
    with torch.inference_mode():
        layer.weight_hh_l0.copy_(torch.full_like(layer.weight_hh_l0, 0.01 * k))
        return layer(batch)[0].data.sum().item()

def main(method, parent):
    torch.set_num_threads(2)
    if parent == "called":
        work(1)
    with torch.multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(work, range(8), chunksize=1)
    assert found == [work(k) for k in range(8)]
    print(len(found), "well done")

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize("parent", ["fresh", "called"])
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_call_layers(method: str, parent: str, child: Child, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.replace("layer = ", "torch.manual_seed(0)\nlayer = "))
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    assert child(code, tmp_path / "program.py", method, parent) == "8 well done\n"
