"""The moves with their derivatives, to any order: each is linear, and its gradient is the move back.

A move is recorded only where a gradient is wanted. The function is of the style with `ctx` in forward: the other style, with
setup_context, costs three times as much a call, and transforms that need it never get here (bridge.is_eager).
"""

from collections.abc import Sequence
from enum import Enum
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fastpack.torch import by_index, moves
from fastpack.torch.bridge import is_dense, is_eager
from fastpack.torch.layout import TensorLayout


class Form(Enum):
    """How the rows of a batch lie in tensors, where it takes no further words."""

    PACKED = "one tensor (N, ...) in packed order"
    RAGGED = "one tensor (N, ...), one sequence after another"
    LISTED = "a tensor (T_i, ...) a sequence"


class Padded(NamedTuple):
    """One tensor (B, steps, ...) or (steps, B, ...), the padding after each sequence or before it."""

    batch_first: bool
    steps: int
    after: int = 1
    padding_value: float = 0.0


def move(source: Form | Padded, target: Form | Padded, layout: TensorLayout, *tensors: Tensor) -> Any:
    """Move the rows of dense `tensors`, which are in the form `source`, into `target`: a tensor, or a tuple of them.

    Where no gradient is wanted, callers that know both forms call the module `moves` itself.
    """
    if torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors]):
        return _Move.apply(source, target, layout, *tensors)  # type: ignore[no-untyped-call]
    return _run(moves, source, target, layout, tensors)


class _Move(Function):
    @staticmethod
    def forward(ctx: Any, source: Form | Padded, target: Form | Padded, layout: TensorLayout, *tensors: Tensor) -> Any:
        # A copy of our own, past what torch lets others see and change: the batch's index tensors and lengths are in the
        # caller's hands until the backward pass, saved tensors in a hook's, and the kernels follow them without looking.
        ctx.indices, ctx.sizes = torch.cat(layout[:4]), [index.shape[0] for index in layout[:4]]
        ctx.num_rows, ctx.source, ctx.target = layout.num_rows, source, target
        moved = _run(moves, source, target, layout, tensors)
        if target is Form.LISTED:
            ctx.set_materialize_grads(False)
            ctx.shapes = [tensor.shape for tensor in moved]
        return moved

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        _ = ctx.saved_tensors  # raises, as torch does, where the graph was freed by a backward pass before
        lengths, batch_sizes, order, places = torch.unsafe_split_with_sizes(ctx.indices, ctx.sizes)
        layout = TensorLayout(lengths, batch_sizes, order, places, ctx.num_rows)
        wanted = ctx.needs_input_grad[3:]
        given: Any = gradients if ctx.target is not Form.LISTED else _completed(gradients, ctx.shapes)
        if not given:  # nothing depends on any of the sequences
            return None, None, None, *(None for _ in wanted)
        target = Padded(*ctx.source[:3]) if isinstance(ctx.source, Padded) else ctx.source  # the gradient of padding is 0
        # a gradient may be of another kind than what it is the gradient of
        if is_eager() and all(map(is_dense, given)):
            moved = move(ctx.target, target, layout, *given)
        else:
            moved = _run(by_index, ctx.target, target, layout, given)
        if ctx.source is not Form.LISTED:
            return None, None, None, moved
        return None, None, None, *(gradient if wish else None for gradient, wish in zip(moved, wanted, strict=True))


def _completed(gradients: tuple[Tensor | None, ...], shapes: list[torch.Size]) -> tuple[Tensor, ...]:
    """Return a gradient for every sequence, zero where none arrived; nothing where none arrived at all."""
    given = [gradient for gradient in gradients if gradient is not None]
    if not given:
        return ()
    zero = given[0].new_zeros(())
    return tuple(zero.expand(shape) if gradient is None else gradient for gradient, shape in zip(gradients, shapes, strict=True))


def _run(by: ModuleType, source: Form | Padded, target: Form | Padded, layout: TensorLayout, tensors: Sequence[Tensor]) -> Any:
    if target is Form.PACKED:
        if isinstance(source, Padded):
            return by.pack_padded(tensors[0], layout, source.batch_first)
        return by.pack_ragged(tensors[0], layout) if source is Form.RAGGED else by.pack_listed(tensors, layout)
    if source is Form.PACKED:
        if isinstance(target, Padded):
            return by.unpack_padded(tensors[0], layout, target.batch_first, target.steps, target.padding_value)
        return by.unpack_ragged(tensors[0], layout) if target is Form.RAGGED else by.unpack_listed(tensors[0], layout)
    if isinstance(target, Padded):
        return by.pad_listed(tensors, layout.lengths, *target)
    if isinstance(source, Padded):
        return by.unpad_listed(tensors[0], layout.lengths, source.batch_first, source.after)
    raise TypeError(f"there is no move from {source} to {target}")
