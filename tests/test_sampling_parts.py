"""The samplers' parts against plain Python: sorting, cutting, first fit decreasing, dealing, the report."""

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpack import BinPackingBatchSampler, LengthGroupedBatchSampler, TokenBudgetBatchSampler
from fastpack.sampling import ranks
from fastpack.sampling.budget import UNLIMITED, Limits
from fastpack.sampling.cut import evenly, in_a_row, into_bins, with_one_more
from fastpack.sampling.order import by_length, gathered, random_of, shortest, shuffled
from fastpack.sampling.ranks import columns, exchange, level

laws = settings(max_examples=300, derandomize=True, deadline=None, database=None)
costs = st.one_of(
    st.lists(st.integers(1, 60), min_size=1, max_size=150),
    st.lists(st.sampled_from([1, 2, 20, 21, 30, 31, 60]), min_size=1, max_size=150),
)
most = st.one_of(st.integers(1, 8), st.just(UNLIMITED))


def batches_of(order: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    assert offsets[0] == 0
    assert offsets[-1] == len(order)
    return [order[begin:end].tolist() for begin, end in pairwise(offsets)]


# --- order


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 8, 9, 1000])
def test_shuffled_is_a_permutation(n):
    found = shuffled(np.random.PCG64(1), n)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(n))


def test_shuffled_gives_each_order_as_often():
    random = np.random.PCG64(2)
    counted = Counter(tuple(shuffled(random, 4).tolist()) for _ in range(24_000))
    assert len(counted) == 24
    assert sum((count - 1000) ** 2 / 1000 for count in counted.values()) < 60  # chi squared of 23 degrees: 1 in 10,000


def test_random_numbers_are_of_our_own_and_of_each_part():
    def first(numbers):
        return tuple(numbers.random_raw(3).tolist())

    seeds = [0, 1, 2**32, 2**64]
    ours = [first(random_of(seed, *part)) for seed in seeds for part in ((0,), (1,), (0, 0), (0, 1), (1, 0), (2**40,))]
    users = [first(np.random.PCG64(seed)) for seed in [*seeds, [0, 1], [1, 1]]]
    users += [first(np.random.PCG64(child)) for child in np.random.SeedSequence(0).spawn(3)]
    assert len(set(ours)) == len(ours)
    assert not set(ours) & set(users)


@laws
@given(st.lists(st.one_of(st.integers(0, 9), st.just(2**55)), min_size=1, max_size=60), st.integers(1, 70))
def test_by_length_sorts_within_mega_batches(lengths, mega_batch):
    expected = []
    for k, begin in enumerate(range(0, len(lengths), mega_batch)):
        here = range(begin, min(begin + mega_batch, len(lengths)))
        expected += sorted(here, key=lambda i: lengths[i] if k % 2 else -lengths[i])
    assert by_length(np.array(lengths), mega_batch).tolist() == expected


@laws
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
def test_shortest(lengths, data):
    count = data.draw(st.integers(1, len(lengths)))
    found = shortest(np.array(lengths), count).tolist()
    assert found == sorted(set(found))
    assert sorted(lengths[i] for i in found) == sorted(lengths)[:count]


def test_gathered():
    rows, offsets = gathered(np.array([0, 2, 3, 7]), np.array([2, 0, 1]))
    assert rows.tolist() == [3, 4, 5, 6, 0, 1, 2]
    assert offsets.tolist() == [0, 4, 6, 7]


# --- cutting


@laws
@given(costs, st.integers(60, 130), most)
def test_in_a_row_takes_as_many_as_fit(costs, max_tokens, max_sequences):
    expected = [[]]
    for i, cost in enumerate(costs):
        if len(expected[-1]) == max_sequences or sum(costs[k] for k in expected[-1]) + cost > max_tokens:
            expected.append([])
        expected[-1].append(i)
    assert batches_of(*in_a_row(np.array(costs), Limits(max_tokens, max_sequences))) == expected


@pytest.mark.parametrize(("n", "batch_size", "sizes"), [(6, 3, [3, 3]), (7, 3, [3, 3, 1]), (2, 3, [2]), (2, UNLIMITED, [2])])
def test_evenly(n, batch_size, sizes):
    batches = batches_of(*evenly(np.ones(n, np.int64), Limits(UNLIMITED, batch_size)))
    assert list(map(len, batches)) == sizes
    assert list(chain(*batches)) == list(range(n))


@laws
@given(costs, st.integers(60, 130), most)
def test_into_bins_is_first_fit_decreasing(costs, max_tokens, max_sequences):
    costs = sorted(costs, reverse=True)
    bins: list[list[int]] = []
    for i, cost in enumerate(costs):
        for content in bins:
            if len(content) < max_sequences and sum(costs[k] for k in content) + cost <= max_tokens:
                content.append(i)
                break
        else:
            bins.append([i])
    assert batches_of(*into_bins(np.array(costs), Limits(max_tokens, max_sequences))) == bins


def test_into_bins_takes_few_steps_for_many_sequences():
    lengths = np.random.default_rng(0).integers(1, 1000, 200_000)
    costs = np.sort(lengths)[::-1]
    order, offsets = into_bins(costs, Limits(1000, UNLIMITED))
    fullness = np.add.reduceat(costs[order], offsets[:-1])
    assert fullness.max() == 1000
    assert len(fullness) <= 11 / 9 * -(-costs.sum() // 1000) + 1


@laws
@given(costs, st.integers(60, 130), most, st.sampled_from([in_a_row, into_bins]))
def test_one_more_finds_a_place_where_there_is_one(costs, max_tokens, max_sequences, cut):
    costs = np.sort(costs)[::-1]
    limits = Limits(max_tokens, max_sequences)
    before = batches_of(*cut(costs, limits))
    more = np.append(costs, 1)
    found = with_one_more(*cut(costs, limits), more, limits)
    if found is None:
        assert all(len(batch) == 1 and (max_sequences == 1 or costs[batch[0]] == max_tokens) for batch in before)
        return
    after = batches_of(*found)
    assert sorted(i for batch in after for i in batch) == list(range(len(more)))
    assert all(len(batch) <= max_sequences and more[batch].sum() <= max_tokens for batch in after)
    assert len(after) - len(before) in (0, 1)
    if len(after) > len(before):
        assert all(len(batch) == max_sequences or costs[batch].sum() == max_tokens for batch in before)


# --- ranks


def test_columns_go_to_and_fro():
    assert columns(np.arange(6), 2).tolist() == [[0, 1], [3, 2], [4, 5]]
    assert columns(np.arange(3), 1).tolist() == [[0], [1], [2]]


@laws
@given(st.lists(st.integers(0, 100), min_size=1, max_size=60), st.integers(1, 5))
def test_level_exchanges_within_columns_and_never_makes_it_worse(lengths, W):
    lengths += [0] * (-len(lengths) % W)
    padded = np.array([*lengths, 0])
    dealt = columns(by_length(padded[:-1], UNLIMITED), W).copy()
    before = dealt.copy()
    level(dealt, padded)
    assert np.array_equal(np.sort(dealt), np.sort(before))
    assert np.ptp(padded[dealt].sum(axis=0)) <= np.ptp(padded[before].sum(axis=0))


def test_a_few_of_many_columns_are_tried(monkeypatch):
    """Those in which lengths differ most, wherever they are: nearly all columns here have nothing to exchange."""
    monkeypatch.setattr(ranks, "CANDIDATES", 5)
    lengths = np.repeat([7, 9, 11], [600, 900, 300])
    dealt = np.arange(1800).reshape(-1, 3)
    for k, one in ((17, [7, 9, 14]), (333, [7, 9, 11]), (420, [9, 30, 9]), (599, [20, 9, 1])):
        lengths[dealt[k]] = one
    padded, before = np.append(lengths, 0), dealt.copy()
    assert ranks._most_uneven(padded[dealt]).tolist()[-2:] == [420, 599]
    level(dealt, padded)
    assert np.array_equal(np.sort(dealt), np.sort(before))
    assert np.ptp(padded[dealt].sum(axis=0)) < np.ptp(padded[before].sum(axis=0))
    monkeypatch.setattr(ranks, "EXAMINED", 9)  # three ranks: three candidates
    assert ranks._candidates(dealt) == 3


@laws
@given(costs, st.integers(2, 4), st.integers(60, 300), st.integers(1, 8), st.sampled_from([in_a_row, into_bins]))
def test_exchange_keeps_to_the_budget_and_never_makes_it_worse(lengths, W, max_tokens, max_sequences, cut):
    lengths += [1] * (-len(lengths) % W)
    padded = np.array([*lengths, 0])
    dealt = by_length(padded[:-1], UNLIMITED).reshape(-1, W)  # the first rank has the longer one each time
    order, offsets = cut(padded[dealt].max(axis=1), Limits(max_tokens, max_sequences))
    indices = dealt[order].copy()
    before = np.ptp(padded[indices].sum(axis=0))
    exchange(indices, offsets, padded, max_tokens)
    assert sorted(indices.ravel().tolist()) == list(range(len(lengths)))
    assert np.add.reduceat(padded[indices], offsets[:-1], axis=0).max() <= max_tokens
    assert np.ptp(padded[indices].sum(axis=0)) <= before


@pytest.mark.parametrize(("max_tokens", "expected"), [(130, [122, 118]), (25, [140, 100])])
def test_exchange_levels_what_columns_cannot(max_tokens, expected):
    lengths = np.array([100, 60, 30, 28, 12, 10, 0])
    indices = np.array([[0, 1], [2, 3], [4, 5]])  # 142 and 98
    assert not level(indices.copy(), lengths)
    exchange(indices, np.array([0, 2, 3]), lengths, max_tokens)  # the 30 and the 10, or if the budget forbids it the 12 and the 10
    assert lengths[indices].sum(axis=0).tolist() == expected


def test_level_finds_the_exchange_that_is_needed():
    dealt = np.array([[0, 1], [2, 3], [4, 5]])
    lengths = np.array([9, 5, 8, 4, 7, 5, 0])  # 24 and 14: exchanging the second column leaves 20 and 18
    level(dealt, lengths)
    assert sorted(lengths[dealt].sum(axis=0).tolist()) == [18, 20]


# --- report


@laws
@given(
    st.sampled_from(["length", "budget", "bins"]),
    st.lists(st.integers(0, 30), min_size=8, max_size=80),
    st.integers(1, 4),
    st.sampled_from(["keep", "drop", "repeat"]),
)
def test_report_is_what_the_batches_say(kind, lengths, W, remainder):
    lengths = np.array(lengths)
    make = {"length": LengthGroupedBatchSampler, "budget": TokenBudgetBatchSampler, "bins": BinPackingBatchSampler}[kind]
    ranks = [make(lengths, 64 if kind != "length" else 5, rank=rank, world_size=W, remainder=remainder) for rank in range(W)]
    report = ranks[-1].report()
    drawn = [list(batches) for batches in ranks]
    assert report.batch_sequences.T.tolist() == [[len(batch) for batch in batches] for batches in drawn]
    steps = [[int(lengths[batch].sum()) for batch in batches] for batches in drawn]
    assert report.batch_steps.T.tolist() == steps
    assert report.rank_steps.tolist() == list(map(sum, steps))
    together = [batch for batches in drawn for batch in batches]
    counted = Counter(i for batch in together for i in batch)
    assert report.sequences == sum(counted.values())
    assert report.dropped == len(lengths) - len(counted)
    assert report.repeated == report.sequences - len(counted)
    assert report.steps == sum(map(sum, steps))
    assert report.max_tokens == (None if kind == "length" else 64)
    cells = sum(len(batch) * int(lengths[batch].max()) for batch in together)
    assert report.padding == pytest.approx(1 - report.steps / cells if cells else 0)
    assert 0 <= report.shuffled_padding < 1
    if report.steps:
        mean = report.steps / W
        assert report.imbalance == pytest.approx((max(map(sum, steps)) - min(map(sum, steps))) / max(mean, 1))
        assert report.waiting == pytest.approx(1 - mean / sum(map(max, zip(*steps, strict=True))))
        most = max(max(line) for line in steps)
        assert report.filled == pytest.approx(np.mean(steps) / (most if kind == "length" else 64))


def test_a_report_of_empty_sequences():
    report = TokenBudgetBatchSampler([0, 0, 0], 2).report()
    assert (report.padding, report.shuffled_padding, report.imbalance, report.waiting, report.filled) == (0, 0, 0, 0, 0)
