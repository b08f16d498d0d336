"""Which code a call runs: the kernels for dense tensors of the CPU, torch's own functions for everything else."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastpack.torch as fp
from tests.torch_oracle import FUNCTIONS, assert_same, outcome, torch_called

LENGTHS = [4, 2, 1]
X = torch.arange(24.0).view(4, 3, 2)


class Subclass(torch.Tensor):
    pass


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def calls(make, module=fp) -> dict:
    """Return a call of each function with tensors that `make` makes of dense ones."""
    packed = rnn.pack_padded_sequence(X, LENGTHS)
    return {
        "pack_padded_sequence": lambda: module.pack_padded_sequence(make(X), LENGTHS),
        "pad_packed_sequence": lambda: module.pad_packed_sequence(PackedSequence(make(packed.data), packed.batch_sizes)),
        "pack_sequence": lambda: module.pack_sequence([make(X[:length, 0]) for length in LENGTHS]),
        "unpack_sequence": lambda: module.unpack_sequence(PackedSequence(make(packed.data), packed.batch_sizes)),
        "pad_sequence": lambda: module.pad_sequence([make(X[:length, 0]) for length in LENGTHS]),
        "unpad_sequence": lambda: module.unpad_sequence(make(X.transpose(0, 1)), torch.tensor(LENGTHS), True),
    }


def quantised(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8)


def mkldnn(tensor):
    return tensor.contiguous().to_mkldnn()


KERNELS = {
    "dense": lambda x: x.clone(),
    "a view": lambda x: x.flip(0).expand(x.shape),
    "requires grad": lambda x: x.clone().requires_grad_(),
    "a parameter": lambda x: torch.nn.Parameter(x.clone()),
    "a conjugate that was resolved": lambda x: x.to(torch.complex64).conj().resolve_conj(),
}
TORCHS = {
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "mkldnn": mkldnn,
    "quantised": quantised,
    "a subclass": lambda x: x.as_subclass(Subclass),
    "lazily conjugated": lambda x: x.to(torch.complex64).conj(),
    "lazily negated": lambda x: x.to(torch.complex64).conj().imag,
    "lazily zero": lambda x: torch._efficientzerotensor(x.shape),
}


def differing(make) -> dict[str, tuple]:
    """Return where ours does not end as torch's own does, in a result or an error."""
    found = {}
    for name in FUNCTIONS:
        ends = []
        for module in (rnn, fp):
            call = calls(make, module)[name]
            kind, message = outcome(call)
            ends.append((kind, message if kind else None, None if kind else call()))
        (kind, message, expected), (our_kind, our_message, ours) = ends
        if (kind, message) != (our_kind, our_message):
            found[name] = (kind, message, our_kind, our_message)
        elif kind is None and not same(ours, expected):
            found[name] = (ours, expected)
    return found


def same(found, expected) -> bool:
    if isinstance(expected, (tuple, list)):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(same, found, expected))
    if expected is None or type(found) is not type(expected) or found.shape != expected.shape or found.dtype != expected.dtype:
        return found is expected
    if found.is_meta or found.is_mkldnn:
        return found.is_meta == expected.is_meta and found.is_mkldnn == expected.is_mkldnn
    return found.is_sparse == expected.is_sparse and bool((found.to_dense() == expected.to_dense()).all())


@pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)
def test_dense_tensors_take_the_kernels(make):
    for name, call in calls(make).items():
        with torch_called() as called:
            call()
        assert called == [], name
    assert fp.path(make(X)) == "kernels"
    assert differing(make) == {}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", TORCHS.values(), ids=TORCHS)
def test_other_tensors_go_to_torch(make):
    kind = outcome(make, X)[0]
    assert kind is None
    for name, call in calls(make).items():
        with torch_called() as called:
            outcome(call)
        # short sequences are joined by torch.cat, which makes lazy ones dense: those then are what the kernels take
        joined = name in ("pad_sequence", "pack_sequence") and make in (TORCHS[key] for key in TORCHS if "lazily" in key)
        assert called == ([] if joined else [name]), name
    assert fp.path(make(X)).startswith("torch: ")
    assert differing(make) == {}


def test_long_lazy_sequences_go_to_torch():
    for make in (TORCHS["lazily conjugated"], TORCHS["lazily negated"]):
        sequences = [make(torch.randn(200000, 2)), make(torch.randn(1000, 2))]
        for name in ("pad_sequence", "pack_sequence"):
            with torch_called() as called:
                found = getattr(fp, name)(sequences)
            assert called == [name]
            assert same(found, getattr(rnn, name)(sequences))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_go_to_torch():
    nested = torch.nested.nested_tensor([torch.ones(3, 2), torch.ones(1, 2)])
    jagged = torch.nested.nested_tensor([torch.ones(3, 2), torch.ones(1, 2)], layout=torch.jagged)
    for tensor in (nested, jagged):
        assert fp.path(tensor).startswith("torch: ")
        for call in (
            lambda m, x: m.pack_padded_sequence(x, [3, 1], True),
            lambda m, x: m.pad_sequence([x, x]),
            lambda m, x: m.pad_packed_sequence(x),
        ):
            assert outcome(call, rnn, tensor)[0] == outcome(call, fp, tensor)[0] is not None
    packed = fp.pack_ragged(jagged.values(), jagged.offsets())
    assert_same(fp.unpack_sequence(packed), [torch.ones(3, 2), torch.ones(1, 2)])


def test_fake_tensors_go_to_torch():
    with FakeTensorMode() as mode:
        fake = torch.empty(4, 3, 2)
        assert fp.path(fake).startswith("torch: ")
    assert fp.path(fake) == "torch: a tensor is a FakeTensor"
    with torch_called() as called, mode:
        padded = fp.pad_sequence([fake, fake[:2]])
    assert called == ["pad_sequence"]
    assert padded.shape == (4, 2, 3, 2)
    packed = PackedSequence(torch.zeros(4), mode.from_tensor(torch.tensor([3, 1])))
    assert outcome(fp.pad_packed_sequence, packed)[0] == outcome(rnn.pad_packed_sequence, packed)[0]


@pytest.mark.parametrize("mode", [FunctionMode, DispatchMode, lambda: torch.device("meta"), lambda: torch.device("cpu")])
def test_modes_see_torch(mode):
    with mode():
        assert fp.path(X) == "torch: a transform, trace, compilation or mode is active"
        for name, call in calls(lambda x: x).items():
            with torch_called() as called:
                outcome(call)
            assert called == [name]
        assert differing(lambda x: x) == {}
    assert fp.path(X) == "kernels"


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_contexts_that_change_nothing(context):
    with context():
        test_dense_tensors_take_the_kernels(KERNELS["dense"])


# ---- transforms


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch compiles decompositions for forward mode by torch.jit
def test_functorch_goes_to_torch():
    batch = torch.randn(5, 4, 3, 2)
    cases = {
        "vmap": lambda m: torch.vmap(lambda x: m.pack_padded_sequence(x, LENGTHS).data)(batch),
        "vmap of pad_sequence": lambda m: torch.vmap(lambda x: m.pad_sequence([x, x[:2]]))(batch),
        "grad": lambda m: torch.func.grad(lambda x: m.pack_padded_sequence(x, LENGTHS).data.square().sum())(X),
        "jvp": lambda m: torch.func.jvp(lambda x: m.pack_padded_sequence(x, LENGTHS).data, (X,), (X,)),
        "jvp of pad_packed_sequence": lambda m: torch.func.jvp(
            lambda x: m.pad_packed_sequence(PackedSequence(x, torch.tensor([4])))[0], (X,), (X,)
        ),
        "jacrev of unpad_sequence": lambda m: torch.func.jacrev(lambda x: m.unpad_sequence(x * 1, torch.tensor(LENGTHS), True)[0])(X[:3]),
        "functionalize": lambda m: torch.func.functionalize(lambda x: m.pad_sequence([x, x[:2]]))(X),
    }
    for name, call in cases.items():
        kind, _ = outcome(call, rnn)
        with torch_called() as called:
            assert outcome(call, fp)[0] is kind, name
        assert called, name
        if kind is None:
            assert same(call(fp), call(rnn)), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward_mode_goes_to_torch():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones_like(X))
        assert fp.path(dual) == "torch: a transform, trace, compilation or mode is active"
        with torch_called() as called:
            found = fp.pad_sequence([dual, dual[:2]])
        assert called == ["pad_sequence"]
        assert forward_ad.unpack_dual(found).tangent.sum() == 36
    assert fp.path(X) == "kernels"


class Model(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, lengths):
        packed = self.module.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.module.pad_packed_sequence(packed, batch_first=True)[0] * 2


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traces_hold_for_other_lengths():
    example, other = (torch.randn(3, 4, 2), torch.tensor([2, 4, 1])), (torch.randn(3, 4, 2), torch.tensor([1, 2, 4]))
    with torch_called() as called:
        traced = torch.jit.trace(Model(fp), example, check_trace=False)
    assert called == ["pack_padded_sequence", "pad_packed_sequence"]
    assert_same(traced(*other), Model(rnn)(*other))


COMPILED = {
    "pack and pad": lambda m, x, lengths: Model(m)(x, lengths),
    "pad_sequence": lambda m, x, lengths: m.pad_sequence([x[0], x[1, :2]]) * 2,
    "pack_sequence": lambda m, x, lengths: m.pack_sequence([x[0], x[1, :2]]).data * 2,
    "unpad_sequence": lambda m, x, lengths: m.unpad_sequence(x * 2, lengths, True)[0],
    "unpack_sequence": lambda m, x, lengths: m.unpack_sequence(m.pack_sequence([x[0], x[1, :2]]))[1] * 2,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("call", COMPILED.values(), ids=COMPILED)
def test_compiled(call, fullgraph):
    inputs = [(torch.randn(3, 4, 2), torch.tensor([4, 3, 2])), (torch.randn(3, 4, 2), torch.tensor([1, 2, 4]))]

    def check(module):
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, lengths: call(module, x, lengths), backend="eager", fullgraph=fullgraph)
        for x, lengths in inputs:
            assert_same(compiled(x, lengths), call(rnn, x, lengths))

    ends = [outcome(check, module)[0] for module in (rnn, fp)]
    assert ends[1] is ends[0]
    if not fullgraph:
        assert ends == [None, None]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_exported():
    class Padding(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x, y):
            return self.module.pad_sequence([x, y])

    given, other = (torch.randn(4, 2), torch.randn(3, 2)), (torch.randn(4, 2), torch.randn(3, 2))
    for strict in (False, True):
        exported = [torch.export.export(Padding(module), given, strict=strict) for module in (rnn, fp)]
        assert [str(item.graph) for item in exported[1:]] == [str(exported[0].graph)]
        assert_same(exported[1].module()(*other), rnn.pad_sequence(other))


def test_spies_and_comparisons_go_red(monkeypatch):
    with torch_called() as called:
        rnn.pad_sequence([X])  # not by fastpack
    assert called == []
    monkeypatch.setattr(fp, "pad_sequence", lambda sequences: rnn.pad_sequence(sequences) + 1)
    monkeypatch.setattr(fp, "pack_sequence", lambda sequences: rnn.pack_sequence(sequences).data)
    assert set(differing(lambda x: x)) == {"pad_sequence", "pack_sequence"}
