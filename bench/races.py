"""Contenders in turns, A B A B, so that a disturbance of the machine meets both; a ratio is the median of the pairs' ratios."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.contests import Contest

SECONDS = 0.4  # a race, or as long as a few pairs take


def once(contender: Callable[[], Any], calls: int) -> float:
    """Return the seconds of a call."""
    begin = time.perf_counter()
    for _ in range(calls):
        contender()
    return (time.perf_counter() - begin) / calls


def race(contest: Contest, rival: str, seconds: float = SECONDS) -> tuple[float, float]:
    """Return fastpack's median seconds and the median ratio rival / fastpack."""
    ours, theirs = contest.contenders["fastpack"], contest.contenders[rival]
    calls = [max(1, int(2e-3 / max(once(contender, 3), 1e-7))) for contender in (ours, theirs)]
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(pairs) < (7 if time.perf_counter() < end + seconds else 3):
        pairs.append((once(ours, calls[0]), once(theirs, calls[1])))
    return statistics.median(a for a, _ in pairs), statistics.median(b / a for a, b in pairs)


def by_itself(contender: Callable[[], Any]) -> float:
    """Return the median seconds of a call. Where two threads are not torch's, they cannot take turns with torch's, which linger."""
    calls, end = max(1, int(2e-3 / once(contender, 3))), time.perf_counter() + SECONDS / 2
    taken: list[float] = []
    while time.perf_counter() < end or len(taken) < 3:
        taken.append(once(contender, calls))
    return statistics.median(taken)


def duration(seconds: float) -> str:
    """Return microseconds, or from 10 ms on milliseconds."""
    return f"{seconds * 1e6:,.0f} us" if seconds < 0.01 else f"{seconds * 1e3:,.0f} ms"
