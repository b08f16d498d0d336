"""Gradients of layers by the kernels: torch's, of everything that may want one, in every form of a call."""

import ctypes
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fastpack.torch as fp
from fastpack import blocks
from fastpack.torch import gradients as by_kernels
from fastpack.torch import panels, training
from tests.gradients import (
    assert_alike,
    by_torch_alone,
    gradients,
    in_a_list,
    kernels_differentiate,
    rows_of,
    some_states,
    weighed,
    weights_of,
    with_data,
)
from tests.layers import CELLS, F, H, assert_same_bits, every_kind, flat, inputs, kernels_alone, packed, pair, states

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")]

NEAR = {torch.float32: 1e-4, torch.float64: 1e-11}


def other_lengths(dtype: torch.dtype) -> dict[str, PackedSequence]:
    return {
        "some have no rows": packed(dtype, [0, 3, 0, 2]),
        "one row": packed(dtype, [1]),
        "all as long as each other": packed(dtype, [4, 4, 4]),
        "one is long": packed(dtype, [1, 30, 1]),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_torchs_in_every_kind_and_form(dtype: torch.dtype) -> None:
    for cell, options in every_kind():
        theirs, ours = pair(cell, dtype, (F, 9), **options)
        for batch in inputs(ours).values():
            for hx in some_states(ours, batch):
                expected = gradients(theirs, [*theirs.parameters()], batch, hx)
                with kernels_alone(), kernels_differentiate():
                    assert fp.path(ours, batch, hx) == "kernels"
                    assert_alike(gradients(ours, [*ours.parameters()], batch, hx), expected, NEAR[dtype])


@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_gradients_of_batches_of_many_lengths(cell: str, own: dict) -> None:
    for dtype in NEAR:
        _, ours = pair(cell, dtype, num_layers=2, bidirectional=True, **own)
        for batch in other_lengths(dtype).values():
            for hx in some_states(ours, batch):
                expected = gradients(by_torch_alone(ours), [*ours.parameters()], batch, hx)
                with kernels_differentiate():
                    assert_alike(gradients(ours, [*ours.parameters()], batch, hx), expected, NEAR[dtype])


@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_gradients_where_no_sequence_has_rows(cell: str, own: dict) -> None:
    _, ours = pair(cell, torch.float64, bidirectional=True, **own)
    batch = packed(torch.float64, [0, 0, 0])
    hx = [state.requires_grad_() for state in in_a_list(states(ours, batch))]
    output, after = ours(batch, tuple(hx) if cell == "LSTM" else hx[0])
    results = flat((output, after))[1:]
    found = torch.autograd.grad(weighed(results), [*hx, *ours.parameters()], materialize_grads=True)
    assert_same_bits(found[: len(hx)], [weights_of(k, tensor) for k, tensor in enumerate(results)])
    assert all((gradient == 0).all() for gradient in found[len(hx) :])


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_gradients_at_sizes_of_one(cell: str) -> None:
    for bidirectional in (False, True):
        theirs, ours = pair(cell, torch.float64, (1, 1), bidirectional=bidirectional)
        x = torch.randn(1, 1, 1, dtype=torch.float64)
        for batch in (x, x[0], fp.pack_padded_sequence(x, [1]), torch.randn(2, 1, 1, dtype=torch.float64), torch.randn(1, 2, 1).double()):
            for hx in some_states(ours, batch):
                expected = gradients(theirs, [*theirs.parameters()], batch, hx)
                with kernels_differentiate():
                    assert_alike(gradients(ours, [*ours.parameters()], batch, hx), expected, NEAR[torch.float64])


REAL = [
    ("LSTM", 40, 96, {"num_layers": 2, "bidirectional": True}),
    ("LSTM", 64, 128, {"proj_size": 48}),
    ("GRU", 33, 100, {"bidirectional": True}),
    ("RNN", 20, 130, {"num_layers": 2}),
    ("RNN", 20, 65, {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("cell", "features", "hidden", "options"), REAL, ids=str)
def test_gradients_at_real_sizes(cell: str, features: int, hidden: int, options: dict) -> None:
    theirs, ours = pair(cell, torch.float32, (features, hidden), **options)
    lengths = torch.randint(1, 60, (24,), generator=torch.Generator().manual_seed(4)).tolist()
    batch = packed(lengths=lengths, features=features)
    expected = gradients(theirs.double(), [*theirs.parameters()], batch._replace(data=batch.data.double()))
    with kernels_differentiate():
        found = gradients(ours, [*ours.parameters()], batch)
    assert_alike(found, [tensor.float() for tensor in expected], 1e-4)


@pytest.mark.parametrize("form", ["packed", "padded", "a single sequence", "some have no rows"])
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_gradcheck(cell: str, own: dict, form: str) -> None:
    for options in ({"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}):
        torch.manual_seed(2)
        ours = getattr(fp, cell)(2, 4, dtype=torch.float64, **options, **({"proj_size": 3} if own.get("proj_size") else own))
        sizes = (2, 3, 2) if options.get("batch_first") else (3, 2, 2)
        batch: Any = {
            "packed": packed(torch.float64, [2, 3, 1], features=2),
            "padded": torch.randn(*sizes, dtype=torch.float64),
            "a single sequence": torch.randn(3, 2, dtype=torch.float64),
            "some have no rows": packed(torch.float64, [0, 3, 0, 1], features=2),
        }[form]
        for hx in some_states(ours, batch):
            given, names = in_a_list(hx), [name for name, _ in ours.named_parameters()]

            def run(data: torch.Tensor, *rest: torch.Tensor) -> Any:
                begun, weights = rest[: len(given)], dict(zip(names, rest[len(given) :], strict=True))  # noqa: B023
                ours._flat_weights = [weights[name] for name in ours._flat_weights_names]  # noqa: B023
                ours._parameters.update(weights)  # noqa: B023
                hidden = None if not begun else begun if cell == "LSTM" else begun[0]
                return tuple(flat(ours(with_data(batch, data), hidden)))  # noqa: B023

            leaves = [tensor.detach().clone().requires_grad_() for tensor in (rows_of(batch), *given, *ours.parameters())]
            with kernels_differentiate():
                assert torch.autograd.gradcheck(run, leaves)


# ---- what is wanted, and what is there


def test_only_what_is_wanted_is_found() -> None:
    for cell, own in CELLS:
        _, ours = pair(cell, torch.float64, bidirectional=True, **own)
        for batch in (packed(torch.float64, [0, 3, 1]), torch.randn(4, 2, F, dtype=torch.float64)):
            hx = states(ours, batch)
            whole = gradients(ours, [*ours.parameters()], batch, hx)[len(flat((0, hx))) :]
            count = 1 + len(in_a_list(hx)) + len([*ours.parameters()])
            for k in range(count):
                data, *begun = [tensor.detach().clone() for tensor in (rows_of(batch), *in_a_list(hx))]
                leaves = [data, *begun, *ours.parameters()]
                for place, leaf in enumerate(leaves):
                    leaf.requires_grad_(place == k)
                with kernels_differentiate() as wanted:
                    results = flat(ours(with_data(batch, data), tuple(begun) if cell == "LSTM" else begun[0]))
                    (found,) = torch.autograd.grad(weighed(results), [leaves[k]])
                assert wanted == [tuple(place == k for place in range(count))]
                assert_same_bits([found], [whole[k]])
            ours.requires_grad_()


def test_the_kernel_is_told_to_leave_out_what_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[bool]] = []
    original = by_kernels.parallel.run_on

    def run_on(block: Any, *rest: int) -> None:
        if isinstance(block, blocks.LayerGradient):
            table = (ctypes.c_int64 * blocks.D_WEIGHTS).from_address(block.d_weights)
            told.append([*map(bool, (block.d_x, block.d_h_0, block.d_c_0, *table))])
        original(block, *rest)

    monkeypatch.setattr(by_kernels.parallel, "run_on", run_on)
    _, ours = pair("LSTM", proj_size=3)
    batch, every = packed(), [*ours.parameters()]
    hx = states(ours, batch)
    sources = [batch.data, *hx, *every]
    for k, source in enumerate(sources):
        for leaf in sources:
            leaf.requires_grad_(leaf is source)
        torch.autograd.grad(ours(batch, hx)[0].data.sum(), [source])
        assert told.pop() == [place == k for place in range(len(sources))]
    assert not told


@pytest.mark.parametrize("what", ["output", "h_n", "c_n"])
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_gradients_from_some_results_alone(cell: str, own: dict, what: str) -> None:
    if what == "c_n" and cell != "LSTM":
        what = "output and h_n"
    theirs, ours = pair(cell, torch.float64, num_layers=2, bidirectional=True, **own)
    batch = packed(torch.float64)
    found = []
    for layer in (theirs, ours):
        output, after = layer(batch)
        named = dict(zip(("output", "h_n", "c_n"), flat((output, after)), strict=False))
        found.append(torch.autograd.grad(weighed([named[name] for name in what.split(" and ")]), [*layer.parameters()]))
    assert_alike(found[1], found[0], 1e-11)


def test_layers_below_which_nothing_wants_gradients_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    original = training._recorded
    monkeypatch.setattr(training, "_recorded", lambda call, layer, *rest: recorded.append(layer) or original(call, layer, *rest))
    _, ours = pair("GRU", num_layers=3)
    batch = packed()
    whole = torch.autograd.grad(ours(batch)[0].data.sum(), [ours.weight_hh_l1])
    assert recorded == [0, 1, 2]
    for name, weight in ours.named_parameters():
        weight.requires_grad_(name == "weight_hh_l1")
    recorded.clear()
    assert_same_bits(torch.autograd.grad(ours(batch)[0].data.sum(), [ours.weight_hh_l1]), whole)
    assert recorded == [1, 2]


def strides(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return tensors of the same values that lie otherwise in memory."""
    wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 3, dtype=tensor.dtype)
    wide[..., 1:-2] = tensor
    return {
        "turned": tensor.movedim(-1, 0).contiguous().movedim(0, -1),
        "cut": wide[..., 1:-2],
        "every second": torch.stack([tensor, tensor], -1)[..., 0],
        "steps and rows exchanged": tensor.transpose(0, 1).contiguous().transpose(0, 1),
    }


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_inputs_and_gradients_of_any_strides(cell: str) -> None:
    for batch_first in (False, True):
        _, ours = pair(cell, batch_first=batch_first, bidirectional=True)
        for batch in inputs(ours).values():
            hx = states(ours, batch)
            expected = gradients(ours, [*ours.parameters()], batch, hx)
            for name, data in strides(rows_of(batch)).items():
                begun = [strides(state)[name] for state in in_a_list(hx)]
                with kernels_differentiate():
                    assert_same_bits(
                        gradients(ours, [*ours.parameters()], with_data(batch, data), tuple(begun) if cell == "LSTM" else begun[0]),
                        expected,
                    )
            results = flat(ours(batch, hx))
            given = [torch.randn_like(tensor) for tensor in results]
            whole = torch.autograd.grad(results, [*ours.parameters()], given, retain_graph=True)
            for name in strides(given[0]):
                others = [strides(gradient)[name] for gradient in given]
                with kernels_differentiate():
                    assert_same_bits(torch.autograd.grad(results, [*ours.parameters()], others, retain_graph=True), whole)
            ones = torch.autograd.grad(results[0], [*ours.parameters()], torch.ones_like(results[0]), retain_graph=True)
            one = torch.ones((), dtype=results[0].dtype).expand(results[0].shape)
            with kernels_differentiate():
                assert_same_bits(torch.autograd.grad(results[0], [*ours.parameters()], one), ones)


def test_weights_of_any_make() -> None:
    theirs, ours = pair("LSTM", torch.float64, sizes=(H, H))
    batch = packed(torch.float64, features=H)
    expected = gradients(theirs, [*theirs.parameters()], batch)
    # of other strides
    ours.weight_hh_l0.data = ours.weight_hh_l0.data.T.contiguous().T
    assert_alike(gradients(ours, [*ours.parameters()], batch), expected, 1e-11)
    # parts of one storage
    storage = torch.cat([weight.detach().flatten() for weight in ours.parameters()])
    parts = storage.split([weight.numel() for weight in ours.parameters()])
    for weight, part in zip(ours.parameters(), parts, strict=True):
        weight.data = part.view(weight.shape)
    assert_alike(gradients(ours, [*ours.parameters()], batch), expected, 1e-11)
    # the same tensor twice
    for layer in (theirs, ours):
        layer.weight_hh_l0 = layer.weight_ih_l0
    found, expected = (gradients(layer, [*layer.parameters()], batch) for layer in (ours, theirs))
    assert_alike(found, expected, 1e-11)


def test_parametrised_weights() -> None:
    batch, found = packed(torch.float64), []
    for layer in pair("GRU", torch.float64):
        layer = nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
        output, h_n = layer(batch)
        found.append(torch.autograd.grad(weighed([output.data, h_n]), [*layer.parameters()]))
    assert_alike(found[1], found[0], 1e-11)


def test_accelerated_and_restored_models_train_alike() -> None:
    results = []
    for change in (lambda model: model, fp.accelerate, lambda model: fp.restore(fp.accelerate(model))):
        torch.manual_seed(0)
        model = change(nn.Sequential(nn.Linear(F, F), nn.LSTM(F, H, 2, bidirectional=True)).double())
        optimiser = torch.optim.Adam(model.parameters())
        for _ in range(4):
            optimiser.zero_grad()
            loss = model(torch.ones(5, 3, F, dtype=torch.float64))[0].square().sum()
            loss.backward()
            optimiser.step()
        results.append([loss.detach(), *[weight.detach() for weight in model.parameters()]])
    assert_alike(results[1], results[0], 1e-9)
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_dropout_between_layers_is_torchs(cell: str, own: dict) -> None:
    theirs, ours = pair(cell, torch.float64, num_layers=3, bidirectional=True, dropout=0.5, **own)
    for batch in inputs(ours).values():
        found = []
        for layer in (theirs, ours):
            torch.manual_seed(6)
            found += [gradients(layer, [*layer.parameters()], batch), torch.rand(3)]
        assert_alike(found[2], found[0], 1e-11)
        assert torch.equal(found[3], found[1])


def test_gradient_panels_are_made_once_for_each_content(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for name in ("_packed", "_packed_for_gradients"):
        original = getattr(panels, name)
        monkeypatch.setattr(panels, name, lambda *arguments, name=name, original=original: made.append(name) or original(*arguments))
    _, ours = pair("LSTM", num_layers=2)
    batch = packed()
    for _ in range(3):
        ours(batch)[0].data.sum().backward()
    assert made == ["_packed", "_packed_for_gradients"]
    ours.weight_hh_l1.data.add_(1)
    with torch.no_grad():
        ours(batch)
    assert made == ["_packed", "_packed_for_gradients", "_packed"]
    for _ in range(2):
        ours(batch)[0].data.sum().backward()
    assert made == ["_packed", "_packed_for_gradients", "_packed", "_packed_for_gradients"]
