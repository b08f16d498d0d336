"""RaggedDataset from .npz files, with faults too, and from lists."""

import pickle
import zipfile

import numpy as np
import pytest
import torch

import fastpack.torch as fp
from tests.test_dataset import OFFSETS, B, N, packed, slices
from tests.torch_oracle import assert_packed, assert_same


@pytest.mark.parametrize("compressed", [False, True])
def test_npz(compressed, tmp_path):
    array = np.random.default_rng(0).normal(size=(N, 30)).astype(np.float32)
    arrays = {"values": np.asfortranarray(array), "offsets": OFFSETS.astype(np.int32), "label": np.arange(B), "weight": np.ones((B, 2))}
    (np.savez_compressed if compressed else np.savez)(tmp_path / "data.npz", **arrays)
    dataset = fp.RaggedDataset.from_npz(tmp_path / "data.npz")
    for found in (dataset, pickle.loads(pickle.dumps(dataset))):
        batch = found.__getitems__([2, 0])
        assert_packed(batch.values, packed(torch.from_numpy(array), [2, 0]))
        assert_same((batch.label, batch.weight), (torch.tensor([2, 0]), torch.ones(2, 2, dtype=torch.float64)))
    assert (len(pickle.dumps(dataset)) < 2000) is not compressed  # mapped again by each process
    mixed = pickle.loads(pickle.dumps(fp.RaggedDataset.from_npz(str(tmp_path / "data.npz"))))
    assert len(mixed) == B


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, values=np.arange(N), bounds=OFFSETS)
    with pytest.raises(ValueError, match=r"array 'offsets' is missing: .*data.npz has 'values', 'bounds'"):
        fp.RaggedDataset.from_npz(path)
    np.savez(path, values=np.array([{}]), offsets=OFFSETS)
    with pytest.raises(ValueError, match=r"no .npz file of arrays"):
        fp.RaggedDataset.from_npz(path)
    np.savez(path, values=np.arange(N), offsets=OFFSETS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"no .npz file of arrays, or is truncated"):
        fp.RaggedDataset.from_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("values.npy", b"not an array")
    with pytest.raises(ValueError, match=r"no .npz file of arrays"):
        fp.RaggedDataset.from_npz(path)
    with pytest.raises(FileNotFoundError):
        fp.RaggedDataset.from_npz(tmp_path / "nowhere.npz")


def test_lists():
    values = torch.randn(N, 2).bfloat16()
    parts = slices(values, list(range(B)))
    dataset = fp.RaggedDataset.from_list(parts, label=list(range(B)))
    assert_packed(dataset.__getitems__([2, 0])[0], packed(values, [2, 0]))
    assert_packed(fp.RaggedDataset.from_list(part.float().numpy() for part in parts).__getitems__([2, 0]), packed(values.float(), [2, 0]))
    assert fp.RaggedDataset.from_list([[1, 2], [3]]).lengths.tolist() == [2, 1]
    for wrong, error, problem in [
        ([], ValueError, "sequences is empty"),
        ([parts[0], parts[1][:, :1]], ValueError, r"sequences\[1\] is of torch.bfloat16 and shape \(0, 1\), but sequences\[0\]"),
        ([parts[0], parts[1].float()], ValueError, r"sequences\[1\] is of torch.float32"),
        ([torch.tensor(1)], ValueError, r"sequences\[0\] is of torch.int64 and shape \(\)"),
        ([np.zeros(2), np.zeros(2, int)], TypeError, r"sequences\[1\] is of dtype int64"),
        ("abc", TypeError, "sequences is a str"),
        (3, TypeError, "sequences is an int"),
    ]:
        with pytest.raises(error, match=problem):
            fp.RaggedDataset.from_list(wrong)
