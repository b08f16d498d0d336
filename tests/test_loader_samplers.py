"""Data sets, collate, samplers and loader together: the same batches by each way, each sequence once, within budget."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fastpack import BinPackingBatchSampler, LengthGroupedBatchSampler, TokenBudgetBatchSampler, TokenBudgetStream
from fastpack.torch import PackCollate, RaggedDataset, loader, unpack_sequence
from tests.torch_oracle import assert_packed

LENGTHS = np.random.default_rng(0).integers(1, 30, 60)
OFFSETS = np.cumsum([0, *LENGTHS])
FRAMES = torch.from_numpy(np.random.default_rng(1).normal(size=(OFFSETS[-1], 3)).astype(np.float32))
TAGS = torch.arange(len(FRAMES))
BUDGET = 90
PARTS = np.cumsum([0, *LENGTHS[::-1]])  # of a field whose sequences are of other lengths
WAYS = [{}, {"num_threads": 2}, {"num_workers": 1}]


def stored(**per_sequence: Any) -> RaggedDataset:
    """Return a data set of two fields of the same lengths and one of others."""
    offsets = {"frames": OFFSETS, "tags": OFFSETS, "other": PARTS}
    return RaggedDataset({"frames": FRAMES, "tags": TAGS, "other": FRAMES[:, 0]}, offsets, **per_sequence)


def assert_same_batch(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    for name in ("frames", "tags", "other"):
        assert_packed(getattr(found, name), getattr(wanted, name))
    assert torch.equal(found.label, wanted.label)
    assert torch.equal(found.box, wanted.box)
    assert found.name == wanted.name


@pytest.mark.parametrize("indices", [[3, 1, 7, 0], [5], [2, 2, 9], list(range(60))], ids=len)
def test_samples_collated_are_the_batch_that_is_gathered(indices: list[int]) -> None:
    names = [f"recording {k}" for k in range(60)]
    dataset = stored(label=np.arange(60), box=np.arange(120.0).reshape(60, 2), name=names)
    packed = PackCollate(["frames", "tags", "other"])
    assert_same_batch(packed([dataset[i] for i in indices]), dataset.__getitems__(indices))
    alone = RaggedDataset(FRAMES, OFFSETS)
    assert_packed(PackCollate()([alone[i] for i in indices]), alone.__getitems__(indices))


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize(
    "sampler",
    [LengthGroupedBatchSampler(LENGTHS, 8), TokenBudgetBatchSampler(LENGTHS, BUDGET), BinPackingBatchSampler(LENGTHS, BUDGET)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_a_loader_takes_batches_of_samplers(sampler: Any, options: dict[str, int]) -> None:
    dataset = RaggedDataset(FRAMES, OFFSETS, label=np.arange(60))
    assert np.array_equal(dataset.lengths, LENGTHS)
    batches = loader(dataset, batch_sampler=sampler, **options)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        wanted = list(sampler)
        found = list(batches)
        assert len(batches) == len(wanted)
        for (packed, label), indices in zip(found, wanted, strict=True):
            assert label.tolist() == indices
            assert_packed(packed, dataset.__getitems__(indices)[0])
        assert sorted(k for _, label in found for k in label.tolist()) == list(range(60))


MAKES = [*((loader, options) for options in WAYS), (DataLoader, {"num_workers": 2, "persistent_workers": True})]


@pytest.mark.parametrize(("make", "options"), MAKES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_loader_goes_on_in_mid_epoch(make: Any, options: dict[str, Any]) -> None:
    """With worker processes torch's loader asks a sampler for two iterators, and draws from the second."""
    dataset, whole = RaggedDataset(FRAMES, OFFSETS, label=np.arange(60)), list(TokenBudgetBatchSampler(LENGTHS, BUDGET))
    resumed = TokenBudgetBatchSampler(LENGTHS, BUDGET)
    resumed.load_state_dict(TokenBudgetBatchSampler(LENGTHS, BUDGET).state_dict(4))
    batches = make(dataset, batch_sampler=resumed, collate_fn=PackCollate(), **options)
    assert [label.tolist() for _, label in batches] == whole[4:]
    assert [label.tolist() for _, label in batches] == whole  # and then all of an epoch


def samples() -> list[tuple[torch.Tensor, int]]:
    return [(FRAMES[start:end], k) for k, (start, end) in enumerate(zip(OFFSETS[:-1].tolist(), OFFSETS[1:].tolist(), strict=True))]


def steps(sample: tuple[torch.Tensor, int]) -> int:
    return len(sample[0])


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_loader_takes_a_stream_within_budget(options: dict[str, int]) -> None:
    stream = TokenBudgetStream(samples(), BUDGET, length=steps, buffer_size=25)
    found = list(loader(stream, batch_size=None, **options))
    assert [label.tolist() for _, label in found] == [[k for _, k in batch] for batch in stream]
    assert sorted(k for _, label in found for k in label.tolist()) == list(range(60))
    for packed, label in found:
        assert len(packed.data) <= BUDGET
        for sequence, k in zip(unpack_sequence(packed), label.tolist(), strict=True):
            assert torch.equal(sequence, FRAMES[OFFSETS[k] : OFFSETS[k + 1]])


@pytest.mark.parametrize("options", [{}, {"batch_size": 4}, {"num_threads": 1}])
def test_batches_of_a_stream_are_not_batched_again(options: dict[str, int]) -> None:
    """As lists of lists of samples they would be taken for one sample, whose fields are sequences."""
    stream = TokenBudgetStream(samples(), BUDGET, length=steps)
    with pytest.raises(ValueError, match=r"^batch_size is \d, but a TokenBudgetStream gives batches, not samples: pass batch_size=None$"):
        loader(stream, **options)


class Told:
    """Samples that say which epoch they were told of."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter([(sequence, k + 100 * self.epoch) for sequence, k in samples()])


def numbers(batches: Any) -> list[list[int]]:
    return [label.tolist() for _, label in batches]


def streamed() -> TokenBudgetStream[Any]:
    return TokenBudgetStream(Told(), BUDGET, length=steps, buffer_size=25)


@pytest.mark.parametrize(
    "options",
    [
        *WAYS,
        {"num_workers": 1, "persistent_workers": True},
        {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"},
    ],
    ids=str,
)
def test_a_stream_goes_on_in_mid_epoch_and_hears_of_epochs(options: dict[str, Any]) -> None:
    """A worker process has a copy of the stream, which knows nothing of what becomes of this one."""
    wanted = {}
    for epoch in range(3):
        plain = streamed()
        plain.set_epoch(epoch)
        wanted[epoch] = [[k for _, k in batch] for batch in plain]
        assert min(map(min, wanted[epoch])) == 100 * epoch
    stream = streamed()
    stream.set_epoch(1)
    stream.load_state_dict(stream.state_dict(4))
    with loader(stream, batch_size=None, **options) as batches:
        assert numbers(batches) == wanted[1][4:]
        assert numbers(batches) == wanted[1]
        for epoch in (2, 0):
            stream.set_epoch(epoch)
            assert numbers(batches) == wanted[epoch]
        before = iter(batches)
        begun = [next(before)[1].tolist() for _ in range(3)]
        resumed = streamed()
        resumed.load_state_dict(stream.state_dict(3))
        del before
    assert begun + numbers(loader(resumed, batch_size=None)) == wanted[0]


def test_where_a_worker_process_is_has_to_be_said() -> None:
    stream = streamed()
    batches = loader(stream, batch_size=None, num_workers=1)
    assert stream.state_dict() == stream.state_dict(0)
    count = len(list(batches))
    with pytest.raises(ValueError, match=r"^batches are drawn by a worker process: pass how many .*, as state_dict\(batches\)$"):
        stream.state_dict()
    assert stream.state_dict(count)["batches"] == count
    stream.set_epoch(1)
    assert stream.state_dict()["batches"] == 0
    assert len(list(stream)) == stream.state_dict()["batches"] > 0


def test_a_sampler_of_batches_is_a_batch_sampler() -> None:
    sampler = TokenBudgetBatchSampler(LENGTHS, BUDGET)
    with pytest.raises(ValueError, match=r"^sampler is a TokenBudgetBatchSampler, which gives batches: pass it as batch_sampler$"):
        loader(RaggedDataset(FRAMES, OFFSETS), batch_size=2, sampler=sampler)


def test_threads_take_a_loader_written_for_processes() -> None:
    options: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": "spawn"}
    assert len(list(loader(samples(), 20, num_threads=1, **options))) == 3
    with pytest.raises(ValueError, match="persistent_workers"):
        loader(samples(), 20, **options)


class Longer(torch.utils.data.IterableDataset):
    """Says that it has one sample, and has three."""

    def __iter__(self) -> Any:
        return iter(FRAMES[:3])

    def __len__(self) -> int:
        return 1


def test_a_loader_without_workers_says_what_torchs_own_says() -> None:
    dataset = RaggedDataset(FRAMES, OFFSETS)
    with torch.autograd.profiler.profile(use_kineto=False) as profiled:
        assert len(list(loader(dataset, batch_size=20))) == 3
    assert len([event for event in profiled.function_events if event.name.startswith("enumerate(DataLoader)")]) == 4
    made = loader(Longer(), batch_size=1)
    assert len(made) == 1
    with pytest.warns(UserWarning, match="Length of IterableDataset .* was reported to be 1.*, but [23] samples have been fetched"):
        assert len(list(made)) == 3
