"""fastpack.torch.LSTM, GRU and RNN against torch.nn's: results, forms of input, states, modules' habits."""

import copy
import io
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastpack
import fastpack.torch as fp
from fastpack.torch import by_torch, parallel, recurrence
from tests.layers import (
    CELLS,
    F,
    H,
    assert_close,
    assert_same_bits,
    every_kind,
    flat,
    inputs,
    kernels_alone,
    packed,
    pair,
    states,
)
from tests.torch_oracle import outcome, unchanged

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", dict.fromkeys(cell for cell, _ in CELLS))
def test_every_kind_of_layer_is_as_torchs(cell, dtype):
    for own, options in every_kind():
        if own != cell:
            continue
        theirs, ours = pair(cell, dtype, **options)
        for batch in inputs(theirs).values():
            for hx in (None, states(theirs, batch)):
                with torch.inference_mode():
                    expected = theirs(batch, hx)
                    assert fp.path(ours, batch, hx) == "kernels"
                    with kernels_alone(), unchanged(*flat((batch, hx)) if hx is not None else [flat((batch, ()))[0]]):
                        assert_close(ours(batch, hx), expected)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 2), (3, 16), (17, 33), (64, 65), (5, 130)], ids=str)
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_any_size(cell, own, sizes):
    options = {"proj_size": sizes[1] // 2} if own.get("proj_size") and sizes[1] > 1 else {k: v for k, v in own.items() if k != "proj_size"}
    for dtype in (torch.float32, torch.float64):
        theirs, ours = pair(cell, dtype, sizes, bidirectional=True, **options)
        for lengths in ([1], [3, 1, 2], [*range(1, 40)]):
            batch = packed(dtype, lengths, features=sizes[0])
            with torch.no_grad():
                assert_close(ours(batch, states(ours, batch)), theirs(batch, states(ours, batch)))


def test_a_large_layer():
    theirs, ours = pair("LSTM", sizes=(64, 1024))
    batch = packed(lengths=[1000, 700], features=64)
    with torch.inference_mode(), kernels_alone():
        assert_close(ours(batch), theirs(batch))


# ---- forms of input


@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
@pytest.mark.parametrize("is_in_autograd", [False, True])
@pytest.mark.parametrize(
    "by", [fp.LSTM.__call__, lambda layer, *call: by_torch.forward(layer, layer.theirs, *call)], ids=["kernels", "torch"]
)
def test_sequences_without_rows_keep_their_states(cell, own, is_in_autograd, by):
    theirs, ours = pair(cell, num_layers=2, bidirectional=True, **own)
    batch = packed(lengths=[0, 3, 0, 2])
    full = PackedSequence(batch.data, batch.batch_sizes, torch.tensor([0, 1]), torch.tensor([0, 1]))
    with torch.set_grad_enabled(is_in_autograd):
        for hx in (states(ours, batch), None):
            output, after = by(ours, batch, hx)
            begun = None if hx is None else tuple(state[:, [1, 3]] for state in hx) if cell == "LSTM" else hx[:, [1, 3]]
            expected = theirs(full, begun)
            assert_close((output.data, after), (expected[0].data, after))
            assert [*map(id, output[1:])] == [*map(id, batch[1:])]
            given = [torch.zeros_like(state) for state in flat((0, after))[1:]] if hx is None else flat((0, hx))[1:]
            for found, before, done in zip(flat((0, after))[1:], given, flat(expected)[1:], strict=True):
                assert_close((found[:, [1, 3]], ()), (done, ()))
                assert torch.equal(found[:, [0, 2]], before[:, [0, 2]])


def test_no_rows_at_all():
    _, ours = pair("LSTM", bidirectional=True)
    batch = packed(lengths=[0, 0, 0])
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            hx = states(ours, batch)
            output, after = ours(batch, hx)
            assert output.data.shape == (0, 2 * H)
            assert_same_bits(after, hx)
            assert_same_bits(ours(batch)[1], [torch.zeros_like(state) for state in hx])


def test_any_strides():
    for cell in ("LSTM", "GRU"):
        for batch_first in (False, True):
            theirs, ours = pair(cell, batch_first=batch_first)
            x = torch.randn(5, 6, F)
            forms = [
                x.transpose(0, 1),
                x[:, ::2],
                x[1:, 2:],
                torch.randn(5, 6, 2 * F)[..., ::2],
                torch.randn(F, 6, 5).permute(2, 1, 0),
                torch.randn(1, 6, F).expand(5, 6, F),
                torch.randn(5, 1, F).expand(5, 6, F),
                torch.randn(5, 6, 1).expand(5, 6, F),
                torch.randn(1, 1, F).expand(5, 6, F),
                torch.randn(6, 2 * F)[:, F:],
                torch.randn(F, 6).T,
                torch.randn(1, F).expand(6, F),
                x[:1],
                x[:, :1],
            ]
            for batch in forms:
                hx = states(ours, batch)
                turned = tuple(state.mT.contiguous().mT for state in hx) if cell == "LSTM" else hx.mT.contiguous().mT
                with torch.inference_mode(), kernels_alone():
                    assert_close(ours(batch, turned), theirs(batch, hx))
    batch = packed()
    wide = torch.cat([batch.data, batch.data], 1)
    for data in (wide[:, :F], batch.data.T.contiguous().T, batch.data[:1].expand(batch.data.shape)):
        for indices in (batch[1:], [torch.stack([index, index], 1)[:, 0] for index in batch[1:]]):
            sequence = PackedSequence(data, *indices)
            theirs, ours = pair("LSTM")
            expected, after = theirs(PackedSequence(data, *batch[1:]))  # torch reads batch sizes as if they lay side by side
            assert_close(ours(sequence), (PackedSequence(expected.data, *indices), after))
            with torch.inference_mode(), kernels_alone():
                assert_close(ours(sequence), (PackedSequence(expected.data.detach(), *indices), tuple(map(torch.detach, after))))


def test_a_feature_alone_of_any_stride():
    theirs, ours = pair("GRU", sizes=(1, 3))
    for batch in (torch.randn(4, 3, 5)[..., 2:3], PackedSequence(torch.randn(6, 5)[:, 2:3], torch.tensor([3, 2, 1]))):
        with torch.inference_mode(), kernels_alone():
            assert_close(ours(batch), theirs(batch))


def test_empty_padded_batches_are_torchs():
    for batch_first in (False, True):
        theirs, ours = pair("LSTM", batch_first=batch_first)
        for sizes in ((0, 3), (3, 0), (0, 0)):
            batch = torch.randn(*sizes, F)
            with torch.no_grad():
                assert outcome(ours, batch) == outcome(theirs, batch)
                if outcome(theirs, batch)[0] is None:
                    assert_close(ours(batch), theirs(batch))


# ---- dropout


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_dropout_consumes_torchs_generator_as_torch_does(cell, own, batch_first):
    theirs, ours = pair(cell, num_layers=3, dropout=0.5, bidirectional=True, batch_first=batch_first, **own)
    for batch in inputs(ours).values():
        results = []
        for layer in (theirs, ours):
            torch.manual_seed(5)
            with torch.no_grad(), kernels_alone():
                results.append(layer(batch))
            results.append(torch.rand(3))
        assert_close(results[2], results[0])
        assert torch.equal(results[3], results[1])
        with torch.no_grad():
            assert not torch.equal(flat(ours(batch))[0], flat(ours(batch))[0])
            ours.eval()
            assert_same_bits(flat(ours(batch)), flat(ours(batch)))
            assert_close(ours(batch), theirs.eval()(batch))
        theirs.train(), ours.train()


def test_dropout_of_everything_and_of_a_single_layer():
    theirs, ours = pair("GRU", num_layers=2, dropout=1.0)
    batch = packed()
    with torch.no_grad():
        assert_close(ours(batch), theirs(batch))
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        ours = fp.GRU(F, H, dropout=0.9)
    with torch.no_grad():
        assert_same_bits(flat(ours(batch)), flat(ours.eval()(batch)))


# ---- modules' habits


@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_a_module_is_as_torchs(cell, own):
    for options in ({}, {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.25, "bidirectional": True}):
        layers = []
        for kind in (getattr(nn, cell), getattr(fp, cell)):
            torch.manual_seed(3)
            layers.append(kind(F, H, **options, **own))
        theirs, ours = layers
        assert repr(ours) == repr(theirs)
        assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
        assert_same_bits([*ours.state_dict().values()], [*theirs.state_dict().values()])
        assert_same_bits([*ours.parameters()], [*theirs.parameters()])
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())
        ours.flatten_parameters()
        assert ours.all_weights[0][0] is ours.weight_ih_l0
        assert {name for name in vars(ours) if name not in vars(theirs)} == set()


def test_constructors_take_and_refuse_what_torchs_do():
    for cell in ("LSTM", "GRU", "RNN"):
        for arguments, options in [
            ((F, H, 2), {}),
            ((F, H, 1, "relu"), {}),
            ((F, H, 1, "relu", False), {}),
            ((F, H, 1, False, True), {}),
            ((F, H), {"proj_size": 2}),
            ((F, H), {"proj_size": H}),
            ((F, 0), {}),
            ((0, H), {}),
            ((F, H, 0), {}),
            ((F, H), {"nonlinearity": "sigmoid"}),
            ((F, H), {"dropout": 2}),
            ((F, "7"), {}),
            ((F,), {}),
            ((F, H), {"device": "meta", "dtype": torch.float64}),
        ]:
            kind, message = outcome(partial(getattr(nn, cell), *arguments, **options))
            found, said = outcome(partial(getattr(fp, cell), *arguments, **options))
            assert found is kind, (cell, arguments, options, said)
            assert kind is TypeError or said == message


def test_copies_pickles_and_moves():
    theirs, ours = pair("LSTM", num_layers=2, bidirectional=True)
    batch = packed()
    with torch.inference_mode():
        expected = flat(ours(batch))
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        copies = [copy.deepcopy(ours), copy.copy(ours), pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False)]
        for other in copies:
            assert type(other) is fp.LSTM
            with kernels_alone():
                assert_same_bits(flat(other(batch)), expected)
        assert len(pickle.dumps(ours)) < 1.01 * len(pickle.dumps(fp.LSTM(F, H, num_layers=2, bidirectional=True)))
        ours.to(torch.float64), theirs.to(torch.float64)
        with kernels_alone():
            double = packed(torch.float64)
            assert_close(ours(double), theirs(double))


def test_hooks_see_a_call():
    _, ours = pair("GRU")
    seen = []
    ours.register_forward_pre_hook(lambda module, arguments: (PackedSequence(arguments[0].data * 2, *arguments[0][1:]),))
    ours.register_forward_hook(lambda module, arguments, result: seen.append(result) or (result[0], result[1] + 1))
    batch = packed()
    with torch.inference_mode():
        output, h_n = ours(batch)
        assert output is seen[0][0]
        assert_same_bits([output.data, h_n - 1 + 1], [ours.forward(PackedSequence(batch.data * 2, *batch[1:]))[0].data, h_n])


# ---- laws


def test_bits_are_the_same_alone_in_any_batch_in_any_order_padded_or_packed():
    generator = np.random.default_rng(0)
    for cell, own in CELLS:
        for dtype in (torch.float32, torch.float64):
            _, ours = pair(cell, dtype, (5, 40), num_layers=2, bidirectional=True, **own)
            lengths = generator.integers(1, 12, generator.integers(2, 40)).tolist()
            sequences = [torch.randn(length, 5, dtype=dtype) for length in lengths]
            batch = fp.pack_sequence(sequences, enforce_sorted=False)
            hx = states(ours, batch)
            with torch.inference_mode(), kernels_alone():
                output, after = ours(batch, hx)
                every = list(zip(fp.unpack_sequence(output), *(state.unbind(1) for state in flat((0, after))[1:]), strict=True))
                for k, sequence in enumerate(sequences):
                    begun = tuple(state[:, k] for state in hx) if cell == "LSTM" else hx[:, k]
                    assert_same_bits(flat(ours(sequence, begun)), every[k])
                order = generator.permutation(len(lengths)).tolist()
                other = fp.pack_sequence([sequences[k] for k in order], enforce_sorted=False)
                begun = tuple(state[:, order] for state in hx) if cell == "LSTM" else hx[:, order]
                output, after = ours(other, begun)
                again = list(zip(fp.unpack_sequence(output), *(state.unbind(1) for state in flat((0, after))[1:]), strict=True))
                for k, found in zip(order, again, strict=True):
                    assert_same_bits(found, every[k])
                alike = [k for k, length in enumerate(lengths) if length == lengths[0]]
                padded = torch.stack([sequences[k] for k in alike], 1)
                begun = tuple(state[:, alike] for state in hx) if cell == "LSTM" else hx[:, alike]
                found = flat(ours(padded, begun))
                for place, k in enumerate(alike):
                    assert_same_bits([tensor[:, place] for tensor in found], every[k])


def test_bits_are_those_of_the_numpy_level():
    for cell, own in CELLS:
        for dtype in (torch.float32, torch.float64):
            _, ours = pair(cell, dtype, (5, 40), num_layers=2, bidirectional=True, bias=dtype is torch.float32, **own)
            mapping = {name: weight.numpy() for name, weight in ours.state_dict().items()}
            kind = {"nonlinearity": ours.nonlinearity} if cell == "RNN" else {}
            serving = getattr(fastpack, cell).from_state_dict(mapping, **kind)
            for batch in (packed(dtype, features=5), packed(dtype, [0, 3, 0, 2], features=5), packed(dtype, is_sorted=True, features=5)):
                for hx in (None, states(ours, batch)):
                    with torch.inference_mode(), kernels_alone():
                        expected = flat(ours(batch, hx))
                    begun = tuple(map(Tensor.numpy, hx)) if isinstance(hx, tuple) else hx if hx is None else hx.numpy()
                    output, after = serving(fp.as_numpy(batch), begun)
                    found = [output.data, *(after if isinstance(after, tuple) else [after])]
                    assert_same_bits([*map(torch.from_numpy, found)], expected)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_bits_are_the_same_on_two_threads(two_threads, monkeypatch):
    ran, original = [], parallel.run_on
    monkeypatch.setattr(parallel, "OPERATIONS_WORTH_A_THREAD", 1)
    monkeypatch.setattr(recurrence, "WORTH_WAITING", 1)
    monkeypatch.setattr(
        parallel, "run_on", lambda block, shares, many: ran.append((type(block).__name__, many)) or original(block, shares, many)
    )
    for cell, own in CELLS:
        _, ours = pair(cell, torch.float32, (30, 70), num_layers=2, bidirectional=True, **own)
        for lengths in ([20], [15, 6], [*range(3, 26)]):  # shares of hidden units, of a sequence each, of many
            batch, ran[:] = packed(lengths=lengths, features=30), []
            with torch.inference_mode(), kernels_alone():
                expected = flat(ours(batch))
                assert [many for name, many in ran if name == "Recur"] == [2] * 4
                with monkeypatch.context() as patch:
                    patch.setattr(recurrence, "shares_units", lambda *_: True)
                    assert_same_bits(flat(ours(batch)), expected)
                torch.set_num_threads(1)
                assert_same_bits(flat(ours(batch)), expected)
                torch.set_num_threads(2)


def test_a_nan_stays_in_its_sequence():
    for cell, own in CELLS:
        _, ours = pair(cell, num_layers=2, bidirectional=True, **own)
        sequences = [torch.randn(length, F) for length in (3, 6, 2, 6)]
        with torch.inference_mode():
            clean = ours(fp.pack_sequence(sequences, enforce_sorted=False))
            for bad in (float("nan"), float("inf")):
                sequences[1][2] = bad
                spoilt = ours(fp.pack_sequence(sequences, enforce_sorted=False))
                for (name, before), after in zip(enumerate(fp.unpack_sequence(clean[0])), fp.unpack_sequence(spoilt[0]), strict=True):
                    assert_same_bits([before], [after]) if name != 1 else None
                for before, after in zip(flat(clean)[1:], flat(spoilt)[1:], strict=True):
                    assert_same_bits([before[:, [0, 2, 3]]], [after[:, [0, 2, 3]]])
            assert cell == "RNN" or flat(spoilt)[0].isfinite().sum() < flat(spoilt)[0].numel()
