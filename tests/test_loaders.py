"""Worker processes, threads and interrupts around the torch level."""

import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fastpack.torch as fp
from fastpack.torch import parallel
from tests.torch_oracle import assert_packed, assert_same

LONG = [3000, 20, 2500, 1, 2999, 1400]  # some MB in all, so that more than one thread is worth it


class Sequences(Dataset):
    """Item k is k + 1 rows of the number k."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.full((k + 1, 2), float(k))


def collate(items: list[torch.Tensor]):
    packed = fp.pack_sequence(items, enforce_sorted=False)
    large = fp.pad_sequence([item[:1].repeat(40000, 1) for item in items])  # by threads, if a worker had any
    return packed, large.shape, torch.get_num_threads()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_pack(context):
    fp.pad_sequence(large_sequences())  # torch's threads are there before the fork
    loader = DataLoader(
        Sequences(), batch_size=6, collate_fn=collate, num_workers=2, multiprocessing_context=context, persistent_workers=True, timeout=60
    )
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == 4
        for k, (packed, shape, threads) in enumerate(batches):
            expected = [Sequences()[i] for i in range(6 * k, 6 * k + 6)]
            assert_packed(packed, fp.pack_sequence(expected, enforce_sorted=False))
            assert_same(fp.unpack_sequence(packed), expected)
            assert shape == (40000, 6, 2)
            assert threads == 1


def large_sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 50, generator=generator) for length in LONG]


def everything(module=fp) -> list[torch.Tensor]:
    """Return what every function makes of a large batch, gradients too."""
    sequences = [sequence.requires_grad_() for sequence in large_sequences()]
    packed = module.pack_sequence(sequences, enforce_sorted=False)
    padded = module.pad_sequence(sequences, True, -1.0)
    left = module.pad_sequence(sequences, padding_value=2.0, padding_side="left")
    strided = module.pack_padded_sequence(padded.transpose(1, 2).contiguous().transpose(1, 2), LONG, True, False)
    found = [packed.data, padded, left, strided.data, module.pad_packed_sequence(packed, total_length=3100, padding_value=5)[0]]
    found += module.unpack_sequence(strided) + module.unpad_sequence(padded * 1, torch.tensor(LONG), True)
    loss = sum((item * torch.arange(item.numel()).view(item.shape) % 7).sum() for item in found)
    found += torch.autograd.grad(loss, sequences)
    tokens = [torch.arange(length * 60) for length in LONG]
    return [*found, fp.pack_sequence(tokens, False).data, fp.pack_ragged(torch.cat(tokens), np.cumsum([0, *LONG]) * 60).data]


def with_threads(count: int, call):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def test_two_threads_give_the_same_bits(monkeypatch):
    used = []
    true_threads = parallel.threads
    monkeypatch.setattr(parallel, "threads", lambda moved: used.append(true_threads(moved)) or used[-1])
    one, two = with_threads(1, everything), with_threads(2, everything)
    assert_same(two, one)
    assert set(used) == {1, 2}
    assert_same([item.detach() for item in with_threads(3, everything)], [item.detach() for item in one])


def test_few_bytes_are_not_worth_a_thread():
    assert with_threads(2, lambda: parallel.threads(parallel.WORTH_A_THREAD - 1)) == 1
    assert with_threads(2, lambda: parallel.threads(parallel.WORTH_A_THREAD)) == 2


# Each in a process of its own: what hangs or breaks there is not felt here. torch's threads are up before the fork.
BEFORE_FORK = """
import os, signal, sys, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded")
import torch
import fastpack.torch as fp
from fastpack.torch import parallel

torch.set_num_threads(2)
sequences = [torch.full((length, 50), float(length)) for length in (30000, 20, 25000, 1)]
short = [torch.full((50, 16), float(k)) for k in range(3000)]
expected = fp.pack_sequence(sequences, enforce_sorted=False)
assert parallel.threads(10**9) == 2

def same(found, wanted):
    return (found.numpy() == wanted.numpy()).all()  # torch's own comparison hangs in such a child

def work():
    signal.alarm(60)  # a child that hangs is ended
    assert parallel.threads(10**9) == 1
    for _ in range(3):
        packed = fp.pack_sequence(sequences, enforce_sorted=False)
        assert same(packed.data, expected.data)
        padded, lengths = fp.pad_packed_sequence(packed)
        assert same(fp.pack_padded_sequence(padded, lengths, enforce_sorted=False).data, expected.data)
        assert same(fp.pad_sequence(sequences), padded)
        for parts in (fp.unpack_sequence(packed), fp.unpad_sequence(padded, lengths)):
            assert all(map(same, parts, sequences))
        assert same(fp.pack_sequence(short).data, fp.pack_ragged(torch.cat(short), range(0, 50 * 3001, 50)).data)
"""


def test_a_forked_child_packs(child):
    code = """
pid = os.fork()
if pid == 0:
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
_, status = os.waitpid(pid, 0)
assert parallel.threads(10**9) == 2
assert torch.equal(fp.pack_sequence(sequences, enforce_sorted=False).data, expected.data)
print(os.waitstatus_to_exitcode(status))
"""
    assert child(BEFORE_FORK + code).strip() == "0"


def test_a_forked_process_of_multiprocessing_packs(child):
    code = """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join(120)
print(process.exitcode)
"""
    assert child(BEFORE_FORK + code).strip() == "0"


def test_a_child_that_would_share_threads_shows(child):
    # the guard above can fail: without the rule for children, this child counts on two threads
    code = """
pid = os.fork()
if pid == 0:
    parallel._may_share = True
    os._exit(parallel.threads(10**9))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert child(BEFORE_FORK + code).strip() == "2"


@pytest.mark.parametrize("context", ["torch.inference_mode()", "FakeTensorMode()", "torch.device('meta')", "torch.no_grad()"])
def test_it_does_not_matter_where_it_is_imported(child, context):
    code = f"""
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with {context}:
    import fastpack.torch as fp
x = torch.ones(4, 3, requires_grad=True)
padded, _ = fp.pad_packed_sequence(fp.pack_padded_sequence(x, [4, 2, 1]))
padded.sum().backward()
print(padded.sum().item(), x.grad.sum().item(), fp.pad_sequence([x[0], x[0, :1]]).sum().item())
"""
    assert child(code).split() == ["7.0", "7.0", "4.0"]


def test_eight_threads_at_once(child):
    code = """
from concurrent.futures import ThreadPoolExecutor
import torch
import fastpack.torch as fp

def work(seed):
    generator = torch.Generator().manual_seed(seed)
    for turn in range(30):
        lengths = torch.randint(1, 400, (20,), generator=generator).tolist()
        sequences = [torch.randn(length, 40, generator=generator) for length in lengths]
        packed = fp.pack_sequence(sequences, enforce_sorted=False)
        parts = fp.unpack_sequence(fp.pack_padded_sequence(*fp.pad_packed_sequence(packed), enforce_sorted=False))
        assert all(map(torch.equal, parts, sequences))
        assert all(map(torch.equal, fp.unpad_sequence(fp.pad_sequence(sequences), torch.tensor(lengths)), sequences))
    return seed

with ThreadPoolExecutor(8) as pool:  # the first calls of the process, all at once
    print(sum(pool.map(work, range(8))))
"""
    assert child(code).strip() == "28"


@pytest.mark.parametrize("large", [False, True])
def test_an_interrupt_leaves_a_clean_state(large):
    sequences = large_sequences() if large else [torch.ones(3, 2), torch.ones(2, 2)]
    expected = fp.pack_sequence(sequences, enforce_sorted=False)

    def work():
        end = time.monotonic() + 30
        while time.monotonic() < end:
            fp.pad_packed_sequence(fp.pack_sequence(sequences, enforce_sorted=False))

    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)  # what Ctrl-C runs
    try:
        for delay in (0.02, 0.05, 0.08):
            signal.setitimer(signal.ITIMER_REAL, delay)
            with pytest.raises(KeyboardInterrupt):
                work()
            assert_packed(fp.pack_sequence(sequences, enforce_sorted=False), expected)
    finally:
        signal.signal(signal.SIGALRM, previous)
