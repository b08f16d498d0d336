"""torch.compile of models with recurrent layers: no graph break, the same numbers and gradients; and the operators by themselves."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fastpack.torch as fp
from fastpack.torch import operators, panels
from tests.layers import CELLS, F, H, assert_close, assert_same_bits, flat, inputs, packed, pair, states
from tests.torch_oracle import outcome

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]

BASE_CELLS = ("LSTM", "GRU", "RNN")


class Model(nn.Module):
    """A recurrent layer between two operations."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, batch: Any, hx: Any = None) -> Any:
        if isinstance(batch, PackedSequence):
            output, after = self.layer(PackedSequence(batch.data * 2, *batch[1:]), hx)
            return output.data.tanh(), after, output
        output, after = self.layer(batch * 2, hx)
        return output.tanh(), after, output


def compiled(model: nn.Module, backend: str = "aot_eager", **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend=backend, fullgraph=True, **options)


def tensors(result: Any) -> list[torch.Tensor]:
    first, after, output = result
    return [first, *flat((output, after))]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_a_compiled_model_gives_the_same_bits(cell: str, own: dict, backend: str) -> None:
    for options in ({}, {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}):
        _, ours = pair(cell, **options, **own)
        model = Model(ours)
        for batch in inputs(ours).values():
            for hx in (None, states(ours, batch)):
                with torch.no_grad():
                    expected, found = model(batch, hx), compiled(model, backend)(batch, hx)
                assert_same_bits(tensors(found), tensors(expected))
                assert [tensor.stride() for tensor in tensors(found)] == [tensor.stride() for tensor in tensors(expected)]
                if isinstance(batch, PackedSequence):
                    assert_same_bits(
                        [index for index in found[2][1:] if index is not None], [index for index in batch[1:] if index is not None]
                    )


@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_gradients_of_a_compiled_model_are_torchs(cell: str, own: dict) -> None:
    theirs, ours = pair(cell, torch.float64, num_layers=2, bidirectional=True, **own)
    for name, batch in inputs(ours).items():
        results = []
        for model in (Model(theirs), compiled(Model(ours))):
            data = (batch.data if "packed" in name else batch).clone().requires_grad_()
            hx = states(ours, batch)
            leaves = [state.requires_grad_() for state in (hx if cell == "LSTM" else [hx])]
            found = tensors(model(batch._replace(data=data) if "packed" in name else data, hx))
            weights = [torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).view(tensor.shape) for tensor in found]
            total = sum((tensor * weight).sum() for tensor, weight in zip(found, weights, strict=True))
            layer = theirs if not results else ours
            results.append(torch.autograd.grad(total, [data, *leaves, *layer.parameters()]))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


def test_gradients_where_only_some_results_are_used() -> None:
    theirs, ours = pair("LSTM", torch.float64)
    x = torch.randn(5, 3, F, dtype=torch.float64)
    for pick in (lambda result: result[1][1].sum(), lambda result: result[0][2].sum(), lambda result: result[1][0].sum()):
        gradients = []
        for layer, model in ((theirs, Model(theirs)), (ours, compiled(Model(ours)))):
            gradients.append(torch.autograd.grad(pick(model(x)), [*layer.parameters()]))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


def test_dropout_of_a_compiled_model_is_eagers() -> None:
    _, ours = pair("GRU", num_layers=3, dropout=0.5, bidirectional=True)
    model = Model(ours)
    for batch in inputs(ours).values():
        results = []
        for call in (model, compiled(model)):
            torch.manual_seed(8)
            with torch.no_grad():
                results.append(tensors(call(batch)))
        assert_same_bits(results[1], results[0])


def test_other_lengths_need_no_new_graph_for_each() -> None:
    _, ours = pair("LSTM")
    model = compiled(Model(ours), dynamic=True)
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        for lengths in ([3, 1, 2], [4, 4], [9, 1, 1, 1, 5], [2, 7, 3, 3]):
            batch = packed(lengths=lengths)
            assert_same_bits(tensors(model(batch)), tensors(Model(ours)(batch)))
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_sequences_without_rows_in_a_compiled_model() -> None:
    _, ours = pair("LSTM", bidirectional=True)
    batch = packed(lengths=[0, 3, 0, 2])
    hx = states(ours, batch)
    with torch.no_grad():
        assert_same_bits(tensors(compiled(Model(ours))(batch, hx)), tensors(Model(ours)(batch, hx)))


def test_changed_weights_are_seen_by_a_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = panels._packed
    monkeypatch.setattr(panels, "_packed", lambda *arguments: made.append(1) or original(*arguments))
    _, ours = pair("GRU")
    model, batch = compiled(Model(ours)), packed()
    with torch.no_grad():
        for k in range(3):
            ours.weight_hh_l0.data.add_(k)
            expected = tensors(Model(ours)(batch))
            before = len(made)
            for _ in range(3):
                assert_same_bits(tensors(model(batch)), expected)
            assert len(made) - before == 1
    kept = len(operators._panels)
    del ours, model
    torch._dynamo.reset()
    assert len(operators._panels) < kept


def test_errors_in_a_compiled_model_are_torchs() -> None:
    theirs, ours = pair("LSTM")
    for batch, hx in (
        (torch.ones(5, 3, F + 1), None),
        (torch.ones(5, 3, F).double(), None),
        (torch.ones(5, 3, F), (torch.ones(1, 2, H), torch.ones(1, 3, H))),
        (torch.ones(5, 3, F), (torch.ones(3, H), torch.ones(3, H))),
    ):
        assert outcome(torch.compile(ours, backend="eager"), batch, hx)[0] is not None
        assert outcome(ours, batch, hx) == outcome(theirs, batch, hx)
    bad = PackedSequence(torch.ones(6, F), torch.tensor([3, 1, 2]))
    with torch.no_grad(), pytest.raises(RuntimeError, match="batch sizes never grow"):
        compiled(Model(ours))(bad)


def test_autocast_in_a_compiled_model() -> None:
    _, ours = pair("GRU")
    x = torch.randn(5, 3, F)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_close(torch.compile(ours, backend="eager")(x), ours(x))


# ---- the operators


def arguments(cell: str, layers: int, directions: int, form: str, needs_grad: bool) -> tuple:
    torch.manual_seed(0)
    layer = getattr(fp, cell)(F, H, num_layers=layers, bidirectional=directions == 2)
    batch = packed()
    data, layout = (torch.randn(5, 4, F), []) if form == "padded" else (batch.data, list(batch[1:] if form == "packed" else batch[1:2]))
    hx = states(layer, torch.randn(5, 4, F))
    given = [*(hx if cell == "LSTM" else [hx])] if form != "packed" else []
    tensors = [[tensor.detach().clone().requires_grad_(needs_grad) for tensor in group] for group in ([data], given, layer.parameters())]
    return tensors[0][0], layout, tensors[1], tensors[2], layer.mode, layers, True, directions == 2


@pytest.mark.parametrize("form", ["packed", "packed and sorted", "padded"])
@pytest.mark.parametrize(("cell", "layers", "directions"), [("LSTM", 1, 1), ("GRU", 2, 2), ("RNN", 1, 2)])
def test_operators_are_registered_well(cell: str, layers: int, directions: int, form: str) -> None:
    recur, recorded = torch.ops.fastpack.recur.default, torch.ops.fastpack.recur_recorded.default
    found = torch.library.opcheck(recur, arguments(cell, layers, directions, form, needs_grad=False))
    found |= torch.library.opcheck(recorded, arguments(cell, 1, directions, form, needs_grad=True))
    data, layout, given, weights, *options = arguments(cell, 1, directions, form, needs_grad=False)
    results = recorded(data, layout, given, weights, *options)
    assert_same_bits(results[:-1], recur(data, layout, given, weights, *options))
    gradients = [None, *(torch.randn_like(tensor) for tensor in results[1:-1])]
    wanted = [k % 3 > 0 for k in range(1 + len(given) + len(weights))]
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")  # it has no derivative
    backward, kept = torch.ops.fastpack.recur_backward.default, [results[0], results[-1]]
    found |= torch.library.opcheck(backward, (gradients, kept, wanted, data, layout, given, weights, *options), test_utils=checks)
    assert set(found.values()) == {"SUCCESS"}


def test_a_batch_whose_size_only_the_data_tells() -> None:
    data, _, _, weights, *options = arguments("LSTM", 1, 1, "packed and sorted", needs_grad=False)
    layout = [packed(is_sorted=True).batch_sizes]
    assert set(torch.library.opcheck(torch.ops.fastpack.recur.default, (data, layout, [], weights, *options)).values()) == {"SUCCESS"}


def test_gradients_of_the_operator() -> None:
    for cell, form in zip(BASE_CELLS, ("packed", "padded", "packed"), strict=True):
        data, layout, given, weights, *options = arguments(cell, 1, 2, form, needs_grad=False)
        leaves = [tensor.double().requires_grad_() for tensor in (data, *given, *weights)]

        def run(data: torch.Tensor, *rest: torch.Tensor) -> Any:
            results = torch.ops.fastpack.recur_recorded(data, layout, list(rest[: len(given)]), list(rest[len(given) :]), *options)  # noqa: B023
            return tuple(results[:-1])

        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_second_derivatives_are_refused() -> None:
    data, layout, given, weights, *options = arguments("GRU", 1, 1, "padded", needs_grad=True)
    output, *_ = torch.ops.fastpack.recur_recorded(data, layout, given, weights, *options)
    (gradient,) = torch.autograd.grad(output.sum(), data, create_graph=True)
    with pytest.raises(RuntimeError, match="a compiled layer has no second derivative"):
        torch.autograd.grad(gradient.sum(), weights)
    output, _ = torch.ops.fastpack.recur(data, layout, given, weights, *options)
    with pytest.raises(RuntimeError, match="fastpack::recur has no derivative"):
        torch.autograd.grad(output.sum(), data)


@pytest.mark.parametrize("ordered", [True, False])
def test_states_of_another_number_of_sequences_are_refused(ordered: bool) -> None:
    _, ours = pair("GRU")
    batch = packed(lengths=[3, 2, 1])
    batch = batch._replace(sorted_indices=None, unsorted_indices=None) if ordered else batch
    model = compiled(ours)
    with torch.no_grad():
        for B in (2, 4):
            with pytest.raises(RuntimeError, match=rf"Expected hidden size \(1, 3, {H}\), got \[1, {B}, {H}\]"):
                model(batch, torch.ones(1, B, H))


def test_autocast_in_a_compiled_model_that_is_trained() -> None:
    same, ours = pair("LSTM")[1], pair("LSTM")[1]
    torch._dynamo.reset()
    model, batch = torch.compile(ours, backend="aot_eager"), torch.ones(3, 2, F)
    with torch.autocast("cpu", torch.bfloat16):
        (expected, _), (found, _) = same(batch), model(batch)
    assert found.dtype is torch.bfloat16
    for output in (expected, found):
        output.sum().backward()
    assert_same_bits([found.float(), *(w.grad for w in ours.parameters())], [expected.float(), *(w.grad for w in same.parameters())])


@pytest.fixture
def by_torch_alone(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes of layers whose operators are given to torch's own functions."""
    called: list[str] = []
    original = operators._by_torch

    def spy(settings: Any, *rest: Any) -> Any:
        called.append(settings.mode)
        return original(settings, *rest)

    monkeypatch.setattr(operators, "_by_torch", spy)
    return called


@pytest.mark.parametrize("cell", BASE_CELLS)
def test_a_compiled_training_step_is_the_kernels(cell: str, by_torch_alone: list[str]) -> None:
    results = []
    for change in (lambda model: model, compiled):
        _, ours = pair(cell, num_layers=2, bidirectional=True, dropout=0.5)
        torch.manual_seed(9)
        model, batch = change(Model(ours)), packed(features=F)
        optimiser = torch.optim.SGD(ours.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss = sum(tensor.square().sum() for tensor in tensors(model(batch)))
            loss.backward()
            optimiser.step()
        results.append([loss, *ours.parameters()])
    assert_same_bits(*results)
    assert by_torch_alone == []


def test_gradients_of_a_compiled_model_that_the_kernels_do_not_take(by_torch_alone: list[str]) -> None:
    theirs, ours = pair("GRU", torch.bfloat16, bidirectional=True)
    batch = torch.randn(5, 3, F).bfloat16()
    for model in (Model(theirs), compiled(Model(ours))):
        model(batch)[0].sum().backward()
    assert_same_bits([w.grad.float() for w in ours.parameters()], [w.grad.float() for w in theirs.parameters()])
    assert by_torch_alone == ["GRU"] * 2


def test_frozen_weights_of_a_compiled_model_get_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[list[bool]] = []
    original = operators._by_kernels
    monkeypatch.setattr(operators, "_by_kernels", lambda *arguments: wanted.append([*arguments[3]]) or original(*arguments))
    gradients = []
    for change in (lambda model: model, compiled):
        _, ours = pair("LSTM")
        ours.weight_ih_l0.requires_grad_(False)
        change(Model(ours))(packed())[0].sum().backward()
        gradients.append([weight.grad for weight in (ours.weight_hh_l0, ours.bias_ih_l0, ours.bias_hh_l0)])
        assert ours.weight_ih_l0.grad is None
    assert_same_bits(*gradients)
    assert wanted == [[False, False, True, True, True]]
