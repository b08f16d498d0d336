"""The command line: what each command prints, how it fails, and the whole demo."""

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
from typer.testing import CliRunner

import fastpack
from fastpack import compiler, machine
from fastpack.cli import app


def run(*arguments, stdin=None, **environment):
    return CliRunner().invoke(app, [str(item) for item in arguments], input=stdin, env={"COLUMNS": "80", "LINES": "25"} | environment)


def one_line(result, code):
    """Return the only line of a failure, which is on standard error."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


# --- explain


@pytest.mark.parametrize("arguments", [("3", "2", "4"), ("3,2,4",), ("3,", "2", "4")])
def test_explain(arguments):
    result = run("explain", *arguments)
    assert result.exit_code == 0
    for line in ("batch_sizes       [3, 3, 2, 1]", "sorted_indices    [2, 0, 1]", "unsorted_indices  [1, 2, 0]"):
        assert line in result.stdout.splitlines()
    assert "9 of 12 padded cells filled (75.0%): packing saves 25.0%" in result.stdout
    assert "\x1b" not in result.stdout  # no colour into a pipe


def test_explain_reads_a_file_and_standard_input(tmp_path):
    path = tmp_path / "lengths.txt"
    path.write_bytes(b"\xef\xbb\xbf3 2,\r\n4\n\n")
    expected = run("explain", 3, 2, 4).stdout
    assert run("explain", "--file", path).stdout == expected
    assert run("explain", "--file", "-", stdin="3,2\n4").stdout == expected


def test_explain_a_million(tmp_path):
    path = tmp_path / "lengths.txt"
    path.write_text("\n".join(map(str, np.random.default_rng(0).integers(0, 500, 10**6).tolist())))
    begin = time.monotonic()
    result = run("explain", "--file", path)
    assert time.monotonic() - begin < 10
    assert result.stdout.startswith("1,000,000 sequences, up to 499 steps")
    assert len(result.stdout.splitlines()) < 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the lengths either as arguments"),
        (("3", "--file", "-"), "give the lengths either as arguments"),
        (("3", "x", "4"), "entry 2 is 'x', not a whole number"),
        (("3", "1.0"), "entry 2 is '1.0', not a whole number"),
        (("3", "-1"), "entry 2 is '-1', but a length is 0 or more"),
        (("9" * 30,), "but explain draws at most 134,217,728 steps"),
        (("9" * 5000,), f"entry 1 is '{'9' * 39}…', but explain draws at most 134,217,728 steps"),
        (("--file", "no/such/file"), "--file cannot be read: no/such/file: No such file"),
        (("--file", "."), "--file cannot be read: .: Is a directory"),
        (("3", "--png", "no/such/folder.png"), "--png cannot be written: no/such/folder.png: No such file"),
        (("3", "--png", "picture.txt"), "the name must end in .png, .pdf or .svg"),
        (("3", "--png"), "requires an argument"),
    ],
)
def test_explain_says_what_is_wrong(arguments, message):
    assert message in one_line(run("explain", *arguments), 2)


def test_explain_names_the_line_of_a_bad_entry():
    assert "entry 4 (line 3) is 'x9'" in one_line(run("explain", "--file", "-", stdin="3 2\n\n4,x9\n1"), 2)
    assert "no lengths in standard input" in one_line(run("explain", "--file", "-", stdin="\n"), 2)


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_explain_draws_a_picture(tmp_path, suffix, start):
    path = tmp_path / f"layout.{suffix}"
    result = run("explain", 3, 2, 4, "--png", path)
    assert result.exit_code == 0
    assert f"drawn in {path}" in result.stdout
    assert path.read_bytes().startswith(start)


def test_a_failing_command_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept.png"
    path.write_bytes(b"mine")
    one_line(run("explain", "x", "--png", path), 2)
    assert path.read_bytes() == b"mine"
    one_line(run("explain", "x", "--png", tmp_path / "other.png"), 2)
    assert [item.name for item in tmp_path.iterdir()] == ["kept.png"]


# --- info


def test_info(child):
    text = child(
        "import sys; from fastpack.cli import app\n"
        "try: app(['info'])\n"
        "except SystemExit as end: print(end.code, sorted({'numba', 'llvmlite', 'torch'} & set(sys.modules)))",
        COLUMNS="200",
    )
    library = machine.library()
    for part in (fastpack.__version__, np.__version__, library.level, library.reason, library.origin, "cache folder", "vector width"):
        assert part in text
    assert text.endswith("0 []\n")  # nothing heavy was imported


def test_info_without_kernels_fails_but_tells(child):
    text = child("from fastpack.cli import app; app(['info'])", status=1, FASTPACK_CPU="pdp-11", COLUMNS="200")
    assert "none: FASTPACK_CPU is 'pdp-11'" in text
    assert "numpy" in text
    assert "fastpack explain: FASTPACK_CPU is 'pdp-11'" in child(
        "from fastpack.cli import app; app(['explain', '3'])", status=2, FASTPACK_CPU="pdp-11"
    )


# --- compile


def test_compile_keeps_the_kernels_of_each_level(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(compiler, "object_code", lambda level: compiled.append(level) or b"code")
    cache = {"FASTPACK_CACHE_DIR": str(tmp_path / "cache")}
    levels = machine.cpu_levels()
    result = run("compile", *levels, **cache)
    assert result.exit_code == 0, result.output
    assert compiled == levels
    files = list((tmp_path / "cache").glob("kernels-*.o"))
    assert len(files) == len(levels)
    for path in files:
        assert str(path) in result.stdout
    again = run("compile", levels[0], **cache)
    assert compiled == levels
    assert "was there already" in again.stdout
    run("compile", **cache)
    assert compiled == levels  # this machine's level was among them


def test_compile_says_what_is_wrong(tmp_path, monkeypatch):
    assert "'vax' is no CPU level: the levels here are " in one_line(run("compile", "vax"), 2)
    monkeypatch.setattr(compiler, "object_code", lambda level: b"code")
    level = machine.cpu_levels()[0]
    (tmp_path / "file").write_text("")
    failed = run("compile", level, FASTPACK_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert failed.exit_code == 1
    assert "does not keep it" in failed.stderr
    monkeypatch.setattr(compiler, "object_code", lambda level: (_ for _ in ()).throw(RuntimeError("no luck")))
    failed = run("compile", level, FASTPACK_CACHE_DIR=str(tmp_path / "other"))
    assert (failed.exit_code, failed.stderr) == (1, "fastpack compile: no luck\n")


# --- what is missing, what is mistyped


@pytest.mark.parametrize(
    ("hidden", "arguments", "install"),
    [
        ("typer", ["info"], "fastpack[cli]"),
        ("rich", ["info"], "fastpack[cli]"),
        ("torch", ["demo"], "fastpack[torch]"),
        ("matplotlib", ["demo"], "fastpack[plot]"),
        ("matplotlib", ["explain", "3", "--png", "layout.png"], "fastpack[plot]"),
        ("llvmlite", ["compile"], "fastpack[jit]"),
    ],
)
def test_a_missing_extra_is_one_line(child, hidden, arguments, install):
    code = f"import sys; sys.modules[{hidden!r}] = None; sys.argv[1:] = {arguments}\nfrom fastpack.__main__ import main; main()"
    (line,) = child(code, status=1).splitlines()
    assert hidden in line
    assert f"pip install '{install}'" in line


def test_explain_needs_no_extra_but_the_command_lines(child):
    code = "import sys; sys.modules.update(torch=None, matplotlib=None, numba=None)\nfrom fastpack.cli import app; app(['explain', '3'])"
    assert "batch_sizes" in child(code)


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["demo", "--bogus"], ["demo", "--workers", "-1"], ["demo", "--seeds", "0"], ["demo", "--seed", "x"], ["info", "3"]],
)
def test_a_usage_error_is_one_line(arguments):
    assert one_line(run(*arguments), 2).startswith("fastpack")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "full.png").symlink_to("/dev/full")
    result = run("explain", 3, "--png", tmp_path / "full.png")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "No space left" in result.stderr


def test_help_and_version():
    assert {"demo", "explain", "plan", "info", "compile"} <= set(re.findall(r"\w+", run().stdout))
    assert run("--version").stdout == f"fastpack {fastpack.__version__}\n"


# --- demo


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
