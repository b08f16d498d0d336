"""How many processes run the tests: two for all of them; for files that are named pytest's own, which need not start any."""

import pytest


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Answer `--numprocesses=auto`, which pyproject.toml has."""
    # two however many cores there are: each imports torch, and tests start threads and processes of their own
    return 2 if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0
