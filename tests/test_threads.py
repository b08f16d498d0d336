"""Threads of the NumPy level: their errors, Ctrl-C, forks, and memory that outlives a call that was interrupted."""

import _thread
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from fastpack import Packed, blocks, machine, recurrent, threads
from fastpack.cells import shares_units
from fastpack.recurrent import Recurrent
from tests.conftest import Child
from tests.recurrent_oracle import KINDS, assert_same_arrays, batch_of, layer_of, run, units_shared, weights_of

ROOT = Path(__file__).parent.parent


def test_each_share_does_every_step_in_order(monkeypatch: pytest.MonkeyPatch):
    done: list[tuple[int, int, int]] = []
    monkeypatch.setattr(threads, "run", lambda step, begin, end: done.append((step, begin, end, _thread.get_ident())))
    for shares in (1, 2, 5):
        done.clear()
        threads.run_shares([10, 20, 30], shares, None)
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
        threads.run_shares(range(1000), 4, None)
    assert raised.value is error
    time.sleep(0.2)
    assert len(done) <= 3  # the others ended with the step that they were in


def test_a_thread_that_cannot_start(monkeypatch: pytest.MonkeyPatch):
    def start_new_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "start_new_thread", start_new_thread)
    with pytest.raises(RuntimeError, match=r"^can't start new thread$"):
        threads.run_shares([], 2, None)
    threads.run_shares([], 1, None)


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


# ---- threads that share hidden units, and so do each step together


def layer_and_batch() -> tuple[Recurrent, Packed, list[np.ndarray]]:
    """Return a layer, a batch and what one thread makes of it."""
    layer, packed = layer_of(KINDS["LSTM"], weights_of(KINDS["LSTM"], 3, 40, L=2, D=2)), batch_of([5, 4, 3], 3)
    return layer, packed, run(layer, packed)


@pytest.mark.parametrize("shared", [nullcontext, units_shared])
@pytest.mark.parametrize("seconds", [0, 0.001, 0.02])
def test_threads_that_come_late_or_never(shared: Callable[[], AbstractContextManager], seconds: float, monkeypatch: pytest.MonkeyPatch):
    layer, packed, expected = layer_and_batch()
    begun = []

    def start_new_thread(function: Callable[..., None], arguments: tuple) -> None:
        def late() -> None:
            time.sleep(seconds * arguments[0])
            begun.append(arguments[0])
            function(*arguments)

        if seconds:
            _thread.start_new_thread(late, ())

    monkeypatch.setattr(threads, "start_new_thread", start_new_thread)
    with shared():
        assert_same_arrays(run(layer, packed, num_threads=4), expected)
    assert soon(lambda: sorted(begun) == ([1, 2, 3][: 3 if shared is units_shared else 2] if seconds else []))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1], [1, 1, 2, 0]])
def test_calls_that_come_one_after_another(order: list[int], monkeypatch: pytest.MonkeyPatch):
    # as on a pool of threads that are busy: the first call does all
    layer, packed, expected = layer_and_batch()
    monkeypatch.setattr("fastpack.recurrent.run_shares", lambda steps, *_: [machine.run(step, k, k + 1) for step in steps for k in order])
    with units_shared():
        assert_same_arrays(run(layer, packed, num_threads=3), expected)


def test_a_share_that_a_thread_has_begun_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    layer, packed, _ = layer_and_batch()
    steps: list[blocks.Recur] = []
    calls: list[recurrent.Call] = []

    def run_shares(found: list[blocks.Recur], _shares: int, held: tuple[object, recurrent.Call]) -> None:
        steps.extend(found)
        calls.append(held[1])

    monkeypatch.setattr("fastpack.recurrent.run_shares", run_shares)
    with units_shared():
        layer(packed, num_threads=3)
    finished, _, _, taken = calls[0].arrivals[0].reshape(-1, blocks.LINE)[:, 0]
    assert (finished, taken) == (0, 0)
    calls[0].arrivals[0].reshape(-1, blocks.LINE)[3, 0] = 1  # as if a thread had begun the last share of the first phase
    thread = threading.Thread(target=machine.run, args=(steps[0], 0, 1))
    thread.start()
    assert soon(lambda: calls[0].arrivals[0][0] == 2)  # it has done the others
    time.sleep(0.1)
    assert thread.is_alive()
    calls[0].arrivals[0][0] = 3  # as if that were done now
    assert soon(lambda: not thread.is_alive())


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("error", [MemoryError("full"), Out("out"), KeyboardInterrupt()])
def test_an_error_in_a_thread_keeps_no_other_waiting(failing: int, error: BaseException, monkeypatch: pytest.MonkeyPatch):
    layer, packed, _ = layer_and_batch()
    entered, others = threading.Event(), []

    def run_step(block: Iterable[int], share: int, end: int) -> None:
        if share == failing:
            entered.set()
            raise error
        assert entered.wait(10)
        machine.run(block, share, end)
        others.append(share)

    monkeypatch.setattr(threads, "run", run_step)
    with units_shared(), pytest.raises(type(error)) as raised:
        layer(packed, num_threads=3)
    assert raised.value is error
    time.sleep(0.02)
    assert len(others) <= 2


def soon(claim: Callable[[], bool]) -> bool:
    """Whether something comes true within seconds."""
    deadline = time.monotonic() + 10
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.01)
    return claim()


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

    def run_shares(steps: list[Iterable[int]], shares: int, held: tuple) -> None:
        used.append(shares)
        real(steps, shares, held)

    monkeypatch.setattr("fastpack.recurrent.run_shares", run_shares)
    for lengths, shares in [([4, 0, 1, 0], 2), ([1], 1), ([0, 0], 1), ([2] * 9, 7)]:
        expected = run(layer, batch_of(lengths, 3))
        assert_same_arrays(run(layer, batch_of(lengths, 3), num_threads=7), expected)
        assert used == [1, shares]
        used.clear()
