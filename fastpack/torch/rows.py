"""Whether the kernels of recurrent layers take a call's tensors, and where in memory these are.

Each question is asked of all tensors at once, which takes half the time: a call on a small batch is as long as its questions.
"""

import ctypes
from array import array
from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch._C import _is_any_autocast_enabled
from torch.nn.utils.rnn import PackedSequence

from fastpack import blocks
from fastpack.machine import run
from fastpack.torch.bridge import PLAIN_TYPES, is_eager, path_of
from fastpack.torch.layout import are_vectors, from_packed
from fastpack.torch.panels import KEPT, Plan, Settings, plan_of

DTYPES = {torch.float32, torch.float64}
SHORT = 4096  # entries up to which the layout of batches that need no sorting is kept
INCONSISTENT = "torch: the packed batch is inconsistent"
NO_MEMORY = "torch: a tensor has less memory than its shape says"

_dtype, _shape, _is_cpu, _requires_grad = map(attrgetter, ("dtype", "shape", "is_cpu", "requires_grad"))


class HandOver(Exception):  # noqa: N818  no error: torch's own function takes the call
    """The kernels do not take a call; the message says why."""


class Rows(NamedTuple):
    """Where a batch's rows are, and in what order."""

    layout: tuple[int, int]  # addresses of sorted_indices (B,) and of batch_sizes (T,)
    B: int
    T: int
    N: int
    x: Tensor  # holds the rows
    address: int  # of the first
    row_bytes: int
    step_bytes: int  # 0 where each step follows the rows of the one before
    out_shape: tuple[int, ...]  # of the output, but for its last dimension
    indices: Any  # hold the layout


def checked_plan(settings: tuple[Any, ...], tensors: list[Any], weights: Sequence[Any], kept: MutableMapping[str, Any]) -> Plan:
    """Return the plan of a layer whose call is with these tensors, its weights among them.

    Raises
    ------
    HandOver
        The kernels do not take them, or the weights are not of the settings' shapes.
    """
    if not is_eager() or _is_any_autocast_enabled() or not set(map(type, tensors)) <= PLAIN_TYPES or not all(map(_is_cpu, tensors)):
        raise HandOver(reason(tensors))
    dtypes = set(map(_dtype, tensors))
    if len(dtypes) > 1 or not dtypes <= DTYPES:
        raise HandOver(f"torch: there are tensors of {' and '.join(sorted(map(str, dtypes)))}, not all of torch.float32 or torch.float64")
    if torch.is_grad_enabled() and any(map(_requires_grad, tensors)):
        raise HandOver("torch: something requires grad, and gradients are on")
    if any(map(Tensor.is_neg, tensors)):
        raise HandOver(reason(tensors))
    panels = kept.get(KEPT)
    try:
        shapes = [*map(_shape, weights)]
    except RuntimeError as error:  # a nested tensor has no shape
        raise HandOver(reason(tensors)) from error
    if panels is not None and panels.plan.settings == settings and panels.plan.dtype in dtypes and panels.plan.shapes == shapes:
        plan: Plan = panels.plan
        return plan
    wanted = Settings(*settings)
    if 0 < wanted.num_layers <= len(weights) and wanted.input_size > 0 and wanted.hidden_size > 0:  # as torch's constructors see to
        plan = plan_of(wanted, dtypes.pop())
        if plan.shapes == shapes:
            return plan
    raise HandOver("torch: the weights are not of the shapes that the layer's sizes ask for")


def reason(tensors: Sequence[Any]) -> str:
    """Say why the kernels do not take tensors that they were found not to take."""
    if _is_any_autocast_enabled():
        return "torch: autocast is on"
    said = path_of(tensors)
    return said if said != "kernels" else NO_MEMORY


def address_of(tensor: Tensor, extent: int, item_bytes: int) -> int:
    """Return the address of a tensor's first item, of which memory for `extent` items is wanted.

    Raises
    ------
    HandOver
        Its storage is smaller: it was emptied.
    """
    storage, offset = tensor.untyped_storage(), int(tensor.storage_offset())
    start = storage.data_ptr()
    if ((offset + extent) * item_bytes > storage.nbytes() or not start) and extent:
        raise HandOver(NO_MEMORY)
    return start + offset * item_bytes


def located(weights: Sequence[Tensor], plan: Plan) -> tuple[list[int], list[Any]]:
    """Return the addresses of contiguous weights, and what holds the memory there.

    Raises
    ------
    HandOver
        A storage is smaller than its tensor.
    """
    storages = [*map(Tensor.untyped_storage, weights)]
    addresses, nbytes = [*map(UntypedStorage.data_ptr, storages)], array("q", map(UntypedStorage.nbytes, storages))
    if (
        nbytes != plan.nbytes or 0 in addresses or any(map(Tensor.storage_offset, weights))
    ):  # weights may be parts of one storage, but seldom are
        addresses = [address_of(weight, weight.numel(), plan.item_bytes) for weight in weights]
    return addresses, storages


def packed_rows(sequence: PackedSequence, plan: Plan) -> Rows:
    """Return where the rows of a packed batch are.

    Raises
    ------
    HandOver
        The batch is inconsistent, or its rows are not of the layer's input size.
    """
    fields: Any = sequence
    data, batch_sizes, order, places = fields
    (N, F), item = data.shape if data.dim() == 2 else (0, 0), plan.item_bytes
    if plan.settings.input_size != F:
        raise HandOver("torch: the packed batch's rows are not of the layer's input size")
    is_sorted = order is None and places is None
    if not are_vectors(fields[1:2] if is_sorted else fields[1:]):
        copied = from_packed(sequence)  # with gaps between their entries they are copied
        if copied is None:
            raise HandOver(INCONSISTENT)
        batch_sizes, order, places = copied[1:4]
    elif is_sorted:
        B = ctypes.c_int64.from_address(batch_sizes.data_ptr()).value if batch_sizes.shape[0] else 0
        order = places = _in_order(B if 0 < B <= N else 0)  # no more memory than there are rows
    B, T = order.shape[0], batch_sizes.shape[0]
    if B == 0 or places.shape[0] != B:
        raise HandOver(INCONSISTENT)
    layout = order.data_ptr(), batch_sizes.data_ptr()
    notes = (ctypes.c_int64 * (3 + B))()  # three facts, and lengths that nobody needs here
    where = ctypes.addressof(notes)
    run(blocks.MeasureLayout(layout[1], T, layout[0], places.data_ptr(), B, where + 24, where))
    if notes[:3] != [N, -1, -1]:
        raise HandOver(INCONSISTENT)
    row_stride, item_stride = data.stride()
    if item_stride != 1 and F > 1:
        data, row_stride = data.contiguous(), F
    address = address_of(data, (N - 1) * row_stride + F if N else 0, item)
    return Rows(layout, B, T, N, data, address, row_stride * item, 0, (N,), (batch_sizes, order))


def padded_rows(data: Tensor, plan: Plan, batch_first: bool) -> Rows:
    """Return where the rows of a padded batch, or of a single sequence, are.

    Raises
    ------
    HandOver
        The batch is empty, or its rows are not of the layer's input size.
    """
    shape, strides, item = data.shape, data.stride(), plan.item_bytes
    if len(shape) not in (2, 3) or shape[-1] != plan.settings.input_size or not data.numel():
        raise HandOver("torch: the padded batch is empty, or its rows are not of the layer's input size")
    if (strides[-1] != 1 and shape[-1] > 1) or 0 in strides:  # a step of no bytes would say that each step follows the one before
        data = data.contiguous()
        strides = data.stride()
    if len(shape) == 2:
        (T, F), B, row_stride, step_stride = shape, 1, 0, strides[0]
    elif batch_first:
        (B, T, F), (row_stride, step_stride, _) = shape, strides
    else:
        (T, B, F), (step_stride, row_stride, _) = shape, strides
    address = address_of(data, (B - 1) * row_stride + (T - 1) * step_stride + F, item)
    indices = order, batch_sizes = _in_order(B), _alike(B, T)
    layout = order.data_ptr(), batch_sizes.data_ptr()
    out_shape = (T,) if len(shape) == 2 else (T, B)
    return Rows(layout, B, T, B * T, data, address, row_stride * item, step_stride * item, out_shape, indices)


def _in_order(B: int) -> Tensor:
    return _short_in_order(B) if B <= SHORT else torch.arange(B, device="cpu")


def _alike(B: int, T: int) -> Tensor:
    return _short_alike(B, T) if T <= SHORT else torch.full((T,), B, device="cpu")


@lru_cache(maxsize=16)
def _short_in_order(B: int) -> Tensor:
    return torch.arange(B, device="cpu")


@lru_cache(maxsize=16)
def _short_alike(B: int, T: int) -> Tensor:
    return torch.full((T,), B, device="cpu")
