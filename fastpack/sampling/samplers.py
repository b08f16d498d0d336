"""Batch samplers over known lengths: each iterates over the batches of an epoch, lists of indices, as torch's `batch_sampler` does."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastpack import checks
from fastpack.checks import Int64Array
from fastpack.sampling import budget, report, state
from fastpack.sampling.budget import UNLIMITED, Limits
from fastpack.sampling.cut import evenly, in_a_row, into_bins
from fastpack.sampling.order import random_of, shuffled
from fastpack.sampling.ranks import REMAINDERS, who, whole
from fastpack.sampling.rounds import Plan, Rounds, Way, deal, longest_to_front, shuffle_batches


class BatchSampler(ABC):
    """What all batch samplers share: the epoch, its plan, and where in it one is."""

    def __init__(
        self, lengths: Any, *, shuffle: bool, longest_first: bool, seed: int, rank: int | None, world_size: int | None, remainder: str
    ) -> None:
        vector = budget.lengths(lengths)
        self._checksum = zlib.crc32(vector.astype("<i8", copy=False).data)
        self._lengths = np.append(vector, 0)  # the index -1 stands for no sequence, and finds this
        self._taking_part: Int64Array | None = None  # None: every sequence
        self.shuffle, self.longest_first = bool(shuffle), bool(longest_first)
        self.seed = checks.count(seed, "seed", 0)
        self.rank, self.world_size = who(rank, world_size)
        self.remainder = checks.choice(remainder, "remainder", REMAINDERS)
        self._epoch = self._drawn = self._resume_at = 0
        self._plan: Plan | None = None

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration goes through."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch: each has batches of its own. Without it every iteration goes through the same ones, as in torch."""
        number = checks.count(epoch, "epoch", 0)
        if number != self._epoch:
            self._epoch, self._drawn, self._resume_at, self._plan = number, 0, 0, None

    def __len__(self) -> int:
        """Return the number of this rank's batches in the epoch, which is every rank's."""
        return len(self.plan().offsets) - 1

    def __iter__(self) -> Iterator[list[int]]:
        self._drawn = self._resume_at
        return self._batches(self.plan(), self._resume_at)

    def _batches(self, plan: Plan, begin: int) -> Iterator[list[int]]:
        self._resume_at = 0  # not before the first is drawn: a DataLoader with worker processes asks for two iterators, and uses the second
        for k in range(begin, len(plan.offsets) - 1):
            self._drawn = k + 1
            yield plan.indices[plan.offsets[k] : plan.offsets[k + 1]].tolist()

    def plan(self) -> Plan:
        """Return this rank's batches in the epoch as arrays.

        Returns
        -------
        Plan
            `indices` (n,) and `offsets` (K + 1,) of int64: batch k is `indices[offsets[k]:offsets[k + 1]]`.
        """
        if self._plan is None:
            self._plan = self.rounds().of(self.rank)
        return self._plan

    def rounds(self) -> Rounds:
        """Return the epoch's batches of all ranks."""
        random = random_of(self.seed, self._epoch)
        n = len(self._lengths) - 1 if self._taking_part is None else len(self._taking_part)
        order = self._whole(shuffled(random, n) if self.shuffle else np.arange(n))
        if self._taking_part is not None:
            order = self._taking_part[order]
        way = self._way(len(order))
        rounds = deal(self._lengths, order, self.world_size, way if self.shuffle else way._replace(mega_batch=UNLIMITED))
        if self.shuffle:
            rounds = shuffle_batches(rounds, random)
        return longest_to_front(rounds, self._lengths) if self.longest_first else rounds

    def report(self) -> "report.SamplerReport":
        """Return what this epoch's batches make of the data set: the padding spared, their sizes, the balance of the ranks."""
        return report.of(self.rounds(), self._lengths, random_of(self.seed, self._epoch, 1), self._max_tokens())

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Return where in the epoch one is: of plain numbers and strings, and the same on every rank.

        Parameters
        ----------
        batches : int, optional
            How many of the epoch's batches are done. By default, how many were drawn; a DataLoader with workers draws ahead of
            what it has handed out, so count what you have trained on.
        """
        done = self._drawn if batches is None else state.batches(batches, "batches", len(self))
        return {**self._settings(), "epoch": self._epoch, "batches": done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Have the next iteration go on where `state_dict` was taken, in its epoch; `set_epoch` to the same epoch leaves it so.

        Raises
        ------
        ValueError
            The state is of other lengths, another sampler or other settings.
        """
        found = state.fitting(state_dict, {**self._settings(), "epoch": 0, "batches": 0})
        before = self._epoch, self._drawn, self._resume_at, self._plan
        self.set_epoch(found["epoch"])
        try:
            self._resume_at = self._drawn = state.batches(found["batches"], "state_dict['batches']", len(self))
        except (TypeError, ValueError):
            self._epoch, self._drawn, self._resume_at, self._plan = before
            raise

    def _settings(self) -> dict[str, Any]:
        """Return what decides an epoch's batches."""
        return {
            "sampler": type(self).__name__,
            "version": state.VERSION,
            "sequences": len(self._lengths) - 1,
            "checksum": self._checksum,
            "shuffle": self.shuffle,
            "longest_first": self.longest_first,
            "seed": self.seed,
            "world_size": self.world_size,
            "remainder": self.remainder,
        }

    def _whole(self, order: Int64Array) -> Int64Array:
        """Return `order` without what is dropped, or with what is repeated, so that the ranks can share it."""
        return whole(order, self.world_size, self.remainder)

    @abstractmethod
    def _way(self, n: int) -> Way:
        """Return how n sequences become batches."""

    def _max_tokens(self) -> int | None:
        """Return how many steps a batch may have."""
        return None


class LengthGroupedBatchSampler(BatchSampler):
    """Batches of `batch_size` sequences of about one length.

    Sequences are shuffled, sorted by length within mega-batches of `mega_batch_mult` batches, and cut into batches, which are shuffled.

    Parameters
    ----------
    lengths : array of int (B,)
        The length of each sequence; the batches hold their indices.
    batch_size : int
    drop_last : bool
        Whether to leave out the sequences, random ones, that do not fill a batch (on every rank).
    shuffle : bool
        False: all sequences sorted by length, the longest first, in the same batches every epoch.
    mega_batch_mult : int
        How many batches a mega-batch has; less where there would not be four mega-batches. More: less padding, less variety.
    longest_first : bool
        Whether the batch with the longest sequence comes first, so that too little memory shows at once.
    seed : int
        The same seed, epoch and lengths give the same batches on every machine.
    rank, world_size : int
        This process among all; by default as torch.distributed's launchers say in RANK and WORLD_SIZE, else 0 of 1. Every
        rank has the same number of batches and, in all and in each batch, nearly the same number of real steps: in all, two
        ranks differ by the longest sequence at most, which is below 1 % where that is below 1 % of a rank's steps.
    remainder : {"keep", "drop", "repeat"}
        What becomes of sequences beyond a multiple of `world_size`. "keep": some ranks have a sequence more, and each comes once.
        "drop": random ones are left out. "repeat": random ones come twice, so that all ranks have equally many, as in torch's
        DistributedSampler.

    Raises
    ------
    TypeError, ValueError
        An argument breaks its rule, or there is no batch for each rank.

    Examples
    --------
    >>> sampler = LengthGroupedBatchSampler([3, 50, 4, 52, 51, 2], batch_size=3, shuffle=False)
    >>> list(sampler), len(sampler)
    ([[3, 4, 1], [2, 0, 5]], 2)
    """

    def __init__(
        self,
        lengths: Any,
        batch_size: int,
        *,
        drop_last: bool = False,
        shuffle: bool = True,
        mega_batch_mult: int = 50,
        longest_first: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: str = "keep",
    ) -> None:
        super().__init__(
            lengths,
            shuffle=shuffle,
            longest_first=longest_first,
            seed=seed,
            rank=rank,
            world_size=world_size,
            remainder=remainder,
        )
        self.batch_size, self.drop_last = checks.count(batch_size, "batch_size", 1), bool(drop_last)
        self.mega_batch_mult = checks.count(mega_batch_mult, "mega_batch_mult", 1)

    def _way(self, n: int) -> Way:
        return Way(_mega_batch(n, self.mega_batch_mult, self.batch_size, self.world_size), evenly, Limits(UNLIMITED, self.batch_size))

    def _whole(self, order: Int64Array) -> Int64Array:
        if not self.drop_last:
            return super()._whole(order)
        n, full = len(order), self.batch_size * self.world_size
        if n < full:
            raise ValueError(f"drop_last leaves no batch: a batch of each rank takes {full} sequences, but lengths has {n}")
        return order[: n // full * full]

    def _settings(self) -> dict[str, Any]:
        own = {"batch_size": self.batch_size, "drop_last": self.drop_last, "mega_batch_mult": self.mega_batch_mult}
        return super()._settings() | own


class BudgetBatchSampler(BatchSampler):
    """What batch samplers with a budget share."""

    def __init__(
        self,
        lengths: Any,
        max_tokens: int,
        *,
        max_sequences: int | None = None,
        too_long: str = "error",
        shuffle: bool = True,
        longest_first: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: str = "keep",
    ) -> None:
        self.budget = allowed = budget.budget(max_tokens, max_sequences, too_long)
        super().__init__(
            lengths,
            shuffle=shuffle,
            longest_first=longest_first,
            seed=seed,
            rank=rank,
            world_size=world_size,
            remainder=remainder,
        )
        self._taking_part = allowed.fitting(self._lengths[:-1])
        if self._taking_part is not None and not len(self._taking_part):
            raise ValueError(f'every sequence is longer than max_tokens, which is {allowed.max_tokens}, and too_long="drop" leaves none')

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | self.budget._asdict()

    def _max_tokens(self) -> int:
        return self.budget.max_tokens


class TokenBudgetBatchSampler(BudgetBatchSampler):
    """Batches of sequences of about one length, as many as have at most `max_tokens` real steps together.

    Real steps are what a packed batch has; an empty sequence counts as one. (fairseq's `max_tokens` counts padding, too.)
    Sequences are shuffled, sorted by length within mega-batches, and cut into batches, which are shuffled.

    Parameters
    ----------
    lengths : array of int (B,)
        The length of each sequence; the batches hold their indices.
    max_tokens : int
        The most real steps of a batch.
    max_sequences : int, optional
        The most sequences of a batch.
    too_long : {"error", "alone", "drop"}
        What becomes of a sequence longer than `max_tokens`: refused, a batch of its own, or left out.
    shuffle, mega_batch_mult, longest_first, seed, rank, world_size, remainder
        As of `LengthGroupedBatchSampler`; mega_batch_mult counts batches of the mean length.

    Raises
    ------
    TypeError, ValueError
        An argument breaks its rule, a sequence is too long, or there is no batch for each rank.

    Examples
    --------
    >>> sampler = TokenBudgetBatchSampler([3, 5, 4, 9, 1, 2], max_tokens=9, shuffle=False)
    >>> list(sampler), len(sampler)
    ([[3], [1, 2], [0, 5, 4]], 3)
    """

    def __init__(
        self,
        lengths: Any,
        max_tokens: int,
        *,
        max_sequences: int | None = None,
        too_long: str = "error",
        shuffle: bool = True,
        mega_batch_mult: int = 50,
        longest_first: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        remainder: str = "keep",
    ) -> None:
        super().__init__(
            lengths,
            max_tokens,
            max_sequences=max_sequences,
            too_long=too_long,
            shuffle=shuffle,
            longest_first=longest_first,
            seed=seed,
            rank=rank,
            world_size=world_size,
            remainder=remainder,
        )
        self.mega_batch_mult = checks.count(mega_batch_mult, "mega_batch_mult", 1)
        counted = self._lengths[:-1] if self._taking_part is None else self._lengths[self._taking_part]
        fit = self.budget.max_tokens * len(counted) // max(int(counted.sum()), 1)  # sequences of the mean length
        self._usual = max(min(fit, self.budget.limits.max_sequences, len(counted)), 1)

    def _way(self, n: int) -> Way:
        return Way(_mega_batch(n, self.mega_batch_mult, self._usual, self.world_size), in_a_row, self.budget.limits)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"mega_batch_mult": self.mega_batch_mult}


class BinPackingBatchSampler(BudgetBatchSampler):
    """The fewest batches of at most `max_tokens` real steps, or nearly: first fit decreasing.

    The longest sequence goes first, each into the first batch that has room. A batch mixes lengths, which costs packed batches
    nothing, and is mostly full to the last step. In each epoch sequences of equal length change places, and batches are shuffled.

    Parameters
    ----------
    lengths : array of int (B,)
        The length of each sequence; the batches hold their indices.
    max_tokens : int
        The most real steps of a batch. An empty sequence counts as one.
    max_sequences : int, optional
        The most sequences of a batch.
    too_long : {"error", "alone", "drop"}
        What becomes of a sequence longer than `max_tokens`: refused, a batch of its own, or left out.
    shuffle : bool
        False: the same batches every epoch, in the order in which they were begun.
    longest_first, seed, rank, world_size, remainder
        As of `LengthGroupedBatchSampler`.

    Raises
    ------
    TypeError, ValueError
        An argument breaks its rule, a sequence is too long, or there is no batch for each rank.

    Examples
    --------
    >>> sampler = BinPackingBatchSampler([3, 5, 4, 9, 1, 2], max_tokens=12, shuffle=False)
    >>> list(sampler), len(sampler)
    ([[3, 0], [1, 2, 5, 4]], 2)
    """

    def _way(self, n: int) -> Way:
        return Way(UNLIMITED, into_bins, self.budget.limits)


def _mega_batch(n: int, mult: int, batch: int, W: int) -> int:
    """Return how many of n sequences a mega-batch has: at most `mult` batches of every rank, and a fourth of all."""
    return max(min(mult, n // (4 * batch * W)), 1) * batch * W
