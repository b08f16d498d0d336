"""Batches by threads of this process: the same as without, in the same order; and nothing is left of them."""

import gc
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, IterableDataset, RandomSampler, Subset

from fastpack.torch import PackCollate, loader, pack_sequence, prefetch
from tests.conftest import Child
from tests.torch_oracle import assert_packed


class Sequences(Dataset):
    """Sample k is k + 1 rows of the number k, and k."""

    def __init__(self, count: int = 23) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return torch.full((k + 1, 2), float(k)), k


class Uneven(Sequences):
    """Samples that take the longer the earlier they are."""

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        time.sleep(1e-3 * (self.count - k) / self.count)
        return super().__getitem__(k)


class Shuffled(IterableDataset):
    """A stream out of a shuffled buffer."""

    def __init__(self, count: int = 23, seed: int = 0) -> None:
        self.count, self.seed = count, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        random, buffer = np.random.default_rng(self.seed), []
        for k in range(self.count):
            buffer.append(Sequences()[k])
            if len(buffer) == 8:
                yield buffer.pop(random.integers(8))
        yield from buffer


class Failing(Sequences):
    """Sample 7 cannot be had."""

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__()
        self.kind = kind

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        if k == 7:
            raise self.kind("seven")
        return super().__getitem__(k)


class Finished(Sequences):
    """A dataset that makes its batches itself, as RaggedDataset does."""

    def __getitems__(self, indices: list[int]) -> tuple[Any, list[int]]:
        return pack_sequence([self[k][0] for k in indices], enforce_sorted=False), indices


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastpack-loader")]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    gc.collect()
    assert ours() == []


def assert_same_batches(found: Any, wanted: Any) -> None:
    for (packed, label), (expected, expected_label) in zip(found, wanted, strict=True):
        assert_packed(packed, expected)
        assert torch.equal(torch.as_tensor(label), torch.as_tensor(expected_label))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dataset", [Sequences(), Uneven(), Shuffled(), Finished(), Subset(Sequences(), range(3, 20)), Sequences(0)])
def test_the_same_batches_in_the_same_order(dataset: Any, threads: int) -> None:
    for drop_last in (False, True):
        options = {"batch_size": 4, "drop_last": drop_last}
        made = loader(dataset, num_threads=threads, **options)
        wanted = list(loader(dataset, **options))
        for _ in range(2):
            assert_same_batches(made, wanted)
        if not isinstance(dataset, IterableDataset):
            assert len(made) == len(wanted)


def test_a_batch_sampler_and_no_batches() -> None:
    batches = [[3, 1], [0], [22, 4, 5]]
    assert_same_batches(loader(Sequences(), batch_sampler=batches, num_threads=2), loader(Sequences(), batch_sampler=batches))
    samples = [[Sequences()[k] for k in batch] for batch in batches]
    for dataset in (samples, iter(samples)):  # which is no IterableDataset, and read once
        assert_same_batches(loader(dataset, batch_size=None, num_threads=2), loader(samples, batch_size=None))


def test_a_seed_shuffles_as_without_threads() -> None:
    def drawn(**options: Any) -> tuple[list[int], float]:
        torch.manual_seed(5)
        labels = [k for _, label in loader(Sequences(), batch_size=4, shuffle=True, **options) for k in label.tolist()]
        return labels, torch.rand(()).item()

    assert drawn(num_threads=2) == drawn()
    generator = torch.Generator().manual_seed(1)
    sampler = BatchSampler(RandomSampler(Sequences(), generator=generator), 4, drop_last=False)
    first = [label.tolist() for _, label in loader(Sequences(), batch_sampler=sampler, num_threads=2)]
    generator.manual_seed(1)
    assert first == [label.tolist() for _, label in loader(Sequences(), batch_sampler=sampler)]


def test_threads_work_while_the_caller_does() -> None:
    class Noting(Sequences):
        def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
            noted.append((k, threading.current_thread().name, torch.get_num_threads()))
            return super().__getitem__(k)

    noted: list[Any] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        iterator = iter(loader(Noting(), num_threads=1, prefetch_factor=3))
        end = time.monotonic() + 30
        while len(noted) < 3 and time.monotonic() < end:
            time.sleep(1e-3)
        time.sleep(0.02)
        assert noted == [(k, "fastpack-loader-0", 1) for k in range(3)]  # three ahead and no more
        assert torch.get_num_threads() == 2
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]
        assert next(iterator)[1].item() == 0
        del iterator
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_arrives_with_its_traceback(threads: int) -> None:
    seen: list[Any] = []
    with pytest.raises(KeyError, match="seven") as caught:
        seen.extend(loader(Failing(KeyError), batch_size=2, num_threads=threads))
    assert [label.tolist() for _, label in seen] == [[0, 1], [2, 3], [4, 5]]
    assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)][-1] == "__getitem__"
    assert ours() == []  # although the traceback is still there


def test_one_may_go_on_after_an_exception() -> None:
    iterator = iter(loader(Failing(ValueError), batch_size=4, num_threads=2))
    assert next(iterator)[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="seven"):
        next(iterator)
    assert next(iterator)[1].tolist() == [8, 9, 10, 11]


def test_stop_iteration_in_a_dataset_does_not_end_the_epoch() -> None:
    with pytest.raises(RuntimeError, match="the dataset raised StopIteration"):
        list(loader(Failing(StopIteration), batch_size=4, num_threads=1))


def test_exceptions_of_collate_stream_and_sampler() -> None:
    def stream() -> Iterator[Any]:
        yield [Sequences()[0]]
        raise OSError("disk")

    def sampler() -> Iterator[list[int]]:
        yield [0]
        raise LookupError("indices")

    with pytest.raises(OSError, match="disk"):
        list(loader(stream(), batch_size=None, num_threads=2))
    with pytest.raises(LookupError, match="indices"):
        list(loader(Sequences(), batch_sampler=sampler(), num_threads=2))
    with pytest.raises(ValueError, match="no field 'x'"):
        list(loader(Sequences(), collate_fn=PackCollate("x"), num_threads=2))


def test_leaving_the_loop_leaves_no_thread() -> None:
    for _ in loader(Uneven(), num_threads=3):
        assert len(ours()) == 3
        break
    assert ours() == []
    iterator = iter(loader(Uneven(), num_threads=3))
    iterator.close()
    assert ours() == []
    assert next(iterator, None) is None
    assert next(iterator, None) is None


def test_an_interrupt_leaves_no_thread_and_loses_no_batch() -> None:
    class Slow(Sequences):
        def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
            time.sleep(0.1)
            return super().__getitem__(k)

    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)  # what Ctrl-C runs
    iterator = iter(loader(Slow(), num_threads=1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
        assert [next(iterator)[1].item() for _ in range(3)] == [0, 1, 2]
        del iterator
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        with pytest.raises(KeyboardInterrupt) as caught:
            list(loader(Slow(), num_threads=2))
        assert ours() == []
        assert caught.value.__traceback__ is not None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_thread_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Sequences):
        def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
            release.wait(60)
            return super().__getitem__(k)

    release = threading.Event()
    monkeypatch.setattr(prefetch, "SECONDS_TO_END", 0.01)
    with pytest.raises(RuntimeError, match=r"DataLoader timed out after 0.05 seconds"):
        next(iter(loader(Hanging(), num_threads=1, timeout=0.05)))
    release.set()
    for thread in ours():
        thread.join(30)


CALL = """
import sys, threading, time, torch
from fastpack.torch import loader
samples = [(torch.ones(k + 1), k) for k in range(50)]
iterator = iter(loader(samples, batch_size=2, num_threads=2))
next(iterator)
"""


@pytest.mark.parametrize(("more", "status"), [("", 0), ("sys.exit(3)", 3), ("kept = iterator; raise KeyError(1)", 1)])
def test_the_interpreter_exits(more: str, status: int, child: Child) -> None:
    said = child(CALL + more, status=status)
    assert "Fatal" not in said
    assert "fastpack" not in said


def test_a_forked_child_may_drop_it(child: Child) -> None:
    code = """
import os, signal, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded")
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    del iterator
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), next(iterator)[1].tolist())
"""
    assert child(CALL + code) == "7 [2, 3]\n"


def test_errors_of_arguments() -> None:
    with pytest.raises(ValueError, match="num_threads is 2 and num_workers 1"):
        loader(Sequences(), num_threads=2, num_workers=1)
    with pytest.raises(TypeError, match=r"num_threads is 1.5, not an integer"):
        loader(Sequences(), num_threads=1.5)
    with pytest.raises(ValueError, match="prefetch_factor is 0, but needs at least 1"):
        loader(Sequences(), num_threads=1, prefetch_factor=0)
    for dataset, said in ((5, "an int"), (None, "None"), (torch.nn.ReLU(), "a ReLU")):
        with pytest.raises(TypeError, match=f"dataset is {said}, not a Dataset, a list of samples or an iterable of them"):
            loader(dataset)
    with pytest.raises(ValueError, match="num_workers is 2, but each worker would read the whole of an iterable"):
        loader(iter([1]), batch_size=None, num_workers=2)
