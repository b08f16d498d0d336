"""The example of distributed training: two processes, against one process that does the work of both by torch's own layer."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import fastpack
from fastpack import TokenBudgetBatchSampler
from fastpack.torch import RaggedDataset, restore
from tests.conftest import Child, clean_environment

ROOT = Path(fastpack.__file__).parent.parent
EXAMPLE = ROOT / "examples" / "distributed.py"
LINE = re.compile(r"epoch (\d+): loss ([\d.]+); rank 0: (\d+) batches, (\d+) steps; rank 1: (\d+) batches, (\d+) steps")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that starts processes; none is left, whatever happens."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env=clean_environment(PYTHONPATH=str(ROOT), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, error = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, error)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    specification = importlib.util.spec_from_file_location("distributed", EXAMPLE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def by_one_process(example: ModuleType, folder: Path, epochs: int) -> list[float]:
    """Return the losses of the epochs: in each step, all ranks' batches, one after another."""
    torch.manual_seed(0)
    model = restore(example.Model())
    assert type(model.lstm) is nn.LSTM
    optimizer = torch.optim.Adam(model.parameters(), lr=example.LEARNING_RATE)
    dataset = RaggedDataset.from_parquet(folder / "train.parquet", "frames", "speaker")
    samplers = [TokenBudgetBatchSampler(dataset.lengths, example.MAX_TOKENS, rank=rank, world_size=2) for rank in range(2)]
    losses = []
    for epoch in range(epochs):
        seen, total = [], 0.0
        for sampler in samplers:
            sampler.set_epoch(epoch)
        for batches in zip(*samplers, strict=True):
            both = [dataset.__getitems__(batch) for batch in batches]
            loss = sum(nn.functional.cross_entropy(model(packed), speaker, reduction="sum") for packed, speaker in both)
            optimizer.zero_grad()
            (loss / sum(map(len, batches))).backward()
            optimizer.step()
            total += loss.item()
            seen += [index for batch in batches for index in batch]
        assert sorted(seen) == list(range(len(dataset)))
        losses.append(total / len(seen))
    return losses


@pytest.mark.usefixtures("one_thread")
def test_two_processes_learn_what_one_does(example: ModuleType, tmp_path: Path) -> None:
    done = run("-W", "error", str(EXAMPLE), "--ranks", "2", "--epochs", "5")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    found = [LINE.fullmatch(line).groups() for line in lines]
    assert [int(epoch) for epoch, *_ in found] == list(range(5))
    losses = [float(loss) for _, loss, *_ in found]
    example.write_recordings(tmp_path)
    # three decimals are printed; later on rounding decides: in float64 the one process's fifth loss is another by 0.03, its third by 0.0001
    assert losses[:3] == pytest.approx(by_one_process(example, tmp_path, 3), abs=1e-3)
    assert losses[-1] < 0.6 * losses[0]
    for _, _, batches, steps, others_batches, others_steps in found:
        assert batches == others_batches
        assert int(steps) == pytest.approx(int(others_steps), rel=0.01)
    (percent,) = re.fullmatch(r"(\d+)% of the recordings held out named right", last).groups()
    assert int(percent) > 50  # of 9 speakers


THREADS = """
import os, sys
from pathlib import Path
import distributed

def gloo():
    return sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))

train = distributed.train
def counted(*arguments):
    train(*arguments)
    print(gloo() > 0)

distributed.train, folder = counted, Path.cwd()
distributed.write_recordings(folder)
distributed.work(0, 1, str(folder / "meeting"), str(folder), 1)
print(gloo())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process tells its threads' names")
def test_no_thread_outlives_the_group(child: Child, tmp_path: Path) -> None:
    """One that does aborts some processes at their end."""
    paths = os.pathsep.join(map(str, (ROOT, EXAMPLE.parent)))
    out = child(THREADS, cwd=tmp_path, PYTHONPATH=paths, GLOO_SOCKET_IFNAME="lo")
    assert out.splitlines()[-2:] == ["True", "0"]


def test_torchs_launcher_can_start_it() -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]  # a port that is free, by itself
    done = run(*launcher, str(EXAMPLE), "--epochs", "1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert LINE.match(done.stdout)


def test_a_process_that_fails_ends_all(tmp_path: Path) -> None:
    """One of two ends in mid-run: the other one is not left waiting."""
    step = "            optimizer.step()\n"
    text = EXAMPLE.read_text().replace(step, f"{step}            if rank == 1:\n                os._exit(7)\n")
    assert "os._exit(7)" in text
    (tmp_path / "failing.py").write_text(text)
    done = run(str(tmp_path / "failing.py"))
    assert done.returncode == 1
    assert "exit code 7" in done.stderr or "ProcessRaisedException" in done.stderr


@pytest.mark.parametrize("arguments", [["--ranks", "0"], ["--epochs", "0"]])
def test_it_says_what_is_wrong(arguments: list[str]) -> None:
    done = run(str(EXAMPLE), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "distributed.py: error: --ranks and --epochs must be more than 0" in done.stderr
