"""Whole loader throughput, in real steps a second: torch's usual way beside ours on the same data.

By this process, by two worker processes, and by a thread in their place. Every batch has been compared before anything is timed.
And how long 10 GB of mapped data take to be opened, to the first batch.
"""

import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset

from bench.cases import Case
from bench.contests import same
from fastpack.demo.speakers import RECORDINGS
from fastpack.torch import PackCollate, RaggedDataset, loader

BATCH = 64
TORCH = "torch"
WORKERS = 2
OURS = {0: ["PackCollate", "RaggedDataset"], WORKERS: ["PackCollate", "RaggedDataset", "RaggedDataset, a thread"]}


class Data(NamedTuple):
    """Sequences one after another, and a label each."""

    values: np.ndarray  # (N, ...)
    offsets: np.ndarray  # (B + 1,)
    label: np.ndarray  # (B,)


@cache
def real() -> Data:
    """Return the recordings that come with fastpack, who speaks as the label."""
    with np.load(RECORDINGS) as recordings:
        return Data(recordings["values"].astype(np.float32), recordings["offsets"], recordings["speaker"].astype(np.int64))


def synthetic(case: Case) -> Data:
    """Return the sequences of a case."""
    return Data(case.values(), case.offsets(), np.arange(case.B) % 7)


CASES = {
    "640 recordings x 12 floats": real,
    "2048 film reviews, tokens (int64)": lambda: synthetic(Case("reviews", 2048, (), "int64")),
    "512 recordings of speech x 80 floats": lambda: synthetic(Case("speech", 512, (80,), "float32")),
}


class Samples(Dataset[Any]):
    """A list of (sequence, label), as most programs have it."""

    def __init__(self, data: Data) -> None:
        self.sequences = [torch.from_numpy(part.copy()) for part in np.split(data.values, data.offsets[1:-1])]
        self.labels = data.label.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.sequences[i], self.labels[i]


def usual(samples: list[tuple[torch.Tensor, int]]) -> tuple[PackedSequence, torch.Tensor]:
    """Collate as one writes it with torch alone."""
    sequences, labels = zip(*samples, strict=True)
    return rnn.pack_sequence(sequences, enforce_sorted=False), torch.tensor(labels)


def contenders(data: Data, workers: int) -> dict[str, Iterable[Any]]:
    """Return loaders of the same batches; where there are worker processes, also one with a thread in their place."""
    samples, ragged = Samples(data), RaggedDataset(data.values, data.offsets, label=data.label)
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": workers, "persistent_workers": workers > 0}
    made = {
        TORCH: DataLoader(samples, collate_fn=usual, **options),
        "PackCollate": DataLoader(samples, collate_fn=PackCollate(), **options),
        "RaggedDataset": loader(ragged, **options),
    }
    return made | ({"RaggedDataset, a thread": loader(ragged, batch_size=BATCH, num_threads=1)} if workers else {})


def check(loaders: dict[str, Iterable[Any]]) -> None:
    """Compare every batch of every loader with torch's, sequence by sequence.

    Raises
    ------
    RuntimeError
        One is different.
    """
    torchs = list(loaders[TORCH])
    for name, ours in loaders.items():
        batches = list(zip(ours, torchs, strict=True))
        if not all(same(packed, wanted) and torch.equal(label, expected) for (packed, label), (wanted, expected) in batches):
            raise RuntimeError(f"{name} gives other batches than {TORCH}")


def steps_of(loaded: Iterable[Any]) -> int:
    """Go through an epoch and return its real steps."""
    return sum(packed.data.shape[0] for packed, _ in loaded)


def rates(loaders: dict[str, Iterable[Any]], rounds: int) -> Iterator[dict[str, float]]:
    """Yield the real steps a second of each loader, all in turn, round by round; workers are there before."""
    for _ in range(rounds):
        found = {}
        for name, loaded in loaders.items():
            begin = time.perf_counter()
            steps = steps_of(loaded)
            found[name] = steps / (time.perf_counter() - begin)
        yield found


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Time on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(max_time=0.3, min_rounds=5)
@pytest.mark.parametrize(("workers", "name"), [(workers, name) for workers, names in OURS.items() for name in (TORCH, *names)])
@pytest.mark.parametrize("case", CASES)
def bench_loader(benchmark: Any, case: str, workers: int, name: str) -> None:
    """Time an epoch."""
    loaders = contenders(CASES[case](), workers)
    pair = {TORCH: loaders[TORCH], name: loaders[name]}
    check(pair)
    benchmark.group = f"loader {case}, {workers} workers"
    benchmark.name = name
    benchmark(steps_of, pair[name])


OPENED_BYTES, FEATURES, STEPS = 10 * 10**9, 50, 500  # of a file, floats a row, rows a sequence


def mapped(rows: Any, offsets: Any) -> RaggedDataset:
    """Return the data set over a memory map."""
    return RaggedDataset(rows, offsets)


def mapped_arrow(rows: Any, offsets: Any) -> RaggedDataset:
    """Return the data set over the same memory as a column of Arrow: lists of rows, which are lists of one size."""
    frames = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), FEATURES)
    return RaggedDataset.from_arrow(pa.table({"frames": pa.LargeListArray.from_arrays(pa.array(offsets), frames)}), "frames")


@pytest.mark.parametrize("opened", [mapped, mapped_arrow])
def bench_opening(benchmark: Any, tmp_path: Path, opened: Any) -> None:
    """Asked: under a second. The file has no blocks on the disk, but reading all of it would take as many pages."""
    file = tmp_path / "rows"
    with file.open("wb") as written:
        written.truncate(OPENED_BYTES)
    rows = np.memmap(file, np.float32, "r").reshape(-1, FEATURES)
    offsets = np.arange(0, len(rows) + 1, STEPS)
    indices = np.random.default_rng(0).integers(0, len(offsets) - 1, BATCH).tolist()
    benchmark.group = "opening 10 GB, to the first batch"
    packed = benchmark.pedantic(lambda: opened(rows, offsets).__getitems__(indices), rounds=5)
    if packed.data.shape != (BATCH * STEPS, FEATURES) or benchmark.stats.stats.max >= 1:
        raise RuntimeError(f"{opened.__name__} took {benchmark.stats.stats.max:.3f} s to a batch of shape {tuple(packed.data.shape)}")
