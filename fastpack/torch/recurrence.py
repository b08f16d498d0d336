"""A call of a recurrent layer by the kernels: whether they take it, and how it is done.

Letters: B sequences, T steps, N packed rows, F input features, H hidden units, P the width of the state h, L layers, D directions.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from fastpack import blocks
from fastpack.cells import arrivals_items, shares_units, workspace_items
from fastpack.torch import parallel
from fastpack.torch.bridge import PLAIN_TYPES, is_eager, path_of
from fastpack.torch.familiar import remember
from fastpack.torch.layout import are_vectors, from_packed
from fastpack.torch.panels import ALIGNED, Panels, Plan, Settings, panels_of, plan_of
from fastpack.torch.rows import INCONSISTENT, NO_MEMORY, HandOver, Rows, address_of, contiguous, located, packed_rows, padded_rows

DTYPES = {torch.float32, torch.float64}
FAMILIAR = "familiar"
WORTH_WAITING = 1 << 17  # floating-point operations in a step, from which on threads may wait for each other at its end
SMALL = 1 << 15  # bytes of a workspace that ctypes makes sooner than torch

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
    rows: Rows
    states: Sequence[Tensor]  # contiguous
    before: Sequence[int]  # their addresses
    state_shapes: list[tuple[int, ...]]


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
    if not is_eager() or _is_any_autocast_enabled():
        raise HandOver(_reason(tensors))
    known = kept.get(FAMILIAR)
    try:
        if known is not None and known.form == form and known.is_alike(data, *indices, *states, *weights):
            plan: Plan = known.found
        else:
            plan, tensors = _checked(settings, tensors, form, kept)
        rows = packed_rows(tensors.data, tensors.indices, plan) if is_packed else padded_rows(tensors.data, plan, batch_first)
        sequences = () if len(rows.out_shape) == 1 and not is_packed else (rows.B,)  # of a single one there is no such dimension
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
    panels = panels_of(plan, places, kept)
    del storages  # held until here, whatever another thread has put in the place of a weight meanwhile
    return Call(panels, rows, states, before, shapes)


def _checked(settings: tuple[Any, ...], tensors: Tensors, form: Any, kept: dict[str, Any]) -> tuple[Plan, Tensors]:
    """Return a layer's plan, and a call's tensors in the kernels' form; remember what they look like where they have it already."""
    data, indices, states, weights = tensors
    plan = _checked_plan(settings, [data, *states, *weights], weights)
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
        kept[FAMILIAR] = remember(form, plan, [*batches, *weights], sizes, strides)
    return plan, Tensors(data, indices, states, weights)


def _checked_plan(settings: tuple[Any, ...], tensors: Sequence[Any], weights: Sequence[Any]) -> Plan:
    if not set(map(type, tensors)) <= PLAIN_TYPES or not all(map(_is_cpu, tensors)):
        raise HandOver(path_of(tensors))
    dtypes = set(map(_dtype, tensors))
    if len(dtypes) > 1 or not dtypes <= DTYPES:
        raise HandOver(f"torch: there are tensors of {' and '.join(sorted(map(str, dtypes)))}, not all of torch.float32 or torch.float64")
    if torch.is_grad_enabled() and any(map(_requires_grad, tensors)):
        raise HandOver("torch: something requires grad, and gradients are on")
    if any(map(Tensor.is_neg, tensors)):
        raise HandOver(path_of(tensors))
    wanted = Settings(*settings)
    if 0 < wanted.num_layers <= len(weights) and wanted.input_size > 0 and wanted.hidden_size > 0:  # as torch's constructors see to
        plan = plan_of(wanted, dtypes.pop())
        if plan.shapes == [*map(_shape, weights)]:
            return plan
    raise HandOver("torch: the weights are not of the shapes that the layer's sizes ask for")


def _reason(tensors: Tensors) -> str:
    if _is_any_autocast_enabled():
        return "torch: autocast is on"
    said = path_of([tensors.data, *tensors.states, *tensors.weights])
    return said if said != "kernels" else NO_MEMORY


def run(call: Call, dropped: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """Return the output (N, D * P), or (T, B, D * P), or (T, D * P); and h_n and c_n, or h_n.

    Between layers, `dropped` is the probability of an item to become 0.
    """
    (plan, _, _, panels), rows, _, before, state_shapes = call
    cell, H, P, item, B = plan.cell, plan.H, plan.P, plan.item_bytes, rows.B
    D = 2 if plan.settings.bidirectional else 1
    new, out_shape, row_bytes = rows.x.new_empty, (*rows.out_shape, D * P), D * P * item
    out, after = new(*out_shape), [new(*shape) for shape in state_shapes]
    ends = [*map(Tensor.data_ptr, after)]
    shares, arrivals = _division(plan, rows)
    workspace = _workspace(cell, B if arrivals else -(-B // shares), H, P, item, shares)
    layout, x, source = (*rows.layout, B, rows.T), rows.x, (rows.address, rows.row_bytes, rows.step_bytes)
    for k, (F, _, panel, projection) in enumerate(plan.directions):
        layer, reverse = divmod(k, D)
        if layer and not reverse:
            x = dropout(out, dropped, training=True) if dropped else out
            source, out = (x.data_ptr(), row_bytes, 0), new(*out_shape)
        weights = panels + panel, panels + projection if projection >= 0 else 0
        target = out.data_ptr() + reverse * P * item, row_bytes, 0
        h, c = k * B * P * item, k * B * H * item
        states = (
            before[0] + h if before else 0,
            before[1] + c if len(before) == 2 else 0,
            ends[0] + h,
            ends[1] + c if len(ends) == 2 else 0,
        )
        counters = ctypes.addressof(arrivals) + 8 * k * arrivals_items(shares) if arrivals else 0
        block = blocks.Recur(
            cell, item, reverse, F, H, P, *weights, *layout, *source, *target, *states, 0, 0, *workspace[:2], counters, shares
        )
        parallel.run_on(block, shares, shares)
    return out, after


def _division(plan: Plan, rows: Rows) -> tuple[int, Any]:
    """Return in how many shares a call is done, and, where these are of hidden units, the counters of each block: see blocks.Recur.

    Shares of sequences need not wait for each other. Shares of units are for large weights, and for fewer sequences than threads.
    """
    many = parallel.threads_to_compute(plan.operations * rows.N)
    if many == 1:
        return 1, None
    is_waiting_worth_it = many > rows.B and plan.operations * rows.B > WORTH_WAITING * len(plan.directions)
    if is_waiting_worth_it or shares_units(plan.cell, plan.H, plan.P, plan.item_bytes, many):
        return many, (ctypes.c_int64 * (len(plan.directions) * arrivals_items(many)))()
    return min(many, rows.B), None


def _workspace(cell: int, rows: int, H: int, P: int, item_bytes: int, shares: int) -> tuple[int, int, Any]:
    """Return the address of memory for all shares, the bytes of one, and what holds it."""
    share_bytes = _share_bytes(cell, rows, H, P, item_bytes)
    whole = shares * share_bytes + ALIGNED
    if whole <= SMALL:
        small = (ctypes.c_char * whole)()
        return -(-ctypes.addressof(small) // ALIGNED) * ALIGNED, share_bytes, small
    large = torch.empty(whole, dtype=torch.uint8, device="cpu")
    return -(-large.data_ptr() // ALIGNED) * ALIGNED, share_bytes, large


@lru_cache(maxsize=256)
def _share_bytes(cell: int, rows: int, H: int, P: int, item_bytes: int) -> int:
    return -(-workspace_items(cell, rows, H, P) * item_bytes // ALIGNED) * ALIGNED
