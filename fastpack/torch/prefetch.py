"""Batches made ahead by threads of this process: the kernels leave the interpreter to others, and nothing is sent anywhere."""

import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory

SECONDS_TO_END = 5.0  # that a thread in the midst of a batch is waited for, as long as torch waits for a worker process
END = object()  # in place of a batch: the stream has ended

Task = tuple[Any, "Future[Any]"]


class Source(NamedTuple):
    """How a batch is made: what is `read` by one thread at a time, in the order of the sampler, is then `finish`ed by any."""

    read: Callable[[Any], Any]
    finish: Callable[[Any], Any]


def source_of(loader: Any) -> Source:
    """Return how the batches of a DataLoader are made, of a dataset or of a stream, in batches or one by one."""
    dataset, is_batched = loader.dataset, loader.batch_sampler is not None
    pins = pins_memory(loader)

    def collated(samples: Any) -> Any:
        batch = loader.collate_fn(samples)
        return pin_memory(batch) if pins else batch  # type: ignore[no-untyped-call]

    def fetched(index: Any) -> Any:
        if not is_batched:
            return collated(dataset[index])
        many = getattr(dataset, "__getitems__", None)
        return collated(many(index) if many else [dataset[i] for i in index])

    if not isinstance(dataset, IterableDataset):
        return Source(lambda index: index, fetched)
    stream = iter(dataset)

    def read(index: Any) -> Any:
        if not is_batched:
            return next(stream, END)
        samples = list(islice(stream, len(index)))
        return END if not samples or (loader.drop_last and len(samples) < len(index)) else samples

    return Source(read, lambda samples: END if samples is END else collated(samples))


def pins_memory(loader: Any) -> bool:
    """Whether a DataLoader's batches are to be in pinned memory: as torch does without threads, where there is an accelerator."""
    if not loader.pin_memory:
        return False
    if not torch.accelerator.is_available():
        warnings.warn("'pin_memory' is set as true but no accelerator is found: memory is not pinned", stacklevel=5)  # as torch does
        return False
    return True


class Prefetching(Iterator[Any]):
    """The batches of an epoch in the sampler's order, of which some are always being made ahead.

    Threads end when the epoch does, when this iterator is gone, and when the interpreter exits, whichever comes first. They are
    daemons, as they would otherwise be waited for before they are told.

    Parameters
    ----------
    loader : DataLoader
        Its dataset, samplers and collate function are used; the sampler by the caller's thread.
    count : int
        The number of threads.
    ahead : int
        The number of batches.
    """

    def __init__(self, loader: Any, count: int, ahead: int) -> None:
        self._indices = iter(loader.sampler if loader.batch_sampler is None else loader.batch_sampler)
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # as torch does, so that a seed shuffles the same
        self._timeout, self._ahead = loader.timeout or None, ahead
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._made: deque[Future[Any]] = deque()  # or being made, in order
        source, turn, ready = source_of(loader), threading.Lock(), threading.Semaphore(0)
        threads = [
            threading.Thread(target=_work, args=(self._tasks, source, turn, ready), name=f"fastpack-loader-{k}", daemon=True)
            for k in range(count)
        ]
        self._close = weakref.finalize(self, _end, self._tasks, self._made, threads, os.getpid())
        kept = torch.get_num_threads()
        for thread in threads:
            thread.start()
            ready.acquire()
        torch.set_num_threads(kept)  # for this thread it is so still; this is for threads to come, see _work
        self._order_more()

    def __next__(self) -> Any:
        if not self._made:
            self.close()
            raise StopIteration
        first = self._made[0]
        try:
            batch = first.result(self._timeout)  # an interrupt here loses no batch
        except BaseException as error:
            seconds = self._timeout
            if first.done():
                self._next_ordered()
            del self  # which the traceback would keep, and so the threads beyond the loop
            if isinstance(error, TimeoutError) and not first.done():
                raise RuntimeError(f"DataLoader timed out after {seconds} seconds") from None
            raise
        if batch is END:
            self.close()
            raise StopIteration
        self._next_ordered()
        return batch

    def close(self) -> None:
        """End the threads."""
        self._close()

    def _next_ordered(self) -> None:
        self._made.popleft()
        self._order_more()

    def _order_more(self) -> None:
        for index in islice(self._indices, self._ahead - len(self._made)):
            future: Future[Any] = Future()
            self._made.append(future)
            self._tasks.put((index, future))


def _work(tasks: "SimpleQueue[Task | None]", source: Source, turn: threading.Lock, ready: threading.Semaphore) -> None:
    """Make batches until told to end; what goes wrong is for the caller, with its traceback."""
    # a thread of ours that had torch's threads as well would start a pool of its own. The number is each thread's own, but
    # those that are started later take over the last that was set anywhere
    torch.get_num_threads()  # the first question in a thread sets it
    torch.set_num_threads(1)
    ready.release()
    while True:
        with turn:
            task = tasks.get()
            if task is None:
                return
            index, future = task
            if not future.set_running_or_notify_cancel():
                continue
            samples = _tried(source.read, index, future)
        if not future.done():
            batch = _tried(source.finish, samples, future)
            if not future.done():
                future.set_result(batch)
            del batch
        del task, index, future, samples  # or they would be kept until the next


def _tried(step: Callable[[Any], Any], argument: Any, future: "Future[Any]") -> Any:
    try:
        return step(argument)
    except StopIteration as error:  # would end the caller's loop as if nothing were wrong
        stopped = RuntimeError("the dataset raised StopIteration")
        stopped.__cause__ = error
        future.set_exception(stopped)
    except BaseException as error:
        future.set_exception(error)
    return None


def _end(tasks: "SimpleQueue[Task | None]", made: "deque[Future[Any]]", threads: list[threading.Thread], process: int) -> None:
    """Cancel what is ordered and wait for the threads."""
    if os.getpid() != process:  # a fork: it has no such threads, but perhaps their locks
        return
    for future in made:
        future.cancel()
    made.clear()
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        if thread is not threading.current_thread() and thread.ident is not None:
            thread.join(SECONDS_TO_END)
