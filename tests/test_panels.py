"""A layer's panels: kept from call to call, made anew whenever a weight is not what it was, however it was changed."""

import copy
import pickle
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from fastpack.torch import panels, parallel
from fastpack.torch.modules import KEPT
from fastpack.torch.panels import PANELS
from tests.layers import F, H, assert_close, assert_same_bits, flat, kernels_alone, packed, pair, states

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = packed()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of weights of layers whose panels are made."""
    found: list[int] = []
    original = panels._packed
    monkeypatch.setattr(panels, "_packed", lambda plan, *rest: found.append(len(plan.shapes)) or original(plan, *rest))
    return found


def changed_in_place(layer: nn.LSTM) -> None:
    with torch.no_grad():
        layer.weight_hh_l0.mul_(1.5)


def changed_by_optimiser(layer: nn.LSTM) -> None:
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5)
    with torch.enable_grad():
        sum(weight.square().sum() for weight in layer.parameters()).backward()
    optimiser.step()
    layer.zero_grad()


def changed_by_fused_optimiser(layer: nn.LSTM) -> None:
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.5, fused=True)
    with torch.enable_grad():
        sum(weight.square().sum() for weight in layer.parameters()).backward()
    optimiser.step()
    layer.zero_grad()


def changed_by_state_dict(layer: nn.LSTM) -> None:
    layer.load_state_dict({name: weight + 1 for name, weight in layer.state_dict().items()})


def changed_by_assigned_state_dict(layer: nn.LSTM) -> None:
    layer.load_state_dict({name: weight + 1 for name, weight in layer.state_dict().items()}, assign=True)


def changed_by_data(layer: nn.LSTM) -> None:
    layer.weight_ih_l0.data = layer.weight_ih_l0.data + 1


def changed_by_data_to_a_view(layer: nn.LSTM) -> None:
    # the same address, shape, version and parameter, but other strides
    layer.weight_hr_l0.data = layer.weight_hr_l0.data.flatten().view(H, 3).T


def changed_through_data(layer: nn.LSTM) -> None:
    # the moving average of weights: torch's version counter does not see it
    before = layer.weight_hh_l0._version
    layer.weight_hh_l0.data.mul_(0.9).add_(torch.ones_like(layer.weight_hh_l0), alpha=0.1)
    assert layer.weight_hh_l0._version == before


def changed_by_data_copy(layer: nn.LSTM) -> None:
    layer.bias_hh_l0.data.copy_(torch.arange(4.0 * H))


def changed_through_numpy(layer: nn.LSTM) -> None:
    layer.weight_hr_l0.detach().numpy()[1, 2] += 1


def changed_by_one_bit(layer: nn.LSTM) -> None:
    layer.weight_hh_l0.detach().numpy().view(np.int32)[3, 1] ^= 1 << 22


def changed_sign(layer: nn.LSTM) -> None:
    for weight in layer.parameters():
        weight.data.neg_()


def changed_places(layer: nn.LSTM) -> None:
    layer.weight_hh_l0.data.copy_(layer.weight_hh_l0.data.flip(0).clone())


def exchanged(layer: nn.LSTM) -> None:
    layer.bias_ih_l0.data, other = torch.arange(4.0 * H), layer.bias_ih_l0.data
    layer.bias_hh_l0.data = other


def changed_parameter(layer: nn.LSTM) -> None:
    layer.weight_ih_l0 = nn.Parameter(torch.ones_like(layer.weight_ih_l0))


def changed_past_setattr(layer: nn.LSTM) -> None:
    layer._parameters["weight_ih_l0"] = nn.Parameter(torch.ones_like(layer.weight_ih_l0))


def changed_by_initialisation(layer: nn.LSTM) -> None:
    layer.reset_parameters()


def changed_by_apply(layer: nn.LSTM) -> None:
    layer._apply(lambda weight: weight * 2)


def changed_dtype(layer: nn.LSTM) -> None:
    layer.double()
    layer.float()
    changed_in_place(layer)


def changed_by_vector(layer: nn.LSTM) -> None:
    count = sum(weight.numel() for weight in layer.parameters())
    nn.utils.vector_to_parameters(torch.linspace(-1, 1, count), layer.parameters())


def changed_and_frozen(layer: nn.LSTM) -> None:
    layer.weight_hh_l0.data.add_(1)
    layer.requires_grad_(False)


def changed_storage(layer: nn.LSTM) -> None:
    layer.weight_ih_l0.untyped_storage().copy_(torch.ones_like(layer.weight_ih_l0).untyped_storage())


WAYS = {name: way for name, way in list(globals().items()) if name.startswith(("changed_", "exchanged"))}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_changed_weight_is_seen(way: Callable[[nn.Module], None], context, made: list[int]) -> None:
    theirs, ours = pair("LSTM", proj_size=3)
    with context():
        before = flat(ours(BATCH))
        ours(BATCH)
        assert len(made) == 1
    way(ours)
    theirs.load_state_dict(ours.state_dict())
    with context(), kernels_alone():
        after = ours(BATCH)
        assert_close(after, theirs(BATCH))
        assert not torch.equal(flat(after)[0], before[0])
        assert_same_bits(flat(ours(BATCH)), flat(after))
    assert len(made) == 2


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_inference_tensors_are_seen_to_change(made: list[int]) -> None:
    with torch.inference_mode():
        theirs, ours = pair("LSTM", proj_size=3)  # their versions are not even counted
        ours(BATCH)
        ours.weight_hh_l0.add_(1)
        theirs.load_state_dict(ours.state_dict())
        assert_close(ours(BATCH), theirs(BATCH))
        assert len(made) == 2


KEEPING: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda layer: None,
    "freezing": lambda layer: layer.requires_grad_(False),
    "mode": lambda layer: layer.eval(),
    "the same weights elsewhere": lambda layer: setattr(layer.weight_ih_l0, "data", layer.weight_ih_l0.data.clone()),
    "the same state dict": lambda layer: layer.load_state_dict(copy.deepcopy(layer.state_dict())),
    "shared memory": lambda layer: layer.share_memory(),
    "gradients": lambda layer: [setattr(weight, "grad", torch.ones_like(weight)) for weight in layer.parameters()],
    "flattening": lambda layer: layer.flatten_parameters(),
    "another batch": lambda layer: layer(packed(lengths=[3, 3, 4])),
}


@pytest.mark.parametrize("act", KEEPING.values(), ids=KEEPING)
def test_panels_are_kept(act: Callable[[nn.Module], object], made: list[int]) -> None:
    _, ours = pair("GRU", num_layers=2, bidirectional=True)
    with torch.inference_mode():
        expected = flat(ours(BATCH))
    act(ours)
    with torch.inference_mode():
        for _ in range(3):
            assert_same_bits(flat(ours(BATCH)), expected)
    assert made == [16]


def test_panels_are_a_modules_own() -> None:
    _, ours = pair("LSTM")
    with torch.inference_mode():
        ours(BATCH)
    assert {*vars(ours)[KEPT]} >= {PANELS}
    for other in (copy.deepcopy(ours), copy.copy(ours), pickle.loads(pickle.dumps(ours))):
        assert KEPT not in vars(other)
        assert KEPT not in other.__getstate__()
    assert [name for name in ours.state_dict() if "panel" in name] == []
    assert KEPT not in ours.__getstate__()
    assert set(ours.__getstate__()) == set(nn.LSTM(F, H).__getstate__())


def test_another_dtype_has_other_panels(made: list[int]) -> None:
    theirs, ours = pair("RNN")
    for dtype in (torch.float32, torch.float64, torch.float32):
        ours.to(dtype), theirs.to(dtype)
        batch = packed(dtype)
        with torch.inference_mode(), kernels_alone():
            assert_close(ours(batch), theirs(batch))
    assert len(made) == 3


# ---- weights that are no parameters


def weight_norm_by_hook(layer: nn.Module) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer, "weight_hh_l0")


def pruned(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight_hh_l0", 0.3)


COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": lambda layer: parametrizations.weight_norm(layer, "weight_hh_l0"),
    "weight_norm by a hook": weight_norm_by_hook,
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer, "weight_hh_l0"),
    "spectral_norm by a hook": lambda layer: nn.utils.spectral_norm(layer, "weight_hh_l0"),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer, "weight_hh_l0"),
    "pruned": pruned,
    "parametrised": lambda layer: parametrize.register_parametrization(layer, "weight_ih_l0", nn.Tanh()),
}


@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_computed_weights(compute: Callable[[nn.Module], object], made: list[int]) -> None:
    theirs, ours = pair("GRU", bidirectional=True)
    for layer in (theirs, ours):
        torch.manual_seed(4)
        compute(layer)
        layer.eval()  # spectral_norm goes on iterating in training
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad(), kernels_alone():
        for _ in range(3):
            assert_close(ours(BATCH), theirs(BATCH))
        assert len(made) == 1
        for weight, other in zip(theirs.parameters(), ours.parameters(), strict=True):
            weight.mul_(1.25), other.mul_(1.25)
        assert_close(ours(BATCH), theirs(BATCH))
        if compute is COMPUTED["parametrised"]:
            with parametrize.cached():
                assert_close(ours(BATCH), theirs(BATCH))
            parametrize.remove_parametrizations(ours, "weight_ih_l0"), parametrize.remove_parametrizations(theirs, "weight_ih_l0")
            assert_close(ours(BATCH), theirs(BATCH))


def test_functional_calls(made: list[int]) -> None:
    theirs, ours = pair("LSTM")
    others = {name: weight.detach() * 2 for name, weight in theirs.named_parameters()}
    with torch.no_grad(), kernels_alone():
        expected = theirs(BATCH)
        assert_close(torch.func.functional_call(ours, others, (BATCH,)), torch.func.functional_call(theirs, others, (BATCH,)))
        assert_close(ours(BATCH), expected)


def test_weights_of_any_strides_and_of_one_storage() -> None:
    for cell, own in (("LSTM", {"proj_size": 3}), ("GRU", {}), ("RNN", {})):
        theirs, ours = pair(cell, num_layers=2, **own)
        hx = states(ours, BATCH)
        for turn in (
            lambda weight: weight.t().contiguous().t(),
            lambda weight: torch.stack([weight, weight], -1)[..., 0],
            lambda weight: torch.cat([torch.zeros(5), weight.flatten()])[5:].view(weight.shape),
        ):
            for name, weight in theirs.named_parameters():
                getattr(ours, name).data = turn(weight.data)
            with torch.inference_mode(), kernels_alone():
                for _ in range(2):
                    assert_close(ours(BATCH, hx), theirs(BATCH, hx))
                    next(ours.parameters()).data.add_(1), next(theirs.parameters()).data.add_(1)


def test_tied_weights() -> None:
    theirs, ours = pair("LSTM", num_layers=2, sizes=(H, H))
    for layer in (theirs, ours):
        layer.weight_hh_l1, layer.bias_ih_l1 = layer.weight_hh_l0, layer.bias_hh_l1
    ours.load_state_dict(theirs.state_dict())
    batch = packed(features=H)
    with torch.inference_mode(), kernels_alone():
        assert_close(ours(batch), theirs(batch))


# ---- threads


def test_threads_that_call_while_weights_change() -> None:
    _, ours = pair("LSTM", sizes=(16, 32))
    batch, contents, expected = packed(features=16), [], []
    for k in range(4):
        contents.append([torch.randn_like(weight) * (k + 1) for weight in ours.parameters()])
        for weight, content in zip(ours.parameters(), contents[-1], strict=True):
            weight.data = content
        with torch.inference_mode():
            expected.append(flat(ours(batch)))
    errors: list[BaseException] = []
    stop = threading.Event()

    def call() -> None:
        try:
            with torch.inference_mode():
                while not stop.is_set():
                    assert flat(ours(batch))[0].shape == expected[0][0].shape
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for k in [*range(4)] * 60:
        for weight, content in zip(ours.parameters(), contents[k], strict=True):
            weight.data = content.clone()  # what was there goes as soon as nobody holds it
        with torch.inference_mode():
            assert_same_bits(flat(ours(batch)), expected[k])
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


def test_panels_of_weights_that_changed_meanwhile_are_not_kept(monkeypatch: pytest.MonkeyPatch, made: list[int]) -> None:
    theirs, ours = pair("LSTM")
    original = panels._packed

    def disturbed(*arguments):
        found = original(*arguments)
        ours.weight_hh_l0.data.add_(1)
        return found

    with torch.inference_mode():
        with monkeypatch.context() as patch:
            patch.setattr(panels, "_packed", disturbed)
            ours(BATCH)
        assert PANELS not in vars(ours)[KEPT]
        theirs.load_state_dict(ours.state_dict())
        assert_close(ours(BATCH), theirs(BATCH))
        assert PANELS in vars(ours)[KEPT]


def test_layers_of_any_size_are_read_by_all_threads(monkeypatch: pytest.MonkeyPatch, made: list[int]) -> None:
    theirs, ours = pair("LSTM", sizes=(50, 60))
    batch = packed(features=50)
    before = torch.get_num_threads()
    monkeypatch.setattr(parallel, "WORTH_A_THREAD", 1)
    try:
        with torch.inference_mode():
            for threads in (1, 2, 1, 2):
                torch.set_num_threads(threads)
                assert_close(ours(batch), theirs(batch))
            assert len(made) == 1
            ours.bias_hh_l0.data[-1] += 1
            theirs.load_state_dict(ours.state_dict())
            assert_close(ours(batch), theirs(batch))
            assert len(made) == 2
    finally:
        torch.set_num_threads(before)


def test_the_list_of_ways_goes_red(monkeypatch: pytest.MonkeyPatch, made: list[int]) -> None:
    monkeypatch.setattr(panels, "fingerprint", lambda plan, addresses, kept: (0, 0))  # a check that always says: the same
    for way in (changed_in_place, changed_through_data):
        _, ours = pair("LSTM", proj_size=3)
        with torch.inference_mode():
            before = flat(ours(BATCH))
            way(ours)
            assert_same_bits(flat(ours(BATCH)), before)
