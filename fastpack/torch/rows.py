"""Where in memory the rows, states and weights of a recurrent layer's call are, once it is known that the kernels take them."""

import ctypes
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage

from fastpack import blocks
from fastpack.machine import run
from fastpack.torch.layout import is_whole
from fastpack.torch.panels import Plan

SHORT = 4096  # entries up to which the layout of batches that need no sorting is kept
INCONSISTENT = "torch: the packed batch is inconsistent"
NO_MEMORY = "torch: a tensor has less memory than its shape says"


# of Rows, the axes of a packed batch (N, F), of padded ones (T, B, F) and (B, T, F), and of a single sequence (T, F)
PACKED, STEPS_FIRST, BATCH_FIRST, SINGLE = (0, -1), (1, 0), (0, 1), (-1, 0)


class HandOver(Exception):  # noqa: N818  no error: torch's own function takes the call
    """The kernels do not take a call; the message says why."""


class Rows(NamedTuple):
    """Where a batch's rows are, and in what order."""

    layout: tuple[int, int]  # addresses of sorted_indices (B,) and of batch_sizes (T,), in memory that nobody else knows
    B: int
    T: int
    N: int
    address: int  # of the first
    row_bytes: int
    step_bytes: int  # 0 where each step follows the rows of the one before
    out_shape: tuple[int, ...]  # of the output, but for its last dimension
    indices: Any  # hold the layout
    axes: tuple[int, int]  # which dimension of x counts the rows of a step, or all rows, and which the steps; -1 for none


def address_of(tensor: Tensor, extent: int, item_bytes: int) -> int:
    """Return the address of a tensor's first item, of which memory for `extent` items is wanted.

    Raises
    ------
    HandOver
        Its storage is smaller: it was emptied.
    """
    storage, offset = tensor.untyped_storage(), int(tensor.storage_offset()) * item_bytes
    start = storage.data_ptr()
    if extent and (offset + extent * item_bytes > storage.nbytes() or not start):
        raise HandOver(NO_MEMORY)
    return start + offset


def contiguous(tensor: Tensor) -> Tensor:
    """Return a tensor whose items lie side by side: itself, or a copy.

    Raises
    ------
    HandOver
        There is nothing to copy: its storage was emptied.
    """
    if tensor.is_contiguous():
        return tensor
    if not is_whole(tensor):
        raise HandOver(NO_MEMORY)
    return tensor.contiguous()


def located(weights: Sequence[Tensor], plan: Plan) -> tuple[list[int], list[Any]]:
    """Return the addresses of contiguous weights, and what holds the memory there.

    Raises
    ------
    HandOver
        A storage is smaller than its tensor.
    """
    storages = [*map(Tensor.untyped_storage, weights)]
    addresses, nbytes = [*map(UntypedStorage.data_ptr, storages)], [*map(UntypedStorage.nbytes, storages)]
    is_usual = nbytes == plan.nbytes and not any(map(Tensor.storage_offset, weights)) and 0 not in addresses
    if not is_usual:  # as where weights are parts of one storage
        addresses = [address_of(weight, weight.numel(), plan.item_bytes) for weight in weights]
    return addresses, storages


def packed_rows(data: Tensor, indices: Sequence[Tensor], plan: Plan) -> Rows:
    """Return where the rows of a packed batch are: `indices` are contiguous int64 vectors, the batch sizes alone or all three.

    A batch's index tensors are in the caller's hands until the backward pass, and the kernels follow them without looking: so what is
    checked, and followed, is a copy.

    Raises
    ------
    HandOver
        The batch is inconsistent.
    """
    (N, F), row_stride, item, (T, *counts) = data.shape, data.stride(0), plan.item_bytes, map(Tensor.numel, indices)
    sizes = address_of(indices[0], T, 8)
    if counts:
        B, is_consistent = counts[0], counts[0] == counts[1]
    else:
        B = ctypes.c_int64.from_address(sizes).value if T else 0
        is_consistent = B <= N  # before so much memory is taken
    if not is_consistent or B <= 0:
        raise HandOver(INCONSISTENT)
    order, back = indices[1:] if counts else [_in_order(B)] * 2
    facts, held = int64s(3 + B + T)  # three facts, and the copy
    own, own_sizes = facts + 24, facts + 24 + 8 * B
    places = address_of(order, B, 8), address_of(back, B, 8)
    run(blocks.MeasureLayout._make((sizes, T, *places, B, 0, own_sizes, own, facts)))
    if held[0] != N or held[1] >= 0 or held[2] >= 0:
        raise HandOver(INCONSISTENT)
    address = address_of(data, (N - 1) * row_stride + F if N else 0, item)
    return Rows((own, own_sizes), B, T, N, address, row_stride * item, 0, (N,), held, PACKED)


def padded_rows(data: Tensor, plan: Plan, batch_first: bool) -> tuple[Tensor, Rows]:
    """Return a padded batch or a single sequence, copied where it must be, and where its rows are.

    Raises
    ------
    HandOver
        The batch is empty.
    """
    shape, strides, item = data.shape, data.stride(), plan.item_bytes
    if 0 in shape:
        raise HandOver("torch: the padded batch is empty")
    if 0 in strides:  # a step of no bytes would say that each step follows the one before
        data = contiguous(data)
        strides = data.stride()
    if len(shape) == 2:
        (T, F), B, row_stride, step_stride, axes = shape, 1, 0, strides[0], SINGLE
    elif batch_first:
        (B, T, F), (row_stride, step_stride, _), axes = shape, strides, BATCH_FIRST
    else:
        (T, B, F), (step_stride, row_stride, _), axes = shape, strides, STEPS_FIRST
    address = address_of(data, (B - 1) * row_stride + (T - 1) * step_stride + F, item)
    indices = order, batch_sizes = _in_order(B), _alike(B, T)
    layout = order.data_ptr(), batch_sizes.data_ptr()
    out_shape = (T,) if len(shape) == 2 else (T, B)
    return data, Rows(layout, B, T, B * T, address, row_stride * item, step_stride * item, out_shape, indices, axes)


def place_of(rows: Tensor, axes: tuple[int, int], item_bytes: int) -> tuple[Tensor, tuple[int, int, int]]:
    """Return rows whose items lie side by side, and where they are: the address of the first, the bytes from row to row and step to step.

    Raises
    ------
    HandOver
        There is less memory than the shape says.
    """
    if axes != BATCH_FIRST and rows.is_contiguous():  # each step follows the rows of the one before
        return rows, (address_of(rows, rows.numel(), item_bytes), rows.shape[-1] * item_bytes, 0)
    strides = rows.stride()
    if 0 in strides or (strides[-1] != 1 and rows.shape[-1] > 1):
        rows = contiguous(rows)
        strides = rows.stride()
    extent = 1 + sum([(size - 1) * stride for size, stride in zip(rows.shape, strides, strict=True)]) if rows.numel() else 0
    row, step = [strides[axis] * item_bytes if axis >= 0 else 0 for axis in axes]
    return rows, (address_of(rows, extent, item_bytes), row, step)


def _in_order(B: int) -> Tensor:
    return _short_in_order(B) if B <= SHORT else torch.arange(B, device="cpu")


def _alike(B: int, T: int) -> Tensor:
    return _short_alike(B, T) if T <= SHORT else torch.full((T,), B, device="cpu")


def int64s(count: int) -> tuple[int, "array[int]"]:
    """Return the address of so many zeros, and what holds them: not an array of ctypes, of whose type each length makes a new one."""
    numbers = array("q", bytes(8 * count))
    return numbers.buffer_info()[0], numbers


@lru_cache(maxsize=16)
def _short_in_order(B: int) -> Tensor:
    return torch.arange(B, device="cpu")


@lru_cache(maxsize=16)
def _short_alike(B: int, T: int) -> Tensor:
    return torch.full((T,), B, device="cpu")
