"""Recurrent layers from state dicts: from anything that is one, and into copies; what a layer says of itself; what is refused."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

import fastpack
from fastpack import machine, weights
from tests.conftest import Child
from tests.oracle import assert_same_bytes, unchanged, views
from tests.recurrent_oracle import (
    CLOSE,
    KINDS,
    Kind,
    assert_close,
    assert_same_arrays,
    batch_of,
    layer_of,
    run,
    run_pack_panels,
    states_of,
    weights_of,
)

ROOT = Path(__file__).parent.parent
LENGTHS = [3, 0, 9, 9, 1, 2, 5, 0, 7]
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@each_kind
def test_weights_from_anywhere(kind: Kind, tmp_path: Path):
    given_weights, packed = weights_of(kind, 3, 5, L=2, D=2), batch_of(LENGTHS, 3)
    expected = run(layer_of(kind, given_weights), packed)
    whole_model = {"embedding.weight": np.zeros(3), **{f"rnn.{name}": item for name, item in given_weights.items()}, 7: None}
    assert_same_arrays(run(layer_of(kind, whole_model, "rnn."), packed), expected)
    named = {name: item for name, item in whole_model.items() if isinstance(name, str)}
    np.savez_compressed(tmp_path / "model.npz", **named)
    with np.load(tmp_path / "model.npz") as archive:
        layer = layer_of(kind, archive, prefix="rnn.")
    assert_same_arrays(run(layer, packed), expected)
    safetensors.numpy.save_file(named, tmp_path / "model.safetensors")
    assert_same_arrays(run(layer_of(kind, safetensors.numpy.load_file(tmp_path / "model.safetensors"), "rnn."), packed), expected)
    tensors = {name: torch.from_numpy(item) for name, item in given_weights.items()}
    assert_same_arrays(run(layer_of(kind, tensors), packed), expected)
    strided = {name: views(item)["every second"] for name, item in given_weights.items()}
    contiguous = {name: np.array(item, order="C") for name, item in strided.items()}
    assert_same_arrays(run(layer_of(kind, strided), packed), run(layer_of(kind, contiguous), packed))
    for how in ("fortran", "read-only", "unaligned", "reversed"):
        layer = layer_of(kind, {name: views(item)[how] for name, item in given_weights.items()})
        assert_same_arrays(run(layer, packed), expected)


def test_each_weight_is_read_once():
    class Counting(dict):
        read = ()

        def __getitem__(self, name: str) -> np.ndarray:
            self.read = (*self.read, name)
            return super().__getitem__(name)

    given_weights = Counting({f"rnn.{name}": item for name, item in weights_of(KINDS["LSTM"], 3, 5, 2, L=2, D=2).items()}, other=None)
    layer_of(KINDS["LSTM"], given_weights, "rnn.")
    assert sorted(given_weights.read) == sorted(name for name in given_weights if name != "other")


@each_kind
def test_what_becomes_of_the_weights_later_has_no_effect(kind: Kind):
    given_weights, packed = weights_of(kind, 3, 5), batch_of(LENGTHS, 3)
    layer = layer_of(kind, given_weights)
    expected = run(layer, packed)
    for item in given_weights.values():
        item[...] = np.nan
    assert_same_arrays(run(layer, packed), expected)


@each_kind
@each_dtype
def test_copies(kind: Kind, dtype: type):
    P = 7 if kind.name == "LSTM" else 0
    layer = layer_of(kind, weights_of(kind, 3, 21, P, L=2, D=2, dtype=dtype))
    packed, states = batch_of(LENGTHS, 3, dtype), states_of(kind, 4, len(LENGTHS), 21, P, dtype)
    expected = run(layer, packed, states)
    for again in (copy.copy(layer), copy.deepcopy(layer), *(pickle.loads(pickle.dumps(layer, k)) for k in range(2, 6))):
        assert type(again) is type(layer)
        assert repr(again) == repr(layer)
        assert_same_arrays(run(again, packed, states), expected)


@each_kind
@each_dtype
def test_panels_of_another_cpu_level(kind: Kind, dtype: type):
    for F, H in [(3, 5), (4, 16), (2, 37)]:
        given_weights = weights_of(kind, F, H, dtype=dtype)
        expected = run_pack_panels(kind.cell, *given_weights.values())
        units = expected.swapaxes(0, 1).reshape(expected.shape[1], -1)
        for lanes in (2, 4, 8, 16):
            other = np.ascontiguousarray(units.reshape(len(units), -1, lanes).swapaxes(0, 1))
            found = weights.fitting(other)
            assert_same_bytes(found, expected)
            assert found.ctypes.data % weights.ALIGNMENT == 0


@pytest.mark.parametrize("level", machine.supported_levels()[:-1])
def test_pickled_at_another_cpu_level(level: str, child: Child, tmp_path: Path):
    kind = KINDS["LSTM"]
    layer, packed = layer_of(kind, weights_of(kind, 3, 21)), batch_of(LENGTHS, 3)
    (tmp_path / "layer").write_bytes(pickle.dumps((layer, packed)))
    code = "import pickle, sys, fastpack\nlayer, packed = pickle.load(open(sys.argv[1], 'rb'))\noutput, state = layer(packed)\n"
    code += "from fastpack import machine\npickle.dump((machine.library().level, output.data), open(sys.argv[2], 'wb'))"
    child(code, tmp_path / "layer", tmp_path / "result", FASTPACK_CPU=level, PYTHONPATH=ROOT)
    used, data = pickle.loads((tmp_path / "result").read_bytes())
    assert used == level
    assert_close([data], [layer(packed)[0].data], CLOSE[data.dtype])


def test_what_a_layer_says_of_itself():
    lstm = layer_of(KINDS["LSTM"], weights_of(KINDS["LSTM"], 3, 5, 2, L=2, D=2, bias=False, dtype=np.float64))
    assert repr(lstm) == "LSTM(3, 5, proj_size=2, num_layers=2, bias=False, bidirectional=True, dtype=float64)"
    facts = (lstm.input_size, lstm.hidden_size, lstm.proj_size, lstm.num_layers, lstm.bidirectional, lstm.bias, lstm.dtype)
    assert facts == (3, 5, 2, 2, True, False, np.float64)
    gru = layer_of(KINDS["GRU"], weights_of(KINDS["GRU"], 3, 5))
    assert repr(gru) == "GRU(3, 5, dtype=float32)"
    facts = (gru.input_size, gru.hidden_size, gru.proj_size, gru.num_layers, gru.bidirectional, gru.bias, gru.dtype)
    assert facts == (3, 5, 0, 1, False, True, np.float32)
    for name in ("tanh", "relu"):
        rnn = layer_of(KINDS[name], weights_of(KINDS[name], 3, 5))
        assert rnn.nonlinearity == name
        assert repr(rnn) == f"RNN(3, 5{', nonlinearity=' + repr(name) if name == 'relu' else ''}, dtype=float32)"
    for layer in (lstm, gru):
        inside = f"{layer.input_size}, {layer.hidden_size}"
        options = {"proj_size": layer.proj_size} if layer.proj_size else {}
        theirs = getattr(torch.nn, type(layer).__name__)(
            layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, bidirectional=layer.bidirectional, **options
        )
        assert repr(theirs).startswith(f"{type(layer).__name__}({inside}")
        assert set(repr(layer)[:-1].partition("(")[2].split(", ")) - {f"dtype={layer.dtype}"} == set(theirs.extra_repr().split(", "))


def test_the_layers_are_names_of_the_package():
    assert {"LSTM", "GRU", "RNN"} <= {*fastpack.__all__, *dir(fastpack)}
    with pytest.raises(AttributeError, match=r"^module 'fastpack' has no attribute 'Lstm'$"):
        fastpack.Lstm  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Lstm'"):
        from fastpack import Lstm  # noqa: F401


# ---- what is refused

LSTM, GRU, TANH = KINDS["LSTM"], KINDS["GRU"], KINDS["tanh"]
TWO = weights_of(LSTM, 3, 4, L=2, D=2)
PROJECTED = weights_of(LSTM, 3, 4, 2)


def without(given: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: item for name, item in given.items() if name not in names}


def shape(*sizes: int) -> np.ndarray:
    return np.ones(sizes, np.float32)


REFUSED = [
    # what is no mapping
    (LSTM, None, TypeError, r"^mapping is None, not a mapping from names to arrays: pass a state dict, as from np.load\('model.npz'\), "),
    (LSTM, "model.npz", TypeError, r"^mapping is a str, not a mapping"),
    (LSTM, Path("model.npz"), TypeError, r"^mapping is a PosixPath, not a mapping"),
    (LSTM, torch.nn.LSTM(3, 4), TypeError, r"^mapping is a LSTM, not a mapping .* or module.state_dict\(\)$"),
    (LSTM, list(TWO.items()), TypeError, r"^mapping is a list, not a mapping"),
    (LSTM, dict, TypeError, r"^mapping is a type, not a mapping"),
    # what is not there
    (LSTM, {}, ValueError, r"^mapping has no 'weight_ih_l0': it is empty$"),
    (LSTM, {"a": 1, 5: 2}, ValueError, r"^mapping has no 'weight_ih_l0': its names are 'a'$"),
    (LSTM, dict.fromkeys("abcdefg"), ValueError, r"^mapping has no 'weight_ih_l0': its names are 'a', 'b', 'c', 'd', 'e', ...$"),
    (LSTM, {f"a.{name}": 0 for name in TWO}, ValueError, r"^mapping has no 'weight_ih_l0': pass prefix='a.', behind which there is"),
    (LSTM, {"a.weight_ih_l0": 0, "b.weight_ih_l0": 0}, ValueError, r"^mapping has no 'weight_ih_l0': pass prefix='a.' or 'b.', behind"),
    (
        LSTM, without(TWO, "bias_hh_l1"), ValueError,
        r"^mapping has no 'bias_hh_l1', but by the names that it has, this is an LSTM of 2 layers and 2 directions, with biases$",
    ),
    (LSTM, without(TWO, "weight_ih_l1_reverse"), ValueError, r"^mapping has no 'weight_ih_l1_reverse', but by the names"),
    (LSTM, without(TWO, "weight_hh_l0"), ValueError, r"^mapping has no 'weight_hh_l0', but by the names"),
    (LSTM, {"weight_hh_l0": shape(8, 2)}, ValueError, r"^mapping has no 'weight_ih_l0', .* of 1 layer and 1 direction, without biases$"),
    (LSTM, PROJECTED | {"weight_ih_l1": 0}, ValueError, r"^mapping has no 'weight_hh_l1', .* 1 direction, with biases and projected$"),
    (GRU, weights_of(GRU, 3, 4) | {"weight_ih_l999999999": 0}, ValueError, r"^mapping has no 'weight_ih_l1', but .* of 1000000000 layers"),
    # what should not be there
    (LSTM, PROJECTED | {"weight_ih_l00": 0}, ValueError, r"^mapping has 'weight_ih_l00', but there is no such weight in an LSTM of 1"),
    (GRU, weights_of(GRU, 3, 4) | {"weight_hr_l0": shape(2, 4)}, ValueError, r"^mapping has 'weight_hr_l0', but there is no such weight"),
    # what is no array, or of another dtype
    (LSTM, TWO | {"bias_hh_l1": None}, TypeError, r"^'bias_hh_l1' is None, not an array of weights$"),
    (LSTM, TWO | {"bias_hh_l1": [[1], [2, 3]]}, ValueError, r"^'bias_hh_l1' is not a regular array"),
    (LSTM, dict(torch.nn.LSTM(3, 4).named_parameters()), TypeError, r"^'weight_ih_l0' cannot be read as a NumPy array: .*requires grad"),
    (LSTM, torch.nn.LSTM(3, 4).bfloat16().state_dict(), TypeError, r"^'weight_ih_l0' cannot be read as a NumPy array: .*BFloat16"),
    (LSTM, torch.nn.LSTM(3, 4).half().state_dict(), TypeError, r"^'weight_ih_l0' is of dtype float16, but layers are of float32 or"),
    (LSTM, {name: item.astype(">f4") for name, item in TWO.items()}, TypeError, r"^'weight_ih_l0' is of dtype >f4, but layers are of"),
    (LSTM, {name: item.astype(int) for name, item in TWO.items()}, TypeError, r"^'weight_ih_l0' is of dtype int64, but layers are of"),
    (
        LSTM, TWO | {"bias_ih_l1": np.zeros(16)}, TypeError,
        r"^'bias_ih_l1' is of dtype float64, but 'weight_ih_l0' is of float32: convert the weights to one dtype$",
    ),
    # what has another shape
    (LSTM, TWO | {"weight_ih_l0": shape(16)}, ValueError, r"^'weight_ih_l0' has the shape \(16,\), but needs two dimensions, and neither"),
    (LSTM, TWO | {"weight_hh_l0": shape(0, 0)}, ValueError, r"^'weight_hh_l0' has the shape \(0, 0\), but needs two dimensions"),
    (LSTM, TWO | {"weight_ih_l0": shape(16, 0)}, ValueError, r"^'weight_ih_l0' has the shape \(16, 0\), but needs two dimensions"),
    (LSTM, PROJECTED | {"weight_hr_l0": shape(4)}, ValueError, r"^'weight_hr_l0' has the shape \(4,\), but needs two dimensions"),
    (LSTM, PROJECTED | {"weight_hr_l0": shape(4, 4)}, ValueError, r"^'weight_hr_l0' has the shape \(4, 4\), but a projection is from"),
    (LSTM, PROJECTED | {"weight_hh_l0": shape(16, 4)}, ValueError, r"^'weight_hh_l0' has the shape \(16, 4\), but needs \(16, 2\) in"),
    (
        LSTM, TWO | {"weight_ih_l1": shape(16, 4)}, ValueError,
        r"^'weight_ih_l1' has the shape \(16, 4\), but needs \(16, 8\) in an LSTM of .*, with biases, input_size 3 and hidden_size 4$",
    ),
    (LSTM, TWO | {"bias_ih_l0_reverse": shape(1, 16)}, ValueError, r"^'bias_ih_l0_reverse' has the shape \(1, 16\), but needs \(16,\)"),
    (LSTM, TWO | {"bias_ih_l0": shape(4)}, ValueError, r"^'bias_ih_l0' has the shape \(4,\), but needs \(16,\)"),
    (
        LSTM, weights_of(GRU, 3, 4), ValueError,
        r"^'weight_ih_l0' has the shape \(12, 3\), but needs \(16, 3\) in .*hidden_size 4: its shape is that of a GRU$",
    ),
    (GRU, weights_of(TANH, 3, 4), ValueError, r"^'weight_ih_l0' has the shape \(4, 3\), .*: its shape is that of an RNN$"),
    (TANH, weights_of(LSTM, 3, 4), ValueError, r"^'weight_ih_l0' has the shape \(16, 3\), .*: its shape is that of an LSTM$"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mapping", "error", "match"), REFUSED)
def test_bad_state_dicts(kind: Kind, mapping: object, error: type[Exception], match: str):
    with unchanged(*(mapping.values() if isinstance(mapping, dict) else [])), pytest.raises(error, match=match):
        layer_of(kind, mapping)


@pytest.mark.parametrize(("kind", "mapping", "error", "match"), [item for item in REFUSED if isinstance(item[1], dict) and item[1]])
def test_bad_state_dicts_behind_a_prefix(kind: Kind, mapping: dict[str, np.ndarray], error: type[Exception], match: str):
    whole_model = {f"encoder.rnn.{name}": item for name, item in mapping.items()} | {"head.weight": None}
    begins = match.split(" but ")[0].split(": ")[0].split(".*")[0]  # what follows has other names
    for before in ("^'", " has no '", " has '"):
        begins = begins.replace(before, f"{before}encoder.rnn.")
    with pytest.raises(error, match=begins):
        layer_of(kind, whole_model, "encoder.rnn.")


def test_bad_prefixes_and_options():
    for prefix, error, match in [
        (None, TypeError, r"^prefix is None, not a string: pass what stands before 'weight_ih_l0' in the names$"),
        (3, TypeError, r"^prefix is 3, not a string"),
        ("rnn", ValueError, r"^mapping has no 'rnnweight_ih_l0': pass prefix='', behind which"),
    ]:
        with pytest.raises(error, match=match):
            layer_of(LSTM, TWO, prefix)
    given = weights_of(TANH, 3, 4)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'nonlinearity'"):
        fastpack.RNN.from_state_dict(given)
    for nonlinearity in ("sigmoid", None, 3):
        with pytest.raises(ValueError, match=rf"^nonlinearity is {nonlinearity!r}, but can only be 'tanh' or 'relu'$"):
            fastpack.RNN.from_state_dict(given, nonlinearity=nonlinearity)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_layer_is_not_made_from_sizes(name: str):
    match = rf"^{name} takes no sizes, for they follow from its weights: make it by fastpack.{name}.from_state_dict\(mapping\)$"
    for arguments, options in [((), {}), ((3, 5), {}), ((3,), {"hidden_size": 5})]:
        with pytest.raises(TypeError, match=match):
            getattr(fastpack, name)(*arguments, **options)
