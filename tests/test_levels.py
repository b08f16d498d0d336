"""The tests of the kernels at every level of this machine, and in the fallback: the same files, in child processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastpack import fallback, machine
from tests.conftest import clean_environment

HERE = Path(__file__).parent
# whatever compares kernels with their twins, and the NumPy level, which calls each; the torch level calls them in no other way
FILES = [
    *("test_packing.py", "test_reference.py", "test_reference_layouts.py", "test_layout.py", "test_fingerprint.py"),
    *("test_reference_recurrent.py", "test_recurrent.py", "test_from_state_dict.py"),
    *("test_recurrent_backward.py", "test_gradient_products.py", "test_gradient_pieces.py", "test_backward_memory.py"),
    "test_reference_batches.py",
]
# of code that differs only in how it is loaded: what calls each kernel
LOADED = [
    *("test_packing.py", "test_recurrent.py", "test_fingerprint.py", "test_recurrent_backward.py::test_layer_gradient"),
    *("test_gradient_products.py::test_gradient_panels", "test_gradient_products.py::test_products_of_a_padded_batch"),
]
LOWER = machine.supported_levels()[:-1]  # all tests here run at the highest
Outcome = tuple[int, str, str]  # exit status, the kernels that were used, what was printed
REPORT = """
from fastpack import machine
def pytest_unconfigure(config):
    used = machine._library
    with open({path!r}, "w") as file:
        file.write(f"{{used and used.level}} {{used and used.reason.rpartition('; ')[2]}}")
"""


def run_tests(base: Path, *names: str, **environment: str) -> Outcome:
    """Run test files in a child, which says at its end which kernels it used; return its exit status, that, and its output."""
    (base / "report_kernels.py").write_text(REPORT.format(path=str(base / "used")))
    options = ["-q", "-x", "-n", "0", "--rootdir", str(HERE.parent), "-p", "report_kernels", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *(str(HERE / name) for name in names)]
    everything = clean_environment(PYTHONPATH=str(base), **environment)
    done = subprocess.run(command, env=everything, cwd=HERE.parent, capture_output=True, text=True, timeout=500)
    return done.returncode, (base / "used").read_text(), done.stdout + done.stderr


def test_the_files_are_there_and_call_kernels() -> None:
    for name in FILES:
        assert "fastpack" in (HERE / name).read_text(), name


@pytest.mark.parametrize("level", LOWER)
def test_at_a_lower_level(level: str, tmp_path: Path) -> None:
    status, used, output = run_tests(tmp_path, *FILES, FASTPACK_CPU=level)
    assert status == 0, output
    assert used == f"{level} built ahead"


def test_in_the_fallback(good_code: bytes, tmp_path: Path) -> None:
    cache, highest = tmp_path / "kernels", machine.supported_levels()[-1]
    cache.mkdir(mode=0o700)
    fallback._write(cache / fallback.cache_name(highest), good_code)
    status, used, output = run_tests(tmp_path, *LOADED, FASTPACK_KERNELS="jit", FASTPACK_CACHE_DIR=str(cache))
    assert status == 0, output
    assert used == f"{highest} compiled here"


def test_this_process_uses_what_was_built_for_the_highest_level() -> None:
    assert "FASTPACK_CPU" not in os.environ
    assert "FASTPACK_KERNELS" not in os.environ
    assert machine.library()[0] == machine.supported_levels()[-1]
    assert machine.library().reason.endswith("built ahead")


def test_a_child_that_fails_or_uses_other_kernels_shows(tmp_path: Path) -> None:
    failing = tmp_path / "test_failing.py"
    failing.write_text("import numpy as np, fastpack\ndef test_it():\n    assert fastpack.pack([np.arange(3)]).data.sum() == 4\n")
    status, used, output = run_tests(tmp_path, str(failing), FASTPACK_CPU=machine.supported_levels()[0])
    assert status == 1
    assert "assert np.int64(3) == 4" in output
    assert used == f"{machine.supported_levels()[0]} built ahead"
    failing.write_text("def test_it():\n    pass\n")
    assert run_tests(tmp_path, str(failing))[:2] == (0, "None None")
