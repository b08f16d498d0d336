"""The layout of a packed batch: from lengths to batch sizes and permutations, and back."""

from typing import Any

from fastpack import blocks
from fastpack.kernels.kernel import helper, kernel
from fastpack.kernels.memory import advance, is_null, read_int32, read_int64

LARGEST = 2**63 - 1


@kernel(blocks.MeasureLengths)
def measure_lengths(begin: int, end: int, lengths: Any, B: int, limit: int, facts: Any) -> None:
    longest, total, negative, too_long, first_empty, first_rise = 0, 0, -1, -1, -1, -1
    for i in range(B):
        length = lengths[i]
        if length < 0 and negative < 0:
            negative = i
        if length > limit and too_long < 0:
            too_long = i
        if length == 0 and first_empty < 0:
            first_empty = i
        if i > 0 and length > lengths[i - 1] and first_rise < 0:
            first_rise = i
        longest = max(longest, length)
        if total >= 0 and length > LARGEST - total:
            total = -1  # more rows than int64 can count
        if total >= 0:
            total += length
    facts[0] = longest
    facts[1] = total
    facts[2] = negative
    facts[3] = too_long
    facts[4] = first_empty
    facts[5] = first_rise


@kernel(blocks.SortByLength)
def sort_by_length(
    begin: int, end: int, lengths: Any, B: int, T: int, batch_sizes: Any, sorted_indices: Any, unsorted_indices: Any, offsets: Any
) -> None:
    # batch_sizes is also the only working memory. It first counts the sequences of each length, then holds where the
    # next sequence of each length belongs. When all are placed it holds the batch sizes, one step late.
    for t in range(T):
        batch_sizes[t] = 0
    for i in range(B):
        if lengths[i] > 0:
            batch_sizes[lengths[i] - 1] += 1
    longer = 0
    for t in range(T - 1, -1, -1):
        longer += batch_sizes[t]
        batch_sizes[t] = longer
    # the first place for length l is the number of longer sequences: batch_sizes[l], and 0 for the longest
    place_of_longest, total = 0, 0
    for i in range(B):
        length = lengths[i]
        offsets[i] = total
        total += length
        if length == T:
            place = place_of_longest
            place_of_longest += 1
        else:
            place = batch_sizes[length]
            batch_sizes[length] += 1
        sorted_indices[place] = i
        unsorted_indices[i] = place
    offsets[B] = total
    for t in range(T - 1):
        batch_sizes[t] = batch_sizes[t + 1]
    if T > 0:
        batch_sizes[T - 1] = place_of_longest


@helper
def own_copy(numbers, count, own):
    # what somebody else could change between a look and the next is copied first
    if is_null(own):
        return numbers
    for k in range(count):
        own[k] = numbers[k]
    return own


@kernel(blocks.MeasureLayout)
def measure_layout(
    begin: int,
    end: int,
    batch_sizes: Any,
    T: int,
    sorted_indices: Any,
    unsorted_indices: Any,
    B: int,
    lengths: Any,
    own_sizes: Any,
    own_indices: Any,
    facts: Any,
) -> None:
    batch_sizes, sorted_indices = own_copy(batch_sizes, T, own_sizes), own_copy(sorted_indices, B, own_indices)
    total, bad_step, bad_index = 0, -1, -1
    largest = B
    for t in range(T):
        size = batch_sizes[t]
        if (size < 1 or size > largest) and bad_step < 0:
            bad_step = t
        largest = size
        if total >= 0 and bad_step < 0:
            total = -1 if size > LARGEST - total else total + size
    # two arrays are inverse permutations exactly if each index of the one finds its place in the other
    for place in range(B):
        i = sorted_indices[place]
        if bad_index < 0 and (i < 0 or i >= B or unsorted_indices[i] != place):
            bad_index = place
    facts[0] = total
    facts[1] = bad_step
    facts[2] = bad_index
    if bad_step < 0 and bad_index < 0 and not is_null(lengths):
        place = 0
        for length in range(T, -1, -1):  # as many sequences are longer than t as step t has rows
            longer_or_equal = batch_sizes[length - 1] if length > 0 else B
            while place < longer_or_equal:
                lengths[sorted_indices[place]] = length
                place += 1


@helper
def chunk_of(firsts, C, i):
    # the last chunk that begins no later than sequence i
    low, high = 0, C
    while high - low > 1:
        middle = (low + high) // 2
        if firsts[middle] <= i:
            low = middle
        else:
            high = middle
    return low


@helper
def bound(pair, k, bound_bytes, mask):
    return (read_int32(pair, k) if bound_bytes == 4 else read_int64(pair, k)) & mask


@kernel(blocks.Locate)
def locate(
    begin, end, indices, B, firsts, C, bounds, pair_bytes, bound_bytes, mask, origins, rows, values, step_bytes, first_rows, lengths, facts
):
    longest, total, wrong = 0, 0, -1
    for k in range(B):
        i = indices[k]
        chunk = chunk_of(firsts, C, i)
        pair = advance(bounds[chunk], (i - firsts[chunk]) * pair_bytes)
        origin, start, stop = origins[chunk], bound(pair, 0, bound_bytes, mask), bound(pair, 1, bound_bytes, mask)
        length = stop - start
        if start < origin or stop < start or stop - origin > rows[chunk]:
            length, start = 0, origin
            if wrong < 0:
                wrong = k
        first_rows[k] = values[chunk] + (start - origin) * step_bytes
        lengths[k] = length
        longest = max(longest, length)
        total = -1 if total < 0 or length > LARGEST - total else total + length
    facts[0] = longest
    facts[1] = total
    facts[2] = wrong


@kernel(blocks.OffsetsOf)
def offsets_of(begin: int, end: int, counts: Any, B: int, offsets: Any) -> None:
    total = 0
    for i in range(B):
        offsets[i] = total
        total += counts[i]
    offsets[B] = total
