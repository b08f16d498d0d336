"""The kernels that make batches against their plain NumPy twins, on memory that shows what is read or written beside it."""

from typing import Any

import numpy as np
import pytest

from fastpack import blocks, machine, reference
from fastpack.checks import address
from fastpack.sampling.budget import UNLIMITED, Limits
from fastpack.sampling.cut import _most_batches, in_a_row, into_bins
from tests.guarded import Canaries, ForbiddenPages, Place

RANDOM = np.random.default_rng(0)


def falling(costs: Any) -> np.ndarray:
    return np.sort(np.asarray(costs, np.int64))[::-1].copy()


COSTS = {
    "one": falling([5]),
    "equal": falling([7] * 300),
    "as large as the budget": falling([1000] * 70),
    "all different": falling(np.arange(1, 901)),
    "uniform": falling(RANDOM.integers(1, 1001, 700)),
    "small": falling(RANDOM.integers(1, 4, 3000)),
    "heavy tail": falling(np.minimum(RANDOM.pareto(1.1, 2000) * 3 + 1, 1000)),
    "two bins' border": falling([600] * 64 + [401] * 64 + [400] * 65 + [399] * 3),
    "4,100 bins": falling(RANDOM.integers(501, 1001, 4100)),
}
LIMITS = [Limits(1000, UNLIMITED), Limits(1000, 1), Limits(1000, 3), Limits(5000, 64), Limits(UNLIMITED, UNLIMITED), Limits(UNLIMITED, 65)]

each_case = pytest.mark.parametrize("limits", LIMITS, ids=str)
each_costs = pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)


def twin(name: str, costs: np.ndarray, limits: Limits) -> tuple[list[int], list[int]]:
    """Return the plain twin's order and offsets."""
    n = len(costs)
    order, offsets, facts = np.arange(n), np.full(n + 1, -7), np.zeros(1, np.int64)
    given = (order, offsets) if name == "first_fit" else (offsets,)
    getattr(reference, name)(costs, *limits, *given, facts)
    return order.tolist(), offsets[: facts[0] + 1].tolist()


@each_costs
@each_case
@pytest.mark.parametrize(("name", "cut"), [("cut_in_a_row", in_a_row), ("first_fit", into_bins)])
def test_batches_are_the_twins(name: str, cut: Any, costs: np.ndarray, limits: Limits) -> None:
    order, offsets = cut(costs, limits)
    assert (order.tolist(), offsets.tolist()) == twin(name, costs, limits)
    assert len(offsets) - 1 <= _most_batches(costs, limits)  # else the kernel would write beyond its memory
    assert (order.dtype, offsets.dtype) == (np.int64, np.int64)


def test_costs_in_any_order_are_cut_in_a_row() -> None:
    for _ in range(100):
        costs, limits = RANDOM.integers(1, 50, RANDOM.integers(1, 200)), Limits(int(RANDOM.integers(49, 150)), int(RANDOM.integers(1, 9)))
        assert in_a_row(costs, limits)[1].tolist() == twin("cut_in_a_row", costs, limits)[1]


@pytest.mark.parametrize("cut", [in_a_row, into_bins])
def test_costs_are_read_as_they_lie(cut: Any) -> None:
    """Of a view of every other, from the last to the first, that must not be written to."""
    memory = np.repeat(np.arange(1, 500), 2)
    costs = memory[::-2]
    costs.flags.writeable = False
    found, wanted = cut(costs, Limits(1000, UNLIMITED)), cut(costs.copy(), Limits(1000, UNLIMITED))
    assert [item.tolist() for item in found] == [item.tolist() for item in wanted]


def run_first_fit(costs: np.ndarray, limits: Limits, place: Place) -> tuple[np.ndarray, np.ndarray, int]:
    """Call the kernel on memory of a kind: each array has exactly the size that its block asks for."""
    n, most = len(costs), _most_batches(costs, limits)
    sizes = {"order": n, "offsets": most + 1, "facts": 1, "bins": n, "rooms": most, "following": most}
    leaves = next(leaves for leaves, reach in ((0, 64), (1, 64**2), (65, 64**3)) if most <= reach)
    memory = {name: place(np.full(size, -1, np.int64), 8) for name, size in sizes.items()}
    memory["fitting"] = place(np.zeros(leaves + -(-most // 64), np.int64), 8)
    given = place(costs, 8)
    addresses = {name: address(array) for name, array in memory.items()}
    machine.run(blocks.FirstFit(costs=address(given), n=n, **limits._asdict(), **addresses, leaves=leaves))
    assert np.array_equal(given, costs)
    return memory["order"], memory["offsets"], int(memory["facts"][0])


@each_costs
@each_case
def test_nothing_is_read_or_written_beside_the_memory(costs: np.ndarray, limits: Limits) -> None:
    wanted = twin("first_fit", costs, limits)
    canaries = Canaries()
    for place in (canaries, ForbiddenPages(before=True), ForbiddenPages(before=False)):
        order, offsets, K = run_first_fit(costs, limits, place)
        assert (order.tolist(), offsets[: K + 1].tolist()) == wanted
        offsets = place(np.full(_most_batches(costs, limits) + 1, -1, np.int64), 8)
        facts, given = place(np.zeros(1, np.int64), 8), place(costs, 8)
        machine.run(blocks.CutInARow(address(given), len(costs), *limits, address(offsets), address(facts)))
        assert offsets[: facts[0] + 1].tolist() == twin("cut_in_a_row", costs, limits)[1]
    canaries.check()
