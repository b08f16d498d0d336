"""Who does what of a recurrence: a share's sequences or hidden units, and where the rows of its steps are."""

from typing import Any, NamedTuple

from fastpack.blocks import LINE
from fastpack.kernels.kernel import helper
from fastpack.kernels.memory import advance, is_null
from fastpack.kernels.waiting import count_up, counted, give_way, pause, took

PATIENCE = 64  # looks at the others' number before a thread does their shares: about a microsecond


class Rows(NamedTuple):
    """Rows of x or out: row r of a step is at `rows + step + r * row`, in items."""

    rows: Any
    row: int
    step: int  # 0 where each step follows the rows of the one before


class States(NamedTuple):
    """The states before and after, in the caller's order."""

    h_0: Any  # (B, P), or null
    c_0: Any  # (B, H), or null
    h_n: Any  # (B, P)
    c_n: Any  # (B, H), or null


class Batch(NamedTuple):
    """The layout of the packed batch, and which of its rows a share owns."""

    sorted_indices: Any  # (B,)
    batch_sizes: Any  # (T,)
    B: int
    T: int
    reverse: int
    share: int
    shares: int


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
    # Has `work` done for all units, and returns the next phase. A thread begins with its own shares, whose weights are in its
    # cache. Then it waits, but it does not count on the others: what nobody has begun after a moment, it does itself. So a thread
    # that starts late, loses its core or never comes is not waited for, unless that happens in the middle of its share.
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
        elif looks < 64 * PATIENCE:
            pause()
        else:
            give_way()  # what it waits for may be that a thread gets this core
    return phase + 1


@helper
def own_row(batch, i):
    # to and fro: the shares of 0 1 1 0 0 1 differ by less than those of 0 1 0 1 0 1
    return i * batch.shares + (batch.share if i % 2 == 0 else batch.shares - 1 - batch.share)


@helper
def own_rows(batch, size):
    # of a step with `size` rows, how many are this share's
    whole = size // batch.shares
    return whole + (1 if own_row(batch, whole) < size else 0)


@helper
def step_after(batch, t):
    return t - 1 if batch.reverse else t + 1


@helper
def move_on(batch, t, rows, step):
    # from the address of step t to that of the step after, which in reverse is t - 1
    size = batch.batch_sizes[t - 1 if batch.reverse else t]
    items = rows.step if rows.step else rows.row * size
    return advance(step, -items if batch.reverse else items)


@helper
def first_step(batch, rows):
    step = rows.rows
    if batch.reverse:
        for t in range(batch.T - 1):
            step = advance(step, rows.step if rows.step else rows.row * batch.batch_sizes[t])
    return step
