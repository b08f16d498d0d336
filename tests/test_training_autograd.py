"""Layers that are trained behave as torch's to all that autograd offers: hooks, checkpoints, several passes, errors, second derivatives."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastpack.torch as fp
from fastpack.torch import by_torch, gradients_by_torch
from tests.gradients import (
    assert_alike,
    gradients,
    in_a_list,
    kernels_differentiate,
    rows_of,
    some_states,
    torch_differentiates,
    weighed,
    with_data,
)
from tests.layers import CELLS, F, H, assert_same_bits, flat, inputs, packed, pair, states
from tests.test_paths import Subclass
from tests.torch_oracle import outcome

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")]


def test_several_backward_passes() -> None:
    _, ours = pair("LSTM", num_layers=2)
    output, (h_n, _) = ours(packed())
    weights = [*ours.parameters()]
    first = torch.autograd.grad(output.data.sum(), weights, retain_graph=True)
    with kernels_differentiate():
        torch.autograd.grad(h_n.sum(), weights, retain_graph=True)
        assert_same_bits(torch.autograd.grad(output.data.sum(), weights, retain_graph=True), first)
    for _ in range(2):
        output.data.sum().backward(retain_graph=True)
    assert_same_bits([weight.grad for weight in weights], [2 * gradient for gradient in first])
    output.data.sum().backward()
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        output.data.sum().backward()


def test_hooks_see_what_torchs_show() -> None:
    results = []
    for layer in pair("GRU", torch.float64, num_layers=2):
        seen: list[Tensor] = []
        layer.register_full_backward_hook(lambda module, d_input, d_output, seen=seen: seen.extend([*d_input, *d_output]))
        layer.weight_hh_l1.register_hook(lambda gradient: 2 * gradient)
        layer.weight_ih_l0.register_post_accumulate_grad_hook(lambda weight, seen=seen: seen.append(weight.grad))
        x = torch.ones(5, 3, F, dtype=torch.float64, requires_grad=True)
        output, h_n = layer(x)
        output.register_hook(lambda gradient: gradient / 2)
        (weighed([output]) + h_n.sum()).backward()
        results.append([*seen, *[weight.grad for weight in layer.parameters()]])
    assert_alike(results[1], results[0], 1e-11)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(use_reentrant: bool) -> None:
    for cell in ("LSTM", "GRU", "RNN"):
        _, ours = pair(cell, num_layers=2, bidirectional=True, dropout=0.5)
        for batch in inputs(ours).values():
            results = []
            for call in (lambda run, *given: run(*given), checkpoint):
                torch.manual_seed(5)
                data = rows_of(batch).clone().requires_grad_()

                def run(rows: Tensor) -> tuple[Tensor, ...]:
                    return tuple(flat(ours(with_data(batch, rows))))  # noqa: B023

                options = {"use_reentrant": use_reentrant} if call is checkpoint else {}
                with kernels_differentiate():
                    ours.zero_grad()
                    weighed(call(run, data, **options)).backward()
                results.append([data.grad, *[weight.grad for weight in ours.parameters()]])
            assert_same_bits(results[1], results[0])


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomalies_are_found() -> None:
    _, ours = pair("LSTM")
    with torch.autograd.detect_anomaly():
        ours(packed())[0].data.sum().backward()
        output = ours(packed())[0].data
        with pytest.raises(RuntimeError, match="_LayerBackward' returned nan"):
            output.backward(torch.full(output.shape, float("nan")))


def test_saved_tensors_are_torchs_to_hook() -> None:
    _, ours = pair("LSTM", num_layers=2)
    batch = packed()
    expected = gradients(ours, [*ours.parameters()], batch)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor), kernels_differentiate():
        assert_same_bits(gradients(ours, [*ours.parameters()], batch), expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.double(), lambda tensor: tensor.float()):
        assert_same_bits(gradients(ours, [*ours.parameters()], batch), expected)
    with torch.autograd.graph.save_on_cpu():
        assert_same_bits(gradients(ours, [*ours.parameters()], batch), expected)

    def turned(tensor: Tensor) -> Tensor:
        return tensor.movedim(-1, 0).contiguous().movedim(0, -1)

    with torch.autograd.graph.saved_tensors_hooks(turned, lambda tensor: tensor), kernels_differentiate():
        assert_same_bits(gradients(ours, [*ours.parameters()], batch), expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor.as_subclass(Subclass)):
        with torch_differentiates():
            found = gradients(ours, [*ours.parameters()], batch)
        assert_alike([tensor.as_subclass(Tensor) for tensor in found], expected, 1e-5)


@pytest.mark.parametrize(
    "change",
    [lambda tensor: tensor[:-1], lambda tensor: tensor.double(), lambda tensor: torch.ones(3), lambda tensor: tensor.flatten()[None]],
)
def test_other_tensors_than_were_saved_are_refused(change: Callable) -> None:
    for cell, _ in CELLS:
        _, ours = pair(cell)
        for _ in range(2):  # the second time after a pass whose tensors were remembered
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, change):
                loss = ours(packed())[0].data.sum()
            with pytest.raises(
                RuntimeError, match=r"was saved for backward, but it now is one of \[.* a hook for saved tensors returned another"
            ):
                loss.backward()
            ours(packed())[0].data.sum().backward()


@pytest.mark.parametrize("which", [0, 1])  # the input and the output
def test_a_saved_tensor_of_fewer_rows_is_refused(which: int) -> None:
    for cell, _ in CELLS:
        _, ours = pair(cell)
        ours(packed())[0].data.sum().backward()  # whose tensors are remembered, but for how many rows they had
        calls = iter(range(100))
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor[next(calls) == which :]):  # noqa: B023
            loss = ours(packed())[0].data.sum()
        with pytest.raises(RuntimeError, match=r"was saved for backward, but it now is one of"):
            loss.backward()


@pytest.mark.parametrize("create_graph", [False, True])  # by the kernels, by torch's functions
def test_a_batchs_indices_may_be_changed_before_the_backward_pass(create_graph: bool) -> None:
    for cell, _ in CELLS:
        _, ours = pair(cell)
        results = []
        for change in (0, 10**6):
            batch = packed()
            loss = ours(batch)[0].data.square().sum()
            for index in batch[1:]:
                index.add_(change)
            results.append(torch.autograd.grad(loss, [*ours.parameters()], create_graph=create_graph))
        assert_same_bits(*results)


def test_weights_of_another_shape_or_dtype_than_in_the_forward_pass_are_refused() -> None:
    for cell, _ in CELLS:
        for change in (torch.Tensor.double, torch.Tensor.flatten):
            _, ours = pair(cell)
            loss = ours(packed())[0].data.sum()
            ours.weight_hh_l0.data = change(ours.weight_hh_l0.data)
            with pytest.raises(RuntimeError, match=r"it now is one of \[.* its data was replaced"):
                loss.backward()


def test_changes_of_saved_tensors_are_caught() -> None:
    changes: dict[str, Callable] = {
        "the input": lambda layer, batch, hx, output: batch.data.add_(1),
        "a state": lambda layer, batch, hx, output: hx[1].add_(1),
        "the output": lambda layer, batch, hx, output: output.data.add_(1),
        "a weight": lambda layer, batch, hx, output: layer.weight_hh_l0.add_(1),
    }
    for change in changes.values():
        _, ours = pair("LSTM")
        batch = packed()
        hx = states(ours, batch)
        output, _ = ours(batch, hx)
        with torch.no_grad():
            change(ours, batch, hx, output)
        with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
            output.data.sum().backward()


def test_changes_of_the_layout_are_not_followed() -> None:
    _, ours = pair("GRU", num_layers=2)
    batch = packed()
    expected = torch.autograd.grad(ours(batch)[0].data.sum(), [*ours.parameters()])
    output = ours(batch)[0].data
    for index in batch[1:]:
        index.fill_(10**9)
    assert_same_bits(torch.autograd.grad(output.sum(), [*ours.parameters()]), expected)


def test_memory_that_was_taken_away_is_not_read() -> None:
    for which in ("the input", "the output", "a gradient"):
        _, ours = pair("LSTM")
        batch = packed()
        output = ours(batch)[0].data
        gradient = torch.ones(output.shape)
        {"the input": batch.data, "the output": output, "a gradient": gradient}[which].untyped_storage().resize_(0)
        if which == "the output":  # which torch's own function computes anew
            with torch_differentiates():
                output.backward(gradient)
        else:
            with pytest.raises(RuntimeError, match="has no memory: its storage was emptied"):
                output.backward(gradient)


def test_gradients_of_a_wrong_shape_or_dtype_are_refused_as_by_torch() -> None:
    theirs, ours = pair("LSTM")
    for bad in (torch.ones(2, 3, H), torch.ones(5, 3, H + 1), torch.ones(5, 3, H, dtype=torch.complex64), torch.ones(5, 3, H, dtype=int)):
        ends = [outcome(layer(torch.ones(5, 3, F))[0].backward, bad) for layer in (theirs, ours)]
        assert ends[0] == ends[1]
        assert (ends[0][0] is None) == (bad.dtype is torch.int64)  # which torch casts, as another precision
    output = ours(torch.ones(5, 3, F))[0]
    output.backward(torch.ones(5, 3, H, dtype=torch.float64))
    assert ours.weight_hh_l0.grad.dtype is torch.float32


def test_inference_mode_before_a_backward_pass() -> None:
    theirs, ours = pair("LSTM")
    batch = torch.ones(5, 3, F)
    ends = []
    for layer in (theirs, ours):
        with torch.inference_mode():
            output, inside = layer(batch)[0], batch.clone()
        ends.append([outcome(output.sum().backward), outcome(layer, inside)])
    assert ends[0] == ends[1]
    assert ends[0][0][0] is RuntimeError


def test_what_a_transform_left_behind_is_taken_as_by_torch() -> None:
    left: list[Tensor] = []
    torch.func.grad(lambda x: (left.append(x * 2), x.sum())[1])(torch.ones(5, 3, F))
    for cell, own in CELLS:
        theirs, ours = pair(cell, **own)
        found, expected = ours(left[0])[0], theirs(left[0])[0]
        assert_alike(
            [found, *torch.autograd.grad(found.sum(), [*ours.parameters()])],
            [expected, *torch.autograd.grad(expected.sum(), [*theirs.parameters()])],
            1e-5,
        )


def odd_gradients(like: Tensor) -> dict[str, Tensor]:
    return {
        "lazily negated": torch._neg_view(-torch.ones_like(like)),
        "lazy zeros": torch._efficientzerotensor(like.shape),
        "of a subclass": torch.ones_like(like).as_subclass(Subclass),
        "lazily conjugated": torch.complex(torch.ones_like(like), torch.ones_like(like)).conj().real,
        "imaginary and lazily negated": torch.complex(like.detach(), torch.ones_like(like)).conj().imag,
    }


@pytest.mark.parametrize("what", odd_gradients(torch.ones(1)))
def test_gradients_of_another_kind(what: str) -> None:
    for cell in ("LSTM", "GRU"):
        theirs, ours = pair(cell)
        found = []
        for layer in (theirs, ours):
            output = layer(packed())[0].data
            found.append(torch.autograd.grad(output, [*layer.parameters()], odd_gradients(output)[what]))
        assert_alike([gradient.as_subclass(Tensor) for gradient in found[1]], [gradient.as_subclass(Tensor) for gradient in found[0]], 1e-5)


def test_gradients_in_batches() -> None:
    for cell in ("LSTM", "GRU", "RNN"):
        _, ours = pair(cell, torch.float64, bidirectional=True)
        for batch in inputs(ours).values():
            output = rows_of(ours(batch)[0])
            given = torch.randn(3, *output.shape, dtype=torch.float64)
            with torch_differentiates():
                found = torch.autograd.grad(output, [*ours.parameters()], given, is_grads_batched=True, retain_graph=True)
            each = [torch.autograd.grad(output, [*ours.parameters()], one, retain_graph=True) for one in given]
            assert_alike(found, [*map(torch.stack, zip(*each, strict=True))], 1e-11)


# ---- second derivatives


@pytest.mark.parametrize("form", ["packed", "padded", "a single sequence", "some have no rows"])
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_second_derivatives(cell: str, own: dict, form: str) -> None:
    torch.manual_seed(2)
    ours = getattr(fp, cell)(2, 3, dtype=torch.float64, bidirectional=True, **({"proj_size": 2} if own.get("proj_size") else own))
    batch: Any = {
        "packed": packed(torch.float64, [2, 3], features=2),
        "padded": torch.randn(2, 2, 2, dtype=torch.float64),
        "a single sequence": torch.randn(2, 2, dtype=torch.float64),
        "some have no rows": packed(torch.float64, [0, 2, 1], features=2),
    }[form]
    for hx in some_states(ours, batch):
        given = in_a_list(hx)

        def run(data: Tensor, weight: Tensor, *begun: Tensor) -> Any:
            ours._flat_weights[1] = ours._parameters["weight_hh_l0"] = weight
            hidden = None if not begun else begun if cell == "LSTM" else begun[0]
            return tuple(flat(ours(with_data(batch, data), hidden)))

        leaves = [tensor.detach().clone().requires_grad_() for tensor in (rows_of(batch), ours.weight_hh_l0, *given)]
        assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_penalties_on_gradients_are_torchs(dtype: torch.dtype) -> None:
    for cell, own in CELLS:
        theirs, ours = pair(cell, dtype, num_layers=2, bidirectional=True, **own)
        theirs.double()  # of float32 oneDNN's LSTM has no second derivative
        for batch in inputs(ours).values():
            found = []
            for layer in (theirs, ours):
                data = rows_of(batch).to(layer.weight_ih_l0.dtype, copy=True).requires_grad_()
                output = flat(layer(with_data(batch, data)))[0]
                (gradient,) = torch.autograd.grad(output.square().sum(), data, create_graph=True)
                found.append(torch.autograd.grad(gradient.square().sum(), [data, *layer.parameters()]))
            assert {gradient.dtype for gradient in found[1]} == {dtype}
            assert_alike([gradient.double() for gradient in found[1]], found[0], 1e-10 if dtype is torch.float64 else 1e-4)


def test_inputs_that_are_made_from_each_other_and_weights_that_are_the_same() -> None:
    results = []
    for layer in pair("LSTM", torch.float64, sizes=(H, H)):
        layer.weight_hh_l0 = layer.weight_ih_l0
        data = packed(torch.float64, features=H)
        x = data.data.clone().requires_grad_()
        rows = x @ layer.weight_ih_l0[:H] + x
        output = flat(layer(data._replace(data=rows)))[0]
        (gradient,) = torch.autograd.grad(output.square().sum(), layer.weight_ih_l0, create_graph=True)
        results.append([gradient.detach(), *torch.autograd.grad(gradient.square().sum(), [x, *layer.parameters()])])
    assert_alike(results[1], results[0], 1e-10)


def test_torchs_own_function_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpack.torch import training

    ran: list[str] = []
    original = by_torch.run
    monkeypatch.setattr(gradients_by_torch.by_torch, "run", lambda *arguments: ran.append("run") or original(*arguments))
    for cell, own in CELLS:
        _, ours = pair(cell, torch.float64, num_layers=2, bidirectional=True, batch_first=True, **own)
        for batch in inputs(ours).values():
            for hx in some_states(ours, batch):
                expected = gradients(ours, [*ours.parameters()], batch, hx)
                assert ran == []
                with monkeypatch.context() as patch:
                    patch.setattr(training, "differentiate", lambda *_: None)
                    assert_alike(gradients(ours, [*ours.parameters()], batch, hx), expected, 1e-11)
                assert len(ran) == 2
                ran.clear()


class Tower(nn.Module):
    """Layers above each other, with what passes them by."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(F, H, dtype=torch.float64), nn.Linear(H, H, dtype=torch.float64)
        self.layers = nn.ModuleList([nn.LSTM(H, H, dtype=torch.float64), nn.GRU(H, H, dtype=torch.float64)])

    def forward(self, batch: Any) -> Tensor:
        rows = self.embed(batch.data).tanh()
        for layer in self.layers:
            rows = layer(batch._replace(data=rows))[0].data + rows
        return self.head(rows)


def test_gradients_add_up_over_batches() -> None:
    torch.manual_seed(1)
    model = Tower()
    batches, results = [packed(torch.float64, [k, 2, 3]) for k in (1, 4, 2)], []
    for change in (lambda module: module, fp.accelerate):
        change(model).zero_grad()
        for batch in batches:
            model(batch).square().sum().backward()
        results.append([weight.grad.clone() for weight in model.parameters()])
    assert_alike(results[1], results[0], 1e-11)


def test_what_is_saved_is_freed_by_the_backward_pass_and_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        for cell, own in CELLS:
            _, ours = pair(cell, num_layers=2, bidirectional=True, **own)
            made = torch.ones(5, 3, F) * 2
            output, after = ours(made, states(ours, made))
            saved, result = weakref.ref(made), weakref.ref(output)
            del made
            assert saved() is not None
            output.sum().backward()
            assert saved() is None
            del output, after
            assert result() is None
    finally:
        gc.enable()
