"""RaggedDataset over Hugging Face's data sets."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

import fastpack.torch as fp
from tests.arrow_tables import NAMES, TABLE, TOKENS
from tests.torch_oracle import assert_same


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Hugging Face's library, kept from the network and from the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import datasets

        yield datasets


def test_data_sets_of_hugging_face(datasets, tmp_path):
    plain = datasets.Dataset(TABLE.drop_columns("class"))
    columns = {"column": ["tokens", "frames"], "per_sequence": ["label", "name"]}
    plain.save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    for given in (plain, saved, saved.with_format("torch"), saved.with_format("arrow"), saved.with_format("arrow")[:]):
        dataset = fp.RaggedDataset.from_arrow(given, **columns)
        assert [sample.tokens.tolist() for sample in dataset] == TOKENS
        assert list(dataset.__getitems__([3, 1]).name) == [NAMES[3], NAMES[1]]
    mixed = saved.shuffle(seed=1).select(range(10))
    for found in (fp.RaggedDataset.from_arrow(mixed, **columns), pickle.loads(pickle.dumps(fp.RaggedDataset.from_arrow(mixed, **columns)))):
        assert [sample.tokens.tolist() for sample in found] == mixed["tokens"][:]
        assert [sample.name for sample in found] == mixed["name"][:]


def test_a_saved_data_set_of_hugging_face_is_mapped_by_each_process(datasets, tmp_path):
    rows = np.arange(400_000, dtype=np.int64)
    table = pa.table({"x": pa.ListArray.from_arrays(pa.array(np.arange(0, 400_001, 100, dtype=np.int32)), pa.array(rows))})
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    before = pa.total_allocated_bytes()
    dataset = fp.RaggedDataset.from_arrow(datasets.load_from_disk(str(tmp_path / "saved")), "x")
    assert pa.total_allocated_bytes() - before < rows.nbytes / 10
    sent = pickle.dumps(dataset)
    assert len(sent) < rows.nbytes / 10
    assert_same(pickle.loads(sent)[7], torch.arange(700, 800))


def test_rows_that_hugging_face_selects_stay_where_they_are(datasets, tmp_path):
    """Asked for them, the library makes a chunk of each row."""
    rows = np.arange(400_000, dtype=np.int64)
    table = pa.table({"x": pa.ListArray.from_arrays(pa.array(np.arange(0, 400_001, 100, dtype=np.int32)), pa.array(rows))})
    datasets.Dataset(table.append_column("label", pa.array(np.arange(4000)))).save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    split = saved.train_test_split(test_size=0.25, seed=0)
    for given in (
        saved.shuffle(seed=0),
        split["train"],
        split["test"].filter(lambda row: row["label"] % 2),
        saved.select([7, 3, 3999]),
        saved.select(range(9, 20)),
    ):
        before = pa.total_allocated_bytes()
        dataset = fp.RaggedDataset.from_arrow(given, "x", "label")
        assert pa.total_allocated_bytes() - before < rows.nbytes / 10
        sent = pickle.dumps(dataset)
        assert len(sent) < rows.nbytes / 10
        numbers = np.array(given["label"][:])
        chosen = [0, len(given) - 1, 5 % len(given)]
        for found in (dataset, pickle.loads(sent)):
            assert len(found) == len(found.lengths) == len(given)
            batch = found.__getitems__(chosen)
            assert batch.label.tolist() == numbers[chosen].tolist()
            assert_same(fp.unpack_sequence(batch.x), [torch.arange(100 * k, 100 * k + 100) for k in numbers[chosen].tolist()])


@pytest.mark.parametrize("where", ["list", "step", "label", "box"])
def test_nulls_that_hugging_face_does_not_select_are_none(datasets, where):
    columns = {"x": [[k, k + 1] for k in range(20)], "label": list(range(20)), "box": [[k, -k] for k in range(20)]}
    columns["x" if where in ("list", "step") else where][13] = [None, 5] if where == "step" else None
    given = datasets.Dataset(pa.table(columns))
    without = given.select([k for k in range(19, -1, -1) if k != 13])
    for dataset in (fp.RaggedDataset.from_arrow(without, "x", ["label", "box"], nulls=nulls) for nulls in ("error", "skip")):
        assert [sample.label.item() for sample in dataset] == without["label"][:]
        assert [sample.x.tolist() for sample in dataset] == without["x"][:]
    mixed = given.shuffle(seed=0)
    with pytest.raises(ValueError, match=r"(is null in row|has a null among the steps of its lists).*: fill it, or pass nulls='skip'"):
        fp.RaggedDataset.from_arrow(mixed, "x", ["label", "box"])
    skipped = fp.RaggedDataset.from_arrow(mixed, "x", ["label", "box"], nulls="skip")
    assert [sample.label.item() for sample in skipped] == [k for k in mixed["label"][:] if k not in (None, 13) or where == "step"]


def test_what_hugging_face_has_beside_data_sets_is_refused(datasets):
    plain = datasets.Dataset(TABLE.drop_columns("class"))
    with pytest.raises(TypeError, match=r"^table is a DatasetDict of 'train', 'test': pass one of these data sets$"):
        fp.RaggedDataset.from_arrow(plain.train_test_split(test_size=0.5), "tokens")
    with pytest.raises(TypeError, match=r"^table is an IterableDataset, whose rows come one after another: load it without streaming=True"):
        fp.RaggedDataset.from_arrow(plain.to_iterable_dataset(), "tokens")
    streamed = plain.select_columns(["tokens", "label"]).to_iterable_dataset()
    packed = [
        batch["tokens"] for batch in fp.loader(streamed, 10, collate_fn=fp.PackCollate(allow_empty=True))
    ]  # the way out that it names
    assert [sequence.tolist() for batch in packed for sequence in fp.unpack_sequence(batch)] == TOKENS
    with pytest.raises(ValueError, match="column 'tokens' is empty: the table has no row"):
        fp.RaggedDataset.from_arrow(plain.select([]), "tokens")
    with pytest.raises(ValueError, match="column 'token' is missing: the table has 'tokens'"):
        fp.RaggedDataset.from_arrow(plain.shuffle(seed=0), "token")
    beyond = datasets.table.InMemoryTable(pa.table({"indices": pa.array([0, len(plain)], pa.uint64())}))
    with pytest.raises(ValueError, match=f"^table selects row {len(plain)} of {len(plain)}: it is not what it was when"):
        fp.RaggedDataset.from_arrow(datasets.Dataset(plain.data, indices_table=beyond), "tokens")


def test_features_of_hugging_face(datasets):
    frames = [np.full((n, 3), float(n), np.float32) for n in (2, 4, 1)]
    features = datasets.Features({"frames": datasets.Array2D((None, 3), "float32"), "ids": datasets.List(datasets.Value("int16"))})
    given = datasets.Dataset.from_dict({"frames": frames, "ids": [[1, 2], [3, 4, 5, 6], [7]]}, features=features)
    batch = fp.RaggedDataset.from_arrow(given, ["frames", "ids"]).__getitems__([1, 0, 2])
    assert_same(fp.unpack_sequence(batch.frames), [torch.from_numpy(frames[i]) for i in (1, 0, 2)])
    assert batch.ids.data.dtype is torch.int16
