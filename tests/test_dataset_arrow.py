"""RaggedDataset over tables, Arrow files, Parquet files and Hugging Face's data sets; and files with faults."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import fastpack.torch as fp
from fastpack import parquet
from tests.test_dataset import Identity
from tests.torch_oracle import assert_packed, assert_same

LENGTHS = np.random.default_rng(0).integers(0, 9, 40).tolist()
TOKENS = [[(7 * n + k) % 97 for k in range(n)] for n in LENGTHS]
FRAMES = [[[float(n), k + 0.5] for k in range(n)] for n in LENGTHS]
NAMES = [f"{'ü' * (n % 5)}{n}" for n in range(40)]
TABLE = pa.table(
    {
        "tokens": pa.array(TOKENS, pa.list_(pa.int32())),
        "frames": pa.array(FRAMES, pa.large_list(pa.list_(pa.float32(), 2))),
        "label": pa.array(range(40), pa.int8()),
        "name": NAMES,
        "box": pa.array([[k, k + 1] for k in range(40)], pa.list_(pa.int64(), 2)),
        "class": pa.array([f"c{k % 3}" for k in range(40)]).dictionary_encode(),
    }
)
COLUMNS = {"column": ["tokens", "frames"], "per_sequence": ["label", "name", "box", "class"]}
BATCHES = [[0], [39, 0, 13, 13], list(range(40)), [5, 30, 11, -1]]


def assert_batch(batch, indices: list[int]) -> None:
    expected = [[torch.tensor(column[i], dtype=dtype).view(-1, *trailing) for i in indices] for column, dtype, trailing in
                ((TOKENS, torch.int32, ()), (FRAMES, torch.float32, (2,)))]  # fmt: skip
    for found, sequences in zip(batch[:2], expected, strict=True):
        assert_packed(found, fp.pack_sequence(sequences, enforce_sorted=False, allow_empty=True))
    where = [range(40)[i] for i in indices]
    assert_same(batch[2], torch.tensor(where, dtype=torch.int8))
    assert list(batch[3]) == [NAMES[i] for i in where]
    assert_same(batch[4], torch.tensor([[i, i + 1] for i in where]))
    assert list(batch[5]) == [f"c{i % 3}" for i in where]
    assert all(one is two for one, two in zip(batch[0][1:], batch[1][1:], strict=True))  # lengths are equal: one layout


def assert_is_the_table(dataset: fp.RaggedDataset) -> None:
    for found in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert len(found) == 40
        assert found.lengths.tolist() == LENGTHS
        for indices in BATCHES:
            assert_batch(found.__getitems__(indices), indices)
        sample = found[7]
        assert_same(sample[0], torch.tensor(TOKENS[7], dtype=torch.int32))
        assert (sample.label.item(), sample.name) == (7, NAMES[7])


def chunked(table: pa.Table, size: int) -> pa.Table:
    return pa.concat_tables([table.slice(start, size) for start in range(0, len(table), size)])


class Foreign:
    """A table of another library: nothing but Arrow's C interface."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, schema=None):
        return self.table.__arrow_c_stream__(schema)


def test_tables():
    for table in (
        TABLE,
        chunked(TABLE, 7),
        pa.concat_tables([TABLE, TABLE]).slice(40),
        chunked(TABLE, 1),
        TABLE.to_batches()[0],
        Foreign(TABLE),
    ):
        assert_is_the_table(fp.RaggedDataset.from_arrow(table, **COLUMNS))


def write_arrow(path: Path, table: pa.Table, kind: str, **options) -> Path:
    with pa.OSFile(str(path), "wb") as sink:
        writer = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with writer(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as open_writer:
            open_writer.write_table(table, max_chunksize=9)
    return path


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_arrow_files(kind, compression, tmp_path):
    path = write_arrow(tmp_path / "data.arrow", TABLE, kind, compression=compression)
    before = pa.total_allocated_bytes()
    dataset = fp.RaggedDataset.from_arrow(path, ["tokens", "frames"], "label")
    assert (pa.total_allocated_bytes() == before) is (compression is None)  # mapped, and nothing of it read to memory
    assert len(pickle.dumps(dataset)) < 2000
    assert_is_the_table(fp.RaggedDataset.from_arrow(str(path), **COLUMNS))


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files_with_faults(kind, tmp_path):
    path = write_arrow(tmp_path / "data.arrow", TABLE, kind)
    sent, whole = pickle.dumps(fp.RaggedDataset.from_arrow(path, "tokens")), path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"data.arrow has {len(whole) // 2} bytes, but had {len(whole)} when the data set was opened"):
        pickle.loads(sent)
    with pytest.raises(ValueError, match=r"data.arrow is no Arrow file, or is truncated"):
        fp.RaggedDataset.from_arrow(path, "tokens")
    path.write_bytes(whole)
    os.utime(path, (1, 1))
    with pytest.raises(ValueError, match=r"data.arrow has been changed since the data set was opened: open it again"):
        pickle.loads(sent)
    with pytest.raises(FileNotFoundError):
        fp.RaggedDataset.from_arrow(tmp_path / "nowhere.arrow", "tokens")
    pq.write_table(TABLE, path)
    with pytest.raises(ValueError, match=r"data.arrow is a Parquet file: use from_parquet"):
        fp.RaggedDataset.from_arrow(path, "tokens")


def write_parquet(folder: Path, sizes: list[int], row_group_size: int = 6, table: pa.Table = TABLE) -> list[Path]:
    paths, start = [], 0
    for k, size in enumerate(sizes):
        paths.append(folder / f"part{k}.parquet")
        pq.write_table(table.slice(start, size), paths[-1], row_group_size=row_group_size)
        start += size
    return paths


@pytest.mark.parametrize("sizes", [[40], [13, 0, 27], [1] * 40])
@pytest.mark.parametrize("cache_bytes", [1 << 30, 300, 0])
def test_parquet_files(sizes, cache_bytes, tmp_path):
    paths = write_parquet(tmp_path, sizes)
    dataset = fp.RaggedDataset.from_parquet(paths if len(paths) > 1 else paths[0], **COLUMNS, cache_bytes=cache_bytes)
    assert_is_the_table(dataset)


def test_row_groups_are_decoded_once_in_order_and_kept_as_asked(tmp_path, monkeypatch):
    paths = write_parquet(tmp_path, [40], row_group_size=10)
    read, true_read = [], parquet.Files.read
    monkeypatch.setattr(parquet.Files, "read", lambda self, group, name: read.append(group) or true_read(self, group, name))
    for cache_bytes, again in ((1 << 30, []), (0, [0, 1, 2, 3])):
        read.clear()
        dataset = fp.RaggedDataset.from_parquet(paths, "tokens", cache_bytes=cache_bytes)
        assert read == [0]
        for start in range(0, 40, 5):
            dataset.__getitems__(list(range(start, start + 5)))
        assert read == [0, 1, 2, 3]
        read.clear()
        for start in range(0, 40, 5):
            dataset.__getitems__(list(range(start, start + 5)))
        assert read == again
        assert len(dataset._fields["tokens"].storage._kept) == (1 if again else 4)
    assert len(pickle.dumps(dataset)) < 2000


def test_threads_share_row_groups(tmp_path):
    dataset = fp.RaggedDataset.from_parquet(write_parquet(tmp_path, [40]), **COLUMNS, cache_bytes=300)
    batches = [np.random.default_rng(seed).integers(0, 40, 10).tolist() for seed in range(60)]
    with ThreadPoolExecutor(4) as pool:
        for batch, indices in zip(pool.map(dataset.__getitems__, batches), batches, strict=True):
            assert_batch(batch, indices)


def test_names_with_dots(tmp_path):
    table = pa.table({"a.b": TOKENS, "a": [{"b": 1}] * 40, "a.b.c": list(range(40))})
    pq.write_table(table, tmp_path / "dots.parquet")
    sequence, value = fp.RaggedDataset.from_parquet(tmp_path / "dots.parquet", "a.b", "a.b.c")[7]
    assert (sequence.tolist(), value.item()) == (TOKENS[7], 7)


def test_parquet_files_with_faults(tmp_path):
    paths = write_parquet(tmp_path, [20, 20])
    whole = paths[1].read_bytes()
    opened = fp.RaggedDataset.from_parquet(paths, "tokens")
    sent = pickle.dumps(opened)

    paths[1].write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"part1.parquet is no Parquet file, or is truncated: "):
        fp.RaggedDataset.from_parquet(paths, "tokens")
    for act in (lambda: opened.__getitems__([1, 30]), lambda: pickle.loads(sent)):
        with pytest.raises(
            ValueError, match=f"part1.parquet has {len(whole) - 100} bytes, but had {len(whole)} when the data set was opened"
        ):
            act()
    assert opened[1].tolist() == TOKENS[1]  # what is decoded is there

    paths[1].write_bytes(whole)
    os.utime(paths[1], (1, 1))
    with pytest.raises(ValueError, match=r"part1.parquet has been changed since the data set was opened: open it again"):
        opened.__getitems__([30])

    paths[1].write_bytes(whole[:4] + bytes(200) + whole[204:])
    with pytest.raises(ValueError, match=r"part1.parquet cannot be decoded, row group 0, column 'tokens': "):
        fp.RaggedDataset.from_parquet(paths, "tokens").__getitems__([20])

    paths[1].write_bytes(b"")
    with pytest.raises(ValueError, match=r"part1.parquet is no Parquet file"):
        fp.RaggedDataset.from_parquet(paths, "tokens")
    paths[1].unlink()
    for act in (lambda: fp.RaggedDataset.from_parquet(paths, "tokens"), lambda: pickle.loads(sent)):
        with pytest.raises(FileNotFoundError):
            act()


def test_parquet_files_that_do_not_fit_together(tmp_path):
    one, two, three = (tmp_path / f"{k}.parquet" for k in range(3))
    pq.write_table(TABLE, one)
    pq.write_table(TABLE.drop_columns("tokens"), two)
    pq.write_table(TABLE.set_column(0, "tokens", pa.array(TOKENS, pa.list_(pa.int64()))), three)
    with pytest.raises(ValueError, match=r"column 'tokens' is missing: .*1.parquet has 'frames', 'label'"):
        fp.RaggedDataset.from_parquet([one, two], "tokens")
    with pytest.raises(
        TypeError, match=r"column 'tokens' is of Arrow type list<\w+: int64> in .*2.parquet, but of list<\w+: int32> in .*0.par"
    ):
        fp.RaggedDataset.from_parquet([one, three], "tokens")
    with pytest.raises(ValueError, match=r"column 'tokens' is missing: .*1.parquet"):
        fp.RaggedDataset.from_parquet([one, two], "frames", "tokens")
    uneven = [tmp_path / "even.parquet", tmp_path / "uneven.parquet"]
    for path, rows in zip(uneven, ([[[1, 2]], []], [[[1]]]), strict=True):
        pq.write_table(pa.table({"x": rows}), path)
    dataset = fp.RaggedDataset.from_parquet(uneven, "x")
    with pytest.raises(ValueError, match=r"column 'x' has rows of shape \(1,\) in row group 1, but of \(2,\) before"):
        dataset.__getitems__([0, 2])


WRONG = [
    ({"column": "nothing"}, ValueError, "column 'nothing' is missing: .* 'tokens', 'frames', 'label'"),
    ({"per_sequence": "nothing"}, ValueError, "column 'nothing' is missing"),
    ({"column": "label"}, TypeError, "column 'label' is of Arrow type int8, but sequences are lists"),
    ({"column": "name"}, TypeError, "column 'name' is of Arrow type string, but sequences are lists"),
    ({"column": "words"}, TypeError, "column 'words' holds values of Arrow type string"),
    ({"column": "uneven"}, ValueError, "column 'uneven' has rows of different sizes"),
    ({"column": "times"}, TypeError, r"column 'times' is of dtype datetime64\[ms\], which torch does not have"),
    ({"per_sequence": "tokens"}, ValueError, "column 'tokens' is named twice"),
    ({"per_sequence": "frames"}, ValueError, "column 'frames' has rows of different sizes"),
    ({"per_sequence": "some"}, ValueError, "column 'some' is null in row 1: fill it, or pass nulls='skip'"),
    ({"column": "holes"}, ValueError, "column 'holes' is null in row 2: fill it, or pass nulls='skip'"),
    ({"column": []}, ValueError, "column is empty: pass the name of at least one"),
    ({"nulls": "drop"}, ValueError, "nulls is 'drop', but can only be 'error' or 'skip'"),
]
ODD = (
    TABLE.append_column("words", pa.array([["a"]] * 40))
    .append_column("uneven", pa.array([[[1, 2], [3]]] * 40))
    .append_column("times", pa.array([[1]] * 40, pa.list_(pa.timestamp("ms"))))
    .append_column("some", pa.array([1, None] * 20))
    .append_column("holes", pa.array([[1], [2], None, [None, 3]] * 10, pa.list_(pa.int32())))
    .append_column("unnamed", pa.array(["a", "b", "c", None, "e"] * 8))
    .append_column("truths", pa.array([None, True] * 20))
)


@pytest.mark.parametrize(("changes", "error", "problem"), WRONG)
def test_columns_that_are_wrong(changes, error, problem, tmp_path):
    pq.write_table(ODD, tmp_path / "odd.parquet")
    arguments = {"column": "tokens", "per_sequence": ()} | changes
    with pytest.raises(error, match=problem):
        fp.RaggedDataset.from_arrow(ODD, **arguments)
    with pytest.raises(error, match=problem):
        fp.RaggedDataset.from_parquet(tmp_path / "odd.parquet", **arguments)


def test_nulls_are_skipped_on_request(tmp_path):
    pq.write_table(ODD, tmp_path / "odd.parquet", row_group_size=7)
    arguments = {"column": ["holes", "tokens"], "per_sequence": ["some", "label", "unnamed", "truths"], "nulls": "skip"}
    with pytest.raises(ValueError, match="each row has a null: nothing is left"):
        fp.RaggedDataset.from_arrow(ODD, **arguments)
    arguments["per_sequence"].remove("truths")
    kept = [k for k in range(40) if k % 4 != 2 and k % 2 == 0 and k % 5 != 3]
    for dataset in (fp.RaggedDataset.from_arrow(ODD, **arguments), fp.RaggedDataset.from_parquet(tmp_path / "odd.parquet", **arguments)):
        for found in (dataset, pickle.loads(pickle.dumps(dataset))):
            assert len(found) == len(kept)
            assert [sample.label.item() for sample in found] == kept
            batch = found.__getitems__(list(range(len(kept))))
            assert_same(fp.unpack_sequence(batch.tokens), [torch.tensor(TOKENS[k], dtype=torch.int32) for k in kept])
            assert [sequence.tolist() for sequence in fp.unpack_sequence(batch.holes)] == [[1]] * len(kept)
            assert list(batch.unnamed) == [list("abcde")[k % 5] for k in kept]
            assert found.lengths.tolist() == [1] * len(kept)
    holes = fp.RaggedDataset.from_arrow(ODD, "holes", nulls="skip")
    assert [sample.tolist() for sample in holes] == [[1], [2], [3]] * 10


@pytest.mark.parametrize("kind", [pa.list_(pa.int16(), 2), pa.list_(pa.int16()), pa.large_list(pa.int16())], ids=str)
def test_rows_without_a_list_are_skipped_on_request(kind, tmp_path):
    boxes = [[k, -k] if k % 3 else None for k in range(40)]
    table = TABLE.select(["tokens", "label"]).append_column("box", pa.array(boxes, kind))
    pq.write_table(table, tmp_path / "boxes.parquet", row_group_size=7)
    kept = [k for k in range(40) if k % 3]
    for dataset in (
        fp.RaggedDataset.from_arrow(table, "tokens", ["label", "box"], nulls="skip"),
        fp.RaggedDataset.from_arrow(chunked(table, 1), "tokens", ["label", "box"], nulls="skip"),
        fp.RaggedDataset.from_parquet(tmp_path / "boxes.parquet", "tokens", ["label", "box"], nulls="skip"),
    ):
        for found in (dataset, pickle.loads(pickle.dumps(dataset))):
            batch = found.__getitems__(range(len(found)))
            assert batch.label.tolist() == kept
            assert_same(batch.box, torch.tensor([boxes[k] for k in kept], dtype=torch.int16))
    with pytest.raises(ValueError, match="column 'box' is null in row 0: fill it, or pass nulls='skip'"):
        fp.RaggedDataset.from_arrow(table, "tokens", "box")
    with pytest.raises(ValueError, match="column 'box' is null in every row: nothing is left"):
        fp.RaggedDataset.from_arrow(table.slice(0, 1), "tokens", "box", nulls="skip")


def test_nothing_to_read(tmp_path):
    empty = TABLE.slice(0, 0)
    pq.write_table(empty, tmp_path / "empty.parquet")
    write_arrow(tmp_path / "empty.arrow", empty, "file")
    for table in (empty, tmp_path / "empty.arrow"):
        with pytest.raises(ValueError, match="column 'tokens' is empty: the table has no row"):
            fp.RaggedDataset.from_arrow(table, "tokens")
    with pytest.raises(ValueError, match=r"empty.parquet has no row"):
        fp.RaggedDataset.from_parquet(tmp_path / "empty.parquet", "tokens")
    with pytest.raises(ValueError, match=r"none of the 2 files has a row"):
        fp.RaggedDataset.from_parquet([tmp_path / "empty.parquet"] * 2, "tokens")
    with pytest.raises(ValueError, match="files is empty: pass at least one path"):
        fp.RaggedDataset.from_parquet([], "tokens")
    for wrong in (3, None):
        with pytest.raises(TypeError, match=r"files is .*, not a path or a list of paths"):
            fp.RaggedDataset.from_parquet(wrong, "tokens")
        with pytest.raises(TypeError, match=r"table is .*, not a pyarrow Table or RecordBatch"):
            fp.RaggedDataset.from_arrow(wrong, "tokens")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes_open_files_themselves(context, tmp_path):
    paths = write_parquet(tmp_path, [25, 15])
    dataset = fp.RaggedDataset.from_parquet(paths, **COLUMNS)
    loader = DataLoader(dataset, 10, collate_fn=Identity(), num_workers=2, multiprocessing_context=context, timeout=60)
    for k, batch in enumerate(loader):
        assert_batch(batch, list(range(10 * k, 10 * k + 10)))


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
