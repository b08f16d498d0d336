"""Packing in worker processes, however they are started, whatever the parent did before."""

import multiprocessing
from pathlib import Path

import pytest

from tests.conftest import Child

# a program in a file: processes that are spawned import it again
PROGRAM = """
import multiprocessing, sys, threading, warnings
import numpy as np
import fastpack

def sequences(k):
    return [np.arange(length, dtype=np.float32) * k for length in ((k * 7) % 5, 3, 0, k % 11 + 1)]

def work(k):
    packed = fastpack.pack(sequences(k))
    padded, lengths = fastpack.pad(packed)
    return k, packed, fastpack.pack_padded(padded, lengths).data.tolist() == packed.data.tolist()

def keep_packing(stop):
    while not stop.is_set():
        work(3)

def main(method, parent):
    stop, threads = threading.Event(), []
    if parent == "packed":
        work(0)
    if parent == "packing":
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        threads = [threading.Thread(target=keep_packing, args=(stop,)) for _ in range(2)]
        for thread in threads:
            thread.start()
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.map(work, range(40), chunksize=1)
    stop.set()
    for thread in threads:
        thread.join()
    for k, packed, same in results:
        assert same and isinstance(packed, fastpack.Packed)
        for one, other in zip(fastpack.unpack(packed), sequences(k), strict=True):
            np.testing.assert_array_equal(one, other)
    print(len(results), "well packed")

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def test_every_way_of_starting_a_process_is_tested() -> None:
    assert set(multiprocessing.get_all_start_methods()) <= {"fork", "spawn", "forkserver"}


@pytest.mark.parametrize("parent", ["fresh", "packed", "packing"])
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_pack(method: str, parent: str, child: Child, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    assert child(code, tmp_path / "program.py", method, parent) == "40 well packed\n"
