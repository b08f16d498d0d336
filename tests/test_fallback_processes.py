"""The cache of compiled kernels between processes and threads, and the real compiler behind it."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fastpack
from fastpack import compiler, fallback, machine
from tests.conftest import Child, clean_environment

Patch = pytest.MonkeyPatch
LEVEL = machine.supported_levels()[-1]
CODE = b"some object code" * 1000
MINIATURE = """
import numpy as np, fastpack
from fastpack import machine
print("".join(fastpack.pack([np.array(list("abc")), np.array(["x"])]).data), machine.library().reason.rpartition("; ")[2])
"""
EXPECTED = "axbc compiled here\n"
# in place of the compiler: good code out of a file, after a while, and a line in a log
STAND_IN = """
import os, pathlib, time
from fastpack import compiler
def object_code(level):
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(float(os.environ.get("SECONDS", "0")))
    return pathlib.Path(os.environ["OBJECT"]).read_bytes()
compiler.object_code = object_code
"""


class Cold:
    """Processes that start with an empty cache and a compiler that is stood in for."""

    def __init__(self, base: Path, code: bytes) -> None:
        (base / "object").write_bytes(code)
        self.cache, self.log = base / "cache", base / "log"
        self.log.touch()
        self.environment = {"FASTPACK_KERNELS": "jit", "FASTPACK_CACHE_DIR": str(self.cache)}
        self.environment |= {"OBJECT": str(base / "object"), "LOG": str(self.log)}

    def start(self, code: str = MINIATURE, **environment: str) -> "subprocess.Popen[str]":
        everything = clean_environment(**self.environment, **environment)
        command = [sys.executable, "-W", "error", "-c", STAND_IN + code]
        return subprocess.Popen(command, env=everything, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, code: str = MINIATURE, **environment: str) -> str:
        return self.finish(self.start(code, **environment))

    @staticmethod
    def finish(process: "subprocess.Popen[str]") -> str:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out

    def compilations(self) -> int:
        return len(self.log.read_text().splitlines())

    def wait_for_a_compilation(self) -> None:
        deadline = time.monotonic() + 60
        while not self.compilations():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def cold(tmp_path: Path, good_code: bytes) -> Cold:
    return Cold(tmp_path, good_code)


def test_the_second_process_does_not_compile(cold: Cold) -> None:
    assert [cold.run(), cold.run()] == [EXPECTED, EXPECTED]
    assert cold.compilations() == 1


def test_eight_processes_that_start_cold_compile_once(cold: Cold) -> None:
    processes = [cold.start(SECONDS="1") for _ in range(8)]
    assert [cold.finish(process) for process in processes] == [EXPECTED] * 8
    assert cold.compilations() == 1


def test_eight_processes_that_can_keep_nothing_compile_each(cold: Cold) -> None:
    cold.environment["FASTPACK_CACHE_DIR"] = str(cold.log / "below-a-file")
    processes = [cold.start() for _ in range(8)]
    assert [cold.finish(process) for process in processes] == [EXPECTED] * 8
    assert cold.compilations() == 8


def test_a_process_killed_while_it_compiles_holds_nobody_up(cold: Cold) -> None:
    killed = cold.start(SECONDS="100")
    cold.wait_for_a_compilation()
    waiting = cold.start()
    time.sleep(0.5)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert cold.finish(waiting) == EXPECTED
    assert cold.compilations() == 2


def test_a_disk_that_fills_up_while_writing(cold: Cold) -> None:
    # no file may grow beyond a thousand bytes: the write fails part of the way, for real
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    assert [cold.run(limit + MINIATURE), cold.run(limit + MINIATURE)] == [EXPECTED, EXPECTED]
    assert cold.compilations() == 2
    assert [path.suffix for path in cold.cache.iterdir()] == [".lock"]
    assert cold.run() == EXPECTED


FORK = """
import os, threading, warnings
from fastpack import machine
warnings.simplefilter("ignore")  # of a fork while there are threads
opening = threading.Thread(target=machine.library)
opening.start()
while not open(os.environ["LOG"]).read():
    pass
children = []
for _ in range(4):
    if (pid := os.fork()) == 0:
        try:
            import numpy as np, fastpack
            os._exit(fastpack.pack([np.arange(3)]).data.tolist() != [0, 1, 2])
        finally:
            os._exit(9)
    children.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
opening.join()
"""


def test_children_forked_while_a_thread_compiles(cold: Cold) -> None:
    assert cold.run(FORK + MINIATURE, SECONDS="1") == f"[0, 0, 0, 0]\n{EXPECTED}"
    assert cold.compilations() == 1, "the children wait for their parent's"


FORKS_DURING_LOADING = """
import os, threading, warnings
from fastpack import fallback, machine
warnings.simplefilter("ignore")
kept = []  # as machine does; unloading enters llvmlite, too
def load():
    for _ in range(40):
        kept.append(fallback.load(machine.supported_levels()[-1], "a test"))
loading = threading.Thread(target=load)
loading.start()
statuses = set()
while loading.is_alive():
    if (pid := os.fork()) == 0:
        try:
            fallback.load(machine.supported_levels()[-1], "a test")
            os._exit(0)
        finally:
            os._exit(9)
    statuses.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(statuses)
"""


def test_children_forked_while_a_thread_is_inside_llvmlite(cold: Cold) -> None:
    assert cold.run() == EXPECTED
    assert cold.run(FORKS_DURING_LOADING) == "{0}\n"


HIDE = """
import importlib.metadata, sys
hidden = {hidden!r}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder())
honest = importlib.metadata.version
def version(name):
    if name in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return honest(name)
importlib.metadata.version = version
"""


@pytest.mark.parametrize("hidden", [["numba", "llvmlite"], ["numba"], ["llvmlite"]])
def test_without_numba_or_llvmlite_one_error_says_what_to_install(hidden: list[str], child: Child, tmp_path: Path) -> None:
    said = child(HIDE.format(hidden=hidden) + MINIATURE, status=1, FASTPACK_KERNELS="jit", FASTPACK_CACHE_DIR=tmp_path)
    last = said.splitlines()[-1]
    assert last.startswith("RuntimeError: fastpack has no kernels that fit (the highest level of this CPU; FASTPACK_KERNELS=jit)")
    assert re.search(f"({'|'.join(hidden)})'?\\. Install fastpack\\[jit\\]", last)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: Patch) -> Path:
    """The cache folder, not yet there."""
    monkeypatch.setenv("FASTPACK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiled(monkeypatch: Patch) -> list[str]:
    """The levels that were compiled, as they are."""
    levels: list[str] = []
    monkeypatch.setattr(compiler, "object_code", lambda level: levels.append(level) or CODE)
    return levels


def get() -> bytes:
    return fallback.cached_object(LEVEL, fallback.cache_file(LEVEL), lambda said: None)


@pytest.fixture
def locked(folder: Path) -> Iterator[int]:
    """The cache's lock, held by someone else."""
    folder.mkdir(mode=0o700)
    handle = os.open(folder / fallback.cache_name(LEVEL).replace(".o", ".lock"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield handle
    os.close(handle)


def test_it_waits_for_who_compiles_already(locked: int, folder: Path, compiled: list[str]) -> None:
    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(get()))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    fallback._write(folder / fallback.cache_name(LEVEL), b"made by the other")
    fcntl.flock(locked, fcntl.LOCK_UN)
    thread.join(30)
    assert results == [b"made by the other"]
    assert compiled == []


def test_it_does_not_wait_for_ever(locked: int, folder: Path, compiled: list[str], monkeypatch: Patch) -> None:
    monkeypatch.setattr(fallback, "LONGEST_WAIT", 0.2)
    assert get() == CODE
    assert compiled == [LEVEL]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_hold_its_parents_lock(folder: Path, monkeypatch: Patch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(compiler, "object_code", lambda level: begun.set() or (go_on.wait(60) and CODE))
    thread = threading.Thread(target=get)
    thread.start()
    begun.wait(60)
    (reader, writer), (hears, tells) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        os.close(writer)
        os.write(tells, b"here")  # on a busy machine that may be long after the fork, and only now has it let go of the lock
        os.read(reader, 1)  # lives until the parent closes its end
        os._exit(0)
    os.read(hears, 4)
    go_on.set()
    thread.join(60)
    (lock,) = folder.glob("*.lock")
    handle = os.open(lock, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if anyone still holds it
    for end in (handle, writer, reader, hears, tells):
        os.close(end)
    os.waitpid(pid, 0)


@pytest.fixture(scope="session")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a copy of the package whose kernels have changed since it was built, in what they do."""
    folder = tmp_path_factory.mktemp("edited")
    shutil.copytree(machine.PACKAGE, folder / "fastpack", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "fastpack" / "_machine_code" / "generic-0123456789abcdef.so").touch()
    source = folder / "fastpack" / "kernels" / "layout.py"
    before = source.read_text()
    source.write_text(before.replace("lengths[sorted_indices[place]] = length\n", "lengths[sorted_indices[place]] = length + 1000\n"))
    assert source.read_text() != before
    return folder


# at the generic level, as elsewhere the sources of other levels are compiled
EDITED = """
import numpy as np, fastpack
from fastpack import machine
machine.supported_levels = lambda: ["generic"]
print(fastpack.pack([np.arange(3), np.arange(1)]).lengths, *machine.library().reason.split("; ")[1:], sep="; ")
"""


def test_changed_sources_are_compiled_at_first_use(child: Child, edited: Path, tmp_path: Path) -> None:
    expected = "[1003 1001]; the library was built from other sources; compiled here\n"
    assert child(EDITED, PYTHONPATH=edited, FASTPACK_CACHE_DIR=tmp_path) == expected
    (kept,) = tmp_path.glob("kernels-generic-*.o")
    made = kept.stat().st_mtime_ns
    assert child(EDITED, PYTHONPATH=edited, FASTPACK_CACHE_DIR=tmp_path) == expected
    assert kept.stat().st_mtime_ns == made, "the second process does not compile"


def test_the_hosts_own_level_runs(good_code: bytes, tmp_path: Path, monkeypatch: Patch) -> None:
    level = f"host-{machine.host_fingerprint()}"
    monkeypatch.setenv("FASTPACK_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "object_code", lambda level: good_code)
    monkeypatch.setattr(machine, "_library", fallback.load(level, "a test"))
    monkeypatch.setattr(machine, "_calls", {})
    sequences = [np.random.default_rng(k).normal(size=(k % 7, 3)) for k in range(50)]
    packed = fastpack.pack(sequences)
    padded, lengths = fastpack.pad(packed)
    assert lengths.tolist() == [k % 7 for k in range(50)]
    for k, back in enumerate(fastpack.unpack(fastpack.pack_padded(padded, lengths))):
        np.testing.assert_array_equal(back, sequences[k])
    assert machine.library().level == level


# holes too small for all of the code at once, and far apart; with `any` each section goes where there is room for it
IN_PIECES = """
import mmap, sys
import llvmlite.binding as llvm
from fastpack import machine
create = llvm.create_mcjit_compiler
if sys.argv[1] == "any":
    llvm.create_mcjit_compiler = lambda module, target, use_lmm: create(module, target, use_lmm=False)
holes, between = zip(*[(mmap.mmap(-1, 256 << 10), mmap.mmap(-1, 4 << 30)) for _ in range(20)])
for hole in holes:
    hole.close()
print(machine.library().reason)
"""


def test_kernels_are_loaded_where_free_memory_is_in_pieces(child: Child, good_code: bytes, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    fallback._write(tmp_path / "cache" / fallback.cache_name(LEVEL), good_code)
    settings = {"FASTPACK_KERNELS": "jit", "FASTPACK_CACHE_DIR": tmp_path / "cache"}
    assert child(IN_PIECES, "one", **settings).endswith("compiled here\n")
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        assert "isInt<32>" in child(IN_PIECES, "any", status=-signal.SIGABRT, **settings)
