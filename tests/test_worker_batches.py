"""Batches by worker processes: what crosses the border, and what becomes of workers that are killed, interrupted or kept busy."""

import io
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory

from fastpack.torch import PackCollate, RaggedDataset, loader, pack_sequence, transit
from tests.conftest import clean_environment
from tests.test_prefetch import Finished, Sequences, assert_same_batches
from tests.torch_oracle import bits, every_dtype, random_tensor

METHODS = ["fork", "spawn", "forkserver"]
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Aligned(Dataset):
    """Large frames, small tags of the same lengths, a small and a large tensor of fixed size, and where all that was made."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, k: int) -> dict[str, Any]:
        frames = torch.full((k + 1, 5000), float(k))
        small, large = torch.full((3,), k), torch.full((9000,), float(k))
        return {"frames": frames, "tags": torch.arange(k + 1), "small": small, "large": large, "pid": os.getpid()}


class Shares(IterableDataset):
    """Each worker reads its share."""

    def __iter__(self) -> Any:
        info = get_worker_info()
        return (Sequences()[k] for k in range(info.id, 12, info.num_workers))


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_crosses_as_it_is(method: str) -> None:
    collate = PackCollate(["frames", "tags"])
    options = {"batch_size": 4, "collate_fn": collate}
    wanted = list(loader(Aligned(), **options))
    with loader(
        Aligned(), num_workers=2, multiprocessing_context=method, persistent_workers=True, prefetch_factor=1, timeout=60, **options
    ) as made:
        for _ in range(2):
            for batch, expected in zip(made, wanted, strict=True):
                assert batch["pid"][0] != os.getpid()
                assert_same_batches([(batch["frames"], batch["large"])], [(expected["frames"], expected["large"])])
                assert_same_batches([(batch["tags"], batch["small"])], [(expected["tags"], expected["small"])])
                assert all(a is b for a, b in zip(batch["frames"][1:], batch["tags"][1:], strict=True))
                shared = {name: data.is_shared() for name, data in batch.items() if name not in ("frames", "tags")}
                assert shared == {"small": False, "large": True, "pid": False}
                assert [part.is_shared() for part in batch["frames"]] == [True, False, False, False]
                assert not batch["tags"].data.is_shared()


def where(samples: list[dict[str, Any]]) -> list[bool]:
    """Collate, and say which packed rows are in shared memory, of tensors and of what was gathered from storage."""
    batch = PackCollate(["frames", "tags"])(samples)
    stored = RaggedDataset(torch.ones(40, 1000), [0, 30, 40]).__getitems__([0, 1])
    return [packed.data.is_shared() for packed in (batch["frames"], batch["tags"], stored)]


def test_large_batches_are_packed_into_shared_memory_in_workers_only() -> None:
    for workers, found in ((1, [True, False, True]), (0, [False, False, False])):
        assert list(DataLoader(Aligned(), batch_size=6, num_workers=workers, collate_fn=where)) == [found] * 2


def test_plain_loaders_collates_and_streams() -> None:
    wanted = list(loader(Sequences(12), batch_size=4))
    plain = DataLoader(Sequences(12), batch_size=4, collate_fn=PackCollate(), num_workers=2)
    assert_same_batches(plain, wanted)
    assert not any(part.is_shared() for packed, _ in plain for part in packed)
    assert_same_batches(loader(Finished(12), batch_size=4, num_workers=1), loader(Finished(12), batch_size=4))
    labels = [label.tolist() for _, label in loader(Shares(), batch_size=3, num_workers=2)]
    assert labels == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert_same_batches(loader(iter([[Sequences()[k] for k in range(4)]]), batch_size=None, num_workers=1), wanted[:1])


class ShuffledShares(IterableDataset):
    """Each worker reads its share through a shuffled buffer."""

    def __iter__(self) -> Any:
        info, buffer = get_worker_info(), []
        random = np.random.default_rng(info.id)
        for sample in Shares():
            buffer.append(sample)
            if len(buffer) == 4:
                yield buffer.pop(random.integers(4))
        yield from buffer


@pytest.mark.parametrize("method", METHODS)
def test_a_shuffled_stream_by_workers(method: str) -> None:
    options = {"multiprocessing_context": method, "persistent_workers": True, "prefetch_factor": 1, "timeout": 60}
    with loader(ShuffledShares(), batch_size=3, num_workers=2, **options) as made:
        for _ in range(2):
            batches = list(made)
            labels = [label.tolist() for _, label in batches]
            assert sorted(k for label in labels for k in label) == list(range(12)) != [k for label in labels for k in label]
            assert [{k % 2 for k in label} for label in labels] == [{0}, {1}, {0}, {1}]  # workers take turns
            assert_same_batches(batches, [PackCollate()([Sequences()[k] for k in label]) for label in labels])


def test_what_torch_pins_is_the_batch_that_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes a batch apart to pin its tensors, which takes an accelerator; here each is copied in place of that."""
    stored = RaggedDataset({"a": torch.arange(4.0), "b": torch.arange(4)}, [0, 1, 4], label=[1, 2], name=["x", "y"])
    collated = PackCollate(padded=["b"])([{"a": sample.a, "b": sample.b, "label": sample.label} for sample in stored])
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor) or tensor.clone())
    batch = stored.__getitems__([0, 1])
    found = pin_memory(batch, "cuda")
    assert type(found) is type(batch)
    assert found.name == ("x", "y")
    assert_same_batches([(found.a, found.label), (found.b, found.label)], [(batch.a, batch.label), (batch.b, batch.label)])
    assert {id(batch.a.data), id(batch.b.data), id(batch.label)} <= set(map(id, pinned))
    found = pin_memory(collated, "cuda")
    assert_same_batches([(found["a"], found["b"][0])], [(collated["a"], collated["b"][0])])
    assert {id(collated["a"].data), id(collated["b"][0])} <= set(map(id, pinned))


def note_worker(number: int) -> None:
    Noted.number = number


class Noted(Sequences):
    number = -1

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return torch.ones(1), self.number


def test_the_users_own_set_up_runs_too() -> None:
    made = loader(Noted(4), batch_size=2, num_workers=2, worker_init_fn=note_worker)
    assert [label.tolist() for _, label in made] == [[0, 0], [1, 1]]


def sent(value: Any) -> Any:
    """Return what arrives where small tensors are sent as bytes."""
    stream = io.BytesIO()
    pickler = ForkingPickler(stream)
    pickler.dispatch_table[torch.Tensor] = transit._reduce
    pickler.dump(value)
    return ForkingPickler.loads(stream.getvalue())


@pytest.mark.parametrize("dtype", every_dtype(), ids=str)
def test_small_tensors_are_sent_by_value(dtype: torch.dtype) -> None:
    for shape in ((), (0,), (3, 0), (7,), (2, 3, 4)):
        tensor = random_tensor(shape, dtype)
        arrived = sent(tensor)
        assert (arrived.dtype, arrived.shape, bits(arrived)) == (dtype, tensor.shape, bits(tensor))
        assert not arrived.is_shared()
        assert not tensor.is_shared()
        arrived.zero_()  # it may be written to


def test_other_tensors_are_sent_as_torch_does_it() -> None:
    strided, large = torch.arange(12).view(3, 4).T, torch.ones(transit.SMALL // 4 + 1)
    shared, leaf = torch.ones(3).share_memory_(), torch.ones(3, requires_grad=True)
    for tensor in (strided, large, shared, leaf):
        arrived = sent(tensor)
        assert torch.equal(arrived, tensor)
        assert (arrived.stride(), arrived.requires_grad, arrived.is_shared()) == (tensor.stride(), tensor.requires_grad, True)
    sent(shared).zero_()
    assert shared.sum() == 0
    packed = pack_sequence([torch.ones(2), torch.ones(3)], enforce_sorted=False)
    first, second = sent((packed, packed._replace(data=packed.data * 2)))
    assert isinstance(first, PackedSequence)
    assert all(a is b for a, b in zip(first[1:], second[1:], strict=True))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what Linux lists")
def test_kept_labels_keep_no_descriptors() -> None:
    def kept(**options: Any) -> int:
        before = len(list(Path("/proc/self/fd").iterdir()))
        labels = [batch["pid"] for batch in DataLoader(Aligned(), num_workers=1, **options)]
        assert len(labels) == 12
        return len(list(Path("/proc/self/fd").iterdir())) - before

    assert kept() >= 12  # torch's own way
    assert kept(collate_fn=PackCollate(["frames", "tags"])) <= 2


@pytest.mark.parametrize("begun", [False, True])
def test_leaving_a_with_statement_by_an_error_ends_the_workers(begun: bool) -> None:
    def work() -> None:
        with loader(Sequences(), num_workers=2, multiprocessing_context="spawn", persistent_workers=True) as made:
            if begun:
                next(iter(made))
            raise KeyError("other")

    before = signal.getsignal(signal.SIGCHLD)
    begin = time.monotonic()
    with pytest.raises(KeyError, match="other"):
        work()
    assert multiprocessing.active_children() == []
    assert time.monotonic() - begin < 60
    assert begun or signal.getsignal(signal.SIGCHLD) is before
    if begun:  # in another thread torch ends them, which takes longer while they are importing
        with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError, match="other"):
            pool.submit(work).result()
        assert multiprocessing.active_children() == []


class Killed(Sequences):
    """A worker is killed in the midst of the epoch, as by a system that runs out of memory."""

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        if k == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(k)


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_worker_is_reported(method: str) -> None:
    seen: list[Any] = []
    begin = time.monotonic()
    made = loader(Killed(500), batch_size=2, num_workers=2, multiprocessing_context=method, persistent_workers=True)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*(killed by signal: Killed|exited unexpectedly)"), made:
        seen.extend(made)
    assert len(seen) <= 4
    assert time.monotonic() - begin < 60
    assert multiprocessing.active_children() == []


def test_an_exception_in_a_worker_arrives() -> None:
    with pytest.raises(TypeError, match=r"(?s)Caught TypeError in DataLoader worker process 0.*field '1': sample 0 is of type int"):
        list(loader(Sequences(), collate_fn=PackCollate([0, 1]), num_workers=1))


INTERRUPTED = """
import sys, torch
from fastpack.torch import loader

class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 100_000
    def __getitem__(self, k):
        return torch.ones(k % 50 + 1, 8), k

if __name__ == "__main__":
    method, form = sys.argv[1:]
    options = {"num_threads": 2} if method == "threads" else {"num_workers": 2, "multiprocessing_context": method}
    made = loader(Samples(), batch_size=4, **options)
    def work():
        for k, batch in enumerate(made):
            if k == 5:
                print("running", flush=True)
    if form == "with":
        with made:
            work()
    work()
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize(("method", "form"), [*((method, "for") for method in [*METHODS, "threads"]), ("fork", "with"), ("spawn", "with")])
def test_ctrl_c_leaves_no_process(method: str, form: str, tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"  # which spawned workers import
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), method, form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
        _, said = process.communicate(timeout=60)  # ends when the last of them has closed it
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1, said
    assert said.rstrip().endswith("KeyboardInterrupt")
    end = time.monotonic() + 30
    while group_is_there(process.pid) and time.monotonic() < end:  # forkserver's own helpers take a moment
        time.sleep(0.05)
    assert not group_is_there(process.pid)


def group_is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class Resident(Dataset):
    """A label that is how much memory the worker has, in bytes."""

    def __len__(self) -> int:
        return 16_000

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() if k % 16 == 0 else 0
        return torch.full((k * 37 % 90 + 1, 64), float(k)), resident


class Keeping(Resident):
    """A dataset that keeps every sample that it gave."""

    kept: ClassVar[list[Any]] = []

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        sample = super().__getitem__(k)
        self.kept.append(sample)
        return sample


def grown(dataset: Dataset, options: dict[str, int]) -> int:
    """Return by how many bytes the memory of a worker is larger in the second half of 1,000 batches than early in the first."""
    resident = [int(label.max()) for _, label in loader(dataset, batch_size=16, **options)]
    assert len(resident) == 1000
    return max(resident[500:]) - max(resident[100:500])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads what Linux tells")
@pytest.mark.parametrize("options", [{"num_workers": 1}, {"num_threads": 1}])
def test_memory_does_not_grow_over_1000_batches(options: dict[str, int]) -> None:
    assert grown(Resident(), options) < 4e6  # a batch has 190 KB: 500 that stayed would be 95 MB
    assert grown(Keeping(), {"num_workers": 1}) > 40e6
