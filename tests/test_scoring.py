"""Scorer: rows of tables against torch, one sequence at a time."""

import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

import fastpack
from fastpack import scoring
from fastpack.scoring import Scorer
from tests.scoring_oracle import F, H, check, module, table, weights

pytestmark = pytest.mark.usefixtures("one_thread")  # of torch
KINDS = [
    ("LSTM", {}),
    ("LSTM", {"bidirectional": True, "num_layers": 2}),
    ("LSTM", {"proj_size": 2, "bidirectional": True}),
    ("GRU", {"bidirectional": True}),
    ("RNN", {"num_layers": 2}),
]


def layer_of(theirs):
    options = {"nonlinearity": "tanh"} if isinstance(theirs, torch.nn.RNN) else {}
    return getattr(fastpack, type(theirs).__name__).from_state_dict(weights(theirs), **options)


def scorer_of(theirs=None, **options):
    return Scorer(layer_of(theirs or module()), "x", **options)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's own remark
@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_row_is_its_sequence(kind, options, dtype):
    theirs, source = module(kind, **options).to(dtype), table(50)
    found = scorer_of(theirs, results=("rows", "last"), keep=("name", "id"))(source)
    check(found, theirs, source)
    assert found.column_names == ["name", "id", "rows", "last"]
    assert found.select(["name", "id"]).equals(source.select(["name", "id"]))
    assert found["last"].null_count == found["rows"].null_count == source["x"].null_count > 0


def test_a_row_does_not_depend_on_its_table(monkeypatch):
    scorer, source = scorer_of(results=("last", "rows"), keep=("id",)), table(60)
    whole = scorer(source)
    assert len(list(scorer.slices(source))) == 1
    monkeypatch.setattr(scoring, "SLICE_STEPS", 7)
    assert len(list(scorer.slices(source))) > 10
    assert scorer(source).equals(whole)
    assert pa.concat_tables([scorer(source.slice(k, 1)) for k in range(60)]).equals(whole)
    assert replace(scorer, num_threads=2)(source).equals(whole)
    chunked = pa.concat_tables([source.slice(0, 17), source.slice(17, 0), source.slice(17)])
    assert chunked["x"].num_chunks == 3
    assert scorer(chunked).equals(whole)
    assert pickle.loads(pickle.dumps(scorer))(source).equals(whole)


@pytest.mark.parametrize("sequences", [[], [None, None], [[]], [[], None, []]], ids=str)
def test_tables_without_any_step(sequences):
    source = pa.table({"x": pa.array(sequences, pa.list_(pa.list_(pa.float32())))})
    found = scorer_of(results=("last", "rows"))(source)
    assert found.schema.equals(scorer_of(results=("last", "rows"))(table(9)).schema)
    assert found["last"].to_pylist() == [None if item is None else [0.0] * H for item in sequences]
    assert found["rows"].to_pylist() == sequences


LISTS = [pa.list_(pa.float32()), pa.large_list(pa.int16()), pa.list_(pa.float64()), pa.list_(pa.bool_())]


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_numbers_are_cast(kind):
    theirs = module("GRU", input_size=1)
    source = pa.table({"x": pa.array([[True, False, True], [], [True]]).cast(kind)})
    check(scorer_of(theirs, results=("last", "rows"))(source), theirs, source)


def test_fixed_sizes():
    theirs, steps = module(), np.random.default_rng(0).standard_normal((4, 2, F), np.float32)
    kind = pa.list_(pa.list_(pa.float32(), F), 2)
    source = pa.table({"x": pa.array(steps.tolist(), kind)})
    check(scorer_of(theirs, results=("last", "rows"))(source), theirs, source)


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (pa.array([1, 2]), TypeError, "column 'x' is of Arrow type int64, but sequences are lists"),
        (pa.nulls(2), TypeError, "^column 'x' is of Arrow type null, of nulls alone: give it a type, as by column.cast"),
        (pa.array([["a"]]), TypeError, "values of Arrow type string"),
        (pa.array([[[1.0, 2.0]]]), ValueError, r"column 'x' has steps of shape \(2,\), but the layer takes 3 numbers a step"),
        (pa.array([[1.0, 2.0]]), ValueError, r"column 'x' has steps of shape \(\), but the layer takes 3"),
        (pa.array([[[1.0, 2.0, 3.0], None]]), ValueError, "null"),
        (pa.array([[[1.0, 2.0, None]]]), ValueError, "null"),
        (pa.array([[[1.0], [1.0, 2.0]]]), ValueError, "different sizes"),
        (pa.array([[[0, 0, 0]]], pa.list_(pa.list_(pa.timestamp("s")))), TypeError, r"holds datetime64\[s\], but a layer takes numbers"),
    ],
)
def test_columns_that_do_not_fit(column, error, message):
    with pytest.raises(error, match=message):
        scorer_of()(pa.table({"x": column}))


def test_missing_columns():
    with pytest.raises(ValueError, match="column 'x' is missing: there is 'y'"):
        scorer_of()(pa.table({"y": [[1.0]]}))
    with pytest.raises(ValueError, match="column 'id' is missing: there is 'x'"):
        scorer_of(keep=("id",))(table(3).select(["x"]))
    doubled = pa.table([table(3)["x"], table(3)["x"]], names=["x", "x"])
    with pytest.raises(ValueError, match="column 'x' is there more than once"):
        scorer_of()(doubled)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"results": ()}, ValueError, "results is empty: name at least one of last, rows"),
        ({"results": ("all",)}, ValueError, "results is 'all', but can only be 'last' or 'rows'"),
        ({"results": ("last", "last")}, ValueError, "^results has 'last' more than once: name each column once"),
        (
            {"keep": ("last",)},
            ValueError,
            "^keep has 'last', the name of a column that is made, too: rename it in",
        ),
        ({"num_threads": 0}, ValueError, "num_threads is 0"),
        ({"num_threads": 1.0}, TypeError, "num_threads is 1.0, not an integer"),
    ],
)
def test_wrong_choices(options, error, message):
    with pytest.raises(error, match=message):
        scorer_of(**options)
