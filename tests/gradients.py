"""What the tests of training share: calls of which everything wants a gradient, and how gradients are compared."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastpack.torch import by_torch, training
from tests.layers import flat, states

Call = Callable[[Any, Any], Any]


def with_data(batch: Any, data: Tensor) -> Any:
    """Return the batch with other rows."""
    return batch._replace(data=data) if isinstance(batch, PackedSequence) else data


def rows_of(batch: Any) -> Tensor:
    """Return the tensor that has a batch's rows."""
    return batch.data if isinstance(batch, PackedSequence) else batch


def in_a_list(hx: Any) -> list[Tensor]:
    """Return initial states as a list, in whatever form a layer takes them."""
    return [] if hx is None else [*hx] if isinstance(hx, tuple) else [hx]


def weights_of(k: int, tensor: Tensor) -> Tensor:
    """Return by what the k-th result of a call is weighed, to the dtype's precision the same for every dtype."""
    return torch.randn(tensor.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(k)).to(tensor.dtype)


def weighed(results: Sequence[Tensor]) -> Tensor:
    """Return a number that depends on every item, on each otherwise."""
    total = torch.zeros((), dtype=results[0].dtype)
    for k, tensor in enumerate(results):
        total = total + (tensor * weights_of(k, tensor)).sum()
    return total


def by_torch_alone(layer: nn.RNNBase) -> Call:
    """Return how to call a layer of ours by torch's own functions, which then also take sequences without rows."""
    return lambda batch, hx: by_torch.forward(layer, layer.theirs, batch, hx)


def gradients(call: Call, weights: Sequence[Tensor], batch: Any, hx: Any = None) -> list[Tensor]:
    """Return the results of a call and the gradients of a number made from them: of the rows, the initial states, and the weights."""
    data = rows_of(batch).clone(memory_format=torch.preserve_format).requires_grad_()
    begun = [state.clone().requires_grad_() for state in in_a_list(hx)]
    given = None if hx is None else tuple(begun) if isinstance(hx, tuple) else begun[0]
    results = flat(call(with_data(batch, data), given))
    return [*[tensor.detach() for tensor in results], *torch.autograd.grad(weighed(results), [data, *begun, *weights])]


def assert_alike(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Compare tensors in shape, dtype and values, relative to the largest of each."""
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if one.numel():
            assert one.isfinite().all()
            assert (one - other).abs().max().item() <= tolerance * max(1e-3, other.abs().max().item())


def some_states(layer: nn.RNNBase, batch: Any) -> list[Any]:
    """Return what to begin with: nothing, and states."""
    return [None, states(layer, batch)]


@contextmanager
def kernels_differentiate() -> Iterator[list[Sequence[bool]]]:
    """Fail where gradients are not by the kernels; collect which were wanted, of each layer's input, states and weights."""
    wanted: list[Sequence[bool]] = []
    original = training.differentiate

    def spy(record: Any, saved: Any, given: Any, wishes: Sequence[bool]) -> Any:
        found = original(record, saved, given, wishes)
        assert found is not None
        wanted.append(wishes)
        return found

    def refuse(*_: Any) -> Any:
        raise AssertionError("torch's own function was to find gradients")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "differentiate", spy)
        patch.setattr(training, "differentiate_by_torch", refuse)
        yield wanted
    assert wanted, "nothing was differentiated"


@contextmanager
def torch_differentiates() -> Iterator[list[None]]:
    """Fail where no layer's gradients are found by torch's own function."""
    called: list[None] = []
    original = training.differentiate_by_torch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "differentiate_by_torch", lambda *arguments: called.append(None) or original(*arguments))
        yield called
    assert called, "the kernels found every gradient"
