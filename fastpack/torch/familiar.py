"""Recognising tensors that look exactly like some which were checked in full.

torch.compile guards its graphs by a few lines of C++ that ask tensors for type, dispatch keys, dtype, device, sizes and strides:
0.3 us for a layer's call. Asked from Python, the same questions take 4, a fifth of a call on a small batch. They are private to
torch, so nothing rests on them alone: they are not used unless they tell some tensors from others as they should, and what they
do not recognise is checked in full.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

Sizes = Sequence[int | None]  # None: any


class Familiar(NamedTuple):
    """What tensors looked like that were checked in full, and what was found."""

    form: Any
    found: Any
    is_alike: Callable[..., bool]  # of other tensors


def remember(form: Any, found: Any, tensors: Sequence[Tensor], sizes: Sequence[Sizes], strides: Sequence[Sizes]) -> Familiar | None:
    """Return how to recognise tensors of these sizes and strides, which otherwise look like `tensors`; None where it cannot be told."""
    guards = _guards()
    if guards is None:
        return None
    is_alike = _guard(guards, tensors, sizes, strides)
    return Familiar(form, found, is_alike) if is_alike(*tensors) else None


def _guard(guards: Any, tensors: Sequence[Tensor], sizes: Sequence[Sizes], strides: Sequence[Sizes]) -> Callable[..., bool]:
    kind = guards(*tensors, dynamic_dims_sizes=[*map(list, sizes)], dynamic_dims_strides=[*map(list, strides)])
    is_alike: Callable[..., bool] = kind.check
    return is_alike


@cache
def _guards() -> Any:
    """Return torch's class, or None where it does not do what is expected of it."""
    try:
        from torch._C._dynamo.guards import TensorGuards
    except ImportError:
        return None
    try:
        return TensorGuards if _do_probes_agree(TensorGuards) else None
    except (RuntimeError, TypeError, ValueError):
        return None


class _Subclass(Tensor):
    pass


def _do_probes_agree(guards: Any) -> bool:
    with torch.inference_mode(False), torch.no_grad():
        one, two = torch.zeros(3, 4), torch.ones(3, 4)  # the same tensor twice is never alike
        is_alike = _guard(guards, [one, two], [(None, 4), (3, 4)], [(None, 1), (4, 1)])
        others = [
            *(one[:2], one[:, :3], one.T, torch.zeros(3, 8)[:, ::2], one[0], one.double(), one.long(), torch.zeros(3, 4, device="meta")),
            *(torch._neg_view(one), one.as_subclass(_Subclass), torch._efficientzerotensor((3, 4)), one.to_sparse()),
        ]
        alike = [is_alike(two, one), is_alike(torch.ones(7, 4), one), is_alike(torch.ones(3, 9)[:, 1:5], one), is_alike(two[:0], one)]
        unlike = [is_alike(two, other) for other in others] + [is_alike(other, two) for other in others[1:]]
        with torch.enable_grad():
            unlike.append(is_alike(one, torch.zeros(3, 4, requires_grad=True)))
        return all(alike) and not any(unlike)
