"""Calls under torch.autocast on the CPU: the kernels compute in float32, of what may have come in a half; results are of torch's dtypes.

Which these are follows from no rule that could be written down: it depends on the cell, the projection, the dtypes of input and states,
on whether all sequences are as long as each other, and on whether oneDNN takes the call. So torch is asked, once for each kind of call.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastpack.torch import by_torch
from fastpack.torch.bridge import PLAIN_TYPES, is_dense
from fastpack.torch.panels import Settings, plan_of
from fastpack.torch.rows import HandOver

FLOATS = {torch.float32, torch.bfloat16, torch.float16}  # what autocast casts


def widened(weights: Sequence[Any], input: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Return a call's input and initial states in float32.

    Raises
    ------
    HandOver
        Some tensors are not as autocast has them.
    """
    data = input.data if isinstance(input, PackedSequence) else input
    if not all([type(weight) in PLAIN_TYPES and weight.dtype is torch.float32 for weight in weights]):
        raise HandOver("torch: autocast is on, and the weights are not all of torch.float32")
    if not all([type(tensor) in PLAIN_TYPES and tensor.dtype in FLOATS and is_dense(tensor) for tensor in (data, *states)]):
        raise HandOver("torch: autocast is on, and a tensor is not of torch.float32, torch.bfloat16 or torch.float16")
    wide = data.float()
    return input._replace(data=wide) if isinstance(input, PackedSequence) else wide, [state.float() for state in states]


def dtypes_of(settings: tuple[Any, ...], input: Any, states: Sequence[Tensor]) -> list[torch.dtype]:
    """Return the dtypes that torch gives the output and the states of a call that the kernels take.

    Raises
    ------
    HandOver
        torch takes no such call.
    """
    is_packed = isinstance(input, PackedSequence)
    data, wanted = input.data if is_packed else input, Settings(*settings)
    sizes: Any = input.batch_sizes if is_packed else ()
    is_even = not len(sizes) or bool(sizes[0] == sizes[-1])
    kind = wanted._replace(input_size=2, hidden_size=3, proj_size=2 if wanted.proj_size else 0)
    now = torch.get_autocast_dtype("cpu"), torch.is_grad_enabled()
    try:
        return _dtypes(kind, is_packed, is_even, (data.dtype, *[state.dtype for state in states]), *now)
    except (RuntimeError, ValueError) as error:
        raise HandOver("torch: autocast is on, and torch takes no such call") from error


@lru_cache(maxsize=256)
def _dtypes(
    kind: Settings, is_packed: bool, is_even: bool, given: tuple[torch.dtype, ...], _autocast: torch.dtype, _grad: bool
) -> list[torch.dtype]:
    """Return the dtypes of torch's output and states for a small call of this kind, with autocast and gradients as they are now."""
    weights = [torch.zeros(shape) for shape in plan_of(kind, torch.float32).shapes]
    states = [torch.zeros(shape, dtype=dtype) for shape, dtype in zip(by_torch.state_shapes(kind, 2), given[1:], strict=False)]
    sizes = torch.tensor([2, 2] if is_even else [2, 1])
    data = torch.zeros(*([int(sizes.sum())] if is_packed else [2, 2]), 2, dtype=given[0])
    output, after = by_torch.run(kind, weights, data, (sizes, None, None) if is_packed else None, states, 0.0)
    return [output.dtype, *[state.dtype for state in after]]
