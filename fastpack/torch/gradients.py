"""The gradients of one layer, by the kernels, from what its forward pass left.

Against the order of steps go the gradients of the sums of each gate (`RecurBackward`); those of inputs and weights are products
with these over many rows at once (`InputGradient`, `WeightGradient`): over those of a piece of the steps, after which the next piece
uses the same memory. Gradients that did not arrive are zeros that nobody writes down, and what is not wanted is not computed.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastpack import blocks
from fastpack.cells import CELLS, backward_items, d_sums_items, weight_gradient_items
from fastpack.torch import parallel
from fastpack.torch.bridge import PLAIN_TYPES
from fastpack.torch.familiar import remember
from fastpack.torch.pages import in_huge_pages
from fastpack.torch.panels import ALIGNED, Panels, Plan
from fastpack.torch.pieces import Piece, Place, pieces_of
from fastpack.torch.recurrence import FAMILIAR, Work, along, counters_of, division, give_back, room_for, saved_addresses
from fastpack.torch.rows import SINGLE, STEPS_FIRST, HandOver, Rows, address_of, contiguous, place_of

_dtype, _shape, _is_cpu = map(attrgetter, ("dtype", "shape", "is_cpu"))
NOWHERE = 0, 0, 0


class Record(NamedTuple):
    """What a layer's backward pass is told beside tensors."""

    panels: Panels  # gradient panels of all layers
    layer: int
    rows: Rows  # of the first layer, their layout in memory that nobody changes
    states: int  # how many initial states were given: none, h_0, or h_0 and c_0
    shapes: list[torch.Size]  # of the saved tensors before weights: x, the initial states, the output, what the cell computed if anything
    kept: dict[Any, Any]  # what the layer keeps from one call to the next

    @property
    def axes(self) -> tuple[int, int]:
        """Those of x: see Rows."""
        return self.rows.axes if self.layer == 0 else self.out_axes

    @property
    def out_axes(self) -> tuple[int, int]:
        """Those of the output."""
        return STEPS_FIRST if len(self.rows.out_shape) == 2 else self.rows.axes


class Given(NamedTuple):
    """Where all that is known is, and what holds it."""

    x: Place
    out: Place
    before: Sequence[int]  # addresses of h_0 and c_0, or h_0, or nothing
    computed: int  # address of the first direction's gates, and behind them its c; 0 where the cell has neither
    d_out: Place  # NOWHERE for zeros
    d_ends: Sequence[int]  # addresses of the gradients of h_n and c_n, or h_n; 0 for zeros
    holders: Any


class Wanted(NamedTuple):
    """New tensors for what is to be found, None for what is not."""

    d_x: Tensor | None
    d_before: list[Tensor | None]
    d_weights: list[Tensor | None]  # direction by direction, in torch's order


class Room(NamedTuple):
    """Memory that the directions use one after the other, and how it is shared."""

    panel_rows: int  # of the largest piece
    d_sums: tuple[int, int]  # of a piece, and of the one before it
    d_projected: int  # 0 where there is no projection
    unprojected: int
    work: Work  # of RecurBackward
    sums_up: int  # the workspace of WeightGradient, how many threads share it, and what each has of it
    many: int
    many_bytes: int


def check_saved(record: Record, saved: Sequence[Tensor]) -> None:
    """Check that saved tensors are what was saved: hooks for saved tensors return anything, and `.data` of a weight can be replaced.

    Raises
    ------
    RuntimeError
        A shape or a dtype is another.
    """
    each = len(saved) - len(record.shapes)
    shapes = *record.shapes, *record.panels.plan.shapes[record.layer * each : (record.layer + 1) * each]
    for tensor, shape in zip(saved, shapes, strict=True):
        if tensor.shape != shape or tensor.dtype != record.panels.plan.dtype:
            was, is_now = f"{list(shape)} and {record.panels.plan.dtype}", f"{list(tensor.shape)} and {tensor.dtype}"
            raise RuntimeError(
                f"a tensor of {was} was saved for backward, but it now is one of {is_now}: its data was replaced (as by module.double()) "
                "before the backward pass, or a hook for saved tensors returned another one"
            )


def differentiate(
    record: Record, saved: Sequence[Tensor], gradients: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None] | None:
    """Return the gradients of a layer's input, initial states and weights, or None where the kernels do not take the tensors.

    Parameters
    ----------
    record : Record
    saved : sequence of Tensor
    gradients : sequence of Tensor or None
        Of the output, and of h_n and c_n, or h_n.
    wanted : sequence of bool
        Which gradients are.
    """
    count, first_weight = record.states, len(record.shapes)
    try:
        given = _given(record, saved[:first_weight], gradients) if _are_taken(record, saved, gradients) else None
    except (HandOver, RuntimeError, NotImplementedError):  # sparse, or without memory: as in recurrence.prepare
        return None  # or not what was saved, which the caller then says
    if given is None:
        return None
    plan, rows, new = record.panels.plan, record.rows, saved[0].new_empty
    sources = *saved[: 1 + count], *saved[first_weight:]
    found = [new(*source.shape) if wish else None for source, wish in zip(sources, wanted, strict=True)]
    if found[0] is not None:
        in_huge_pages(found[0])
    split = Wanted(found[0], found[1 : 1 + count], found[1 + count :])
    pieces = pieces_of(rows, CELLS[plan.cell].sums * plan.H * plan.item_bytes)
    room = _room(plan, rows, pieces)
    for reverse in range(plan.D):
        later = None
        for piece in pieces if reverse else reversed(pieces):
            _recur_backward(record, reverse, piece, later, given, split, room)
            if split.d_x is not None and piece.N:
                _input_gradient(record, reverse, piece, split.d_x, room)
            _weight_gradients(record, reverse, piece, later, given, split, room)
            if len(pieces) > 1:
                room, later = room._replace(d_sums=room.d_sums[::-1]), piece
    give_back(room.work.memory)
    return found


def _are_taken(record: Record, saved: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> bool:
    """Whether the kernels take saved tensors and gradients, which is remembered of such as look like these but for their sizes.

    Raises
    ------
    RuntimeError
        A tensor is not what was saved: see check_saved.
    """
    plan, every = record.panels.plan, [*saved, *[gradient for gradient in gradients if gradient is not None]]
    known, form = record.kept.get((FAMILIAR, record.layer)), (len(every), plan)
    is_known = known is not None and known.form == form and known.is_alike(*every)  # a third of the time of what follows, which is 5 us
    if is_known and [*map(_shape, saved[: len(record.shapes)])] == record.shapes:
        return True
    check_saved(record, saved)
    if not set(map(type, every)) <= PLAIN_TYPES or not all(map(_is_cpu, every)) or any(map(Tensor.is_neg, every)):
        return False
    if set(map(_dtype, every)) != {plan.dtype}:
        return False
    weights, any_sizes = saved[len(record.shapes) :], [[None] * tensor.dim() for tensor in every]
    sizes = [*any_sizes[: len(record.shapes)], *map(_shape, weights), *any_sizes[len(saved) :]]
    record.kept[FAMILIAR, record.layer] = remember(form, True, every, sizes, any_sizes)
    return True


def _given(record: Record, saved: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Given | None:
    plan, rows, count = record.panels.plan, record.rows, record.states
    item, D, row_bytes = plan.item_bytes, plan.D, plan.row_bytes
    x, x_place = place_of(saved[0], record.axes, item)
    rest = [*map(contiguous, saved[1:])]
    places = [address_of(tensor, tensor.numel(), item) for tensor in rest]
    d_out, *d_ends = gradients
    d_out_place = NOWHERE
    if d_out is not None:
        if d_out.shape != record.shapes[1 + count]:
            return None
        d_out, d_out_place = place_of(d_out, record.out_axes, item)
    ends = [0] * len(d_ends)
    for k, (d_end, width) in enumerate(zip(d_ends, plan.widths, strict=True)):
        if d_end is not None:
            if d_end.shape != ((D, width) if rows.axes == SINGLE else (D, rows.B, width)):
                return None
            d_ends[k] = d_end = contiguous(d_end)
            ends[k] = address_of(d_end, d_end.numel(), item)
    computed = places[count + 1] if len(places) > count + 1 else 0
    holders = x, rest, d_out, d_ends
    return Given(x_place, (places[count], row_bytes, 0), places[:count], computed, d_out_place, ends, holders)


def _room(plan: Plan, rows: Rows, pieces: Sequence[Piece]) -> Room:
    most = max([piece.N for piece in pieces])
    shares, arrivals = division(plan, rows)
    many = parallel.threads_to_compute(plan.operations * rows.N)
    sizes = _sizes(plan.cell, most, plan.H, plan.P, plan.item_bytes, rows.B if arrivals else -(-rows.B // shares))
    d_sums, d_projected, unprojected, share, many_share = sizes
    both = d_sums * min(len(pieces), 2)
    # what RecurBackward hands on from piece to piece is not for WeightGradient to write over
    start, _, memory = room_for(1, both + d_projected + unprojected + shares * share + many * many_share)
    projected = start + both
    behind = projected + d_projected + unprojected
    work = Work(shares, arrivals, behind, share, memory)
    ends = (projected, projected + d_projected) if plan.settings.proj_size else (0, 0)
    return Room(most, (start, start + both - d_sums), *ends, work, behind + shares * share, many, many_share)


@lru_cache(maxsize=256)
def _sizes(cell: int, N: int, H: int, P: int, item_bytes: int, rows: int) -> tuple[int, ...]:
    """Return how many bytes each of Room's parts has, and shares of both workspaces; `rows` of a share are in a step at most."""
    projected = (d_sums_items(blocks.LINEAR, N, P), N * H) if P != H else (0, 0)
    items = d_sums_items(cell, N, H), *projected, backward_items(rows, H, P), weight_gradient_items()
    return tuple([-(-count * item_bytes // ALIGNED) * ALIGNED for count in items])


def _recur_backward(record: Record, reverse: int, piece: Piece, later: Piece | None, given: Given, wanted: Wanted, room: Room) -> None:
    plan, rows = record.panels.plan, record.rows
    P, item = plan.P, plan.item_bytes
    k = record.layer * plan.D + reverse
    _, hh, hr = record.panels.addresses[k]
    half = reverse * P * item
    out, d_out = (given.out[0] + half, *given.out[1:]), given.d_out
    if d_out[0]:
        d_out = d_out[0] + half, *d_out[1:]
    before, d_ends = along(given.before, reverse, plan, rows.B), along(given.d_ends, reverse, plan, rows.B)
    d_before = along([0 if tensor is None else tensor.data_ptr() for tensor in wanted.d_before], reverse, plan, rows.B)
    computed = saved_addresses(plan, rows.N, given.computed, reverse) if given.computed else (0, 0)
    if later and room.work.arrivals:
        ctypes.memset(room.work.arrivals, 0, ctypes.sizeof(room.work.arrivals))
    later_row = later.N - _size_of(rows, later.last - 1) if later and reverse else 0
    sizes = plan.cell, item, reverse, plan.H, P, hh, hr, *rows.layout, rows.B, rows.T, *piece[:3], room.panel_rows
    places = *out, *before, *computed, *d_out, *d_ends, *room.d_sums, later_row, room.d_projected, room.unprojected, *d_before
    workspace = room.work.workspace, room.work.workspace_bytes, counters_of(room.work, k), room.work.shares
    parallel.run_on(blocks.RecurBackward._make((*sizes, *places, *workspace)), room.work.shares, room.work.shares)


def _size_of(rows: Rows, t: int) -> int:
    return ctypes.c_int64.from_address(rows.layout[1] + 8 * t).value


def _input_gradient(record: Record, reverse: int, piece: Piece, d_x: Tensor, room: Room) -> None:
    plan, rows = record.panels.plan, record.rows
    k = record.layer * plan.D + reverse
    direction, panels = plan.directions[k], record.panels.addresses[k][0]
    _, place = place_of(d_x, record.axes, plan.item_bytes)
    sizes = plan.cell, plan.item_bytes, direction.F, plan.H, panels, room.d_sums[0], room.panel_rows, rows.B, 1 if reverse else 0
    block = blocks.InputGradient._make((*sizes, *piece.place(place)))
    many = parallel.threads_to_compute(2 * CELLS[plan.cell].gates * plan.H * direction.F * piece.N)
    parallel.run_on(block, piece.N, min(many, piece.N))


def _weight_gradients(record: Record, reverse: int, piece: Piece, later: Piece | None, given: Given, wanted: Wanted, room: Room) -> None:
    plan, rows, D = record.panels.plan, record.rows, record.panels.plan.D
    each = len(wanted.d_weights) // D
    found = [0 if tensor is None else tensor.data_ptr() for tensor in wanted.d_weights[reverse * each : (reverse + 1) * each]]
    ih, hh, *rest = found
    biases = (rest[0], rest[1]) if plan.settings.bias else (0, 0)
    layout = *rows.layout, rows.B, rows.T, piece.first, piece.N, room.panel_rows
    H, P, item, workspace = plan.H, plan.P, plan.item_bytes, (room.sums_up, room.many_bytes, room.many)
    add = 1 if later else 0
    if ih or hh or any(biases):
        F = plan.directions[record.layer * D + reverse].F
        out = given.out[0] + reverse * P * item, *given.out[1:]
        sizes, h_0 = (plan.cell, item, reverse, F, H, P), along(given.before, reverse, plan, rows.B)[0]
        places = *piece.place(given.x), *piece.place(out), h_0, room.d_sums[0], add
        block = blocks.WeightGradient._make((*sizes, *layout, *places, ih, hh, *biases, *workspace))
        parallel.run_on(block, room.many, room.many)
    if room.d_projected and found[-1]:
        sizes, x = (blocks.LINEAR, item, reverse, H, P, 0), (room.unprojected, H * item, 0)
        block = blocks.WeightGradient._make((*sizes, *layout, *x, *NOWHERE, 0, room.d_projected, add, found[-1], 0, 0, 0, *workspace))
        parallel.run_on(block, room.many, room.many)
