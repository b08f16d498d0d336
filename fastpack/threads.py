"""Kernels on threads of Python's own: what the NumPy level does where it is asked for more than one.

A thread is started for each share of a call, and ends with it. A pool would save nothing: handing a share to a waiting thread
took 5 to 40 us, starting one 20 (`threading.Thread`: 55), and a forked child would have to forget it.
"""

from _thread import allocate_lock, start_new_thread
from collections.abc import Iterable, Sequence

from fastpack.machine import run


def run_shares(steps: Sequence[Iterable[int]], shares: int, alive: object) -> None:
    """Have the kernels of the blocks `steps`, one after another, do their shares 0 to `shares`, each share in a thread.

    Share 0 is this thread's, and so is any whose thread has not begun when this one is free: on a busy machine that may take
    milliseconds. No share waits for the others between steps, so none may read what another writes.

    An exception in any thread, as Ctrl-C in this one, is raised here, and the others end with the step that they are in.
    `alive` is what the blocks hold addresses of: the threads keep it, so that it outlives them whatever happens here.
    """
    errors: list[BaseException] = []
    ended = {share: allocate_lock() for share in range(1, shares)}
    to_begin = dict.fromkeys(ended, True)  # whoever pops a share does it

    def do(share: int) -> None:
        for step in steps:
            if not errors:
                run(step, share, share + 1)

    def do_aside(share: int, _alive: object) -> None:
        try:
            if to_begin.pop(share, False):
                do(share)
        except BaseException as error:
            errors.append(error)
        finally:
            ended[share].release()

    try:
        for share, lock in ended.items():
            lock.acquire()
            start_new_thread(do_aside, (share, alive))
        do(0)
        for share, lock in ended.items():
            if to_begin.pop(share, False):
                do(share)
            else:
                lock.acquire()
    except BaseException as error:
        errors.append(error)
        raise
    if errors:
        raise errors[0]
