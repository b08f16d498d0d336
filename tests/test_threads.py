"""Threads of the NumPy level: their errors, Ctrl-C, forks, and memory that outlives a call that was interrupted."""

import _thread
import gc
import threading
import time
import weakref
from collections.abc import Iterable
from pathlib import Path

import pytest

from fastpack import machine, threads
from tests.conftest import Child
from tests.recurrent_oracle import KINDS, assert_same_arrays, batch_of, layer_of, run, weights_of

ROOT = Path(__file__).parent.parent


def test_each_share_does_every_step_in_order(monkeypatch: pytest.MonkeyPatch):
    done: list[tuple[int, int, int]] = []
    monkeypatch.setattr(threads, "run", lambda step, begin, end: done.append((step, begin, end, _thread.get_ident())))
    for shares in (1, 2, 5):
        done.clear()
        threads.run_shares([10, 20, 30], shares, None, None)
        for share in range(shares):
            own = [item for item in done if item[1] == share]
            assert [item[:3] for item in own] == [(step, share, share + 1) for step in (10, 20, 30)]
            assert len({item[3] for item in own}) == 1
        assert len(done) == 3 * shares
        assert len({item[3] for item in done}) <= shares
        assert {item[3] for item in done if item[1] == 0} == {_thread.get_ident()}


class Out(BaseException):
    """No Exception: what not even KeyboardInterrupt's like may slip through."""


@pytest.mark.parametrize("failing", [0, 1, 3])
@pytest.mark.parametrize("error", [MemoryError("full"), Out("out"), KeyboardInterrupt()])
def test_an_error_in_any_thread_is_raised(failing: int, error: BaseException, monkeypatch: pytest.MonkeyPatch):
    failed, done = threading.Event(), []

    def run_step(step: int, share: int, _end: int) -> None:
        if share == failing:
            failed.set()
            raise error
        assert failed.wait(10)
        time.sleep(0.05)
        done.append((step, share))

    monkeypatch.setattr(threads, "run", run_step)
    with pytest.raises(type(error)) as raised:
        threads.run_shares(range(1000), 4, None, None)
    assert raised.value is error
    time.sleep(0.2)
    assert len(done) <= 3  # the others ended with the step that they were in


def test_a_thread_that_cannot_start(monkeypatch: pytest.MonkeyPatch):
    def start_new_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "start_new_thread", start_new_thread)
    with pytest.raises(RuntimeError, match=r"^can't start new thread$"):
        threads.run_shares([], 2, None, None)
    threads.run_shares([], 1, None, None)


def test_memory_outlives_an_interrupted_call(monkeypatch: pytest.MonkeyPatch):
    begun, go_on, alive, seen = threading.Event(), threading.Event(), [], []

    def run_step(block: Iterable[int], share: int, end: int) -> None:
        if share == 0:
            assert begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        assert go_on.wait(10)
        machine.run(block, share, end)  # into memory that nobody but this thread holds now
        seen.append(share)

    real = threads.run_shares

    def run_shares(steps: list[Iterable[int]], shares: int, held: tuple) -> None:
        alive.extend(weakref.ref(item) for item in (held[1].x, held[1].outs[0], held[1].workspace, held[0].panels[0]))
        real(steps, shares, held)

    monkeypatch.setattr(threads, "run", run_step)
    layer = layer_of(KINDS["GRU"], weights_of(KINDS["GRU"], 3, 40))
    monkeypatch.setattr("fastpack.recurrent.run_shares", run_shares)
    with pytest.raises(KeyboardInterrupt) as raised:
        layer(batch_of([5, 4, 3], 3), num_threads=2)
    raised.value.__traceback__ = None  # whose frames would keep it too
    del layer, raised
    gc.collect()
    assert len(alive) == 4
    assert all(item() is not None for item in alive)
    go_on.set()
    for _ in range(100):
        gc.collect()
        if all(item() is None for item in alive):
            break
        time.sleep(0.02)
    assert seen == [1]
    assert all(item() is None for item in alive)


INTERRUPTED = """
import os, pickle, signal, sys, threading, time
import numpy as np, fastpack
random = np.random.default_rng(0)
H = 192
shapes = {"weight_ih_l0": (4 * H, H), "weight_hh_l0": (4 * H, H)}
layer = fastpack.LSTM.from_state_dict({name: random.standard_normal(shape, np.float32) / 20 for name, shape in shapes.items()})
packed = fastpack.pack([random.standard_normal((400, H), np.float32) for _ in range(4)])
expected = layer(packed)[0].data.tobytes()
signal.signal(signal.SIGINT, signal.default_int_handler)
caught = 0
for k in range(5):
    timer = threading.Timer(0.004 * k, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        while True:
            layer(packed, num_threads=2)
    except KeyboardInterrupt:
        caught += 1
    timer.join()
    assert layer(packed, num_threads=2)[0].data.tobytes() == expected
print(caught, "times interrupted")
"""


def test_ctrl_c(child: Child):
    assert child(INTERRUPTED, PYTHONPATH=ROOT) == "5 times interrupted\n"


def test_ctrl_c_ends_a_program(child: Child):
    code = INTERRUPTED.partition("caught = 0")[0] + "threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
    said = child(code + "while True:\n    layer(packed, num_threads=2)", status=-2, PYTHONPATH=ROOT)
    assert said.splitlines()[-1] == "KeyboardInterrupt"


FORKED = """
import os, warnings
import numpy as np, fastpack
warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
layer = fastpack.RNN.from_state_dict(dict.fromkeys(["weight_ih_l0", "weight_hh_l0"], np.ones((1, 1))), nonlinearity="relu")
packed = fastpack.pack([np.ones((n, 1)) for n in range(50)])
for _ in range(3):
    assert layer(packed, num_threads=4)[1].ravel().tolist() == list(range(50))
    child = os.fork()
    if child == 0:
        os._exit(layer(packed, num_threads=4)[1].ravel().tolist() != list(range(50)))
    assert os.waitpid(child, 0)[1] == 0
print("forked")
"""


def test_threads_before_and_after_a_fork(child: Child):
    assert child(FORKED, PYTHONPATH=ROOT) == "forked\n"


def test_no_more_threads_than_sequences_with_steps(monkeypatch: pytest.MonkeyPatch):
    layer, used = layer_of(KINDS["tanh"], weights_of(KINDS["tanh"], 3, 5)), []
    real = threads.run_shares
    monkeypatch.setattr("fastpack.recurrent.run_shares", lambda steps, shares, held: (used.append(shares), real(steps, shares, held)))
    for lengths, shares in [([4, 0, 1, 0], 2), ([1], 1), ([0, 0], 1), ([2] * 9, 7)]:
        expected = run(layer, batch_of(lengths, 3))
        assert_same_arrays(run(layer, batch_of(lengths, 3), num_threads=7), expected)
        assert used == [1, shares]
        used.clear()
