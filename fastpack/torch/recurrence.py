"""A call of a recurrent layer by the kernels: whether they take it, and how it is done.

Letters: B sequences, T steps, N packed rows, F input features, H hidden units, P the width of the state h, L layers, D directions.
"""

from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from fastpack import blocks
from fastpack.cells import CELLS, arrivals_items, shares_units, workspace_items
from fastpack.torch import parallel
from fastpack.torch.bridge import PLAIN_TYPES, is_eager, path_of
from fastpack.torch.familiar import remember
from fastpack.torch.layout import are_vectors, from_packed
from fastpack.torch.pages import in_huge_pages
from fastpack.torch.panels import ALIGNED, GRADIENT_PANELS, PANELS, Panels, Plan, Settings, panels_of, plan_of
from fastpack.torch.rows import (
    INCONSISTENT,
    NO_MEMORY,
    SINGLE,
    HandOver,
    Rows,
    address_of,
    contiguous,
    int64s,
    located,
    packed_rows,
    padded_rows,
)

DTYPES = {torch.float32, torch.float64}
FAMILIAR = "familiar"
WORTH_WAITING = 1 << 17  # floating-point operations in a step, from which on threads may wait for each other at its end
NOTHING = 0, None
SPARE = 1 << 24  # bytes of memory that is kept for the next call: a new tensor takes 2 us, and 1 us for each page that went back
SPARES = 4  # of them are kept, as for so many threads that run layers of their own

_dtype, _shape, _is_cpu, _requires_grad = map(attrgetter, ("dtype", "shape", "is_cpu", "requires_grad"))


class Tensors(NamedTuple):
    """What a call is made with."""

    data: Any  # (N, F) of a packed batch; (T, B, F), or (B, T, F) where `batch_first`, of a padded one; (T, F) of a single sequence
    indices: Sequence[Any]  # of a packed batch: its batch sizes, or these, the sorted and the unsorted indices
    states: Sequence[Any]  # h_0 and c_0, or h_0, or nothing
    weights: Sequence[Any]


class Call(NamedTuple):
    """A call that the kernels take."""

    panels: Panels
    x: Tensor  # holds the rows
    rows: Rows
    states: Sequence[Tensor]  # contiguous
    before: Sequence[int]  # their addresses
    state_shapes: list[tuple[int, ...]]
    weights: Sequence[Tensor]  # contiguous
    gradient_panels: Any  # Panels where something requires grad, and gradients are on; else None
    kept: dict[Any, Any]  # what the layer keeps from one call to the next
    dtypes: Sequence[torch.dtype] = ()  # of the results, where these are not to be of the call's own: see autocast.py


class Spare(NamedTuple):
    """Memory for the workspaces of one call at a time."""

    address: int  # a multiple of ALIGNED
    nbytes: int
    memory: Any


class Work(NamedTuple):
    """How a call is divided, and the memory that its shares need."""

    shares: int
    arrivals: int  # where shares are of hidden units, the address of each block's counters: see blocks.Recur; else 0
    counters: Any  # holds them
    workspace_bytes: int  # of one share
    spare: Spare  # the workspaces


def prepare(
    settings: tuple[Any, ...], weights: Sequence[Any], input: Any, states: Sequence[Any], batch_first: bool, kept: dict[str, Any]
) -> Call:
    """Return what the kernels need for a call: it is decided here, and nowhere else, whether they take it.

    Everything that could make a kernel read or write out of range is checked here.

    Parameters
    ----------
    settings : tuple
        The fields of `Settings`.
    weights : sequence of Tensor
    input : PackedSequence, or Tensor
    states : sequence of Tensor
        h_0 and c_0, or h_0, or nothing.
    batch_first : bool
    kept : dict
        What a layer keeps from one call to the next.

    Raises
    ------
    HandOver
        They do not.
    """
    is_packed = isinstance(input, PackedSequence)
    data, *indices = input if is_packed else (input,)
    if is_packed and indices[1] is indices[2] is None:
        del indices[1:]
    tensors = Tensors(data, indices, states, weights)
    # what tensors look like does not tell whether gradients are on: what was found without them does not hold with them
    form = settings, is_packed, len(indices), len(states), len(weights), torch.is_grad_enabled()
    if not is_eager():
        raise HandOver(_reason(tensors))
    known = kept.get(FAMILIAR)
    try:
        if known is not None and known.form == form and known.is_alike(data, *indices, *states, *weights):
            plan, is_recorded = known.found
        else:
            plan, is_recorded, tensors = _checked(settings, tensors, form, kept)
        if is_packed:
            x, rows = tensors.data, packed_rows(tensors.data, tensors.indices, plan)
        else:
            x, rows = padded_rows(tensors.data, plan, batch_first)
        sequences = () if rows.axes == SINGLE else (rows.B,)  # of a single one there is no such dimension
        shapes = [(len(plan.directions), *sequences, width) for width in plan.widths]
        before: Sequence[int] = ()
        if states:
            if [*map(_shape, states)] != shapes:
                raise HandOver("torch: the initial states are not of the shape that the batch and the layer ask for")
            states = [*map(contiguous, states)]
            before = [address_of(state, state.numel(), plan.item_bytes) for state in states]
        places, storages = located(tensors.weights, plan)
    except (RuntimeError, NotImplementedError) as error:  # a sparse tensor has no memory, nor has one under some transforms
        raise HandOver(_reason(tensors)) from error
    panels = panels_of(plan, places, kept, (PANELS, GRADIENT_PANELS) if is_recorded else (PANELS,))
    del storages  # held until here, whatever another thread has put in the place of a weight meanwhile
    return Call(panels[0], x, rows, states, before, shapes, tensors.weights, panels[1] if is_recorded else None, kept)


def gradient_panels_of(call: Call, kept: dict[str, Any]) -> Panels:
    """Return the gradient panels of a call's weights, where the call was prepared while gradients were off."""
    plan = call.panels.plan
    places, storages = located(call.weights, plan)
    panels = panels_of(plan, places, kept, (GRADIENT_PANELS,))
    del storages
    return panels[0]


def _checked(settings: tuple[Any, ...], tensors: Tensors, form: Any, kept: dict[str, Any]) -> tuple[Plan, bool, Tensors]:
    """Return a layer's plan, whether gradients are wanted, and a call's tensors in the kernels' form.

    What the tensors look like is remembered where they have it already.
    """
    data, indices, states, weights = tensors
    every = [data, *states, *weights]
    plan = _checked_plan(settings, every, weights)
    is_recorded = torch.is_grad_enabled() and any(map(_requires_grad, every))
    if data.dim() not in ((2,) if indices else (2, 3)) or data.shape[-1] != plan.settings.input_size:
        raise HandOver("torch: the rows are not of the layer's input size")
    if data.stride(-1) != 1 and data.shape[-1] > 1:
        data = contiguous(data)
    if not all(map(Tensor.is_contiguous, weights)):
        weights = [*map(contiguous, weights)]
    if indices and not are_vectors(indices):
        fields = data, *indices, None, None
        layout = from_packed(tuple.__new__(PackedSequence, fields[:4]))  # with gaps between their entries they are copied
        if layout is None:
            raise HandOver(INCONSISTENT)
        indices = layout[1:4]
    if data is tensors.data and indices is tensors.indices and weights is tensors.weights:
        batches = (data, *indices, *states)  # whatever their sizes but the last, which a vector of indices has any of
        sizes = [(*[None] * (x.dim() - 1), x.shape[-1] if x.dim() > 1 else None) for x in batches]
        strides = [(*[None] * (x.dim() - 1), 1) for x in batches]
        sizes, strides = sizes + [x.shape for x in weights], strides + [x.stride() for x in weights]
        kept[FAMILIAR] = remember(form, (plan, is_recorded), [*batches, *weights], sizes, strides)
    return plan, is_recorded, Tensors(data, indices, states, weights)


def _checked_plan(settings: tuple[Any, ...], tensors: Sequence[Any], weights: Sequence[Any]) -> Plan:
    if not set(map(type, tensors)) <= PLAIN_TYPES or not all(map(_is_cpu, tensors)):
        raise HandOver(path_of(tensors))
    dtypes = set(map(_dtype, tensors))
    if len(dtypes) > 1 or not dtypes <= DTYPES:
        raise HandOver(f"torch: there are tensors of {' and '.join(sorted(map(str, dtypes)))}, not all of torch.float32 or torch.float64")
    if any(map(Tensor.is_neg, tensors)):
        raise HandOver(path_of(tensors))
    wanted = Settings(*settings)
    if 0 < wanted.num_layers <= len(weights) and wanted.input_size > 0 and wanted.hidden_size > 0:  # as torch's constructors see to
        plan = plan_of(wanted, dtypes.pop())
        if plan.shapes == [*map(_shape, weights)]:
            return plan
    raise HandOver("torch: the weights are not of the shapes that the layer's sizes ask for")


def _reason(tensors: Tensors) -> str:
    said = path_of([tensors.data, *tensors.states, *tensors.weights])
    return said if said != "kernels" else NO_MEMORY


def run(call: Call, dropped: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """Return the output (N, D * P), or (T, B, D * P), or (T, D * P); and h_n and c_n, or h_n. Nothing is recorded for gradients.

    Between layers, `dropped` is the probability of an item to become 0.
    """
    plan, rows = call.panels.plan, call.rows
    new, D, row_bytes = call.x.new_empty, plan.D, plan.row_bytes
    out_shape, after = (*rows.out_shape, D * plan.P), [new(*shape) for shape in call.state_shapes]
    out, source, work = in_huge_pages(new(*out_shape)), (rows.address, rows.row_bytes, rows.step_bytes), divided(plan, rows)
    ends = [*map(Tensor.data_ptr, after)]
    for layer in range(plan.L):
        if layer:
            x = dropout(out, dropped, training=True) if dropped else out
            source, out = (x.data_ptr(), row_bytes, 0), in_huge_pages(new(*out_shape))
        run_layer(call, layer, work, source, out.data_ptr(), along(ends, layer * D, plan, rows.B))
    give_back(work.spare)
    return out, after


def run_layer(call: Call, layer: int, work: Work, source: tuple[int, int, int], out: int, ends: Sequence[int], saved: int = 0) -> None:
    """Run one layer, in all its directions.

    Parameters
    ----------
    call : Call
    layer : int
    work : Work
        As `divided` by the whole call.
    source : tuple
        The address of the layer's input, and the bytes from row to row and from step to step.
    out : int
        The address of its output.
    ends : sequence of int
        The addresses of its h_n and c_n, or h_n.
    saved : int
        The address of what gradients need of each direction, its gates and then its c: `plan.saved_items` a row. 0 where none are wanted.
    """
    plan, panels, rows = call.panels.plan, call.panels.addresses, call.rows
    D, layout, shares, row_bytes, half = plan.D, (*rows.layout, rows.B, rows.T), work.shares, plan.row_bytes, plan.P * plan.item_bytes
    for k in range(layer * D, layer * D + D):
        reverse = k - layer * D
        sizes, target = (*plan.directions[k].sizes, *panels[k]), (out + reverse * half, row_bytes, 0)
        states = *along(call.before, k, plan, rows.B), *along(ends, reverse, plan, rows.B)
        kept = saved_addresses(plan, rows.N, saved, reverse) if saved else (0, 0)
        counters = work.arrivals and work.arrivals + 8 * k * arrivals_items(shares)
        room = work.spare.address, work.workspace_bytes, counters, shares
        parallel.run_on(blocks.Recur._make((*sizes, *layout, *source, *target, *states, *kept, *room)), shares, shares)


def along(addresses: Sequence[int], k: int, plan: Plan, B: int) -> tuple[int, int]:
    """Return where the k-th direction's h and c are, of states, or what belongs to them, that begin at these addresses; 0 for none."""
    h, c = addresses if len(addresses) == 2 else (*addresses, 0, 0)[:2]
    if not k:
        return h, c
    step = k * B * plan.item_bytes
    return h and h + step * plan.P, c and c + step * plan.H


def saved_addresses(plan: Plan, N: int, saved: int, reverse: int) -> tuple[int, int]:
    """Return the addresses of a direction's c and gates in what is saved of a layer, 0 where the cell has none."""
    cell, row = CELLS[plan.cell], N * plan.item_bytes
    gates = saved + reverse * row * plan.saved_items
    return (gates + row * cell.saved * plan.H if cell.has_c else 0), gates


def divided(plan: Plan, rows: Rows) -> Work:
    """Return how a call of `run_layer` is divided, and memory for it."""
    threads, together = division(plan, rows)
    shares = threads if together else min(threads, rows.B)
    share_bytes = _share_bytes(plan.cell, rows.B if together else -(-rows.B // shares), plan.H, plan.P, plan.item_bytes)
    arrivals = int64s(len(plan.directions) * arrivals_items(shares)) if together else NOTHING
    spare = room_for(shares * share_bytes)
    return Work._make((shares, *arrivals, share_bytes, spare))


def division(plan: Plan, rows: Rows) -> tuple[int, bool]:
    """Return on how many threads a call is done, and whether their shares are of hidden units: see blocks.Recur.

    Shares of sequences need not wait for each other. Shares of units are for large weights, and for fewer sequences than threads.
    """
    many = parallel.threads_to_compute(plan.operations * rows.N)
    if many == 1:
        return 1, False
    is_waiting_worth_it = many > rows.B and plan.operations * rows.B > WORTH_WAITING * len(plan.directions)
    return many, is_waiting_worth_it or shares_units(plan.cell, plan.H, plan.P, plan.item_bytes, many)


NO_SPARE = Spare(0, 0, None)
_spares: list[Spare] = []  # those in no call's hands


def room_for(nbytes: int) -> Spare:
    """Return memory for a call's workspaces, to be given back after it."""
    try:
        spare = _spares.pop() if nbytes <= SPARE else NO_SPARE
    except IndexError:
        spare = NO_SPARE
    if spare.nbytes >= nbytes:
        return spare
    memory = in_huge_pages(torch.empty(nbytes + ALIGNED, dtype=torch.uint8, device="cpu"))
    return Spare(-(-memory.data_ptr() // ALIGNED) * ALIGNED, nbytes, memory)


def give_back(spare: Spare) -> None:
    """Keep memory for the next call, unless it is large, or as much as that many threads need at once is kept already.

    It may also be let go, as where an error ended the call.
    """
    if spare.nbytes <= SPARE and len(_spares) < SPARES:
        _spares.append(spare)


@lru_cache(maxsize=256)
def _share_bytes(cell: int, rows: int, H: int, P: int, item_bytes: int) -> int:
    return -(-workspace_items(cell, rows, H, P) * item_bytes // ALIGNED) * ALIGNED
