"""What several benchmarks share: Python processes of their own, and times that were taken in them."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def environment(**changes: str | Path) -> dict[str, str]:
    """Return this process's environment with `changes`, for a Python in which this source tree is the one that is imported."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in changes.items()}


def output_of(*arguments: str | Path, python: str | Path = sys.executable, **changes: str | Path) -> str:
    """Return what a new Python process prints.

    Raises
    ------
    RuntimeError
        It failed.
    """
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, env=environment(**changes), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} failed:\n{done.stderr}")
    return done.stdout


def report(benchmark: Any, seconds: Iterable[float]) -> None:
    """Give pytest-benchmark times that were measured elsewhere, through a clock that advances by them."""
    taken, clock = list(seconds), [0.0]
    left = iter(taken)

    def advance() -> None:
        clock[0] += next(left)

    benchmark._timer = lambda: clock[0]
    benchmark.pedantic(advance, rounds=len(taken), iterations=1)
