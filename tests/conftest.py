"""What several test files share: other Python processes, and kernels compiled once for all of them."""

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastpack import compiler, machine

Child = Callable[..., str]


def clean_environment(**changes: str) -> dict[str, str]:
    """Return the environment without what steers fastpack, numba or pytest, with `changes`."""
    steering = ("FASTPACK_", "NUMBA_", "PYTHON", "PYTEST_")
    return {name: value for name, value in os.environ.items() if not name.startswith(steering)} | changes


def shown(value: object) -> str:
    """Return `repr(value)` without addresses, as a test's name: each process that runs tests has to find the same names."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


@pytest.fixture(scope="session")
def child(tmp_path_factory: pytest.TempPathFactory) -> Child:
    """Return a function that runs code in a new Python process, outside the source tree, and returns what it printed."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def run(code: str, *arguments: str | Path, status: int = 0, cwd: Path = folder, **environment: str | Path) -> str:
        command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
        changes = {name: str(value) for name, value in environment.items()}
        done = subprocess.run(command, env=clean_environment(**changes), cwd=cwd, capture_output=True, text=True, timeout=600)
        assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr if status else done.stdout

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Have torch use one thread: where cores are busy with something else, two take up to 30 ms a call to meet."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have torch use two threads, and calls of any size too."""
    import torch

    from fastpack.torch import parallel

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(parallel, "OPERATIONS_WORTH_A_THREAD", 1)
    monkeypatch.setattr(parallel, "WORTH_A_THREAD", 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def good_code(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> bytes:
    """Return object code for the highest level of this CPU, compiled where everything tries to change or break it.

    That takes most of a minute: of several processes that run tests the first compiles, the others wait for it.
    """
    if worker_id == "master":
        return hostile_compilation(tmp_path_factory.mktemp("hostile"))
    shared = tmp_path_factory.getbasetemp().parent / "good_code"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "object").exists():
            (shared / "object").write_bytes(hostile_compilation(shared))
        return (shared / "object").read_bytes()


def hostile_compilation(folder: Path) -> bytes:
    """Compile where environment and current folder change the code or break the compiler, if they reach it."""
    (folder / ".numba_config.yaml").write_text("disable_jit: 1\nboundscheck: 1\n")
    for name in ("numba", "queue", "fastpack"):  # beside the script, hence before all else on its path
        (folder / f"{name}.py").write_text(f"raise RuntimeError('the wrong {name}')")
    hostile = {
        "NUMBA_DISABLE_JIT": "1",
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "+avx512f,+avx512fp16",
        "NUMBA_OPT": "1",
        "NUMBA_DUMP_ASSEMBLY": "1",
        "PYTHONWARNINGS": "error",
        "PYTHONHASHSEED": "7",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        for name, value in hostile.items():
            patch.setenv(name, value)
        return compiler.object_code(machine.supported_levels()[-1])


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the arguments of a run of `fastpack score`, in a folder that has what they name: see score_jobs.py."""
    from tests import score_jobs

    return score_jobs.prepare(tmp_path, monkeypatch)
