"""RaggedDataset over tables, Arrow files and Parquet files; and files with faults."""

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
from tests.arrow_tables import COLUMNS, TABLE, TOKENS, assert_batch, assert_is_the_table, chunked
from tests.test_dataset import Identity
from tests.torch_oracle import assert_same


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
