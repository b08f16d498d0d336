"""Bad input to recurrent layers: torch's checks and messages, also where torch has none; and nothing is read out of range."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fastpack.torch as fp
from fastpack.torch import parallel
from tests.conftest import Child
from tests.layers import F, H, assert_close, assert_same_bits, flat, packed, pair, states
from tests.torch_oracle import outcome

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH = packed()
B = 4
ROOT = Path(__file__).parents[1]


def integers(*values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.fixture(params=[torch.inference_mode, torch.enable_grad])
def context(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Both with and without gradients, no bad call reaches the kernel."""
    original = parallel.run_on

    def guarded(block, *rest):
        assert type(block).__name__ != "Recur"
        original(block, *rest)

    monkeypatch.setattr(parallel, "run_on", guarded)
    with request.param():
        yield


# ---- packed input, where torch checks nothing or little


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_rows_of_a_wrong_kind(cell, context):
    _, ours = pair(cell)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size. Expected 4, got 5"):
        ours(packed(features=5))
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.float64\) does not match weight dtype \(torch.float32\)"):
        ours(packed(torch.float64))
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.int64\) does not match weight dtype \(torch.float32\)"):
        ours(BATCH._replace(data=BATCH.data.long()))
    for data, dims in ((BATCH.data[0], 1), (BATCH.data[:, None], 3)):
        with pytest.raises(RuntimeError, match=f"input must have 2 dimensions, got {dims}"):
            ours(BATCH._replace(data=data))


def test_states_of_a_wrong_shape(context):
    for cell in ("GRU", "RNN"):
        _, ours = pair(cell, num_layers=2)
        good = states(ours, BATCH)
        for bad in (good[:1], good[:, :3], torch.cat([good, good], 1), good[..., :6], good[0], good[None]):
            with pytest.raises(RuntimeError) as raised:
                ours(BATCH, bad)
            assert str(raised.value) == f"Expected hidden size {(2, B, H)}, got {list(bad.shape)}"
    _, ours = pair("LSTM", num_layers=2, proj_size=3)
    h, c = states(ours, BATCH)
    for k, width in ((0, 3), (1, H)):
        for bad in (h[:1], h[:, :3], torch.cat([h, h], 1), c[..., :6], h[0], h[None]):
            with pytest.raises(RuntimeError) as raised:
                ours(BATCH, (bad, c) if k == 0 else (h, bad))
            assert str(raised.value) == f"Expected hidden[{k}] size {(2, B, width)}, got {list(bad.shape)}"
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(2, 4, 3\), got \[2, 4, 7\]"):
        ours(BATCH, (c, h))


def test_states_that_are_no_pair():
    theirs, ours = pair("LSTM")
    h, c = states(ours, BATCH)
    with torch.inference_mode():
        for bad in (h, (h,), (h, c, c), {"h": h, "c": c}, (h, None), (None, None), 3):
            assert outcome(ours, BATCH, bad)[0] is outcome(theirs, BATCH, bad)[0]
        theirs, ours = pair("GRU")
        for bad in ((h, c), (h,), [], "h"):
            assert outcome(ours, BATCH, bad)[0] is outcome(theirs, BATCH, bad)[0] is not None


@pytest.mark.parametrize(
    ("sizes", "rows", "message"),
    [
        ((1, 2), 3, r"batch_sizes\[1\] is 2, but batch sizes never grow, and batch_sizes\[0\] is 1"),
        ((3, 1, 2), 6, r"batch_sizes\[2\] is 2, but batch sizes never grow, and batch_sizes\[1\] is 1"),
        ((2, -1), 1, r"batch_sizes\[1\] is -1, but batch sizes are never negative"),
        ((-1,), 1, r"batch_sizes\[0\] is -1, but batch sizes are never negative"),
        ((2, 1), 5, "batch_sizes add up to 3, but data has 5 rows"),
        ((2, 2), 3, "batch_sizes add up to 4, but data has 3 rows"),
        ((2**62,) * 4, 0, "batch_sizes add up to 18446744073709551616, but data has 0 rows"),  # in int64, to 0
        ((2**40,), 5, "batch_sizes add up to 1099511627776, but data has 5 rows"),
        ((), 0, "batch_sizes can not be empty"),
        ((0,), 0, "batch_sizes can not be empty"),
    ],
    ids=str,
)
def test_batch_sizes_that_fit_no_rows(sizes, rows, message, context):
    for cell in ("LSTM", "GRU"):
        _, ours = pair(cell)
        with pytest.raises(RuntimeError, match=message):
            ours(PackedSequence(torch.ones(rows, F), integers(*sizes)))


def test_more_rows_in_a_step_than_sequences(context):
    _, ours = pair("LSTM")
    with pytest.raises(RuntimeError, match=r"batch_sizes\[0\] is 3, but sorted_indices has 2 entries"):
        ours(PackedSequence(torch.ones(6, F), integers(3, 2, 1), integers(0, 1), integers(0, 1)))


def test_trailing_steps_without_rows_are_torchs():
    theirs, ours = pair("GRU")
    batch = PackedSequence(torch.ones(3, F), integers(2, 1, 0))
    with torch.no_grad():
        assert fp.path(ours, batch) == "torch: the packed batch is inconsistent"
        assert_close(ours(batch), theirs(batch))


def test_indices_that_are_no_permutation_are_torchs():
    theirs, ours = pair("LSTM")
    data, sizes = torch.ones(6, F), integers(3, 2, 1)
    hx = tuple(torch.randn(1, 3, H) for _ in range(2))
    for order, places in [
        (integers(0, 1, 7), integers(0, 1, 2)),
        (integers(0, 1, -1), integers(0, 1, 2)),
        (integers(0, 0, 0), integers(0, 1, 2)),
        (integers(2, 0, 1), integers(0, 1, 2)),
        (integers(2, 0, 1).int(), integers(1, 2, 0).int()),
        (integers(2, 0, 1), None),
        (None, integers(1, 2, 0)),
        (integers(2, 0, 1), integers(1, 2)),
        (integers(2, 0, 1)[:, None], integers(1, 2, 0)[:, None]),
    ]:
        batch = tuple.__new__(PackedSequence, (data, sizes, order, places))
        with torch.no_grad():
            for given in (None, hx):
                kinds = [outcome(layer, batch, given)[0] for layer in (theirs, ours)]
                assert fp.path(ours, batch, given) == "torch: the packed batch is inconsistent"
                assert kinds[1] is kinds[0] or kinds[1] is RuntimeError
                if kinds[1] is None:
                    assert_same_bits(flat(ours(batch, given)), flat(theirs(batch, given)))


# ---- any input


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_padded_input_is_refused_as_torch_refuses_it(cell, context):
    for options in ({}, {"batch_first": True, "num_layers": 2}):
        theirs, ours = pair(cell, **options)
        for batch in (
            torch.ones(5, 3, F + 1),
            torch.ones(F),
            torch.ones(5, 3, 2, F),
            torch.ones(5, 3, F).double(),
            torch.ones(5, F + 1),
            None,
            3,
        ):
            assert outcome(ours, batch) == outcome(theirs, batch)
            assert outcome(ours, batch)[0] is not None
        for batch in (torch.ones(5, 3, F), torch.ones(5, F)):
            good = states(ours, batch)
            for change in (lambda state: state[:0], lambda state: state[..., :3], lambda state: state[None], lambda state: state.double()):
                bad = tuple(map(change, good)) if cell == "LSTM" else change(good)
                kinds = [outcome(layer, batch, bad) for layer in (theirs, ours)]
                assert kinds[1] == kinds[0]
                assert kinds[0][0] is not None


def test_other_devices_are_torchs(context):
    _, ours = pair("LSTM")
    theirs, _ = pair("LSTM")
    meta = BATCH._replace(data=BATCH.data.to("meta"))
    on_meta = fp.LSTM(F, H, device="meta"), nn.LSTM(F, H, device="meta")
    for (layer, other), batches in (
        ((ours, theirs), (meta, torch.ones(3, 2, F, device="meta"))),
        (on_meta, (BATCH, meta, torch.ones(3, 2, F), torch.ones(3, 2, F, device="meta"))),
    ):
        for batch in batches:
            kind, message = outcome(other, batch)
            assert outcome(layer, batch) == (kind, message)
            assert (kind is None) == (layer is not ours and (batch is meta or batch is batches[-1]))


def test_weights_that_do_not_fit_the_sizes(context):
    for change in (
        lambda layer: setattr(layer, "hidden_size", 6),
        lambda layer: setattr(layer, "num_layers", 2),
        lambda layer: setattr(layer, "bidirectional", True),
        lambda layer: setattr(layer, "bias", False),
        lambda layer: setattr(layer.weight_hh_l0, "data", torch.ones(4 * H, H + 1)),
        lambda layer: setattr(layer.weight_ih_l0, "data", torch.ones(4 * H, F, dtype=torch.float64)),
        lambda layer: setattr(layer.bias_ih_l0, "data", torch.ones(3)),
    ):
        layers = pair("LSTM")
        for layer in layers:
            change(layer)
        theirs, ours = layers
        assert fp.path(ours, torch.ones(3, 2, F)) != "kernels"
        batch = torch.ones(3, 2, F)
        assert outcome(ours, batch)[0] is outcome(theirs, batch)[0]
        assert outcome(ours, BATCH)[0] is not None or outcome(theirs, BATCH)[0] is None


def test_sizes_of_nothing(context):
    for change in (
        {"hidden_size": 0, "weight_ih_l0": (0, F), "weight_hh_l0": (0, 0), "bias_ih_l0": (0,), "bias_hh_l0": (0,)},
        {"num_layers": 0, "_flat_weights": [], "_flat_weights_names": []},
        {"input_size": 0, "weight_ih_l0": (4 * H, 0)},
    ):
        _, ours = pair("LSTM")
        for name, value in change.items():
            if isinstance(value, tuple):
                getattr(ours, name).data = torch.ones(value)
            else:
                vars(ours)[name] = value
        for batch in (torch.ones(3, 2, ours.input_size), packed(features=ours.input_size)):
            assert fp.path(ours, batch).startswith("torch: ")


@pytest.mark.parametrize("size", [0, 8])
def test_memory_that_was_taken_away(size, context):
    for name in ("weight_hh_l0", "bias_ih_l0", "input", "data", r"hx\[0\]", r"hx\[1\]"):
        _, ours = pair("LSTM")
        padded, batch = torch.ones(3, B, F), BATCH._replace(data=BATCH.data.clone())
        hx = states(ours, padded)
        gone = {"input": padded, "data": batch.data, r"hx\[0\]": hx[0], r"hx\[1\]": hx[1]}.get(name)
        gone = getattr(ours, name) if gone is None else gone
        gone.untyped_storage().resize_(size)
        for whole in (padded, batch):
            if (whole is padded) <= (name != "data") and (whole is batch) <= (name != "input"):
                said = "input" if name == "data" else name
                with pytest.raises(RuntimeError, match=f"^{said} has no memory: its storage was emptied"):
                    ours(whole, hx)


@pytest.mark.parametrize("what", ["input", "data", "hx[0]", "hx[1]", "weight_hh_l0", "batch_sizes", "sorted_indices", "unsorted_indices"])
def test_memory_that_was_taken_away_is_not_copied_from(what, context):
    _, ours = pair("LSTM")
    ours.weight_hh_l0.data = ours.weight_hh_l0.T.contiguous().T.data
    padded, batch = torch.ones(B, F, 3).mT.transpose(0, 1), BATCH._replace(data=BATCH.data.T.contiguous().T)
    batch = batch._replace(**{name: torch.stack([index] * 2, 1)[:, 0] for name, index in batch._asdict().items() if index.dim() == 1})
    hx = tuple(state.mT.contiguous().mT for state in states(ours, padded))
    named = {"input": padded, "hx[0]": hx[0], "hx[1]": hx[1], "weight_hh_l0": ours.weight_hh_l0, **batch._asdict()}
    assert not named[what].is_contiguous()
    named[what].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"^{re.escape('input' if what == 'data' else what)} has no memory: its storage was emptied"):
        ours(padded if what == "input" else batch, hx)


def test_indices_whose_memory_was_taken_away():
    _, ours = pair("GRU")
    for which in (1, 2, 3):
        batch = BATCH._replace(**{BATCH._fields[which]: BATCH[which].clone()})
        batch[which].untyped_storage().resize_(0)
        with torch.no_grad():
            assert fp.path(ours, batch) == "torch: the packed batch is inconsistent"
    lazy = BATCH._replace(batch_sizes=torch._efficientzerotensor((2,), dtype=torch.int64))
    assert fp.path(ours, lazy).startswith("torch: ")


def test_sizes_that_overflow(context):
    _, ours = pair("LSTM")
    one = torch.ones(1, 1, F)
    for sizes in ((2**30, 2**30), (2**40, 1), (1, 2**45)):
        with pytest.raises(RuntimeError, match=r"overflow|allocate|memory"):
            ours(one.expand(*sizes, F))
    wide = fp.RNN(1, 2**20, bias=False, device="meta")
    assert fp.path(wide, torch.ones(2**20, 1, 1)).startswith("torch: ")


# ---- whatever the fields

entries = st.lists(st.integers(-1, 4), max_size=4)
indices = st.one_of(st.none(), st.permutations(range(3)), entries)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 8), st.one_of(entries.map(lambda sizes: sorted(sizes, reverse=True)), entries), indices, indices, st.integers(0, 4))
def test_any_fields_give_torchs_result_or_an_error(rows, sizes, order, places, known):
    theirs, ours = LAYERS
    fields = (integers(*index) if index is not None else None for index in (sizes, order, places))
    batch = tuple.__new__(PackedSequence, (torch.arange(1.0 * rows * F).view(rows, F) / 9, *fields))
    hx = torch.linspace(-1, 1, known * H).view(1, known, H) if known else None
    with torch.no_grad():
        kind, _ = outcome(ours, batch, hx)
        assert kind in (None, RuntimeError, IndexError, TypeError)
        is_whole = sizes and len(order or places or ()) <= max(sizes)  # torch knows no sequence without rows
        if kind is None and is_whole:
            assert_close(ours(batch, hx), theirs(batch, hx))


LAYERS = pair("GRU")


def test_nothing_is_read_beyond_what_is_given(child: Child):
    # every array ends where a page that nobody may touch begins; so does another begin behind such a page
    code = """
import numpy as np, torch
from torch.nn.utils.rnn import PackedSequence
import fastpack.torch as fp
from tests.guarded import ForbiddenPages
for before in (False, True):
    place = ForbiddenPages(before)
    def guarded(tensor):
        array = tensor.detach().numpy()
        return torch.from_numpy(place(array, array.itemsize)) if array.size else tensor
    for dtype in (torch.float32, torch.float64):
        for cell, options in (("LSTM", {"proj_size": 3}), ("LSTM", {}), ("GRU", {}), ("RNN", {})):
            layer = getattr(fp, cell)(5, 21, num_layers=2, bidirectional=True, dtype=dtype, **options)
            for weight in layer.parameters():
                weight.data = guarded(weight)
            sequences = [torch.randn(n, 5, dtype=dtype) for n in (3, 0, 7, 1, 1, 4)]
            packed = fp.pack_sequence(sequences, enforce_sorted=False, allow_empty=True)
            padded = [guarded(torch.randn(*shape, dtype=dtype)) for shape in ((4, 6, 5), (4, 5))]
            for batch in (PackedSequence(*map(guarded, packed)), *padded):
                B = () if not isinstance(batch, PackedSequence) and batch.dim() == 2 else (6,)
                hx = [guarded(torch.randn(4, *B, width, dtype=dtype)) for width in (options.get("proj_size", 21), 21)]
                with torch.inference_mode():
                    for state in (None, tuple(hx) if cell == "LSTM" else hx[1]):
                        assert fp.path(layer, batch, state) == "kernels"
                        layer(batch, state)
print("whole")
"""
    assert child(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}") == "whole\n"
