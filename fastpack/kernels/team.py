"""Threads that share hidden units: they do a recurrence's phases together, one after another.

A thread takes its own share of a phase first, of whose weights its cache is full. Then it waits for the others, but it does not
count on them: a share that nobody has begun after a moment, it does itself. So a thread that starts late, loses its core or
never comes is not waited for, unless that happens in the middle of a share.

A plain barrier, for which all must come, is as fast on an idle machine. With one other busy process on two cores it took 10 to
300 times as long as one thread, with more threads than cores 10 times; this takes 1 to 3 times as long.
"""

from typing import Any, NamedTuple

from fastpack.blocks import LINE
from fastpack.kernels.kernel import helper
from fastpack.kernels.memory import advance, as_float32, as_float64, is_null
from fastpack.kernels.shares import Batch
from fastpack.kernels.waiting import count_up, counted, give_way, pause, took

PATIENCE = 64  # pauses, about a microsecond, before a thread does the others' shares; 16 are as good, 512 are too many
AWAKE = 64 * PATIENCE  # pauses before it lets others have its core


class Team(NamedTuple):
    """Whose shares of the hidden units a call is: begin..end of all. Without arrivals it does all units, whoever's they are."""

    arrivals: Any  # (LINE * (1 + shares),), or null
    begin: int
    end: int
    shares: int


class Units(NamedTuple):
    """A share of the hidden units, in blocks of `lanes`."""

    width: int  # how many units there are in all
    lanes: int
    first: int
    stop: int


@helper
def units_of(width, lanes, share, shares):
    blocks = -(-width // lanes)
    return Units(width, lanes, blocks * share // shares, blocks * (share + 1) // shares)


@helper
def do_share(team, phase, share, width, lanes, work, given):
    # one share of a phase, unless a thread has begun it
    if took(advance(team.arrivals, LINE * (1 + share)), phase):
        work(units_of(width, lanes, share, team.shares), given)
        count_up(team.arrivals)


@helper
def do_phase(team, phase, width, lanes, work, given):
    # has `work` done for all units, and returns the number of the next phase
    if is_null(team.arrivals):
        work(units_of(width, lanes, 0, 1), given)
        return phase + 1
    for share in range(team.begin, team.end):
        do_share(team, phase, share, width, lanes, work, given)
    looks = 0
    while counted(team.arrivals) < (phase + 1) * team.shares:
        looks += 1
        if looks == PATIENCE:
            for share in range(team.shares):
                do_share(team, phase, share, width, lanes, work, given)
        elif looks < AWAKE:
            pause()
        else:
            give_way()  # what it waits for may be that a thread gets this core
    return phase + 1


@helper
def run_shares(run, call, layout, item_bytes, workspace, workspace_bytes, arrivals, begin, end, shares):
    # `run` for each of the shares begin..end of the sequences; where shares are of hidden units, once for all of them
    sorted_indices, batch_sizes, B, T, reverse = layout
    together = not is_null(arrivals)
    for share in range(begin, begin + 1 if together else end):
        own = advance(workspace, share * workspace_bytes)
        common = workspace if together else own
        batch = Batch(sorted_indices, batch_sizes, B, T, reverse, 0 if together else share, 1 if together else shares)
        team = Team(arrivals, begin, end, shares)
        if item_bytes == 4:
            run(call, batch, team, as_float32(own), as_float32(common))
        else:
            run(call, batch, team, as_float64(own), as_float64(common))
