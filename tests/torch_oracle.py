"""What the tests of the torch level compare with: torch's own functions, bit by bit, and tensors of every dtype and stride."""

import ctypes
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from tests.recurrent_oracle import Kind, Weights

FUNCTIONS = ("pack_padded_sequence", "pad_packed_sequence", "pack_sequence", "unpack_sequence", "pad_sequence", "unpad_sequence")


def every_dtype() -> list[torch.dtype]:
    """Return each dtype whose values are whole bytes that torch can fill, those of this torch only included."""
    found = {item for item in vars(torch).values() if isinstance(item, torch.dtype)}
    with warnings.catch_warnings(action="ignore"):  # of complex halves, once
        return [dtype for dtype in sorted(found, key=str) if outcome(torch.empty(2, dtype=dtype).fill_, 1)[0] is None]


def memory(tensor: Tensor) -> bytes:
    """Return all that a tensor's storage holds, what lies between its values too."""
    storage = tensor.untyped_storage()
    return ctypes.string_at(storage.data_ptr(), storage.nbytes())


def bits(tensor: Tensor) -> bytes:
    """Return the memory of a tensor's values, as if it were contiguous: it tells -0.0 from 0.0, and one NaN from another."""
    whole = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return ctypes.string_at(whole.data_ptr(), whole.numel() * whole.element_size())


def random_tensor(shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Return any bits at all, but truths are 0 or 1."""
    item = torch.empty((), dtype=dtype).element_size()
    generator = torch.Generator().manual_seed(seed)
    top = 2 if dtype is torch.bool else 256
    values = torch.randint(0, top, (*shape, item), dtype=torch.uint8, generator=generator)
    return values.view(dtype).reshape(tuple(shape))


def assert_same(found: Any, expected: Any) -> None:
    """Compare tensors, or tuples and lists of them: kind, device, dtype, shape and bits."""
    if isinstance(expected, (tuple, list)):
        assert isinstance(found, (tuple, list))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, Tensor):
        assert type(found) is Tensor
        assert (found.device, found.dtype, found.layout) == (expected.device, expected.dtype, expected.layout)
        assert found.shape == expected.shape
        assert found.requires_grad == expected.requires_grad
        assert bits(found) == bits(expected)
    else:
        assert found is expected


def assert_packed(found: PackedSequence, expected: PackedSequence) -> None:
    """Compare every field, and that `data` and the indices are contiguous."""
    assert type(found) is PackedSequence
    assert_same(found, expected)
    assert all(field.is_contiguous() for field in found if field is not None)


def packed_by_torch(padded: Tensor, lengths: Sequence[int], batch_first: bool = False, enforce_sorted: bool = False) -> PackedSequence:
    """Pack by torch's own function, equal lengths in the caller's order, and sequences without a row, which torch refuses, last."""
    vector = torch.tensor(lengths)
    order = torch.sort(vector, descending=True, stable=True).indices
    if not enforce_sorted:
        batch_dim = 0 if batch_first else 1
        padded = torch.stack([padded.select(batch_dim, i) for i in order.tolist()], batch_dim)
        vector = vector[order]
    full = int((vector > 0).sum())
    kept = padded[:full] if batch_first else padded[:, :full]
    data, batch_sizes = padded.new_empty(sum(lengths), *padded.shape[2:]), torch.empty(0, dtype=torch.int64)
    if full:
        batch_sizes = rnn.pack_padded_sequence(torch.empty(kept.shape[:2]), vector[:full], batch_first).batch_sizes
    if data.numel():
        data = rnn.pack_padded_sequence(kept, vector[:full], batch_first).data
    if enforce_sorted and full == len(lengths):
        return PackedSequence(data, batch_sizes)
    return PackedSequence(data, batch_sizes, order, rnn.invert_permutation(order))


def padded_by_hand(sequences: Sequence[Tensor], steps: int, value: Any = 0, side: str = "right", batch_first: bool = True) -> Tensor:
    """Return the padded batch by plain assignment."""
    padded = torch.full((len(sequences), steps, *sequences[0].shape[1:]), value, dtype=sequences[0].dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        if len(sequence):
            row[: len(sequence)].copy_(sequence) if side == "right" else row[steps - len(sequence) :].copy_(sequence)
    return padded if batch_first else padded.transpose(0, 1).contiguous()


def views(tensor: Tensor) -> dict[str, Tensor]:
    """Return tensors of the shape and dtype of `tensor` and of other strides, in memory of their own."""
    shape, dims = tensor.shape, tensor.dim()
    found = {"contiguous": tensor.clone(), "parameter": torch.nn.Parameter(tensor.clone(), requires_grad=False)}
    found["turned"] = tensor.permute(*reversed(range(dims))).contiguous().permute(*reversed(range(dims)))
    found["every second"] = torch.stack([tensor, torch.ones_like(tensor)], 1).flatten(0, 1)[::2]
    found["broadcast"] = tensor[:1].clone().expand(shape) if shape[0] else tensor.clone()
    found["same everywhere"] = random_tensor((1,) * dims, tensor.dtype, 3).expand(shape)
    wide = random_tensor([size + 2 for size in shape], tensor.dtype, 4)
    found["cut"] = wide[tuple(slice(1, size + 1) for size in shape)]
    found["shifted"] = torch.cat([torch.zeros(1, dtype=tensor.dtype), tensor.flatten()])[1:].view(shape)
    found["strange strides of single sizes"] = tensor.clone().as_strided(
        shape, [7 if n == 1 else s for n, s in zip(shape, tensor.stride(), strict=True)]
    )
    if dims == 4:
        found["channels last"] = tensor.to(memory_format=torch.channels_last)
    return found


@contextmanager
def unchanged(*tensors: Tensor) -> Iterator[None]:
    """Fail where a tensor's shape, strides, version or memory is not afterwards what it was."""

    def snapshot() -> list[Any]:
        return [(t.shape, t.stride(), t._version, t.requires_grad, memory(t)) for t in tensors]

    before = snapshot()
    yield
    assert snapshot() == before, "an argument was changed"


def outcome(call: Callable[..., Any], *arguments: Any) -> tuple[type | None, str]:
    """Return the type and text of the error that a call raises; None and '' where it raises none."""
    try:
        call(*arguments)
    except Exception as error:
        return type(error), str(error)
    return None, ""


@contextmanager
def torch_called() -> Iterator[list[str]]:
    """Collect the names of torch's own functions that fastpack.torch calls."""
    from fastpack.torch import rnn_utils

    called: list[str] = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(rnn, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[rnn_utils.__name__], "theirs", Spy())
        yield called


def layer_of_torch(kind: Kind, weights: Weights, L: int, D: int) -> nn.RNNBase:
    """Return torch's module with these weights."""
    F, dtype = weights["weight_ih_l0"].shape[1], weights["weight_ih_l0"].dtype
    P, H = weights["weight_hr_l0"].shape if "weight_hr_l0" in weights else (0, weights["weight_hh_l0"].shape[1])
    options = {"num_layers": L, "bidirectional": D == 2, "bias": "bias_ih_l0" in weights, "dtype": getattr(torch, dtype.name)}
    module = getattr(nn, kind.name)(F, H, **options, **({"proj_size": P} if P else {}), **kind.options)
    module.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    return module.eval()
