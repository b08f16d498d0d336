"""Threads of the NumPy level: their errors, Ctrl-C, forks, and memory that outlives a call that was interrupted."""

import _thread
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fastpack import blocks, machine, threads
from fastpack.cells import shares_units
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

    def run_shares(steps: list[Iterable[int]], shares: int, arrivals: np.ndarray | None, held: tuple) -> None:
        alive.extend(weakref.ref(item) for item in (held[1].x, held[1].outs[0], held[1].workspace, held[0].panels[0]))
        real(steps, shares, arrivals, held)

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


# ---- threads that wait for each other, as they share hidden units


class Call(NamedTuple):
    """A call in a thread of its own, whose shares wait for each other."""

    thread: threading.Thread
    arrivals: list[np.ndarray]
    returned: list[int]  # the shares whose kernels have returned
    raised: list[BaseException]


def call_of_shares_that_wait(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> Call:
    """Start a call of three shares of hidden units; `before` is called with each share before its kernel runs."""
    call = Call(threading.Thread(target=lambda: work(), daemon=True), [], [], [])
    real = threads.run_shares

    def run_step(block: Iterable[int], share: int, end: int) -> None:
        before(share)
        machine.run(block, share, end)
        call.returned.append(share)

    def run_shares(steps: list[Iterable[int]], shares: int, arrivals: np.ndarray, held: object) -> None:
        call.arrivals.append(arrivals)
        real(steps, shares, arrivals, held)

    def work() -> None:
        try:
            layer(batch_of([5, 4, 3], 3), num_threads=3)
        except BaseException as error:
            call.raised.append(error)

    layer = layer_of(KINDS["GRU"], weights_of(KINDS["GRU"], 3, 40))
    monkeypatch.setattr(threads, "run", run_step)
    monkeypatch.setattr("fastpack.recurrent.run_shares", run_shares)
    monkeypatch.setattr("fastpack.recurrent.shares_units", lambda *_: True)
    call.thread.start()
    return call


def soon(claim: Callable[[], bool]) -> bool:
    """Whether something comes true within seconds."""
    deadline = time.monotonic() + 10
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.01)
    return claim()


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("error", [MemoryError("full"), Out("out"), KeyboardInterrupt()])
def test_an_error_in_any_thread_frees_those_that_wait(failing: int, error: BaseException, monkeypatch: pytest.MonkeyPatch):
    def before(share: int) -> None:
        if share == failing:
            time.sleep(0.05)  # the others wait for it by now
            raise error

    call = call_of_shares_that_wait(monkeypatch, before)
    assert soon(lambda: not call.thread.is_alive())
    assert call.raised == [error]
    assert soon(lambda: sorted(call.returned) == [share for share in range(3) if share != failing])


def test_a_thread_that_cannot_start_frees_those_that_wait(monkeypatch: pytest.MonkeyPatch):
    def start_new_thread(function: Callable[..., None], arguments: tuple) -> None:
        if arguments[0] == 2:
            raise RuntimeError("can't start new thread")
        _thread.start_new_thread(function, arguments)

    monkeypatch.setattr(threads, "start_new_thread", start_new_thread)
    call = call_of_shares_that_wait(monkeypatch, lambda share: None)
    assert soon(lambda: not call.thread.is_alive())
    assert [str(error) for error in call.raised] == ["can't start new thread"]
    assert soon(lambda: call.returned in ([], [1]))


def test_threads_that_wait_for_ever_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    never = threading.Event()
    call = call_of_shares_that_wait(monkeypatch, lambda share: share == 2 and never.wait(60))
    assert soon(lambda: len(call.arrivals) == 1 and call.arrivals[0][0] == 2)
    time.sleep(0.1)
    assert call.thread.is_alive()
    assert call.returned == []
    call.arrivals[0][:] = 1 << 62  # as run_shares does
    assert soon(lambda: sorted(call.returned) == [0, 1])
    never.set()
    assert soon(lambda: not call.thread.is_alive())
    assert call.raised == []


INTERRUPTED = """
import os, pickle, signal, sys, threading, time
import numpy as np, fastpack
random = np.random.default_rng(0)
H = {H}
shapes = dict.fromkeys(["weight_ih_l0", "weight_hh_l0"], (4 * H, H))
weights = ((name, random.standard_normal(shape, np.float32) / 20) for name, shape in shapes.items())
layer = fastpack.LSTM.from_state_dict(dict(weights))
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


@pytest.mark.parametrize("H", [64, 192])  # with threads that share sequences, and hidden units
def test_ctrl_c(child: Child, H: int):
    assert child(INTERRUPTED.format(H=H), PYTHONPATH=ROOT) == "5 times interrupted\n"


@pytest.mark.parametrize("H", [64, 192])
def test_ctrl_c_ends_a_program(child: Child, H: int):
    assert shares_units(blocks.LSTM, H, H, 4, 2) == (H == 192)
    code = INTERRUPTED.format(H=H).partition("caught = 0")[0] + "threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
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

    def run_shares(steps: list[Iterable[int]], shares: int, arrivals: np.ndarray | None, held: tuple) -> None:
        used.append(shares)
        real(steps, shares, arrivals, held)

    monkeypatch.setattr("fastpack.recurrent.run_shares", run_shares)
    for lengths, shares in [([4, 0, 1, 0], 2), ([1], 1), ([0, 0], 1), ([2] * 9, 7)]:
        expected = run(layer, batch_of(lengths, 3))
        assert_same_arrays(run(layer, batch_of(lengths, 3), num_threads=7), expected)
        assert used == [1, shares]
        used.clear()
