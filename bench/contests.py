"""What is timed: for each function its contenders, on the cases that the tests check. Results are compared before anything is timed.

`copy` is the floor: one plain copy of as many bytes as the result has.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

import fastpack
import fastpack.torch
from bench.cases import Case

Contender = Callable[[], Any]


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal to the bit; torch's packed batches sequence by sequence, as it leaves the order of ties open."""
    if isinstance(a, PackedSequence):
        return torch.equal(a.batch_sizes, b.batch_sizes) and same(rnn.unpack_sequence(a), rnn.unpack_sequence(b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return len(a) == len(b) and all(map(same, a, b))


class Contest(NamedTuple):
    """Contenders that give the same result: `fastpack` and others."""

    name: str
    contenders: dict[str, Contender]
    agree: Callable[[Any, Any], bool] = same

    def check(self) -> None:
        """Compare every contender's result with fastpack's, the floor aside.

        Raises
        ------
        RuntimeError
            One is different.
        """
        ours = self.contenders["fastpack"]()
        for name, contender in self.contenders.items():
            if name != "copy" and not self.agree(ours, contender()):
                raise RuntimeError(f"{self.name}: {name} gives another result than fastpack")


@cache
def numpy_contests(case: Case) -> dict[str, Contest]:
    """Return the contests of the NumPy level, against what one writes with NumPy alone."""
    sequences, padded, values, lengths, offsets = case.sequences(), case.padded(), case.values(), case.lengths, case.offsets()
    packed, flat = fastpack.pack(sequences), Plain(lengths)
    made = [
        ("pack", fastpack.pack, (sequences,), lambda: flat.pack_list(sequences), values),
        ("pack_padded", fastpack.pack_padded, (padded, lengths), lambda: flat.pack_padded(padded), values),
        ("pack_ragged", fastpack.pack_ragged, (values, offsets), lambda: flat.pack_ragged(values), values),
        ("pad", lambda p: fastpack.pad(p)[0], (packed,), lambda: flat.pad(packed.data), padded),
        ("unpack", fastpack.unpack, (packed,), lambda: flat.unpack(packed.data), values),
    ]
    return {name: Contest(name, _contenders(f, arguments, numpy=plain, copy=payload.copy)) for name, f, arguments, plain, payload in made}


@cache
def torch_contests(case: Case) -> dict[str, Contest]:
    """Return the contests of the torch level, against torch.nn.utils.rnn."""
    lengths = torch.from_numpy(case.lengths)
    sequences = [torch.from_numpy(item) for item in case.sequences()]
    padded, packed = torch.from_numpy(case.padded()), fastpack.torch.pack_sequence(sequences, enforce_sorted=False)
    leaf, weight = padded.clone(), torch.ones_like(packed.data)
    if padded.is_floating_point():
        leaf.requires_grad_()
    made: list[tuple[str, Any, torch.Tensor]] = [
        ("pack_padded_sequence", lambda m: m.pack_padded_sequence(padded, lengths, True, False), packed.data),
        ("pack_sequence", lambda m: m.pack_sequence(sequences, False), packed.data),
        ("pad_packed_sequence", lambda m: m.pad_packed_sequence(packed, True), padded),
        ("unpack_sequence", lambda m: m.unpack_sequence(packed), packed.data),
        ("pad_sequence", lambda m: m.pad_sequence(sequences, True), padded),
        ("unpad_sequence", lambda m: m.unpad_sequence(padded, lengths, True), packed.data),
    ]
    if leaf.requires_grad:

        def backward(module: Any) -> torch.Tensor:
            leaf.grad = None
            module.pack_padded_sequence(leaf, lengths, True, False).data.backward(weight)
            return leaf.grad

        made.append(("pack, backward", backward, padded))
    return {
        name: Contest(name, _contenders(f, (fastpack.torch,), torch=lambda f=f: f(rnn), copy=payload.clone)) for name, f, payload in made
    }


def _contenders(function: Callable[..., Any], arguments: tuple[Any, ...], **others: Contender) -> dict[str, Contender]:
    return {"fastpack": lambda: function(*arguments), **others}


class Plain:
    """Packing as one writes it with NumPy alone: index arrays from a stable argsort and a mask."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths

    def _layout(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        order = np.argsort(-self.lengths, kind="stable")
        mask = np.arange(self.lengths.max())[:, None] < self.lengths[order]  # (T, B)
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return mask, mask.sum(axis=1), order, places

    def pack_ragged(self, values: np.ndarray) -> fastpack.Packed:
        """Gather rows by index."""
        mask, sizes, order, places = self._layout()
        starts = np.cumsum(self.lengths) - self.lengths
        rows = (starts[order] + np.arange(len(sizes))[:, None])[mask]
        return fastpack.Packed(values[rows], sizes, order, places)

    def pack_list(self, sequences: list[np.ndarray]) -> fastpack.Packed:
        """Join the sequences first."""
        self.lengths = np.array([len(item) for item in sequences])
        return self.pack_ragged(np.concatenate(sequences))

    def pack_padded(self, padded: np.ndarray) -> fastpack.Packed:
        """Gather by order, then by mask."""
        mask, sizes, order, places = self._layout()
        return fastpack.Packed(padded.swapaxes(0, 1)[: len(sizes), order][mask], sizes, order, places)

    def pad(self, data: np.ndarray) -> np.ndarray:
        """Scatter by mask, then by order."""
        mask, _sizes, _order, places = self._layout()
        padded = np.zeros((*mask.shape, *data.shape[1:]), data.dtype)
        padded[mask] = data
        return np.ascontiguousarray(padded[:, places].swapaxes(0, 1))

    def unpack(self, data: np.ndarray) -> list[np.ndarray]:
        """Pad, then cut."""
        return [row[:length] for row, length in zip(self.pad(data), self.lengths, strict=True)]
