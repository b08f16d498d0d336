"""How a batch leaves a DataLoader's worker process: small tensors as bytes in the message itself, large ones by shared memory.

torch gives every storage a block of shared memory and sends its file descriptor over a socket: 290 us a tensor from one process
to the other, of 1 KB as of 100, and a descriptor that stays open as long as the tensor lives. As bytes, 1 KB takes 17 us and 20 KB
90, and a tensor that is kept (the labels of an epoch) keeps neither a descriptor nor the rest of its batch. A packed batch is one
large tensor and some small ones, so that is one descriptor in place of five.

Up to 500 KB bytes would still be quicker, but a message beyond the 64 KB that a pipe holds is not sent until it is read: the
worker would stand there with the lock on the pipe that all workers share.
"""

from math import prod
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing import reductions
from torch.utils.data import get_worker_info

from fastpack.torch.bridge import CPU, is_dense

SMALL = 1 << 15  # bytes


def in_worker_process() -> bool:
    """Whether this is a worker process of a DataLoader; a thread that torch has workers in may be none."""
    info = get_worker_info()
    return info is not None and getattr(info, "worker_method", "multiprocessing") == "multiprocessing"


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return new memory of the CPU: for what is large, a worker process has it shared, so that it is not copied when it is sent."""
    if not in_worker_process() or prod(shape) * dtype.itemsize <= SMALL:
        return torch.empty(shape, dtype=dtype, device=CPU)
    storage: Any = torch.UntypedStorage._new_shared(prod(shape) * dtype.itemsize)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype, device=CPU).set_(storage).view(shape)


def send_small_tensors_as_bytes() -> None:
    """Have this process, a worker, send small tensors by value. What is in shared memory already stays shared."""
    ForkingPickler.register(Tensor, _reduce)


def _reduce(tensor: Tensor) -> Any:
    if tensor.nbytes > SMALL or tensor.requires_grad or not is_dense(tensor) or not tensor.is_contiguous() or _is_shared(tensor):
        return reductions.reduce_tensor(tensor)  # type: ignore[no-untyped-call]
    return _rebuild, (tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), tensor.dtype, tuple(tensor.shape))


def _is_shared(tensor: Tensor) -> bool:
    return tensor.untyped_storage().is_shared()


def _rebuild(content: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not content:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape)
