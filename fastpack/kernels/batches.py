"""Which sequences make a batch: as many costs in a row as fit, or what first fit decreasing puts into a bin.

The bins that have room for the cost at hand are a set of numbers, of which the least is wanted for each cost: a tree of words with
64 bits. A bit of a leaf is a member; a bit of another node says whether the child below it has any. The children of word j are the
words 64 * j + 1 to 64 * j + 64, the leaves are those from `leaves` on. So 10 million bins take four steps, in 1.3 MB.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastpack import blocks
from fastpack.kernels.kernel import helper, kernel


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(_typing: Any, word: Any) -> Any:
    """Return which bit is the lowest of a word's that are set; there needs to be one."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@helper
def put_in(words, leaves, member):
    at, bit = leaves + (member >> 6), member & 63
    had = words[at]
    words[at] = had | (1 << bit)
    while had == 0 and at > 0:  # where the word had others, the nodes above know of it
        at, bit = (at - 1) >> 6, (at - 1) & 63
        had = words[at]
        words[at] = had | (1 << bit)


@helper
def take_out(words, leaves, member):
    at, bit = leaves + (member >> 6), member & 63
    words[at] &= ~(1 << bit)
    while words[at] == 0 and at > 0:
        at, bit = (at - 1) >> 6, (at - 1) & 63
        words[at] &= ~(1 << bit)


@helper
def least_of(words, leaves):
    # of a set that is not empty, which the first word tells
    at = 0
    while at < leaves:
        at = 64 * at + 1 + lowest_bit(words[at])
    return 64 * (at - leaves) + lowest_bit(words[at])


@helper
def first_within(costs, begin, n, room):
    # the first of costs[begin:n], which never rise, that is at most `room`, as the last is; without a branch to mispredict
    left = n - begin
    while left > 1:
        half = left // 2
        begin += half if costs[begin + half - 1] > room else 0
        left -= half
    return begin


@kernel(blocks.CutInARow)
def cut_in_a_row(begin: int, end: int, costs: Any, n: int, max_tokens: int, max_sequences: int, offsets: Any, facts: Any) -> None:
    batches, first, room = 0, 0, max_tokens
    offsets[0] = 0
    for i in range(n):
        if i > first and (costs[i] > room or i - first == max_sequences):
            batches += 1
            offsets[batches] = first = i
            room = max_tokens
        room -= costs[i]
    offsets[batches + 1] = n
    facts[0] = batches + 1


@kernel(blocks.FirstFit)
def first_fit(
    begin: int,
    end: int,
    costs: Any,
    n: int,
    max_tokens: int,
    max_sequences: int,
    order: Any,
    offsets: Any,
    facts: Any,
    bins: Any,
    rooms: Any,
    following: Any,
    fitting: Any,
    leaves: int,
) -> None:
    # A bin that has too little room for a cost waits for the first that it can take. Until all costs are in their bins, order[i] is
    # the last of those that wait for cost i, or -1, and following[k] the one that came to wait there before bin k; offsets[k + 1]
    # counts what is in bin k.
    opened = 0
    for i in range(n):
        order[i] = -1
    for i in range(n):
        waiting = order[i]
        while waiting >= 0:
            put_in(fitting, leaves, waiting)
            waiting = following[waiting]
        if fitting[0] != 0:
            k = least_of(fitting, leaves)
        else:
            k = opened
            opened += 1
            rooms[k], offsets[k + 1] = max_tokens, 0
            put_in(fitting, leaves, k)
        bins[i] = k
        rooms[k] -= costs[i]
        offsets[k + 1] += 1
        if offsets[k + 1] == max_sequences or rooms[k] < costs[n - 1]:
            take_out(fitting, leaves, k)
        elif rooms[k] < costs[i]:
            take_out(fitting, leaves, k)
            later = first_within(costs, i + 1, n, rooms[k])
            following[k] = order[later]
            order[later] = k
    offsets[0] = 0
    for k in range(opened):
        offsets[k + 1] += offsets[k]
    for i in range(n):
        order[offsets[bins[i]]] = i
        offsets[bins[i]] += 1
    for k in range(opened, 0, -1):
        offsets[k] = offsets[k - 1]
    offsets[0] = 0
    facts[0] = opened
