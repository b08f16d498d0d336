"""`fastpack demo`: the whole of it, how it ends, and the comparisons inside it, which notice a contender that is wrong."""

import copy
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "no/such/folder/demo.png"], "--output cannot be written"),
        (["--output", "demo.gif"], "must end in .png"),
        (["--start-method", "bend"], "--start-method is 'bend'"),
    ],
)
def test_demo_checks_its_options_before_anything_else(child, arguments, message):
    code = f"import sys; sys.modules['torch'] = None\nfrom fastpack.cli import app; app(['demo', *{arguments}])"
    assert message in child(code, status=2)  # without torch, so nothing was trained


def test_demo(tmp_path):
    """All of it, with worker processes."""
    picture = tmp_path / "picture.png"
    command = [sys.executable, "-m", "fastpack", "demo", "--seeds", "2", "--output", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"COLUMNS": "100"}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    for line in (
        "Shape: torch.Size([3, 4, 1])",
        "Batch 0: [1.0, 2.0, 3.0, 0.0] (length: 3)",
        "Packed data shape: torch.Size([9, 1])",
        "Packed batch_sizes: [3, 3, 2, 1]",
        "Packed sorted_indices: [2, 0, 1]",
        "Packed unsorted_indices: [1, 2, 0]",
        "Timestep 0: [1.0, 4.0, 6.0]  <- all 3 sequences",
        "Timestep 3: [0.0, 0.0, 9.0]  <- 1 sequence + padding",
        "Packed data: [6.0, 1.0, 4.0, 7.0, 2.0, 5.0, 8.0, 3.0, 9.0]",
        "Timestep 2: [8.0, 3.0] <- 2 active sequences",
        "Padded output shape: torch.Size([3, 4, 2])",
        "Total computations: 12 timesteps",
        "Total computations: 9 timesteps",
        "Unpacked shape: torch.Size([3, 4, 2])",
        "Savings: 25.0%",
        f"Picture: {picture}",
    ):
        assert line in lines
    theirs, ours = re.findall(r"(?m)^ *(?:torch\.nn|fastpack\.torch) +([\d.]+)% ± ([\d.]+) +([\d.]+) ± [\d.]+ +[\d.]+ ± ", done.stdout)
    for accuracy, spread, loss in (theirs, ours):
        assert float(accuracy) >= 95
        assert 0 < float(spread) < 3  # the seeds are different ones
        assert 0 < float(loss) < 0.2
    (apart,) = re.findall(r"differ\s+by\s+([-e\d.]+)\s+of\s+themselves", done.stdout)
    assert float(apart) < 1e-4
    assert len(re.findall(r"(?m)^ *\w*pack\w*_sequence +\d+ .* us .*x", done.stdout)) == 8
    assert len(re.findall(r"(?m)^ *LSTM, inference +\d+ .* us .*x", done.stdout)) == 2
    assert re.search(r"Time for this packed batch: torch\.nn\.LSTM [\d.,]+ us, fastpack\.torch\.LSTM [\d.,]+ us", done.stdout)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_demo_ends_with_its_workers_on_interrupt(tmp_path, method):
    command = [sys.executable, "-m", "fastpack", "demo", "--start-method", method]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for line in process.stdout:
            if "worker processes pack" in line:
                break
        time.sleep(1.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the workers, too
        _, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (130, "")
    deadline = time.monotonic() + 10
    while left := running(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def running(group: int) -> list[str]:
    """Return the processes of a group that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().rpartition(")")
        except OSError:  # it has ended meanwhile
            continue
        state, _, process_group = rest.split()[:3]
        if int(process_group) == group and state != "Z":
            found.append(name)
    return found


def losses(*seeds: int, models: int = 1) -> list[list[float]]:
    """Return the losses of an epoch by each of some models of the same weights, from one seed after another."""
    import torch

    from fastpack.demo import speakers

    training, _ = speakers.load()
    settings = speakers.SETTINGS._replace(epochs=1)
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = speakers.SpeakerNamer(training.frames(), settings)
        with speakers.Loader(training, 30, shuffle=True) as loader:
            (epochs,) = speakers.train([model, *(copy.deepcopy(model) for _ in range(models - 1))], loader)
        found += [epoch.losses for epoch in epochs]
    return found


@pytest.mark.usefixtures("one_thread")
def test_training_is_repeatable():
    first, again, other = losses(0, 0, 1)
    assert first == again
    assert first != other


@pytest.mark.usefixtures("one_thread")
def test_models_are_trained_on_the_same_batches_and_draws():
    alone, first, second = [*losses(0), *losses(0, models=2)]
    assert alone == first == second


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("wrong", [False, True])
def test_a_training_that_is_not_torchs_is_noticed(monkeypatch, wrong):
    """The comparison itself, with an LSTM of fastpack's name that leaves its states a little too large where it is wrong."""
    from rich.console import Console

    from fastpack.demo import speakers, training

    def forward(layer, packed):
        output, (h_n, c_n) = layer.theirs.forward(layer, packed)
        return output, (1.01 * h_n if wrong else h_n, c_n)

    monkeypatch.setattr("fastpack.torch.LSTM.forward", forward)
    monkeypatch.setattr(speakers, "SETTINGS", speakers.SETTINGS._replace(epochs=1))
    console = Console(file=io.StringIO(), width=120)
    if wrong:
        with pytest.raises(RuntimeError, match=r"seed 3: fastpack\.torch's LSTM is not trained as torch\.nn's is"):
            training.run(console, *speakers.load(), [3, 4])
    else:
        pairs = training.run(console, *speakers.load(), [3, 4])
        assert [max(pair.apart()) for pair in pairs] == [0, 0]
        assert pairs[0].torch.losses != pairs[1].torch.losses
        (alone,) = training.run(console, *speakers.load(), [4], num_workers=1, persistent_workers=True)
        assert alone.torch.losses == pairs[1].torch.losses  # whatever was trained before, and whoever loads
        assert alone.torch.named.tolist() == pairs[1].fastpack.named.tolist()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_give_packed_batches(child, method):
    code = (
        "import torch\n"
        "from fastpack.demo import speakers\n"
        "from fastpack.torch import unpack_sequence\n"
        "training, _ = speakers.load()\n"
        f"with speakers.Loader(training, 30, num_workers=1, multiprocessing_context={method!r}) as loader:\n"
        "    batches = list(loader)\n"
        "for k, (packed, who) in enumerate(batches):\n"
        "    for i, utterance in enumerate(unpack_sequence(packed)):\n"
        "        expected, speaker = training[30 * k + i]\n"
        "        assert torch.equal(utterance, expected) and who[i] == speaker\n"
        "print(len(batches), type(packed).__name__)"
    )
    assert child(code.replace("training, _", "training, test")) == "9 PackedSequence\n"


def test_the_split_is_the_data_sets_own():
    from fastpack.demo import speakers

    training, test = speakers.load()
    assert (len(training), len(test)) == (270, 370)
    assert set(training.chosen.tolist()).isdisjoint(test.chosen.tolist())
    assert np.bincount(training.speaker[training.chosen]).tolist() == [30] * 9


def test_a_wrong_contender_is_not_timed(monkeypatch):
    import torch
    from torch.nn.utils import rnn

    import fastpack.torch
    from fastpack.demo import speakers, timing

    training, _ = speakers.load()
    batches = timing.batches(training, 30)[:1]
    monkeypatch.setattr(timing, "CALLS", 4)
    assert {item.function for item in timing.compare(batches)} == {*timing.CALLED, "LSTM, inference"}
    with monkeypatch.context() as patch:
        patch.setattr(fastpack.torch.LSTM, "forward", lambda layer, packed: (packed._replace(data=torch.ones(len(packed.data), 128)), None))
        with pytest.raises(RuntimeError, match="LSTM does not give torch's result"):
            timing.compare(batches)
    monkeypatch.setattr(fastpack.torch, "pad_sequence", lambda *args, **options: rnn.pad_sequence(*args, **options) + 1)
    with pytest.raises(RuntimeError, match="pad_sequence does not give torch's result"):
        timing.compare(batches)
