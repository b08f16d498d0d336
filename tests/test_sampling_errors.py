"""What samplers refuse: the argument, the rule, what came, and a way out."""

import numpy as np
import pytest

from fastpack import BinPackingBatchSampler, LengthGroupedBatchSampler, TokenBudgetBatchSampler, TokenBudgetStream
from fastpack.sampling import ranks

L = np.array([3, 1, 4, 1, 5])
ANY = [(LengthGroupedBatchSampler, 2), (TokenBudgetBatchSampler, 9), (BinPackingBatchSampler, 9)]


@pytest.mark.parametrize(("sampler", "most"), ANY)
@pytest.mark.parametrize(
    ("lengths", "error", "match"),
    [
        ([], ValueError, "^lengths is empty"),
        (None, TypeError, "^lengths is None, not a vector of integers"),
        ([1, 2.5], TypeError, r"^lengths\[1\] is 2.5, not an integer"),
        (np.array([1.0]), TypeError, "^lengths is of dtype float64"),
        ([[1, 2]], TypeError, r"^lengths\[0\] is \[1, 2\], not an integer"),
        ([3, -1], ValueError, r"^lengths\[1\] is -1, but a length is 0 or more"),
        (
            [2**60, 2**60, 1],
            OverflowError,
            "^lengths add up to 2305843009213693953 steps, but batches are made of up to 23",
        ),
        ([2**62, 2**62], OverflowError, "^lengths add up to more rows than int64 can count"),
    ],
)
def test_lengths(sampler, most, lengths, error, match):
    with pytest.raises(error, match=match):
        sampler(lengths, most)


@pytest.mark.parametrize(("sampler", "most"), ANY)
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"seed": -1}, ValueError, "^seed is -1, but needs at least 0"),
        ({"seed": 1.5}, TypeError, "^seed is 1.5, not an integer"),
        ({"rank": 0}, ValueError, "^rank is 0 and world_size is None: give both"),
        ({"world_size": 2}, ValueError, "^rank is None and world_size is 2: give both"),
        ({"rank": 2, "world_size": 2}, ValueError, "^rank is 2, but needs to be below world_size, which is 2"),
        ({"rank": -1, "world_size": 2}, ValueError, "^rank is -1, but needs at least 0"),
        ({"rank": 0, "world_size": 0}, ValueError, "^world_size is 0, but needs at least 1"),
        ({"remainder": "pad"}, ValueError, "^remainder is 'pad', but can only be 'keep' or 'drop' or 'repeat'"),
    ],
)
def test_options(sampler, most, options, error, match):
    with pytest.raises(error, match=match):
        sampler(L, most, **options)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: LengthGroupedBatchSampler(L, 0), "^batch_size is 0, but needs at least 1"),
        (lambda: LengthGroupedBatchSampler(L, 2, mega_batch_mult=0), "^mega_batch_mult is 0, but needs at least 1"),
        (lambda: TokenBudgetBatchSampler(L, 9, mega_batch_mult=0), "^mega_batch_mult is 0, but needs at least 1"),
        (lambda: TokenBudgetBatchSampler(L, 0), "^max_tokens is 0, but needs at least 1"),
        (lambda: BinPackingBatchSampler(L, 9, max_sequences=0), "^max_sequences is 0, but needs at least 1"),
        (lambda: BinPackingBatchSampler(L, 9, too_long="cut"), "^too_long is 'cut', but can only be 'error' or 'alone' or 'drop'"),
        (lambda: TokenBudgetBatchSampler(L, 3), r'^lengths\[2\] is 4, but max_tokens is 3: raise it, or pass too_long="alone"'),
        (
            lambda: TokenBudgetBatchSampler([9, 8], 3, too_long="drop"),
            "^every sequence is longer than max_tokens, which is 3, and",
        ),
    ],
)
def test_budgets(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(("sampler", "most"), ANY)
@pytest.mark.parametrize("remainder", ["keep", "drop"])
def test_fewer_sequences_than_ranks(sampler, most, remainder):
    batches = sampler(L, most, rank=0, world_size=6, remainder=remainder)
    with pytest.raises(ValueError, match=r'^there are 5 sequences for 6 ranks, less than one each: pass remainder="repeat"'):
        len(batches)
    assert len(sampler(L, most, rank=5, world_size=6, remainder="repeat")) == 1


def test_batches_of_one_that_the_ranks_cannot_share():
    for sampler in (TokenBudgetBatchSampler, BinPackingBatchSampler):
        with pytest.raises(ValueError, match=r"^lengths has 3 sequences, each a batch of its own, which 2 ranks cannot share equally"):
            list(sampler([9, 9, 9], 10, rank=0, world_size=2))
        assert list(map(len, sampler([9, 9, 9], 10, rank=0, world_size=2, remainder="repeat"))) == [1, 1]


@pytest.mark.parametrize("epoch", [-1, 1.0, "2", True])
def test_set_epoch(epoch):
    for batches in (TokenBudgetBatchSampler(L, 9), TokenBudgetStream([], 9)):
        with pytest.raises((TypeError, ValueError), match=r"^epoch is "):
            batches.set_epoch(epoch)


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        ({"RANK": "1"}, "^the environment has RANK=1, but not the other of RANK and WORLD_SIZE"),
        ({"WORLD_SIZE": "1", "RANK": ""}, "^the environment has WORLD_SIZE=1, but not the other"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "^the environment has WORLD_SIZE=two, not a whole number: pass rank= and world_size="),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "^the environment has RANK=-1, not a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "^rank is 2, but needs to be below world_size"),
    ],
)
def test_environment(environment, match):
    with pytest.raises(ValueError, match=match):
        ranks.who(None, None, environment)
    assert ranks.who(None, None, {}) == (0, 1)
    assert ranks.who(None, None, {"RANK": "1", "WORLD_SIZE": "2"}) == (1, 2)


# --- states that do not fit


def changed(name, value):
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda state: [], TypeError, "^state_dict is a list, not a dict"),
        (
            lambda state: {},
            ValueError,
            "^state_dict does not have the entries of a TokenBudgetBatchSampler's state: they differ in ba",
        ),
        (lambda state: state | {"more": 1}, ValueError, "they differ in more$"),
        (
            changed("max_tokens", 8),
            ValueError,
            "^state_dict was taken with max_tokens 8, but this sampler has 9: its batches are",
        ),
        (changed("sequences", 4), ValueError, "^state_dict was taken with sequences 4, but this sampler has 5"),
        (changed("checksum", 4), ValueError, "^state_dict was taken with checksum 4, but"),
        (changed("seed", 4), ValueError, "^state_dict was taken with seed 4, but this sampler has 0"),
        (changed("world_size", 2), ValueError, "^state_dict was taken with world_size 2, but this sampler has 1"),
        (changed("version", 0), ValueError, "^state_dict was taken with version 0, but this sampler has 2"),
        (changed("epoch", -1), ValueError, "^epoch is -1, but needs at least 0"),
        (changed("batches", -1), ValueError, r"^state_dict\['batches'\] is -1, but needs at least 0"),
        (changed("batches", 4), ValueError, r"^state_dict\['batches'\] is 4, but the epoch has 2 batches"),
        (changed("batches", "1"), TypeError, r"^state_dict\['batches'\] is '1', not an integer"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, error, match):
    batches = TokenBudgetBatchSampler(L, 9)
    batches.set_epoch(3)
    next(iter(batches))
    before = batches.state_dict()
    with pytest.raises(error, match=match):
        batches.load_state_dict(change(before | {"epoch": 1}))
    assert batches.state_dict() == before
    batches.load_state_dict(before)


def test_a_state_of_other_lengths_or_another_sampler():
    state = TokenBudgetBatchSampler(L, 9).state_dict()
    with pytest.raises(ValueError, match=r"^state_dict was taken with checksum"):
        TokenBudgetBatchSampler(L[::-1], 9).load_state_dict(state)
    with pytest.raises(ValueError, match=r"they differ in mega_batch_mult$"):
        BinPackingBatchSampler(L, 9).load_state_dict(state)
    with pytest.raises(ValueError, match=r"^batches is 9, but the epoch has 2 batches"):
        TokenBudgetBatchSampler(L, 9).state_dict(9)
