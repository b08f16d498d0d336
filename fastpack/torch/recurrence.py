"""A call of a recurrent layer by the kernels: how it is done, once `prepare` has found that they take it.

Letters: B sequences, T steps, N packed rows, F input features, H hidden units, P the width of the state h, L layers, D directions.
"""

import ctypes
from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from fastpack import blocks
from fastpack.cells import shares_units, workspace_items
from fastpack.torch import parallel
from fastpack.torch.panels import ALIGNED, Panels, Plan, panels_of
from fastpack.torch.rows import HandOver, Rows, address_of, checked_plan, located, packed_rows, padded_rows, reason

WORTH_WAITING = 1 << 17  # floating-point operations in a step, from which on threads may wait for each other at its end
SMALL = 1 << 15  # bytes of a workspace that ctypes makes sooner than torch


class Call(NamedTuple):
    """A call that the kernels take."""

    panels: Panels
    rows: Rows
    states: Sequence[Tensor]  # h_0 and c_0, or h_0, or nothing; contiguous
    before: Sequence[int]  # their addresses
    state_shapes: list[tuple[int, ...]]


def prepare(
    settings: tuple[Any, ...], weights: Sequence[Any], input: Any, states: Sequence[Any], batch_first: bool, kept: MutableMapping[str, Any]
) -> Call:
    """Return what the kernels need for a call: it is decided here, and nowhere else, whether they take it.

    Everything that could make a kernel read or write out of range is checked here.

    Parameters
    ----------
    settings : tuple
        The fields of `Settings`.
    weights : sequence of Tensor
    input : PackedSequence of rows (N, F); or Tensor (T, B, F), (B, T, F) where `batch_first`, or (T, F)
    states : sequence of Tensor
        h_0 and c_0, or h_0, or nothing.
    batch_first : bool
    kept : mapping
        Where the layer's panels are kept from one call to the next.

    Raises
    ------
    HandOver
        They do not.
    """
    is_packed = isinstance(input, PackedSequence)
    data = input[0] if is_packed else input
    tensors = [data, *states, *weights]
    plan = checked_plan(settings, tensors, weights, kept)
    try:
        rows = packed_rows(input, plan) if is_packed else padded_rows(data, plan, batch_first)
        sequences = () if len(rows.out_shape) == 1 and not is_packed else (rows.B,)  # of a single one there is no such dimension
        shapes = [(len(plan.directions), *sequences, width) for width in plan.widths]
        before: Sequence[int] = ()
        if states:
            if [state.shape for state in states] != shapes:
                raise HandOver("torch: the initial states are not of the shape that the batch and the layer ask for")
            states = [*map(Tensor.contiguous, states)]
            before = [address_of(state, state.numel(), plan.item_bytes) for state in states]
        weights = weights if all(map(Tensor.is_contiguous, weights)) else [*map(Tensor.contiguous, weights)]
        places, storages = located(weights, plan)
    except (RuntimeError, NotImplementedError) as error:  # a sparse tensor has no memory, nor has one under some transforms
        raise HandOver(reason(tensors)) from error
    panels = panels_of(plan, places, kept)
    del storages  # held until here, whatever another thread has put in the place of a weight meanwhile
    return Call(panels, rows, states, before, shapes)


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
        counter = ctypes.addressof(arrivals) + 8 * k if arrivals else 0
        block = blocks.Recur(cell, item, reverse, F, H, P, *weights, *layout, *source, *target, *states, *workspace[:2], counter, shares)
        parallel.run_on(block, shares, shares)
    return out, after


def _division(plan: Plan, rows: Rows) -> tuple[int, Any]:
    """Return in how many shares a call is done, and, where these are of hidden units, a counter for each block: see blocks.Recur.

    Shares of sequences need not wait for each other. Shares of units are for large weights, and for fewer sequences than threads.
    """
    many = parallel.threads_to_compute(plan.operations * rows.N)
    is_waiting_worth_it = many > rows.B and plan.operations * rows.B > WORTH_WAITING * len(plan.directions)
    if many > 1 and (is_waiting_worth_it or shares_units(plan.cell, plan.H, plan.P, plan.item_bytes, many)) and parallel.runs_at_once():
        return many, (ctypes.c_int64 * len(plan.directions))()
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
