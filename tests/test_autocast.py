"""Layers under autocast: computed in float32 by the kernels, with results of the dtypes that torch gives them, trained or not."""

from itertools import product
from typing import Any

import pytest
import torch

import fastpack.torch as fp
from tests.gradients import in_a_list, kernels_differentiate, rows_of, with_data
from tests.layers import CELLS, F, H, assert_same_bits, flat, inputs, kernels_alone, packed, pair, states, torch_called
from tests.test_paths import Subclass
from tests.torch_oracle import outcome

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")]
HALVES = [torch.bfloat16, torch.float16]
FLOATS = [torch.float32, *HALVES]


def cast(batch: Any, hx: Any, dtype: torch.dtype, state_dtype: torch.dtype | None) -> tuple[Any, Any]:
    given = with_data(batch, rows_of(batch).to(dtype))
    if state_dtype is None:
        return given, None
    return given, tuple(state.to(state_dtype) for state in hx) if isinstance(hx, tuple) else hx.to(state_dtype)


def as_others(exact: Any, others: Any) -> list[torch.Tensor]:
    """Return tensors rounded to the dtypes of others, in float32."""
    return [one.to(other.dtype).float() for one, other in zip(exact, others, strict=True)]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_results_are_of_torchs_dtypes_and_near_its_values(cell: str, own: dict, half: torch.dtype) -> None:
    for options, is_trained in product(({}, {"num_layers": 2, "bidirectional": True}), (False, True)):
        theirs, ours = pair(cell, **options, **own)
        for batch in (*inputs(ours).values(), packed(lengths=[4, 4])):
            for dtype, state_dtype in product(FLOATS, (None, *FLOATS)):
                given = cast(batch, states(ours, batch), dtype, state_dtype)
                with torch.set_grad_enabled(is_trained), torch.autocast("cpu", half):
                    kind, message = outcome(theirs, *given)
                    assert outcome(ours, *given) == (kind, message)
                    if kind is None:
                        with kernels_alone():
                            assert fp.path(ours, *given) == "kernels"
                            found = flat(ours(*given))
                        for one, other in zip(found, flat(theirs(*given)), strict=True):
                            assert (one.dtype, one.shape, one.requires_grad) == (other.dtype, other.shape, other.requires_grad)
                            assert (one.float() - other.float()).abs().max() < 0.05
                    else:
                        assert fp.path(ours, *given) == "torch: autocast is on, and torch takes no such call"


@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_values_and_gradients_are_those_of_float32(cell: str, own: dict) -> None:
    _, ours = pair(cell, num_layers=2, bidirectional=True, **own)
    for batch in inputs(ours).values():
        hx = states(ours, batch)
        found = []
        for dtype in (torch.float32, torch.bfloat16):
            data, *begun = [tensor.bfloat16().to(dtype).requires_grad_() for tensor in (rows_of(batch), *in_a_list(hx))]
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                results = flat(ours(with_data(batch, data), tuple(begun) if cell == "LSTM" else begun[0]))
            given = [torch.ones_like(result) for result in results]
            with kernels_differentiate():
                found.append([results, torch.autograd.grad(results, [data, *begun, *ours.parameters()], given)])
        (exact, exact_gradients), (results, gradients) = found
        assert_same_bits([*map(torch.Tensor.float, results)], as_others(exact, results))
        assert_same_bits([*map(torch.Tensor.float, gradients)], as_others(exact_gradients, gradients))
        assert {one.dtype for one in gradients[1 + len(begun) :]} == {torch.float32}


def test_a_model_is_trained_under_autocast() -> None:
    losses = []
    for kind in (torch.nn.LSTM, fp.LSTM):
        torch.manual_seed(0)
        embed, layer, head = torch.nn.Linear(F, H), kind(H, H), torch.nn.Linear(H, 1)
        optimiser = torch.optim.SGD([*embed.parameters(), *layer.parameters(), *head.parameters()], lr=0.1)
        x = torch.randn(6, 4, F)
        for _ in range(5):
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = head(layer(embed(x))[0]).float().square().mean()
            loss.backward()
            optimiser.step()
        losses.append(loss.item())
    assert abs(losses[1] - losses[0]) < 0.02 * losses[0]


def test_what_autocast_does_not_cast_is_torchs() -> None:
    theirs, ours = pair("GRU")
    double, half = pair("GRU", torch.float64), pair("GRU", torch.bfloat16)
    weights = "torch: autocast is on, and the weights are not all of torch.float32"
    tensors = "torch: autocast is on, and a tensor is not of torch.float32, torch.bfloat16 or torch.float16"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for (one, other), batch, why in (
            (double, torch.ones(3, 2, F, dtype=torch.float64), weights),
            (half, torch.ones(3, 2, F), weights),
            ((theirs, ours), torch.ones(3, 2, F, dtype=torch.float64), tensors),
            ((theirs, ours), torch.ones(3, 2, F).as_subclass(Subclass), tensors),
            ((theirs, ours), torch._neg_view(torch.ones(3, 2, F)), tensors),
        ):
            assert fp.path(other, batch) == why
            with torch_called() as called:
                end = outcome(one, batch)
                assert outcome(other, batch) == end
                if end[0] is None:
                    assert_same_bits([x.float() for x in flat(other(batch))], [x.float() for x in flat(one(batch))])
            assert called
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert fp.path(ours, torch.ones(3, 2, F)) == "kernels"


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_autocast_of_another_device_changes_nothing() -> None:
    _, ours = pair("GRU")
    batch = torch.ones(3, 2, F)
    with torch.no_grad(), kernels_alone():
        expected = flat(ours(batch))
        torch.set_autocast_enabled("cuda", True)
        try:
            assert_same_bits(flat(ours(batch)), expected)
        finally:
            torch.set_autocast_enabled("cuda", False)
