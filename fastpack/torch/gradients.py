"""The gradients of one layer, by one call of a kernel, from what its forward pass left.

Gradients that did not arrive are zeros that nobody writes down, and what is not wanted is not computed.
"""

from array import array
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastpack import blocks
from fastpack.cells import CELLS, arrivals_items, backward_items, d_sums_items, weight_gradient_items
from fastpack.torch import parallel
from fastpack.torch.bridge import PLAIN_TYPES
from fastpack.torch.familiar import remember
from fastpack.torch.pages import in_huge_pages
from fastpack.torch.panels import ALIGNED, Panels
from fastpack.torch.recurrence import FAMILIAR, NOTHING, division, give_back, room_for
from fastpack.torch.rows import SINGLE, STEPS_FIRST, HandOver, Rows, address_of, contiguous, int64s, place_of

Place = tuple[int, int, int]  # of rows: the address of the first, the bytes from row to row and from step to step
_dtype, _shape, _is_cpu = map(attrgetter, ("dtype", "shape", "is_cpu"))
NOWHERE = 0, 0, 0
PIECE = 1 << 21  # bytes of gradients of sums in a piece; whole, or 8 MB, took 6 % longer on 8 MB
LEAST = blocks.SUMMED  # rows that a piece may have whatever they take


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
    """Where all that is known is, in the kernel's order, and what holds it."""

    x: Place
    out: Place
    before: Sequence[int]  # addresses of h_0 and c_0; 0 for zeros
    saved: int  # address of what the cell computed; 0 where it kept nothing
    d_out: Place  # NOWHERE for zeros
    d_after: Sequence[int]  # addresses of the gradients of h_n and c_n; 0 for zeros
    holders: Any


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
    new = saved[0].new_empty
    sources = *saved[: 1 + count], *saved[first_weight:]
    found = [new(*source.shape) if wish else None for source, wish in zip(sources, wanted, strict=True)]
    _run(record, given, found)
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
    item, D = plan.item_bytes, plan.D
    x, x_place = place_of(saved[0], record.axes, item)
    rest = [*map(contiguous, saved[1:])]
    places = [address_of(tensor, tensor.numel(), item) for tensor in rest]
    d_out, *d_after = gradients
    d_out_place = NOWHERE
    if d_out is not None:
        if d_out.shape != record.shapes[1 + count]:
            return None
        d_out, d_out_place = place_of(d_out, record.out_axes, item)
    after = [0, 0]
    for k, (d_end, width) in enumerate(zip(d_after, plan.widths, strict=True)):
        if d_end is not None:
            if d_end.shape != ((D, width) if rows.axes == SINGLE else (D, rows.B, width)):
                return None
            d_after[k] = d_end = contiguous(d_end)
            after[k] = address_of(d_end, d_end.numel(), item)
    before, kept = (*places[:count], 0, 0)[:2], places[count + 1] if len(places) > count + 1 else 0
    return Given(x_place, (places[count], plan.row_bytes, 0), before, kept, d_out_place, after, (x, rest, d_out, d_after))


def _run(record: Record, given: Given, found: Sequence[Tensor | None]) -> None:
    """Have the kernel write the gradients of x, the initial states and the weights to `found`: new tensors, None for what is not wanted."""
    (panels, layer, rows, count, *_), plan = record, record.panels.plan
    D, item, places = plan.D, plan.item_bytes, [0 if one is None else one.data_ptr() for one in found]
    d_x = NOWHERE
    if found[0] is not None:
        _, d_x = place_of(in_huge_pages(found[0]), record.axes, item)
    of_weights = *places[1 + count :], 0
    d_weights = array("q", [of_weights[slot] for slot in plan.slots])
    shares, together = division(plan, rows)
    if not together:  # who has no sequences waits for those who have, and may help with the products only
        shares = min(shares, 2 * rows.B)
    most = piece_rows(rows, CELLS[plan.cell].sums * plan.H * item)
    others, share_rows = 1 if most < rows.N else 0, rows.B if together else -(-rows.B // shares)
    (*offsets, whole), share_bytes, products_bytes = _parts(Sizes(plan.cell, plan.H, plan.P, item, most, others, share_rows, shares))
    spare = room_for(whole)
    d_sums, other_sums, d_projected, unprojected, workspace, products = [spare.address + offset for offset in offsets]
    if not plan.settings.proj_size:
        d_projected = unprojected = 0
    arrivals, counters = int64s(arrivals_items(shares)) if shares > 1 else NOTHING
    block = blocks.LayerGradient._make((
        *(plan.cell, item, D, plan.directions[layer * D].F, plan.H, plan.P, panels.table_of(layer)),
        *(*rows.layout, rows.B, rows.T, rows.N, *given.x, *given.out, *given.before, given.saved, *given.d_out, *given.d_after),
        *(*d_x, *(*places[1 : 1 + count], 0, 0)[:2], d_weights.buffer_info()[0]),
        *(most, d_sums, other_sums, d_projected, unprojected, workspace, share_bytes, products, products_bytes),
        *(1 if together else 0, arrivals, shares),
    ))  # fmt: skip
    parallel.run_on(block, shares, shares)
    del d_weights, counters  # held until here
    give_back(spare)


def piece_rows(rows: Rows, row_bytes: int) -> int:
    """Return how many rows a piece of the steps may have, so that pieces are about as large as each other, and none is less than a step.

    The gradients of a piece's sums, `row_bytes` a row, are still in a cache when the products with them read them.
    """
    most = max(LEAST, PIECE // row_bytes)
    if most >= rows.N:
        return rows.N
    return max(-(-rows.N // -(-rows.N // most)), min(rows.B, rows.N))


class Sizes(NamedTuple):
    """What decides how much memory the kernel needs."""

    cell: int
    H: int
    P: int
    item_bytes: int
    piece_rows: int
    others: int  # 1 where there are other pieces: then there are gradients of sums of two at a time; else 0
    share_rows: int  # that a share has in a step
    shares: int


@lru_cache(maxsize=256)
def _parts(sizes: Sizes) -> tuple[tuple[int, ...], int, int]:
    """Return where the parts of the kernel's memory begin and the last one ends, and the bytes of a share of either workspace."""
    cell, H, P, item_bytes, most, others, rows, shares = sizes
    projected = (d_sums_items(blocks.LINEAR, most, P), most * H) if P != H else (0, 0)
    items = d_sums_items(cell, most, H), *projected, backward_items(rows, H, P), weight_gradient_items()
    d_sums, d_projected, unprojected, share, products = [-(-count * item_bytes // ALIGNED) * ALIGNED for count in items]
    offsets = accumulate((0, others * d_sums, d_sums, d_projected, unprojected, shares * share, shares * products))
    return tuple(offsets), share, products
