"""Gradients of the torch level: gradcheck to second order, torch's own gradients, and none where none is asked for."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

import fastpack.torch as fp
from fastpack.torch import autograd, by_index, moves
from fastpack.torch.autograd import Form, Padded
from fastpack.torch.layout import from_lengths
from tests.torch_oracle import assert_same, torch_called

LENGTHS = [2, 4, 1, 3]
LAYOUT = rnn.pack_sequence([torch.zeros(length) for length in LENGTHS], enforce_sorted=False)
OFFSETS = [0, 2, 6, 7, 10]


def rows(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def sequences(trailing=(2,)) -> list[torch.Tensor]:
    return [rows(length, *trailing) for length in LENGTHS]


def with_data(data) -> PackedSequence:
    return PackedSequence(data, *LAYOUT[1:])


# name: what is called with a module, and the tensors it is differentiated by
CHAINS = {
    "pack_padded_sequence": (lambda m, x: m.pack_padded_sequence(x, LENGTHS, enforce_sorted=False).data, [rows(4, 4, 2)]),
    "pack_padded_sequence, batch first": (lambda m, x: m.pack_padded_sequence(x, LENGTHS, True, False).data, [rows(4, 5, 2)]),
    "pack_padded_sequence, sorted": (lambda m, x: m.pack_padded_sequence(x, [4, 3, 1]).data, [rows(4, 3)]),
    "pad_packed_sequence": (lambda m, x: m.pad_packed_sequence(with_data(x), padding_value=3)[0], [rows(10, 2)]),
    "pad_packed_sequence, longer": (lambda m, x: m.pad_packed_sequence(with_data(x), True, total_length=6)[0], [rows(10)]),
    "pack_sequence": (lambda m, *x: m.pack_sequence(x, enforce_sorted=False).data, sequences()),
    "unpack_sequence": (lambda m, x: tuple(m.unpack_sequence(with_data(x))), [rows(10, 2)]),
    "pad_sequence": (lambda m, *x: m.pad_sequence(x, padding_value=2.0), sequences()),
    "pad_sequence, left": (lambda m, *x: m.pad_sequence(x, True, padding_side="left"), sequences(())),
    "unpad_sequence": (lambda m, x: tuple(m.unpad_sequence(x * 1, torch.tensor(LENGTHS))), [rows(4, 4, 2)]),
    "pack, pad": (lambda m, x: m.pad_packed_sequence(m.pack_padded_sequence(x, LENGTHS, True, False))[0].square(), [rows(4, 4)]),
    "list, pack, unpack": (lambda m, *x: tuple(m.unpack_sequence(m.pack_sequence([a.exp() for a in x], False))), sequences()),
}
each_chain = pytest.mark.parametrize(("call", "tensors"), CHAINS.values(), ids=CHAINS)


@each_chain
def test_derivatives(call, tensors):
    assert gradcheck(lambda *x: call(fp, *x), tensors, check_batched_grad=True)
    assert gradgradcheck(lambda *x: call(fp, *x), tensors, check_batched_grad=True)


@each_chain
def test_gradients_are_torchs(call, tensors):
    def gradients(module):
        outputs = call(module, *tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = [torch.sin(torch.arange(float(out.numel()), dtype=out.dtype)).view(out.shape) for out in outputs]
        first = torch.autograd.grad([out.pow(3) for out in outputs], tensors, weights, create_graph=True)
        return outputs, first, torch.autograd.grad(sum(item.square().sum() for item in first), tensors)

    with torch_called() as called:
        found = gradients(fp)
    assert not called
    expected = gradients(rnn)
    for part in range(3):
        torch.testing.assert_close(found[part], expected[part], rtol=1e-14, atol=0)


def test_pack_ragged_is_differentiable():
    assert gradcheck(lambda x: fp.pack_ragged(x, OFFSETS).data, [rows(10, 2)], check_batched_grad=True)
    assert gradgradcheck(lambda x: fp.pack_ragged(x, OFFSETS).data, [rows(10)], check_batched_grad=True)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_through_an_lstm(bidirectional):
    lstm = torch.nn.LSTM(2, 3, bidirectional=bidirectional, dtype=torch.float64)
    given = sequences()

    def gradients(module):
        out, _ = lstm(module.pack_sequence(given, enforce_sorted=False))
        loss = sum(part.square().sum() for part in module.unpack_sequence(out))
        return torch.autograd.grad(loss, [*given, *lstm.parameters()])

    torch.testing.assert_close(gradients(fp), gradients(rnn), rtol=1e-12, atol=1e-14)


def test_gradients_only_where_asked_for():
    first, second, third = torch.randn(3, 2, requires_grad=True), torch.randn(2, 2), torch.randn(1, 2, requires_grad=True)
    for call in (lambda x: fp.pack_sequence(x).data, fp.pad_sequence):
        out = call([first, second, third])
        node = out.grad_fn.next_functions
        assert [function is not None for function, _ in node] == [True, False, True]
        got = torch.autograd.grad(out.sum(), [first, third])
        assert_same(got, (torch.ones(3, 2), torch.ones(1, 2)))
        assert second.grad is None
        assert call([first.detach(), second]).grad_fn is None


def test_integers_beside_gradients():
    # of mixed dtypes, so torch's own, whose gradient comes back in each one's dtype
    first, second = torch.randn(3, requires_grad=True), torch.randn(2, dtype=torch.bfloat16, requires_grad=True)
    fp.pad_sequence([first, second]).sum().backward()
    assert (first.grad.dtype, second.grad.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("name", ["unpack_sequence", "unpad_sequence"])
def test_outputs_that_nothing_uses(name):
    x = torch.randn(4, 3, 2, requires_grad=True)
    packed = fp.pack_padded_sequence(x, [4, 2, 1])
    parts = fp.unpack_sequence(packed) if name == "unpack_sequence" else fp.unpad_sequence(x, torch.tensor([4, 2, 1]))
    (gradient,) = torch.autograd.grad(parts[1].sum(), x)
    expected = torch.zeros(4, 3, 2)
    expected[:2, 1] = 1
    assert_same(gradient, expected)
    assert [part.grad_fn is not None for part in parts] == [True] * 3


def test_expanded_gradients():
    for trailing in ((), (2,), (2, 3)):
        x = torch.randn(4, 3, *trailing, requires_grad=True)
        packed = fp.pack_padded_sequence(x, [4, 2, 1])
        assert packed.data.grad_fn is not None
        packed.data.sum().backward()
        assert_same(
            x.grad,
            torch.stack([torch.arange(4) < length for length in [4, 2, 1]], 1).view(4, 3, *(1,) * len(trailing)).expand(x.shape).float(),
        )
        leaves = [torch.randn(length, *trailing, requires_grad=True) for length in (700, 2, 1)]
        fp.pad_sequence(leaves)[:, 0].sum().backward()
        assert [leaf.grad.unique().tolist() for leaf in leaves] == [[1.0], [0.0], [0.0]]


# ---- what a caller may change in between


@pytest.mark.parametrize("module", [rnn, fp], ids=["torch", "fastpack"])
def test_lengths_may_be_changed_after_use(module):
    x, lengths = torch.randn(4, 3, requires_grad=True), torch.tensor([4, 2, 1])
    packed = module.pack_padded_sequence(x, lengths)
    lengths.zero_()
    padded, lengths = module.pad_packed_sequence(packed)
    lengths.fill_(99)
    lengths = torch.tensor([4, 2, 1])
    parts = module.unpad_sequence(padded * 1, lengths)
    lengths.zero_()
    sum(part.sum() for part in parts).backward()
    assert x.grad.sum() == 7


@pytest.mark.parametrize("module", [rnn, fp], ids=["torch", "fastpack"])
def test_tensors_of_inference_mode_may_be_used(module):
    with torch.inference_mode():
        packed, lengths = module.pack_padded_sequence(torch.zeros(4, 3), [4, 2, 1]), torch.tensor([4, 2, 1])
    data = torch.randn(7, requires_grad=True)
    module.pad_packed_sequence(PackedSequence(data, packed.batch_sizes))[0].sum().backward()
    assert data.grad.sum() == 7
    x = torch.randn(4, 3, requires_grad=True)
    module.pack_padded_sequence(x, lengths).data.sum().backward()
    assert x.grad.sum() == 7


@pytest.mark.parametrize("module", [rnn, fp], ids=["torch", "fastpack"])
def test_outputs_may_be_changed_in_place(module):
    x = torch.randn(4, 3, requires_grad=True)
    packed = module.pack_padded_sequence(x, [4, 2, 1])
    packed.data.mul_(3)
    padded, _ = module.pad_packed_sequence(packed)
    padded.add_(1)
    for part in module.unpack_sequence(packed):
        part.mul_(2)
    (module.unpack_sequence(packed)[0].mul_(5).sum() + padded.sum()).backward()
    assert x.grad[:, 0].tolist() == [18.0] * 4


@pytest.mark.parametrize("field", ["batch_sizes", "sorted_indices", "unsorted_indices"])
@pytest.mark.parametrize("secretly", [False, True])
def test_layouts_changed_before_backward(field, secretly):
    # the kernels follow a copy that nobody else has: the gradient is that of what was computed
    for back in (lambda p: fp.pad_packed_sequence(p)[0], lambda p: sum(fp.unpack_sequence(p)), lambda p: p.data):
        grads = []
        for change in (0, 1000):
            x = torch.ones(5, 3, requires_grad=True)
            packed = fp.pack_padded_sequence(x, [5, 5, 5], enforce_sorted=False)
            out = back(packed)
            changed = getattr(packed, field)
            # NumPy changes what it shares without torch's count of changes
            (changed.numpy() if secretly else changed)[0] += change
            (out * torch.arange(1.0, 1 + out.numel()).view(out.shape)).sum().backward()
            grads.append(x.grad)
        assert torch.equal(*grads)
        assert grads[0].abs().sum() > 0


def test_consistent_layouts_changed_before_backward():
    # still a layout, and of as many rows, but of other lengths: followed, it would lead beyond the last sequence
    x = torch.randn(3, 3, requires_grad=True)
    packed = fp.pack_padded_sequence(x, [3, 1, 1], enforce_sorted=False)
    parts = fp.unpack_sequence(packed)
    packed.batch_sizes.numpy()[:] = [2, 2, 1]
    packed.sorted_indices.numpy()[:] = packed.unsorted_indices.numpy()[:] = [0, 2, 1]
    sum(part.sum() for part in parts).backward()
    assert x.grad.tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]


def test_hooks_on_saved_tensors_cannot_lead_out_of_range():
    for change in (lambda saved: saved.int(), lambda saved: saved.to("meta"), lambda saved: saved[:1], lambda saved: saved + 1):
        x = torch.randn(4, 3, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, change):
            packed = fp.pack_padded_sequence(x, [4, 2, 1])
        packed.data.sum().backward()
        assert x.grad.sum() == 7


@pytest.mark.parametrize("module", [rnn, fp], ids=["torch", "fastpack"])
def test_a_freed_graph_cannot_be_used_again(module):
    x = torch.randn(4, 3, requires_grad=True)
    out = module.pack_padded_sequence(x, [4, 2, 1]).data.sum()
    out.backward(retain_graph=True)
    out.backward()
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        out.backward()


# ---- when nothing is recorded


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_recorded_where_no_gradient_is_wanted(mode, monkeypatch):
    def refuse(*_):
        raise AssertionError("an autograd object was made")

    monkeypatch.setattr(autograd._Move, "apply", refuse)
    x, members = torch.randn(4, 3, requires_grad=True), [torch.randn(700, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)]

    def everything(x, members):
        packed = fp.pack_padded_sequence(x, [4, 2, 1])
        outputs = [packed.data, fp.pad_packed_sequence(packed)[0], fp.pack_ragged(x, [0, 3, 4]).data]
        outputs += [*fp.unpack_sequence(packed), *fp.unpad_sequence(x, torch.tensor([4, 2, 1]))]
        return [*outputs, fp.pad_sequence(members), fp.pack_sequence(members).data]

    with mode():
        outputs = everything(x, members)
    outputs += everything(x.detach(), [member.detach() for member in members])
    assert all(out.grad_fn is None and not out.requires_grad for out in outputs)
    with pytest.raises(AssertionError, match="an autograd object was made"):
        fp.pack_padded_sequence(x, [4, 2, 1])


# ---- torch's own machinery around it


def test_hooks_and_double_use():
    x = torch.randn(4, 3, requires_grad=True)
    packed = fp.pack_padded_sequence(x, [4, 2, 1])
    seen = []
    packed.data.register_hook(lambda gradient: seen.append(gradient.shape) or gradient * 2)
    loss = fp.pad_packed_sequence(packed)[0].sum() + packed.data.sum()
    loss.backward(retain_graph=True)
    assert x.grad.sum() == 28
    loss.backward()
    assert x.grad.sum() == 56
    assert seen == [torch.Size([7])] * 2
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        packed.data.sum().backward()


def test_anomaly_mode_and_checkpoints():
    with pytest.warns(UserWarning, match="Anomaly Detection has been enabled"):
        anomaly = torch.autograd.detect_anomaly()
    with anomaly:
        for call, tensors in CHAINS.values():
            outputs = call(fp, *tensors)
            sum(out.sum() for out in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    x = torch.randn(4, 3, requires_grad=True)
    for use_reentrant in (False, True):
        out = checkpoint(lambda x: fp.pad_packed_sequence(fp.pack_padded_sequence(x * 2, [4, 2, 1]))[0], x, use_reentrant=use_reentrant)
        out.sum().backward()
    assert x.grad.sum() == 28


# ---- the moves by torch's indexing

PADDED = [Padded(True, 5), Padded(False, 4), Padded(True, 4, 0, 7.0)]
MOVES = [(Form.PACKED, form) for form in (Form.RAGGED, Form.LISTED, *PADDED[:2])]
MOVES += [(target, source) for source, target in MOVES]
MOVES += [(Form.LISTED, form) for form in PADDED] + [(form, Form.LISTED) for form in PADDED]


def in_form(form: Form | Padded, trailing: tuple[int, ...]) -> list[torch.Tensor]:
    if form is Form.LISTED:
        return [rows(length, *trailing).detach() for length in LENGTHS]
    if isinstance(form, Padded):
        return [rows(*((4, form.steps) if form.batch_first else (form.steps, 4)), *trailing).detach()]
    return [rows(10, *trailing).detach()]


@pytest.mark.parametrize(("source", "target"), MOVES, ids=str)
@pytest.mark.parametrize("trailing", [(), (3,), (0,)], ids=str)
def test_by_index_equals_moves(source, target, trailing):
    layout = from_lengths(torch.tensor(LENGTHS), max(LENGTHS), sum(LENGTHS))
    found, expected = (autograd._run(by, source, target, layout, in_form(source, trailing)) for by in (by_index, moves))
    assert_same(found, expected)


def test_there_is_no_other_move():
    layout = from_lengths(torch.tensor(LENGTHS), max(LENGTHS), sum(LENGTHS))
    for source, target in ((Form.RAGGED, Form.LISTED), (Form.LISTED, Form.RAGGED), (Form.RAGGED, Form.RAGGED)):
        with pytest.raises(TypeError, match="there is no move from"):
            autograd.move(source, target, layout, *in_form(source, ()))


def test_comparison_of_gradients_goes_red(monkeypatch):
    good = moves.unpack_padded
    monkeypatch.setattr(moves, "unpack_padded", lambda *arguments: good(*arguments) * 2)
    call, tensors = CHAINS["pack_padded_sequence"]
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        test_derivatives(call, tensors)
    with pytest.raises(AssertionError):
        test_gradients_are_torchs(call, tensors)
