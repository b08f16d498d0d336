"""A table of sequences with what belongs to each, and what a data set over it must be."""

import pickle

import numpy as np
import pyarrow as pa
import torch

import fastpack.torch as fp
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
