"""`pin_memory=True`: what torch does without an accelerator, and, by a stand-in for the copy to pinned memory, with one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data._utils.pin_memory import pin_memory

from fastpack.torch import PackCollate, RaggedDataset, loader
from tests.torch_oracle import assert_packed

OFFSETS = [0, 3, 4, 9, 11]
WAYS = [{}, {"num_threads": 1}, {"num_workers": 1}]


def stored() -> RaggedDataset:
    frames = {"frames": torch.arange(22.0).view(11, 2), "tags": np.arange(11)}
    return RaggedDataset(frames, OFFSETS, label=np.arange(4), name=["a", "b", "c", "d"])


def samples() -> list[dict[str, Any]]:
    return [{"x": torch.full((k + 1, 2), k), "y": (torch.arange(k + 1), k)} for k in range(4)]


def tensors_of(batch: Any) -> list[torch.Tensor]:
    """Return the tensors of a batch, but for batch sizes, which stay where the CPU reads them."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    parts = (batch.data, *batch[2:]) if isinstance(batch, PackedSequence) else batch.values() if isinstance(batch, dict) else batch
    return [] if isinstance(batch, str) else [tensor for part in parts for tensor in tensors_of(part)]


def assert_alike(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, PackedSequence):
        assert_packed(found, wanted)
    elif isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted)
    elif isinstance(wanted, str):
        assert found == wanted
    else:
        for one, other in zip(*([*each.values()] if isinstance(each, dict) else each for each in (found, wanted)), strict=True):
            assert_alike(one, other)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Have an accelerator, whose pinned memory is any; return the tensors that are there."""
    made: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: made.append(self.clone()) or made[-1])
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    return made


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_without_an_accelerator_it_is_said_and_batches_are_the_same(options: dict[str, int]) -> None:
    for dataset in (stored(), samples()):
        wanted = list(loader(dataset, batch_size=3))
        made = loader(dataset, batch_size=3, pin_memory=True, **options)
        with pytest.warns(UserWarning, match="'pin_memory' .*is set as true but no accelerator is found"):
            found = list(made)
        for one, other in zip(found, wanted, strict=True):
            assert_alike(one, other)


@pytest.mark.parametrize("options", WAYS[:2], ids=str)
def test_with_one_every_tensor_is_pinned_and_the_form_stays(options: dict[str, int], pinned: list[torch.Tensor]) -> None:
    alone = RaggedDataset(torch.arange(11), OFFSETS)
    for dataset, collate in ((stored(), None), (alone, None), (samples(), PackCollate("x", padded=["y.0"]))):
        wanted = list(loader(dataset, batch_size=3, collate_fn=collate))
        assert pinned == []
        found = list(loader(dataset, batch_size=3, collate_fn=collate, pin_memory=True, **options))
        for one, other in zip(found, wanted, strict=True):
            assert_alike(one, other)
        theirs = [id(tensor) for batch in found for tensor in tensors_of(batch)]
        assert set(theirs) == {id(tensor) for tensor in pinned}
        assert len(theirs) >= 3 * len(found)  # rows and two index tensors
        pinned.clear()


def test_the_comparison_goes_red(pinned: list[torch.Tensor]) -> None:
    batch = stored().__getitems__([0, 1])
    assert_alike(pin_memory(batch), batch)
    for other in (batch._replace(label=torch.tensor([0, 2])), batch._replace(name=("a", "x")), tuple(batch), batch.frames):
        with pytest.raises((AssertionError, ValueError)):
            assert_alike(other, batch)
