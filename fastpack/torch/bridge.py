"""Which tensors the kernels take: dense ones of the CPU's memory, outside every torch mode that wants to see operations.

Everything else goes to torch's own functions, which know what to do with it.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch, _get_tracing_state, _is_torch_function_mode_enabled, _len_torch_dispatch_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

PLAIN_TYPES = {Tensor, Parameter}
CPU = torch.device("cpu")  # its name costs torch a third of the time that a new tensor takes


def is_eager() -> bool:
    """Whether operations run right now, one by one, on the tensors that they are given: no tracing, transform or mode."""
    return (
        _functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and _get_tracing_state() is None
        and not _is_torch_function_mode_enabled()
        and not _len_torch_dispatch_stack()
        and not torch.compiler.is_compiling()
    )


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is just strided memory of this process, its bits the values."""
    try:
        return (
            type(tensor) in PLAIN_TYPES
            and tensor.is_cpu
            and tensor.layout is torch.strided
            and not tensor.is_nested
            and not tensor.is_neg()
            and not tensor.is_conj()
            and not tensor.is_quantized
            and (has_memory(tensor) or tensor.numel() == 0)
        )
    except RuntimeError:  # no storage, as under the vmap of torch.autograd's is_grads_batched
        return False


def has_memory(tensor: Tensor) -> bool:
    """Whether there is something at a tensor's address: lazy zeros have none, nor has what a storage held before resize_(0)."""
    return tensor.data_ptr() != 0 and tensor.untyped_storage().nbytes() != 0


def are_dense(tensors: Sequence[Tensor]) -> bool:
    """Whether every tensor is dense, of some that are of plain types, of one dtype, and have a shape and an address.

    Each question is asked of all of them at once, which takes half the time, and what the dtype answers only of one.
    """
    first = tensors[0]
    return (
        all(map(attrgetter("is_cpu"), tensors))
        and not any(map(Tensor.is_neg, tensors))
        and not first.is_quantized
        and not (first.dtype.is_complex and any(map(Tensor.is_conj, tensors)))
    )


def path_of(tensors: Iterable[Any]) -> str:
    """Return which code a call with these tensors runs: 'kernels', or 'torch: ' and why."""
    if not is_eager():
        return "torch: a transform, trace, compilation or mode is active"
    for tensor in tensors:
        if type(tensor) not in PLAIN_TYPES:
            return f"torch: a tensor is a {type(tensor).__name__}"
        if not tensor.is_cpu:
            return f"torch: a tensor is on {tensor.device}"
        if not is_dense(tensor):
            return "torch: a tensor is sparse, nested, quantised, without memory, or a lazy negation or conjugate"
    return "kernels"


def needs_grad(tensor: Tensor) -> bool:
    """Whether autograd has to know of an operation on this tensor."""
    return tensor.requires_grad and torch.is_grad_enabled()
