"""A DataLoader with everything set for packed batches: how they are collated, and how its workers start, send and end."""

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch._C._autograd import _profiler_enabled
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

from fastpack import checks
from fastpack.sampling import BatchSampler, TokenBudgetStream
from fastpack.sampling.stream import handed_over, take_over
from fastpack.torch import transit
from fastpack.torch.collate import PackCollate
from fastpack.torch.prefetch import Prefetching

OF_PROCESSES = ("persistent_workers", "multiprocessing_context")  # options that torch refuses where there is no worker process


def loader(
    dataset: Any,
    batch_size: int | None = 1,
    *,
    num_workers: int = 0,
    num_threads: int = 0,
    collate_fn: Callable[[Any], Any] | None = None,
    prefetch_factor: int | None = None,
    worker_init_fn: Callable[[int], Any] | None = None,
    **options: Any,
) -> "Loader":
    """Return a DataLoader of packed batches, made by this process, by worker processes or by threads.

    Worker processes, forked, spawned or forkserver's, send a batch's index tensors and labels as bytes, and leave Ctrl-C to this
    process. Threads of this process send nothing: the kernels and memory copies of one leave the interpreter to the others.
    Prefer threads where a sample costs little Python, as with `RaggedDataset`, and processes where it costs much.

    Parameters
    ----------
    dataset : Dataset, IterableDataset or iterable
        As for DataLoader. An iterable that is no such dataset, such as a `TokenBudgetStream`, is read by one process alone.
        A worker process hears of the stream's epoch and state when a loop begins; as it draws ahead, and a thread as well, count
        the batches done for `stream.state_dict(batches)`.
    batch_size : int, optional
        None where the dataset itself gives lists of samples, as a `TokenBudgetStream` does, or batches.
    num_workers : int
        The number of worker processes.
    num_threads : int
        The number of threads, in their place. Batches come in the sampler's order; a stream is read by one thread at a time.
        What is drawn from the process's global random generators (torch's, NumPy's, Python's) by the dataset is drawn in
        whichever order threads run: seed a generator by index and epoch in the dataset if that matters. The sampler runs in
        the caller's thread, so a seed shuffles as it does without threads. An exception of a thread is raised here, with its
        traceback. Threads end with the epoch, with the loop that is left, and with the interpreter.
    collate_fn : callable, optional
        `PackCollate()` by default.
    prefetch_factor : int, optional
        The number of batches made ahead by each worker or thread, 2 by default.
    worker_init_fn : callable, optional
        Called in each worker process with its number.
    **options
        As for DataLoader: `shuffle`, `sampler`, `batch_sampler`, `drop_last`, `pin_memory`, `persistent_workers`,
        `multiprocessing_context`, `timeout`, `generator` ... Of those, `persistent_workers` and `multiprocessing_context` say
        nothing to threads. `pin_memory` finds tensors in tuples, named tuples, lists and dicts, as torch does, not in dataclasses,
        unless they have a method `pin_memory`.

    Returns
    -------
    DataLoader
        In a `with` statement, its workers are gone when that is left, even if they are still starting.

    Raises
    ------
    ValueError
        As DataLoader; there are both workers and threads; a `TokenBudgetStream`, or what a sampler of batches is given as
        `sampler` for, would be batched again; or many workers would each read the whole of an iterable.
    TypeError
        `num_threads` is no integer, or `dataset` is neither a dataset nor iterable.

    Examples
    --------
    >>> import torch
    >>> samples = [(torch.tensor([1, 2, 3]), 0), (torch.tensor([9]), 1), (torch.tensor([4, 5]), 0)]
    >>> for packed, label in loader(samples, batch_size=2, num_threads=1):
    ...     print(packed.data.tolist(), label.tolist())
    [1, 9, 2, 3] [0, 1]
    [4, 5] [0]
    """
    return Loader(
        dataset,
        batch_size,
        num_workers=num_workers,
        num_threads=num_threads,
        collate_fn=collate_fn,
        prefetch_factor=prefetch_factor,
        worker_init_fn=worker_init_fn,
        **options,
    )


class Loader(DataLoader[Any]):
    """What `loader` returns: a DataLoader that may have threads, and whose worker processes leave Ctrl-C to this one."""

    num_threads = 0
    _workers: Sequence[Any] = ()  # processes of the last iterator

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        *,
        num_workers: int = 0,
        num_threads: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        prefetch_factor: int | None = None,
        worker_init_fn: Callable[[int], Any] | None = None,
        **options: Any,
    ) -> None:
        count = checks.count(num_threads, "num_threads", 0)
        if count and num_workers:
            raise ValueError(
                f"num_threads is {count} and num_workers {num_workers}, but batches are made by threads or by worker processes"
            )
        if isinstance(dataset, TokenBudgetStream) and batch_size is not None:
            raise ValueError(f"batch_size is {batch_size}, but a TokenBudgetStream gives batches, not samples: pass batch_size=None")
        if isinstance(options.get("sampler"), BatchSampler) and batch_size is not None:
            raise ValueError(f"sampler is a {type(options['sampler']).__name__}, which gives batches: pass it as batch_sampler")
        if not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__") or isinstance(dataset, IterableDataset)):
            if not isinstance(dataset, Iterable):
                raise TypeError(f"dataset is {checks.described(dataset)}, not a Dataset, a list of samples or an iterable of them")
            dataset = _StreamElsewhere(dataset) if num_workers and isinstance(dataset, TokenBudgetStream) else _Stream(dataset)
            if num_workers > 1:
                raise ValueError(
                    f"num_workers is {num_workers}, but each worker would read the whole of an iterable: take num_threads, "
                    "or an IterableDataset that reads a share of it, by torch.utils.data.get_worker_info()"
                )
        if count:
            options = {name: value for name, value in options.items() if name not in OF_PROCESSES}
        super().__init__(
            dataset,
            batch_size,
            num_workers=num_workers,
            collate_fn=PackCollate() if collate_fn is None else collate_fn,
            prefetch_factor=None if count else prefetch_factor,
            worker_init_fn=_WorkerSetUp(worker_init_fn) if num_workers else worker_init_fn,
            **options,
        )
        each = 2 if prefetch_factor is None else checks.count(prefetch_factor, "prefetch_factor", 1)
        self.num_threads, self._ahead = count, count * each

    def __iter__(self) -> Any:
        if self.num_threads:
            return Prefetching(self, self.num_threads, self._ahead)
        if not self.num_workers:
            return _Serial(self)
        if isinstance(self.dataset, _StreamElsewhere):
            self.dataset.hand_over()
        with _interrupts_held(self.multiprocessing_context):
            iterator = super().__iter__()
        self._workers = getattr(iterator, "_workers", [])
        return iterator

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # torch would wait five seconds for a worker that is still importing. It reports one that is killed in the main thread
        if kind is not None and threading.current_thread() is threading.main_thread():
            with _deaths_unreported():
                for worker in self._workers:
                    worker.kill()
                    worker.join()
        self._iterator = None  # torch stops persistent workers when this is gone


class _Serial(_SingleProcessDataLoaderIter):
    """torch's own iterator, which makes a note for the profiler of each batch, also where there is none: 4 us, a fifth of a small batch."""

    def __init__(self, loader: Loader) -> None:
        super().__init__(loader)
        self._is_counted = isinstance(loader.dataset, IterableDataset)  # torch warns of more samples than `len` said

    def __next__(self) -> Any:
        if self._is_counted or _profiler_enabled():
            return super().__next__()
        batch = self._next_data()  # type: ignore[no-untyped-call]
        self._num_yielded += 1
        return batch


class _WorkerSetUp:
    """What a worker process does first."""

    def __init__(self, then: Callable[[int], Any] | None) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        _end_quietly()
        transit.send_small_tensors_as_bytes()
        if self.then is not None:
            self.then(worker)


class _Stream(IterableDataset[Any]):
    """An iterable as a dataset."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class _StreamElsewhere(_Stream):
    """A TokenBudgetStream for a worker process, which has a copy: by shared memory that learns where each iteration begins."""

    def __init__(self, stream: TokenBudgetStream[Any]) -> None:
        super().__init__(stream)
        self.place = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def hand_over(self) -> None:
        """Leave the next iteration to the worker process."""
        self.place.copy_(torch.tensor(handed_over(self.items)))

    def __iter__(self) -> Iterator[Any]:
        take_over(self.items, *self.place.tolist())
        return super().__iter__()


@contextlib.contextmanager
def _deaths_unreported() -> Iterator[None]:
    """Keep torch from raising an error for a worker that is killed on purpose."""
    if not hasattr(signal, "SIGCHLD"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _end_quietly() -> None:
    """Keep a worker from reporting that the process it loads for has gone away: the user stopped that one."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not issubclass(kind, (OSError, EOFError)):
            usual(kind, error, trace)

    sys.excepthook = hook


@contextlib.contextmanager
def _interrupts_held(context: Any) -> Iterator[None]:
    """Hold back SIGINT while worker processes start.

    They inherit the block and keep it, so that Ctrl-C, which a terminal sends to them as well, ends this process alone, which
    then stops them in order; without, each of them prints a traceback of its own, even from the midst of its imports.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    if (context or multiprocessing).get_start_method() != "fork":
        resource_tracker.ensure_running()  # starting it later would release the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
