"""Threads that do the phases of a call together, one after another: of each a share, as some of the hidden units or of the sequences.

A thread takes its own share of a phase first: where these are of hidden units, its cache is full of their weights. Then it waits
for the others, but it does not count on them: a share that nobody has begun after a moment, it does itself. So a thread that
starts late, loses its core or never comes is not waited for, unless that happens in the middle of a share.

A plain barrier, for which all must come, is as fast on an idle machine. With one other busy process on two cores it took 10 to
300 times as long as one thread, with more threads than cores 10 times; this takes 1 to 3 times as long.
"""

from typing import Any, NamedTuple

from fastpack.blocks import LINE
from fastpack.kernels.kernel import helper
from fastpack.kernels.memory import advance, is_null
from fastpack.kernels.waiting import count_up, counted, give_way, pause, took

PATIENCE = 64  # pauses, about a microsecond, before a thread does the others' shares; 16 are as good, 512 are too many
AWAKE = 64 * PATIENCE  # pauses before it lets others have its core


class Team(NamedTuple):
    """Whose shares of the phases a call does first: begin..end of all. Without arrivals it does all, whoever's they are."""

    arrivals: Any  # (LINE * (1 + shares),), or null
    begin: int
    end: int
    shares: int


class Units(NamedTuple):
    """A share of a phase's units, in blocks of `lanes`: hidden units, or shares of something else, one by one."""

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
