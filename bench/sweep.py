"""Training on shapes from one sequence of one step with one feature and one hidden unit upwards, to find where it is slow."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from bench.cases import SWEPT
from bench.races import race
from bench.rnn_cases import LayerCase
from bench.training_contests import trainers, training, training_contest

RIVALS = ["torch, packed", "torch, padded"]
SIZES = {"B": (1, 2, 8, 64), "T": SWEPT, "F": (1, 8, 64, 256), "H": (1, 8, 64, 256)}
LARGEST = 10**9  # multiplications and additions of a case's inference: beyond it, a row of the other tables
QUICK, LONG = 0.05, 1.0  # seconds of a race: of each case, and then once more of those that looked slow
SLOW = 1 / 1.1  # asked of every shape: no slower than 1.1 times the rival


class Raced(NamedTuple):
    """How many times as long as fastpack a rival takes."""

    ratio: float
    case: LayerCase


def shapes(cell: str) -> Iterator[LayerCase]:
    """Yield every second mix of the sizes, with lengths that are equal in one and unequal in the next."""
    for chosen in product(*map(enumerate, SIZES.values())):
        places, (B, T, F, H) = zip(*chosen, strict=True)
        if sum(places) % 2 == 0:
            equal = (places[0] + places[2]) % 2 == 0 or T == 1
            case = LayerCase(cell, F, H, B, f"x {T}" if equal else f"x 1..{T}")
            if case.flops <= LARGEST:
                yield case


def sweep(cell: str, rival: str, quick: float = QUICK, long: float = LONG) -> list[Raced]:
    """Return the races on all shapes, the worst first. Results are compared before.

    The lowest of many disturbed ratios is too low, so the slow ones are raced again, for longer.
    """
    found = [raced(case, rival, quick) for case in shapes(cell) if rival in trainers(case)]
    return sorted(raced(item.case, rival, long) if item.ratio < SLOW else item for item in found)


def raced(case: LayerCase, rival: str, seconds: float) -> Raced:
    """Return how a rival does on a case, on one thread."""
    contest = training_contest(case)
    with training(threads=1):
        contest.check()
        return Raced(race(contest, rival, seconds)[1], case)
