"""What a batch of a RaggedDataset costs: kernels, tensors, and memory of the process that makes one after another."""

import resource
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastpack import machine
from fastpack.torch import PackedSequence, RaggedDataset, loader

LENGTHS = np.random.default_rng(0).integers(1, 30, 1000)
OFFSETS = np.cumsum([0, *LENGTHS])
FRAMES = np.random.default_rng(1).normal(size=(OFFSETS[-1], 16)).astype(np.float32)
TABLE = pa.table(
    {
        "frames": pa.LargeListArray.from_arrays(pa.array(OFFSETS), pa.FixedSizeListArray.from_arrays(pa.array(FRAMES.reshape(-1)), 16)),
        "label": np.arange(1000),
    }
)


class Operations(TorchDispatchMode):
    """Counts torch's operations: no tensor is made without one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, _types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.count += 1
        return function(*arguments, **(keywords or {}))


def cost(monkeypatch: pytest.MonkeyPatch, call: Any) -> tuple[Counter[str], int]:
    """Return how often a call runs each kernel, and how many operations of torch."""
    kernels: Counter[str] = Counter()
    kernel = machine.kernel
    with monkeypatch.context() as patch, Operations() as operations:
        patch.setattr(machine, "kernel", lambda block: kernels.update([machine.kernel_name(block)]) or kernel(block))
        call()
    return kernels, operations.count


def test_a_batch_takes_one_kernel_a_field_and_no_tensor_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    strided = np.repeat(FRAMES, 2, axis=1)[:, ::2]
    fields = {"frames": FRAMES, "tensor": torch.from_numpy(FRAMES), "tokens": np.arange(OFFSETS[-1]), "strided": strided}
    dataset = RaggedDataset(fields, OFFSETS, label=np.arange(1000))
    arrow = RaggedDataset.from_arrow(TABLE, "frames", "label")
    few, many = list(range(4)), list(range(0, 1000, 2))
    for made, count in ((dataset, 4), (arrow, 1)):
        made.__getitems__(few)
        kernels, operations = cost(monkeypatch, lambda made=made: made.__getitems__(many))
        assert (kernels, operations) == cost(monkeypatch, lambda made=made: made.__getitems__(few))
        assert sum(number for name, number in kernels.items() if name.startswith("pack_")) == count
    assert cost(monkeypatch, lambda: [dataset[k] for k in many])[1] >= 2 * len(many)  # by samples it is tensors for each


@pytest.mark.parametrize("is_fixed", [True, False])
def test_opening_a_column_takes_no_memory_for_each_row(is_fixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpack.storage.PIECE", 5000)
    values, rows = pa.array(np.zeros(1 << 20, np.int8)), 1 << 19
    inner = pa.array(np.arange(0, 2 * rows + 1, 2, dtype=np.int32))
    frames = pa.FixedSizeListArray.from_arrays(values, 2) if is_fixed else pa.ListArray.from_arrays(inner, values)
    table = pa.table({"x": pa.ListArray.from_arrays(pa.array(np.arange(0, rows + 1, 1 << 10, dtype=np.int32)), frames)})
    tracemalloc.start()
    try:
        dataset = RaggedDataset.from_arrow(table, "x")
        assert tracemalloc.get_traced_memory()[1] < rows / 2  # bytes
        assert dataset[511].shape == (1 << 10, 2)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("wrong", [1, 4999, 5000, 5001, 9999, 10_000])
def test_an_inner_list_of_another_size_is_found_wherever_it_is(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpack.storage.PIECE", 5000)
    sizes = np.full(10_002, 2)
    sizes[wrong], sizes[wrong + 1] = 1, 3
    frames = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *sizes], dtype=np.int32)), pa.array(np.zeros(sizes.sum(), np.int8)))
    table = pa.table({"x": pa.ListArray.from_arrays(pa.array([0, 10_002], pa.int32()), frames)})
    with pytest.raises(ValueError, match=r"column 'x' has rows of different sizes within its lists: .* as the first, 2"):
        RaggedDataset.from_arrow(table, "x")


class Resident:
    """Collate a finished batch to the memory of this process, in bytes."""

    kept: ClassVar[list[Any]] = []

    def __init__(self, keeps: bool = False) -> None:
        self.keeps = keeps

    def __call__(self, batch: Any) -> int:
        assert type(batch[0]) is PackedSequence
        if self.keeps:
            self.kept.append(batch)
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def grown(dataset: RaggedDataset, keeps: bool = False) -> int:
    """Return by how many bytes a worker is larger in the second half of 1,000 batches than early in the first.

    It is a new process: one that is forked has all the memory that tests before have let go, and fills that first.
    """
    batches = [np.random.default_rng(k).integers(250 * (k % 4), 250 * (k % 4) + 250, 16).tolist() for k in range(1000)]
    resident = list(loader(dataset, batch_sampler=batches, num_workers=1, collate_fn=Resident(keeps), multiprocessing_context="spawn"))
    return max(resident[500:]) - max(resident[100:500])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads what Linux tells")
def test_memory_of_a_worker_does_not_grow_over_1000_batches(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "frames.parquet", row_group_size=250)
    in_memory = RaggedDataset(FRAMES, OFFSETS, label=np.arange(1000))
    decoded = RaggedDataset.from_parquet(tmp_path / "frames.parquet", "frames", "label", cache_bytes=0)  # each is decoded anew
    assert grown(in_memory) < 3e6  # a batch has 15 KB: 500 that stayed would be 7.5 MB
    assert grown(decoded) < 3e6
    assert grown(in_memory, keeps=True) > 5e6
