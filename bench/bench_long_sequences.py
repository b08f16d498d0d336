"""A step of training along sequences of 500 to 10,000 steps: time and peak memory, each in fresh processes, as far as each one gets.

torch's packed layer takes time quadratic in the steps, so a process is given `LIMIT` seconds, and a contender that runs out of them
is not asked for longer sequences.
"""

import subprocess
import sys
from typing import Any, NamedTuple

import pytest

from bench.children import ROOT, environment, report
from bench.training_step import CONTENDERS

STEPS = (500, 1000, 2000, 4000, 10_000)
LIMIT = 90.0  # seconds
GROWTH = 1.2  # by how much the memory for each step of a sequence may grow with the length
CLOSE = 1e-4  # how far the contenders' losses may be apart


class Step(NamedTuple):
    """What a step of training took, and did."""

    seconds: float
    bytes: float
    loss_before: float
    loss_after: float


def take(contender: str, T: int, limit: float = LIMIT) -> Step | None:
    """Return what a step took in a process of its own; None where the time was not enough.

    Raises
    ------
    RuntimeError
        The process failed, or the loss has not become smaller.
    """
    command = [sys.executable, "-m", "bench.training_step", contender, str(T)]
    try:
        done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise RuntimeError(f"{contender}, {T} steps failed:\n{done.stderr}")
    step = Step(*map(float, done.stdout.split()))
    if not step.loss_after < step.loss_before:
        raise RuntimeError(f"{contender}, {T} steps: the loss was {step.loss_before} and is {step.loss_after}")
    return step


def race_of(T: int, contenders: list[str], limit: float = LIMIT) -> dict[str, Step | None]:
    """Return what the step of each contender took.

    Raises
    ------
    RuntimeError
        They have not the same losses.
    """
    found = {contender: take(contender, T, limit) for contender in contenders}
    for losses in zip(*(step[2:] for step in found.values() if step), strict=True):
        if max(losses) - min(losses) > CLOSE * max(losses):
            raise RuntimeError(f"{T} steps: the losses are {losses}")
    return found


def all_steps() -> dict[int, dict[str, Step | None]]:
    """Return what every step took; contenders that ran out of time are left out from then on."""
    found: dict[int, dict[str, Step | None]] = {}
    left = list(CONTENDERS)
    for T in STEPS:
        found[T] = race_of(T, left)
        left = [contender for contender in left if found[T][contender]]
    return found


@pytest.fixture(scope="module")
def steps() -> dict[int, dict[str, Step | None]]:
    """Return what every step took."""
    return all_steps()


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("T", STEPS)
def bench_long_sequences(benchmark: Any, steps: dict[int, dict[str, Step | None]], T: int, contender: str) -> None:
    """Show a step. Asked of fastpack: it is taken, and its memory grows no faster than the steps."""
    step = steps[T].get(contender)
    benchmark.group = f"a step of training along 8 sequences of {T // 2:,} to {T:,} steps"
    benchmark.name = f"{contender}: {step.bytes / 1e6:,.0f} MB" if step else f"{contender}: not done in {LIMIT:.0f} s"
    if contender == "fastpack":
        check_linear(steps, T)
    report(benchmark, [step.seconds if step else LIMIT])


def check_linear(steps: dict[int, dict[str, Step | None]], T: int) -> None:
    """Compare fastpack's memory with that of the shortest sequences.

    Raises
    ------
    MemoryError
        It is more than the number of steps accounts for, or the time was not enough.
    """
    first, step = steps[STEPS[0]].get("fastpack"), steps[T].get("fastpack")
    if not first or not step or step.bytes > GROWTH * first.bytes * T / STEPS[0]:
        raise MemoryError(f"fastpack: {first} along {STEPS[0]} steps, {step} along {T:,}")
