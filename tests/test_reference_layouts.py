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
    machine.run(blocks.MeasureLayout(address(expected[0]), T, *indices, B, address(again[1:]), address(facts)))
    reference.measure_layout(*expected[:3], twin, facts)
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
    for trial in range(600):
        B = int(random.integers(1, 5))
        sizes = np.sort(random.integers(1, B + 1, random.integers(0, 5)))[::-1].copy()
        order = random.permutation(B)
        places = np.argsort(order)
        for wrong in (sizes, order, places)[: trial % 4]:
            if len(wrong):
                wrong[random.integers(len(wrong))] = random.choice([-1, 0, B - 1, B, most])
        facts, twin = np.full(5, -7, np.int64), np.zeros(3, np.int64)
        lengths, twin_lengths = np.full(B + 2, -7, np.int64), np.full(B, -7, np.int64)
        addresses = [address(item) for item in (order, places)]
        machine.run(blocks.MeasureLayout(address(sizes), len(sizes), *addresses, B, address(lengths[1:]), address(facts[1:])))
        reference.measure_layout(sizes, order, places, twin_lengths, twin)
        assert facts.tolist() == [-7, *twin.tolist(), -7], (sizes, order, places)
        assert lengths.tolist() == [-7, *twin_lengths.tolist(), -7], (sizes, order, places)
        seen.add((twin[1] >= 0, twin[2] >= 0))
    assert len(seen) == 4  # good and bad ones of both kinds came up
