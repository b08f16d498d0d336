"""Batches of a stream, whose lengths are known only as its samples come."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from fastpack import checks
from fastpack.checks import Int64Array
from fastpack.sampling import budget, state
from fastpack.sampling.budget import UNLIMITED
from fastpack.sampling.cut import in_a_row
from fastpack.sampling.order import random_of, shuffled
from fastpack.sampling.ranks import REMAINDERS, evened, who, whole
from fastpack.sampling.rounds import Plan, Way, deal, shuffle_batches

Sample = TypeVar("Sample")


class _Chunk(NamedTuple):
    """Samples of a stream that take part, their lengths, and how many had to be read for them."""

    samples: list[Any]
    lengths: list[Int64Array]
    read: int

    def __add__(self, other: "_Chunk") -> "_Chunk":  # type: ignore[override]
        return _Chunk(self.samples + other.samples, self.lengths + other.lengths, self.read + other.read)


class TokenBudgetStream(Generic[Sample]):
    """Batches of samples of about one length, as many as have at most `max_tokens` real steps together, out of a stream.

    `buffer_size` samples are read, sorted by length and cut into batches, which are shuffled and handed out; then the next are read.
    Iterating gives lists of samples, for a collate function; beside them, at most `buffer_size + world_size` samples are held.
    In a loader with several workers each would read the whole stream: share it between them before.

    Going on in mid-epoch reads the samples again and drops those of the batches that are done.

    Parameters
    ----------
    samples : iterable
        Gives the samples; iterated anew for each epoch. If it has a `set_epoch`, that is called, too.
    max_tokens : int
        The most real steps of a batch. An empty sequence counts as one.
    length : callable
        Gives the length of a sample.
    max_sequences : int, optional
        The most samples of a batch.
    too_long : {"error", "alone", "drop"}
        What becomes of a sample longer than `max_tokens`: refused, a batch of its own, or left out.
    buffer_size : int
        How many samples are grouped at a time. More: less padding, more memory.
    seed : int
        The same seed, epoch and samples give the same batches on every machine.
    rank, world_size : int
        This process among all: each reads the whole stream and hands out its share, the same number of batches on every rank,
        and nearly as many real steps: a rank that has had less than the others gets more of the next buffer, so that two ranks
        differ by the longest sample at most.
        Not read from the environment, as many streams are shared between the ranks already: then leave 0 of 1.
    remainder : {"keep", "drop", "repeat"}
        What becomes of the last samples, beyond a multiple of `world_size`, as of `LengthGroupedBatchSampler`.

    Raises
    ------
    TypeError, ValueError
        An argument breaks its rule; while iterating, a sample is too long or its length is none, or there are too few for all ranks.

    Examples
    --------
    >>> stream = TokenBudgetStream(iter(["abc", "x", "ab", "abcdef"]), max_tokens=6)
    >>> sorted(stream)
    [['abc', 'ab', 'x'], ['abcdef']]
    """

    def __init__(
        self,
        samples: Iterable[Sample],
        max_tokens: int,
        *,
        length: Callable[[Sample], int] = len,  # type: ignore[assignment]
        max_sequences: int | None = None,
        too_long: str = "error",
        buffer_size: int = 10_000,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        remainder: str = "keep",
    ) -> None:
        if not isinstance(samples, Iterable):
            raise TypeError(f"samples is {checks.described(samples)}, which cannot be iterated over")
        if not callable(length):
            raise TypeError(f"length is {checks.described(length)}, not a function of a sample")
        self.samples, self.length = samples, length
        self.budget = budget.budget(max_tokens, max_sequences, too_long)
        self.seed = checks.count(seed, "seed", 0)
        self.rank, self.world_size = who(rank, world_size)
        self.remainder = checks.choice(remainder, "remainder", REMAINDERS)
        self.buffer_size = checks.count(buffer_size, "buffer_size", self.world_size)
        self._epoch = self._resume_at = 0
        self._drawn: int | None = 0  # None: by another process

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration goes through."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides how batches are shuffled; `samples` are told, too, if they have a `set_epoch`."""
        number = checks.count(epoch, "epoch", 0)
        if number != self._epoch:
            self._epoch, self._drawn, self._resume_at = number, 0, 0
        tell = getattr(self.samples, "set_epoch", None)
        if callable(tell):
            tell(number)

    def __iter__(self) -> Iterator[list[Sample]]:
        self._drawn = self._resume_at
        return self._batches(iter(self.samples), self._resume_at)

    def _batches(self, source: Iterator[Sample], begin: int) -> Iterator[list[Sample]]:
        self._resume_at = 0
        number, done, steps = 0, 0, np.zeros(self.world_size, np.int64)
        for chunk in self._chunks(source):
            plan = self._plan(chunk, number, steps)
            ends = plan.offsets.tolist()
            ordered = list(map(chunk.samples.__getitem__, plan.indices.tolist()))
            for k in range(max(begin - done, 0), len(ends) - 1):
                self._drawn = done + k + 1
                yield ordered[ends[k] : ends[k + 1]]
            number, done = number + 1, done + len(ends) - 1
            del chunk, ordered  # before the next chunk is read
        if done < begin:
            state_after = checks.counted(begin, "batch")
            raise ValueError(f"the state was taken after {state_after}, but the samples now make {done}: this is another stream")

    def _chunks(self, source: Iterator[Sample]) -> Iterator[_Chunk]:
        """Yield chunks of a multiple of W samples; the last of any number, but of W at least where there are so many at all."""
        W, read = self.world_size, 0
        ahead = self._take(source, W, read)
        while ahead.samples:
            chunk = ahead + self._take(source, self.buffer_size // W * W - W, read + ahead.read)
            ahead = self._take(source, W, read + chunk.read)
            if len(ahead.samples) < W:
                chunk, ahead = chunk + ahead, _Chunk([], [], 0)
            read += chunk.read
            yield chunk
            del chunk  # before the next is read

    def _take(self, source: Iterator[Sample], count: int, read: int) -> _Chunk:
        """Return the next `count` samples that take part, or as many as there are, after so many `read` before."""
        chunk = _Chunk([], [], 0)
        while len(chunk.samples) < count and (new := list(islice(source, count - len(chunk.samples)))):
            counted = list(map(self.length, new))
            try:
                lengths = budget.lengths(counted)
                fits = self.budget.fitting(lengths)
            except (TypeError, ValueError) as error:
                raise type(error)(f"of the samples from {read + chunk.read} on, {error}") from error
            kept = new if fits is None else [new[k] for k in fits.tolist()]
            chunk += _Chunk(kept, [lengths if fits is None else lengths[fits]], len(new))
        return chunk

    def _plan(self, chunk: _Chunk, number: int, steps: Int64Array) -> Plan:
        """Return this rank's batches of a chunk; `steps` (W,), those of each rank's so far, grow by the chunk's."""
        random = random_of(self.seed, self._epoch, number)
        order = whole(shuffled(random, len(chunk.samples)), self.world_size, self.remainder)
        lengths = np.concatenate([*chunk.lengths, [0]])
        rounds = deal(lengths, order, self.world_size, Way(UNLIMITED, in_a_row, self.budget.limits))
        rounds = rounds._replace(indices=evened(rounds.indices, lengths, steps))
        return shuffle_batches(rounds, random).of(self.rank)

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Return where in the epoch one is: of plain numbers and strings, the same on every rank.

        Parameters
        ----------
        batches : int, optional
            How many of the epoch's batches are done. By default, how many were drawn; a loader with threads or a worker process
            draws ahead of what it has handed out, so count what you have trained on.

        Raises
        ------
        ValueError
            `batches` is not given, and they are drawn by a worker process.
        """
        done = self._drawn if batches is None else checks.count(batches, "batches", 0)
        if done is None:
            raise ValueError("batches are drawn by a worker process: pass how many of the epoch's are done, as state_dict(batches)")
        return {**self._settings(), "epoch": self._epoch, "batches": done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Have the next iteration go on where `state_dict` was taken: it reads again, and drops, what had been read.

        Raises
        ------
        ValueError
            The state is of other settings. (Of another stream: when iterating, if that shows.)
        """
        found = state.fitting(state_dict, {**self._settings(), "epoch": 0, "batches": 0})
        batches = checks.count(found["batches"], "state_dict['batches']", 0)
        self.set_epoch(found["epoch"])
        self._drawn = self._resume_at = batches

    def _settings(self) -> dict[str, Any]:
        """Return what decides an epoch's batches, but for the samples."""
        return {
            "sampler": type(self).__name__,
            "version": state.VERSION,
            **self.budget._asdict(),
            "buffer_size": self.buffer_size,
            "seed": self.seed,
            "world_size": self.world_size,
            "remainder": self.remainder,
        }


def handed_over(stream: TokenBudgetStream[Any]) -> tuple[int, int]:
    """Return the epoch, and how many of its batches are done, from where another process makes those of the next iteration."""
    begin, stream._resume_at, stream._drawn = stream._resume_at, 0, None
    return stream._epoch, begin


def take_over(stream: TokenBudgetStream[Any], epoch: int, batches: int) -> None:
    """Have the next iteration go on where another process says."""
    stream.set_epoch(epoch)
    stream._drawn = stream._resume_at = batches
