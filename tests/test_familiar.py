"""Recognising tensors by torch's private guards: it only ever saves time, and what it does not know is checked in full."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

import fastpack.torch as fp
from fastpack.torch import familiar, recurrence
from tests.layers import F, H, assert_close, assert_same_bits, flat, inputs, packed, pair, states
from tests.test_paths import Subclass

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes of layers whose calls are checked in full."""
    found: list[str] = []
    original = recurrence._checked

    def spy(settings, *rest):
        found.append(settings[0])
        return original(settings, *rest)

    monkeypatch.setattr(recurrence, "_checked", spy)
    return found


def test_calls_that_look_alike_are_checked_once(checked: list[str]) -> None:
    assert familiar._guards() is not None
    for cell in ("LSTM", "GRU"):
        _, ours = pair(cell)
        for batch in inputs(ours).values():
            for hx in (None, states(ours, batch)):
                checked.clear()
                with torch.inference_mode():
                    expected = flat(ours(batch, hx))
                    for _ in range(3):
                        assert_same_bits(flat(ours(batch, hx)), expected)
                assert checked == [cell]
        checked.clear()
        with torch.no_grad():
            for lengths in ([1], [3, 2], [2, 7, 1, 1], [0, 4], [40] * 9):
                ours(packed(lengths=lengths))
            for sizes in ((1, 1), (1, 9), (9, 1), (7, 5)):
                ours(torch.ones(*sizes, F))
        assert checked == [cell] * 2


def test_training_steps_that_look_alike_are_checked_once(checked: list[str]) -> None:
    for cell in ("LSTM", "GRU"):
        _, ours = pair(cell, num_layers=2)
        optimiser = torch.optim.SGD(ours.parameters(), lr=0.1)
        for k in range(4):
            optimiser.zero_grad()
            ours(packed(lengths=[3, 2 + k]))[0].data.sum().backward()
            optimiser.step()
        assert checked == [cell]
        checked.clear()


def looks() -> dict:
    """Return what becomes of a layer or its arguments, to a copy of the same values that looks otherwise."""
    return {
        "another dtype": lambda layer, batch, hx: (layer.double(), batch._replace(data=batch.data.double()), hx.double()),
        "another stride": lambda layer, batch, hx: (layer, batch._replace(data=batch.data.T.contiguous().T), hx),
        "a negated view": lambda layer, batch, hx: (layer, batch._replace(data=torch._neg_view(-batch.data)), hx),
        "a subclass": lambda layer, batch, hx: (layer, batch, hx.as_subclass(Subclass)),
        "indices of another dtype": lambda layer, batch, hx: (layer, batch._replace(sorted_indices=batch.sorted_indices.int()), hx),
        "indices of another stride": lambda layer, batch, hx: (
            layer,
            batch._replace(batch_sizes=torch.stack([batch.batch_sizes, batch.batch_sizes], 1)[:, 0]),
            hx,
        ),
        "a state of another stride": lambda layer, batch, hx: (layer, batch, hx.mT.contiguous().mT),
        "a gradient": lambda layer, batch, hx: (layer.requires_grad_(), batch, hx),
        "a weight of another stride": lambda layer, batch, hx: (
            setattr(layer.weight_hh_l0, "data", layer.weight_hh_l0.T.contiguous().T.data) or layer,
            batch,
            hx,
        ),
        "a negated weight": lambda layer, batch, hx: (
            layer._parameters.update(weight_hh_l0=torch._neg_view(-layer.weight_hh_l0.detach())) or layer._init_flat_weights() or layer,
            batch,
            hx,
        ),
    }


@pytest.mark.parametrize("look", looks().values(), ids=looks())
def test_what_looks_otherwise_is_not_taken_for_the_same(look, checked: list[str]) -> None:
    theirs, ours = pair("GRU")
    ours.requires_grad_(False), theirs.requires_grad_(False)
    batch = packed()
    hx = states(ours, batch)
    for _ in range(2):
        ours(batch, hx)
    assert checked == ["GRU"]
    expected = theirs(batch, hx)
    ours, batch, hx = look(ours, batch, hx)
    output, h_n = ours(batch, hx)
    assert checked == ["GRU"] * 2
    assert_close((output.data.detach().float(), h_n.detach().as_subclass(torch.Tensor).float()), (expected[0].data, expected[1]))


@pytest.mark.parametrize("what", ["a weight", "the input", "a state"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_call_without_gradients_says_nothing_of_one_with_them(context, what: str) -> None:
    _, ours = pair("LSTM")
    ours.requires_grad_(False)
    ours.bias_hh_l0.requires_grad_(what == "a weight")
    batch = packed()
    hx = states(ours, batch)
    hx[1].requires_grad_(what == "a state")
    batch.data.requires_grad_(what == "the input")
    for _ in range(2):  # as a validation and a training step in turn
        with context():
            assert fp.path(ours, batch, hx) == "kernels"
            assert [tensor.requires_grad for tensor in flat(ours(batch, hx))] == [False] * 3
        assert fp.path(ours, batch, hx) == "kernels"
        assert [tensor.requires_grad for tensor in flat(ours(batch, hx))] == [True] * 3


def test_wrong_sizes_are_not_taken_for_the_same(checked: list[str]) -> None:
    _, ours = pair("LSTM")
    batch = packed()
    hx = states(ours, batch)
    with torch.inference_mode():
        ours(batch, hx)
        for bad in ((hx[0][:, :3], hx[1]), (hx[0], hx[1][..., :3]), (hx[0][:0], hx[1])):
            with pytest.raises(RuntimeError, match=r"Expected hidden\[\d\] size"):
                ours(batch, bad)
        with pytest.raises(RuntimeError, match="Expected 4, got 5"):
            ours(packed(features=5), hx)
        with pytest.raises(RuntimeError, match="batch sizes never grow"):
            ours(batch._replace(batch_sizes=batch.batch_sizes.flip(0)), hx)
        assert fp.path(ours, batch._replace(sorted_indices=batch.sorted_indices.flip(0)), hx) == "torch: the packed batch is inconsistent"
        ours.weight_hh_l0.data = torch.ones(4 * H, H + 1)
        with pytest.raises(RuntimeError):
            ours(batch, hx)


def test_without_torchs_guards_all_calls_are_checked(checked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(familiar, "_guards", lambda: None)
    theirs, ours = pair("LSTM")
    batch = packed()
    with torch.inference_mode():
        for _ in range(3):
            assert_close(ours(batch), theirs(batch))
    assert checked == ["LSTM"] * 3


class Blind:
    """Guards that find all tensors alike."""

    def __init__(self, *tensors, **sizes) -> None:
        pass

    def check(self, *tensors) -> bool:
        return True


class Choosy(Blind):
    """Guards that find no tensors alike."""

    def check(self, *tensors) -> bool:
        return False


class Broken(Blind):
    """Guards that raise."""

    def check(self, *tensors) -> bool:
        raise RuntimeError("another torch")


class Other:
    """Guards that are made otherwise."""


@pytest.mark.parametrize("guards", [Blind, Choosy, Broken, Other])
def test_guards_that_do_other_than_expected_are_not_used(guards: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C._dynamo.guards, "TensorGuards", guards)
    familiar._guards.cache_clear()
    try:
        assert familiar._guards() is None
        theirs, ours = pair("LSTM")
        batch = PackedSequence(torch.ones(6, F), torch.tensor([3, 2, 1]))
        with torch.inference_mode():
            assert_close(ours(batch), theirs(batch))
        monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
        familiar._guards.cache_clear()
        assert familiar._guards() is None
    finally:
        familiar._guards.cache_clear()


def test_tied_weights_are_checked_at_each_call(checked: list[str]) -> None:
    # to the guards, a tensor that is there twice looks like no other
    theirs, ours = pair("GRU", sizes=(H, H))
    for layer in (theirs, ours):
        layer.weight_hh_l0 = layer.weight_ih_l0
    batch = packed(features=H)
    with torch.inference_mode():
        for _ in range(2):
            assert_close(ours(batch), theirs(batch))
    assert checked == ["GRU"] * 2
