"""conftest.py, which says how many processes run the tests, and in which order."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import LONGEST, TESTS, pytest_collection_modifyitems


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        (["tests", "fastpack"], 2),  # what pyproject.toml names, for `pytest` alone
        (["tests"], 2),
        (["."], 2),
        ([str(TESTS)], 2),
        (["tests/test_pages.py"], 0),
        (["tests/test_pages.py::test_the_system_takes_the_request"], 0),
        (["fastpack"], 0),
        (["bench"], 0),  # of which there would be no times
    ],
)
def test_all_tests_run_in_two_processes_and_what_is_named_in_one(
    arguments: list[str], processes: int, request: pytest.FixtureRequest
) -> None:
    config = SimpleNamespace(args=arguments, invocation_params=SimpleNamespace(dir=TESTS.parent))
    assert request.config.hook.pytest_xdist_auto_num_workers(config=config) == processes


def test_the_longest_files_come_first_and_the_rest_as_it_was() -> None:
    assert all((TESTS / name).exists() for name in LONGEST)
    names = ["test_a.py", "test_wheel.py", "test_c.py", "test_b.py", "test_levels.py"]
    items = [SimpleNamespace(path=Path(name)) for name in names]
    pytest_collection_modifyitems(items)
    assert [item.path.name for item in items] == ["test_wheel.py", "test_levels.py", "test_a.py", "test_c.py", "test_b.py"]
