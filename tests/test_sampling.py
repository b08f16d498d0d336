"""Laws of the batch samplers: each index once, budgets kept, ranks balanced, a resumed epoch like one that was never left."""

import json
import pickle
import re
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastpack import BinPackingBatchSampler, LengthGroupedBatchSampler, TokenBudgetBatchSampler
from fastpack.sampling import BatchSampler

laws = settings(max_examples=200, derandomize=True, deadline=None, database=None)

lengths_of_any_kind = st.one_of(
    st.lists(st.integers(0, 100), min_size=1, max_size=120),
    st.lists(st.integers(0, 3), min_size=1, max_size=200),
    st.lists(st.sampled_from([0, 1, 49, 50, 51, 100, 10**12]), min_size=1, max_size=60),
)
KINDS = ["length", "budget", "bins"]
RANDOM = np.random.default_rng(0)
FEW = RANDOM.integers(1, 60, 300)
REVIEWS = np.clip(RANDOM.gamma(2, 120, 4000), 11, 2494).astype(np.int64)


def sampler(kind: str, lengths, most: int, **options) -> BatchSampler:
    """Return a sampler of a kind; `most` is its batch size, or a hundredth of its budget."""
    if kind == "length":
        options.pop("too_long", None)
        return LengthGroupedBatchSampler(lengths, most, **options)
    options.setdefault("too_long", "alone")
    return {"budget": TokenBudgetBatchSampler, "bins": BinPackingBatchSampler}[kind](lengths, 100 * most, **options)


def of_every_rank(kind: str, lengths, most: int, W: int, **options) -> list[list[list[int]]]:
    """Return the batches of each rank, or have hypothesis try others where they cannot be shared."""
    try:
        return [list(sampler(kind, lengths, most, rank=rank, world_size=W, **options)) for rank in range(W)]
    except ValueError as error:
        if not re.search("share equally|less than one each", str(error)):
            raise
        return assume(False)


@laws
@given(
    st.sampled_from(KINDS),
    lengths_of_any_kind,
    st.integers(1, 9),
    st.integers(1, 5),
    st.fixed_dictionaries({"seed": st.integers(0, 3), "shuffle": st.booleans(), "longest_first": st.booleans()}),
)
def test_every_index_once_and_every_rank_as_many_batches(kind, lengths, most, W, options):
    ranks = of_every_rank(kind, lengths, most, W, **options)
    assert sorted(i for batches in ranks for batch in batches for i in batch) == list(range(len(lengths)))
    assert len({len(batches) for batches in ranks}) == 1
    for batches in ranks:
        assert all(type(i) is int for batch in batches for i in batch)
        for batch in batches:
            assert batch
            if kind == "length":
                assert len(batch) <= most
            else:
                assert len(batch) == 1 or sum(max(lengths[i], 1) for i in batch) <= 100 * most
    for k in range(len(ranks[0])):
        counts = [len(batches[k]) for batches in ranks]
        assert max(counts) - min(counts) <= 1  # at every batch, each rank has as many sequences, but for the remainder


@laws
@given(st.sampled_from(["budget", "bins"]), lengths_of_any_kind, st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_max_sequences(kind, lengths, most, most_sequences, W):
    for batches in of_every_rank(kind, lengths, most, W, max_sequences=most_sequences):
        assert all(len(batch) <= most_sequences for batch in batches)


@laws
@given(st.sampled_from(KINDS), lengths_of_any_kind, st.integers(1, 9), st.integers(1, 5), st.sampled_from(["drop", "repeat"]))
def test_remainders_that_are_dropped_or_repeated(kind, lengths, most, W, remainder):
    ranks = of_every_rank(kind, lengths, most, W, remainder=remainder)
    counted = Counter(i for batches in ranks for batch in batches for i in batch)
    B, total = len(lengths), sum(counted.values())
    assert total == (B // W * W if remainder == "drop" else -(-B // W) * W)
    assert (max(counted.values()) == 1) if remainder == "drop" else (len(counted) == B)
    assert len({tuple(map(len, batches)) for batches in ranks}) == 1


@laws
@given(st.sampled_from(["budget", "bins"]), st.lists(st.integers(0, 250), min_size=1, max_size=50), st.integers(1, 2))
def test_sequences_that_are_too_long(kind, lengths, most):
    too_long = {i for i, length in enumerate(lengths) if length > 100 * most}
    alone = list(sampler(kind, lengths, most, too_long="alone"))
    assert all([i] in alone for i in too_long)
    if len(too_long) < len(lengths):
        dropped = list(sampler(kind, lengths, most, too_long="drop"))
        assert sorted(i for batch in dropped for i in batch) == sorted(set(range(len(lengths))) - too_long)
    if too_long:
        with pytest.raises(ValueError, match=rf"^lengths\[{min(too_long)}\] is {lengths[min(too_long)]}, but max_tokens is {100 * most}: "):
            sampler(kind, lengths, most, too_long="error")


@laws
@given(st.lists(st.integers(0, 9), min_size=1, max_size=99), st.integers(1, 5), st.integers(1, 3))
def test_drop_last(lengths, batch_size, W):
    options = {"drop_last": True, "world_size": W}
    if len(lengths) < batch_size * W:
        with pytest.raises(ValueError, match=r"^drop_last leaves no batch"):
            list(LengthGroupedBatchSampler(lengths, batch_size, rank=0, **options))
        return
    ranks = [list(LengthGroupedBatchSampler(lengths, batch_size, rank=rank, **options)) for rank in range(W)]
    drawn = [i for batches in ranks for batch in batches for i in batch]
    assert len(set(drawn)) == len(drawn) == len(lengths) // (batch_size * W) * batch_size * W
    assert {len(batch) for batches in ranks for batch in batches} == {batch_size}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("W", [2, 3, 8])
@pytest.mark.parametrize(
    "lengths",
    [REVIEWS, REVIEWS[: 40 * 8 + 1], np.sort(REVIEWS)[:1600], np.exp(RANDOM.uniform(0, np.log(4000), 323)).astype(int)],
    ids=["many", "few", "sorted", "of any scale"],
)
def test_ranks_have_the_same_steps_within_a_hundredth(kind, W, lengths):
    ranks = of_every_rank(kind, lengths, 40, W)
    steps = [sum(lengths[batch].sum() for batch in batches) for batches in ranks]
    assert max(steps) - min(steps) < 0.01 * np.mean(steps)


@laws
@given(
    st.lists(st.integers(0, 20) | st.sampled_from([0, 1, 500, 999, 1000]), min_size=1, max_size=120),
    st.integers(2, 6),
    st.sampled_from(KINDS),
    st.sampled_from(["keep", "drop", "repeat"]),
    st.booleans(),
)
def test_ranks_differ_by_the_longest_sequence_at_most(lengths, W, kind, remainder, shuffle):
    try:
        report = sampler(kind, lengths, 8, rank=0, world_size=W, remainder=remainder, shuffle=shuffle).report()
    except ValueError as error:
        assume(not re.search("share equally|less than one each", str(error)))
        raise
    assert np.ptp(report.rank_steps) <= max(lengths)


def test_ranks_may_differ_by_the_longest_sequence():
    """As they have equally many: no number of the short ones makes up for a long one."""
    lengths = [4000] * 9 + [10] * 791
    for kind in KINDS:
        assert np.ptp(sampler(kind, lengths, 80, rank=0, world_size=8).report().rank_steps) == 4000 - 10


def test_ranks_have_nearly_the_same_steps_in_each_batch():
    ranks = of_every_rank("budget", REVIEWS, 40, 4)
    steps = np.array([[REVIEWS[batch].sum() for batch in batches] for batches in ranks])
    assert np.median(np.ptp(steps, axis=0) / steps.mean(axis=0)) < 0.02


def test_steps_are_what_is_balanced_and_not_sequences():
    lengths = np.array([1000] * 3 + [500] * 2 + [1] * 5)
    ranks = of_every_rank("budget", lengths, 100, 2, shuffle=False)
    assert [sum(lengths[batch].sum() for batch in batches) for batches in ranks] in ([2003, 2002], [2002, 2003])


# --- what batches are like


@pytest.mark.parametrize("kind", ["length", "budget"])
@pytest.mark.parametrize("W", [1, 2])
def test_batches_hold_like_lengths(kind, W):
    report = sampler(kind, REVIEWS, 32, rank=0, world_size=W).report()
    assert report.padding < 0.2 < 0.5 < report.shuffled_padding
    assert sampler(kind, REVIEWS, 32, rank=0, world_size=W, shuffle=False).report().padding < report.padding
    assert sampler(kind, REVIEWS, 32, rank=0, world_size=W, mega_batch_mult=1).report().padding > 2 * report.padding


def test_a_budget_is_filled():
    assert sampler("budget", REVIEWS, 160).report().filled > 0.95
    assert sampler("bins", REVIEWS, 160).report().filled > 0.99
    for W in (1, 2, 4):  # no budget admits of fewer batches
        assert len(sampler("bins", REVIEWS, 160, rank=0, world_size=W)) == -(-REVIEWS.sum() // (W * 16_000))


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_comes_first_on_request(kind):
    longest = int(REVIEWS.argmax())
    first = [next(iter(sampler(kind, REVIEWS, 32, seed=seed, longest_first=True))) for seed in range(3)]
    assert all(REVIEWS[batch].max() == REVIEWS[longest] for batch in first)
    plain, moved = list(sampler(kind, REVIEWS, 32)), list(sampler(kind, REVIEWS, 32, longest_first=True))
    assert plain[0] != moved[0]
    assert [batch for batch in plain if batch != moved[0]] == moved[1:]


@pytest.mark.parametrize("kind", ["length", "budget"])
def test_without_shuffling_lengths_fall(kind):
    batches = list(sampler(kind, FEW, 8, shuffle=False))
    drawn = [i for batch in batches for i in batch]
    assert drawn == sorted(range(len(FEW)), key=lambda i: (-FEW[i], i))
    assert batches == list(sampler(kind, FEW, 8, shuffle=False, seed=7))


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_epoch_choose_the_batches(kind):
    first = sampler(kind, FEW, 8, seed=1)
    epochs = []
    for epoch in (0, 1, 0):
        first.set_epoch(epoch)
        assert first.epoch == epoch
        epochs.append(list(first))
        assert len(first) == len(epochs[-1])
        assert list(first) == epochs[-1]
    assert epochs[0] == epochs[2] != epochs[1]
    assert set(map(frozenset, epochs[0])) != set(map(frozenset, epochs[1]))  # not only in another order
    assert list(sampler(kind, FEW, 8, seed=1)) == epochs[0] != list(sampler(kind, FEW, 8, seed=2))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("length", [[6], [1, 0, 2], [7, 8, 4], [9, 3, 5]]),
        ("budget", [[0, 1, 6], [4, 8, 2], [5, 7, 3], [9]]),
        ("bins", [[8, 6, 0, 2, 7], [4, 3], [1, 5], [9]]),
    ],
)
def test_batches_are_these_on_every_machine(kind, expected):
    assert list(sampler(kind, [5, 80, 3, 40, 60, 20, 7, 0, 33, 100], 1 if kind != "length" else 3, seed=3)) == expected


def test_ranks_have_these_batches_on_every_machine():
    lengths = [97, 3, 41, 8, 60, 22, 71, 5, 33, 14, 50]
    assert of_every_rank("budget", lengths, 1, 3, seed=3) == [[[1, 2], [0]], [[9, 10, 3], [4]], [[5, 6, 7], [8]]]


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "i8", "u8"])
def test_lengths_of_any_integer_dtype_strided_or_read_only(dtype):
    expected = list(sampler("budget", FEW, 2))
    strided = np.repeat(FEW.astype(dtype), 2)[::2]
    strided.flags.writeable = False
    for lengths in (strided, FEW.tolist(), tuple(FEW.tolist()), torch.from_numpy(FEW)):
        assert list(sampler("budget", lengths, 2)) == expected


def test_lengths_are_the_callers():
    lengths = FEW.copy()
    kept = sampler("bins", lengths, 2)
    expected = list(kept)
    kept.set_epoch(1)
    lengths[:] = 1
    kept.set_epoch(0)
    assert list(kept) == expected


def test_plan_holds_the_same_as_arrays():
    batches = sampler("budget", FEW, 2, rank=1, world_size=2)
    indices, offsets = batches.plan()
    assert indices.dtype == offsets.dtype == np.int64
    assert [indices[begin:end].tolist() for begin, end in pairwise(offsets)] == list(batches)


def test_huge_lengths_are_sorted_all_the_same():
    lengths = np.random.default_rng(1).integers(2**50, 2**51, 500)
    for kind in KINDS:
        batches = list(sampler(kind, lengths, 10, shuffle=False))
        drawn = [i for batch in batches for i in batch]
        assert drawn == sorted(range(500), key=lambda i: -lengths[i])
        assert sorted(i for batch in sampler(kind, lengths, 10, rank=0, world_size=1) for i in batch) == list(range(500))


def test_a_sampler_can_be_sent_to_another_process():
    left = sampler("budget", FEW, 2, rank=1, world_size=2)
    left.set_epoch(2)
    next(iter(left))
    sent = pickle.loads(pickle.dumps(left))
    assert sent.state_dict() == left.state_dict()
    assert list(sent) == list(left)


# --- as torch's batch_sampler


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_takes_it(workers):
    batches = sampler("budget", FEW, 2)
    loader = torch.utils.data.DataLoader(
        torch.arange(300), batch_sampler=batches, num_workers=workers, collate_fn=lambda items: torch.stack(items).tolist()
    )
    assert len(loader) == len(batches)
    assert list(loader) == list(batches)
    batches.set_epoch(1)
    again = list(loader)
    assert sorted(i for batch in again for i in batch) == list(range(300))
    assert again == list(batches)


# --- going on in mid-epoch


@laws
@given(st.sampled_from(KINDS), st.lists(st.integers(0, 50), min_size=2, max_size=60), st.integers(0, 2), st.data())
def test_resuming_is_like_never_having_stopped(kind, lengths, epoch, data):
    whole = sampler(kind, lengths, 3, seed=5)
    whole.set_epoch(epoch)
    expected = list(whole)
    stop = data.draw(st.integers(0, len(expected)))
    left = sampler(kind, lengths, 3, seed=5)
    left.set_epoch(epoch)
    drawn = list(islice(left, stop))
    assert left.state_dict()["batches"] == stop
    state = json.loads(json.dumps(left.state_dict()))
    resumed = sampler(kind, lengths, 3, seed=5)
    resumed.load_state_dict(state)
    assert resumed.epoch == epoch
    resumed.set_epoch(epoch)  # as a loop over epochs does before it iterates
    assert len(resumed) == len(expected)
    assert resumed.state_dict() == state
    assert drawn + list(resumed) == expected
    assert list(resumed) == expected  # and then it begins from the start
    resumed.load_state_dict(state)
    resumed.set_epoch(epoch + 1)
    whole.set_epoch(epoch + 1)
    assert list(resumed) == list(whole)


def test_the_state_counts_what_was_drawn():
    batches = sampler("budget", FEW, 2)
    assert batches.state_dict()["batches"] == 0
    iterator = iter(batches)
    drawn = [next(iterator) for _ in range(5)]
    state = batches.state_dict()
    assert state["batches"] == 5
    assert batches.state_dict(3) == state | {"batches": 3}
    again = sampler("budget", FEW, 2)
    again.load_state_dict(state)
    assert drawn + list(again) == list(batches)
    assert again.state_dict()["batches"] == len(batches)


def test_one_ranks_state_is_every_ranks():
    of_rank = [sampler("budget", FEW, 2, rank=rank, world_size=2) for rank in range(2)]
    expected = [list(batches) for batches in of_rank]
    state = of_rank[0].state_dict(4)
    assert state == of_rank[1].state_dict(4)
    of_rank[1].load_state_dict(state)
    assert list(of_rank[1]) == expected[1][4:]


# --- ranks from the environment


def test_rank_and_world_size_are_read_from_the_environment(monkeypatch):
    expected = of_every_rank("budget", FEW, 2, 3)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = TokenBudgetBatchSampler(FEW, 200)
    assert (found.rank, found.world_size) == (2, 3)
    assert list(found) == expected[2]
    given = TokenBudgetBatchSampler(FEW, 200, rank=0, world_size=1)
    assert (given.rank, given.world_size) == (0, 1)
