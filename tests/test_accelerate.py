"""accelerate and restore: which layers of a model they change, that they change nothing else, and that the results are torch's."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastpack.torch as fp
from tests.layers import F, H, assert_close, assert_same_bits, flat, kernels_alone, packed, pair


class Tagger(nn.Module):
    """An embedding, a recurrent layer in both directions, a linear layer on top."""

    def __init__(self, cell: str = "LSTM") -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.encoder = getattr(nn, cell)(12, 20, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.output = nn.Linear(40, 5)

    def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.encoder.flatten_parameters()
        packed = fp.pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        return self.output(fp.pad_packed_sequence(self.encoder(packed)[0], batch_first=True)[0])


ARGUMENTS = torch.arange(30).view(3, 10), torch.tensor([4, 10, 7])


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_model_gives_the_same_results_and_the_same_state_dict(cell: str) -> None:
    model = Tagger(cell).eval()
    encoder, before, state = model.encoder, copy.deepcopy(vars(model.encoder)), model.state_dict()
    with torch.inference_mode():
        expected = model(*ARGUMENTS)
        assert fp.accelerate(model) is model
        with kernels_alone():
            found = model(*ARGUMENTS)
    assert model.encoder is encoder
    assert type(encoder) is getattr(fp, cell)
    assert (found - expected).abs().max() < 1e-5
    assert [*model.state_dict()] == [*state]
    assert_same_bits([*model.state_dict().values()], [*state.values()])
    assert all(one.data_ptr() == other.data_ptr() for one, other in zip(model.state_dict().values(), state.values(), strict=True))
    assert repr(model) == repr(Tagger(cell))
    assert fp.restore(model) is model
    assert model.encoder is encoder
    assert type(encoder) is getattr(nn, cell)
    assert [*vars(encoder)] == [*before]
    with torch.inference_mode():
        assert torch.equal(model(*ARGUMENTS), expected)


def test_training_goes_on() -> None:
    losses = []
    for change in (lambda model: model, fp.accelerate):
        torch.manual_seed(0)
        model = change(Tagger())
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(3):
            optimiser.zero_grad()
            loss = model(*ARGUMENTS).square().mean()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            losses.append(model.eval()(*ARGUMENTS).square().mean().item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_twice_is_once() -> None:
    model = Tagger()
    for _ in range(2):
        fp.accelerate(model)
        assert type(model.encoder) is fp.LSTM
    for _ in range(2):
        fp.restore(model)
        assert type(model.encoder) is nn.LSTM


def test_a_model_that_is_a_layer_itself() -> None:
    model = nn.GRU(F, H)
    assert type(fp.accelerate(model)) is fp.GRU
    assert type(fp.restore(model)) is nn.GRU


def test_tied_layers_hooks_and_references_stay() -> None:
    layer = nn.RNN(F, F, nonlinearity="relu")
    seen = []
    layer.register_forward_hook(lambda module, arguments, result: seen.append(type(module)))
    model = nn.ModuleDict({"one": layer, "other": layer, "deep": nn.Sequential(nn.ModuleList([layer]))})
    fp.accelerate(model)
    assert model["one"] is model["other"] is model["deep"][0][0] is layer
    assert type(layer) is fp.RNN
    with torch.no_grad():
        layer(torch.ones(3, F))
    assert seen == [fp.RNN]


def test_a_model_is_pickled_and_copied_as_it_is() -> None:
    model = fp.accelerate(Tagger()).eval()
    with torch.inference_mode():
        expected = model(*ARGUMENTS)
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert type(other.encoder) is fp.LSTM
            assert_same_bits([other(*ARGUMENTS)], [expected])
            assert type(fp.restore(other).encoder) is nn.LSTM
            assert torch.allclose(other(*ARGUMENTS), expected, atol=1e-5)
    restored = pickle.dumps(fp.restore(model).encoder)
    assert b"fastpack" not in restored


class Own(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(input * 2, hx)


class Renamed(nn.GRU):
    pass


def with_own_forward() -> nn.Module:
    layer = nn.LSTM(F, H)
    layer.forward = lambda batch, hx=None: (batch, hx)
    return layer


def scripted() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.script(nn.Sequential(nn.GRU(F, H)))


def quantised() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(F, H)), {nn.LSTM})


LEFT = {
    r"rnn is a Own, a subclass of torch's": lambda: Own(F, H),
    r"rnn is a Renamed, a subclass of torch's": lambda: Renamed(F, H),
    r"rnn is a ParametrizedLSTM, a subclass of torch's": lambda: parametrizations.weight_norm(nn.LSTM(F, H), "weight_hh_l0"),
    r"rnn has a forward function of its own": with_own_forward,
    r"rnn\.0 is a scripted module": scripted,
    r"rnn\.0 is a quantised LSTM": quantised,
    r"rnn is of torch\.bfloat16": lambda: nn.GRU(F, H, dtype=torch.bfloat16),
    r"rnn is of torch\.complex64": lambda: nn.RNN(F, H).to(torch.complex64),
}


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("said", "make"), LEFT.items(), ids=LEFT)
def test_what_is_left_as_it_is_is_named(said: str, make) -> None:
    model = nn.ModuleDict({"rnn": make(), "good": nn.LSTM(F, H)})
    kinds = [type(module) for module in model.modules()]
    with pytest.warns(UserWarning, match=f"^fastpack leaves recurrent layers as they are: {said}$"):
        fp.accelerate(model)
    assert [type(module) for module in model.modules()] == [*kinds[:-1], fp.LSTM]
    fp.restore(model)
    assert [type(module) for module in model.modules()] == kinds


def test_all_that_are_left_are_named_at_once() -> None:
    with pytest.warns(UserWarning, match=r": 0 is a Own, a subclass of torch's; 2 is a Renamed, a subclass of torch's$") as record:
        fp.accelerate(nn.Sequential(Own(F, H), nn.Linear(2, 3), Renamed(F, H), nn.GRU(F, H)))
    assert [str(warning.filename) for warning in record] == [__file__]
    with pytest.warns(UserWarning, match=r"the model itself is a Own"):
        fp.accelerate(Own(F, H))


def test_a_model_without_memory_is_accelerated_for_later() -> None:
    model = fp.accelerate(nn.Sequential(nn.LSTM(F, H, device="meta")))
    assert type(model[0]) is fp.LSTM
    theirs, _ = pair("LSTM")
    model.to_empty(device="cpu")
    model[0].load_state_dict(theirs.state_dict())
    batch = packed()
    with torch.inference_mode(), kernels_alone():
        assert_close(model[0](batch), theirs(batch))


def test_parametrisations_of_ours_stay_ours() -> None:
    theirs, ours = pair("LSTM")
    for layer in (theirs, ours):
        parametrizations.weight_norm(layer, "weight_hh_l0")
    batch = packed()
    assert fp.accelerate(ours) is ours
    with torch.inference_mode(), kernels_alone():
        assert_close(ours(batch), theirs(batch))
    assert isinstance(ours, fp.LSTM)


def test_subclasses_of_ours() -> None:
    class Doubling(fp.GRU):
        def forward(self, input, hx=None):
            return super().forward(input * 2, hx)

    torch.manual_seed(0)
    layer = fp.accelerate(Doubling(F, H))
    theirs = nn.GRU(F, H)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(3, 2, F)
    with torch.inference_mode(), kernels_alone():
        assert_close(layer(x), theirs(x * 2))
        assert flat(copy.deepcopy(layer)(x))[0].shape == (3, 2, H)
    assert type(fp.restore(layer)) is Doubling
