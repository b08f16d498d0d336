"""Layouts: the kernels against their plain NumPy twins, each called as the library calls it."""

import numpy as np
import pytest

from bench.cases import Case, with_bytes
from fastpack import blocks, machine, reference
from fastpack.checks import address
from tests.oracle import layout

each_case = pytest.mark.parametrize("case", with_bytes(600_000), ids=lambda case: case.name)


@each_case
def test_sort_by_length(case: Case):
    lengths = case.lengths
    B, T = len(lengths), int(max(lengths))
    expected = layout(lengths)
    expected = (*expected, case.offsets())
    found = [np.full(size + 2, -7, np.int64) for size in (T, B, B, B + 1)]
    machine.run(blocks.SortByLength(address(lengths), B, T, *(address(item[1:]) for item in found)))
    for item, twin in zip(found, expected, strict=True):
        assert item.tolist() == [-7, *twin.tolist(), -7]
    again, twin, facts = np.full(B + 2, -7, np.int64), np.zeros(B, np.int64), np.zeros(3, np.int64)
    indices = [address(item) for item in expected[1:3]]
    machine.run(blocks.MeasureLayout(address(expected[0]), T, *indices, B, address(again[1:]), 0, 0, address(facts)))
    reference.measure_layout(*expected[:3], twin, None, None, facts)
    assert again.tolist() == [-7, *twin.tolist(), -7]
    np.testing.assert_array_equal(twin, lengths)
    offsets, twin = np.full(B + 3, -7, np.int64), np.zeros(B + 1, np.int64)
    machine.run(blocks.OffsetsOf(address(lengths), B, address(offsets[1:])))
    reference.offsets_of(lengths, twin)
    assert offsets.tolist() == [-7, *twin.tolist(), -7]
    np.testing.assert_array_equal(twin, case.offsets())


def test_measure_lengths():
    random, most = np.random.default_rng(0), 2**63 - 1
    vectors = [random.integers(-2, 6, random.integers(0, 7)) for _ in range(300)]
    vectors += [
        np.array(item, np.int64) for item in ([most], [most, 1], [1, most], [most, 0], [most, most, most], [-most - 1, 3], [5, 4, 4])
    ]
    for lengths in vectors:
        for limit in (3, most):
            facts, twin = np.full(8, -7, np.int64), np.zeros(6, np.int64)
            machine.run(blocks.MeasureLengths(address(lengths), len(lengths), limit, address(facts[1:])))
            reference.measure_lengths(lengths, limit, twin)
            assert facts.tolist() == [-7, *twin.tolist(), -7], lengths


def test_measure_layout():
    random, most = np.random.default_rng(1), 2**63 - 1
    seen = set()
    for trial in range(1200):
        B = int(random.integers(1, 5))
        sizes = np.sort(random.integers(1, B + 1, random.integers(0, 5)))[::-1].copy()
        order = random.permutation(B)
        places = np.argsort(order)
        for wrong in (sizes, order, places)[: trial % 4]:
            if len(wrong):
                wrong[random.integers(len(wrong))] = random.choice([-1, 0, B - 1, B, most])
        has_lengths, has_sizes, has_indices = (trial // 4 // bit % 2 for bit in (1, 2, 4))
        found = [np.full(size + 2, -7, np.int64) for size in (B, len(sizes), B, 3)]
        outputs = [address(item[1:]) * wanted for item, wanted in zip(found, (has_lengths, has_sizes, has_indices, 1), strict=True)]
        machine.run(blocks.MeasureLayout(address(sizes), len(sizes), address(order), address(places), B, *outputs))
        expected = [item[1:-1].copy() for item in map(np.full_like, found, [-7] * 4)]
        *twins, facts = expected
        twins = [item if wanted else None for item, wanted in zip(twins, (has_lengths, has_sizes, has_indices), strict=True)]
        reference.measure_layout(sizes, order, places, *twins, facts)
        for item, twin in zip(found, expected, strict=True):
            assert item.tolist() == [-7, *twin.tolist(), -7], (sizes, order, places)
        seen.add((facts[1] >= 0, facts[2] >= 0, has_lengths, has_sizes, has_indices))
    assert len(seen) == 4 * 8  # good and bad ones of both kinds came up, with and without each output


def test_what_is_measured_of_a_layout_is_the_copy():
    lengths = [2, 5, 0, 3, 5]
    sizes, order, places = layout(lengths)

    def measured(has_copies: bool) -> tuple[list[int], list[int]]:
        # a copy begins one item before what is copied: once it is made, all that stood there has moved on by one
        moving = [np.concatenate([[-7], item]) for item in (sizes, order)]
        there = [address(item[1:]) for item in moving]
        copies = [address(item) if has_copies else 0 for item in moving]
        if not has_copies:
            for item in moving:
                item[1:-1] = item[2:]
        facts, found = np.full(3, -7, np.int64), np.full(len(order), -7, np.int64)
        rest = address(places), len(order), address(found), *copies, address(facts)
        machine.run(blocks.MeasureLayout(there[0], len(sizes), there[1], *rest))
        assert [item[1:].tolist() for item in moving] == [[*item[1:], item[-1]] for item in (sizes.tolist(), order.tolist())]
        return facts.tolist(), found.tolist()

    assert measured(True) == ([sum(lengths), -1, -1], lengths)
    facts, found = measured(False)
    assert facts[0] < sum(lengths)
    assert facts[2] == 0
    assert found == [-7] * len(lengths)
