"""Training in several threads and processes: two models at once, one model by two threads, and DistributedDataParallel."""

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastpack.torch as fp
from fastpack.torch import recurrence
from tests.conftest import Child
from tests.gradients import kernels_differentiate
from tests.layers import F, assert_same_bits, flat, packed, pair


def trained(layer: torch.nn.RNNBase, seed: int, steps: int = 8) -> list[Tensor]:
    batch = packed(lengths=[3 + seed, 9, 1, 30])
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        sum(tensor.square().sum() for tensor in flat(layer(batch))).backward()
        optimiser.step()
    return [weight.detach() for weight in layer.parameters()]


def in_threads(*tasks: threading.Thread) -> None:
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(120)
        assert not task.is_alive()


@pytest.fixture
def no_spares(monkeypatch: pytest.MonkeyPatch) -> list[recurrence.Spare]:
    """Have no memory kept, and return the list of what is from then on."""
    spares: list[recurrence.Spare] = []
    monkeypatch.setattr(recurrence, "_spares", spares)
    return spares


def test_workspaces_are_in_one_calls_hands(no_spares: list[recurrence.Spare]) -> None:
    one, two = recurrence.room_for(1000), recurrence.room_for(1000)
    assert one.address + 1000 <= two.address or two.address + 1000 <= one.address
    assert one.address % 64 == two.address % 64 == 0
    recurrence.give_back(one)
    assert recurrence.room_for(500) is one
    assert recurrence.room_for(500) is not one
    recurrence.give_back(two)
    larger = recurrence.room_for(1001)
    assert larger.nbytes >= 1001
    recurrence.give_back(larger)
    assert recurrence.room_for(1) is larger


def test_what_is_kept_of_workspaces_has_a_limit(no_spares: list[recurrence.Spare]) -> None:
    recurrence.give_back(recurrence.room_for(recurrence.SPARE + 1))
    assert not no_spares
    for spare in [recurrence.room_for(10) for _ in range(2 * recurrence.SPARES)]:
        recurrence.give_back(spare)
    assert len(no_spares) == recurrence.SPARES


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_two_threads_train_two_models(cell: str) -> None:
    expected = [trained(pair(cell, sizes=(F, 30), num_layers=2)[1], seed) for seed in range(2)]
    layers, found = [pair(cell, sizes=(F, 30), num_layers=2)[1] for _ in range(2)], {}
    in_threads(*[threading.Thread(target=lambda k: found.update({k: trained(layers[k], k)}), args=(k,)) for k in range(2)])
    for k in range(2):
        assert_same_bits(found[k], expected[k])


def test_two_threads_differentiate_one_model() -> None:
    _, ours = pair("LSTM", sizes=(F, 30), num_layers=2)
    weights, found = [*ours.parameters()], {}

    def work(k: int) -> None:
        batch = packed(lengths=[3 + k, 9, 1, 30])
        found[k] = [torch.autograd.grad(ours(batch)[0].data.sum(), weights) for _ in range(6)]

    for k in range(2):
        work(k)
    expected = dict(found)
    found.clear()
    with kernels_differentiate():
        in_threads(*[threading.Thread(target=work, args=(k,)) for k in range(2)])
    for k in range(2):
        for one, other in zip(found[k], expected[k], strict=True):
            assert_same_bits(one, other)


DISTRIBUTED = """
import os, sys
import torch
from datetime import timedelta
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
import fastpack.torch as fp
from fastpack.torch import recurrence

LENGTHS = [5, 1, 4, 9, 2, 9]

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = fp.LSTM(4, 7, num_layers=2, bidirectional=True, dtype=torch.float64), nn.Linear(14, 1, dtype=torch.float64)

    def forward(self, batch):
        output, (h_n, _) = self.layer(batch)
        return self.head(output.data).square().sum() + h_n.square().sum()

def loss_of(model, which):
    sequences = [torch.sin(torch.arange(length * 4.0, dtype=torch.float64) + k).view(length, 4) for k, length in enumerate(LENGTHS)]
    return model(fp.pack_sequence([sequences[k] for k in which], enforce_sorted=False))

def gradients(model, losses):
    for loss in losses:
        model.zero_grad()
        loss().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])

def work(rank, folder):
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    store = distributed.FileStore(os.path.join(folder, "store"), 2)  # in place of a port, which somebody else may have
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    torch.manual_seed(rank)  # that of the first process is everybody's
    model = DistributedDataParallel(Model())
    found = gradients(model, [lambda: loss_of(model, range(rank, 6, 2))] * 2)
    torch.save(found * 2, os.path.join(folder, str(rank)))  # means of the processes' sums
    del model  # which holds the group's threads: torch aborts some processes that end with both
    distributed.destroy_process_group()

if __name__ == "__main__":
    folder = sys.argv[1]
    multiprocessing.spawn(work, (folder,), nprocs=2)
    torch.manual_seed(0)
    model = Model()
    expected = gradients(model, [lambda: loss_of(model, range(6))])
    for rank in range(2):
        found = torch.load(os.path.join(folder, str(rank)))
        assert (found - expected).abs().max() <= 1e-12 * expected.abs().max(), (found, expected)
    assert expected.abs().max() > 1
    print("the same")
"""


def test_two_processes_have_the_gradients_of_one_on_the_whole_batch(child: Child, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(DISTRIBUTED)
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    assert child(code, tmp_path / "program.py", tmp_path) == "the same\n"


def test_a_forked_process_trains() -> None:
    _, ours = pair("GRU", sizes=(F, 30))
    expected = trained(pair("GRU", sizes=(F, 30))[1], 0)
    if "fork" not in torch.multiprocessing.get_all_start_methods():
        return
    context = torch.multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        found = pool.apply_async(trained_values, (ours,)).get(120)
    assert_same_bits([torch.tensor(value) for value in found], [weight.flatten() for weight in expected])


def trained_values(layer: torch.nn.RNNBase) -> list[list[float]]:
    """Return the trained weights as numbers: tensors would be passed as shared memory."""
    return [weight.flatten().tolist() for weight in trained(layer, 0)]


def test_models_that_share_a_layer() -> None:
    _, shared = pair("LSTM", sizes=(F, F))
    twice = torch.nn.Sequential(shared)
    batch = torch.randn(4, 2, F)
    output, after = shared(batch)
    again, _ = twice[0](output, after)
    found = torch.autograd.grad(again.sum(), [*shared.parameters()])
    theirs, _ = pair("LSTM", sizes=(F, F))
    output, after = theirs(batch)
    expected = torch.autograd.grad(theirs(output, after)[0].sum(), [*theirs.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert fp.path(shared, batch) == "kernels"
