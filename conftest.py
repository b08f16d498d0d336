"""How many processes run the tests, and in which order: two for all of them, one for files that are named."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent / "tests"
LONGEST = ("test_levels.py", "test_wheel.py", "test_fallback_processes.py")  # they compile, or run other files' tests


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Answer `--numprocesses=auto`, which pyproject.toml has: 0 is pytest's own process."""
    # two however many cores there are: each imports torch, and tests start threads and processes of their own
    folders = [(config.invocation_params.dir / argument).resolve() for argument in config.args]
    return 2 if any(TESTS.is_relative_to(folder) for folder in folders) else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, or at the end one process does them while the other has nothing left to do."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
