"""`fastpack score`: what it writes, how it goes on after an interruption, and what it says when something is wrong."""

import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.numpy import save_file
from typer.testing import CliRunner

import fastpack
from fastpack import parts, score_files
from fastpack.cli import app
from tests.conftest import clean_environment
from tests.scoring_oracle import check, module, table, weights, write

pytestmark = pytest.mark.usefixtures("one_thread")  # of torch
ROOT = Path(fastpack.__file__).parent.parent


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A model, two files and small parts: `a.parquet` has rows 0 to 44 in parts 0 to 2, `b.parquet` has 25 in parts 3 and 4."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts.plan, "__kwdefaults__", {"part_rows": 15})
    np.savez("m.npz", **weights(module()))
    write(Path("a.parquet"), 45)
    write(Path("b.parquet"), 25, seed=1)
    return ["score", "m.npz", "a.parquet", "b.parquet", "--output", "out", "--column", "x", "--keep", "id"]


def run(*arguments):
    return CliRunner().invoke(app, [str(item) for item in arguments], env={"COLUMNS": "80", "LINES": "25"})


def one_line(result, code):
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    return line


def files(folder="out"):
    """Return the contents of all files of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def source():
    return pa.concat_tables([table(45), table(25, seed=1)])


# --- what is written


def test_rows_are_those_of_the_inputs_in_order(job):
    result = run(*job, "--result", "rows", "--result", "last")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "70/70 rows" in result.stdout
    assert "70 rows in 5 parts in out; " in result.stdout
    assert list(files()) == [f"part-0000000{k}.parquet" for k in range(5)]
    found = parquet.read_table("out")
    assert found.column_names == ["id", "rows", "last"]
    assert found["id"].equals(source()["id"])
    check(found, module(), source())


def test_which_columns(job):
    assert run(*job[:-2]).exit_code == 0
    assert parquet.read_table("out").column_names == ["last"]
    assert run(*job[:-2], "--keep-all", "--output", "all").exit_code == 0
    found = parquet.read_table("all")
    assert found.drop_columns("last").equals(source())


def test_folders_are_read_by_name(job):
    Path("in").mkdir()
    Path("b.parquet").rename("in/0.parquet")
    Path("a.parquet").rename("in/1.parquet")
    Path("in/readme.txt").touch()
    assert run("score", "m.npz", "in", "-o", "out", "--column", "x", "--keep", "id").exit_code == 0
    assert parquet.read_table("out")["id"].to_pylist() == [*range(1000, 1025), *range(45)]


def test_large_row_groups_are_parts_of_their_own(job, monkeypatch):
    size = min(parquet.read_metadata("a.parquet").row_group(k).total_byte_size for k in range(4))
    monkeypatch.setattr(parts, "PART_BYTES", size)
    parts.plan.__kwdefaults__["part_rows"] = 1000
    write(Path("b.parquet"), 25, seed=1, group=2)
    assert run(*job).exit_code == 0
    assert [parquet.read_metadata(path).num_rows for path in sorted(Path("out").iterdir())][:5] == [10, 10, 10, 10, 5]
    assert len(list(Path("out").iterdir())) < 5 + 13
    check(parquet.read_table("out"), module(), source())


def test_files_without_rows(job):
    for name in ("empty.parquet", "a.parquet"):
        write(Path(name), 0)
    parquet.write_table(table(3).slice(0, 0), "none.parquet", row_group_size=5)
    assert run(*job, "empty.parquet").exit_code == 0
    assert parquet.read_table("out")["id"].to_pylist() == [*range(1000, 1025)]
    result = run("score", "m.npz", "empty.parquet", "none.parquet", "-o", "nothing", "--column", "x")
    assert "0 rows in 1 part in" in result.stdout
    assert parquet.read_table("nothing").schema.names == ["last"]


@pytest.mark.filterwarnings("ignore:.*weights_only")
@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
@pytest.mark.parametrize(("cell", "options"), [("LSTM", {"proj_size": 2}), ("GRU", {"bidirectional": True}), ("RNN", {})])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's own remark
def test_models(job, kind, cell, options):
    theirs = module(cell, **options)
    mapping = weights(theirs, "model.rnn.") | {"head": np.zeros(3, np.float32)}
    if kind == "npz":
        np.savez("n.npz", **mapping)
    elif kind == "safetensors":
        save_file(mapping, "n.safetensors")
    else:
        torch.save({name: torch.nn.Parameter(torch.tensor(value)) for name, value in mapping.items()}, "n.pt")
    more = ["--nonlinearity", "tanh"] if cell == "RNN" else []
    result = run("score", f"n.{kind}", *job[2:], "--prefix", "model.rnn.", *more)
    assert result.exit_code == 0, result.output
    check(parquet.read_table("out"), theirs, source())


def test_models_are_read_without_torch(job, child):
    Path("m.npz").unlink()
    save_file(weights(module()), "m.safetensors")
    np.savez("m.npz", **weights(module()))
    code = "import sys\nfrom fastpack.cli import app\nfrom typer.testing import CliRunner\n"
    code += "print(CliRunner().invoke(app, sys.argv[1:]).output)\nassert 'torch' not in sys.modules"
    for model in ("m.npz", "m.safetensors"):
        out = child(code, "score", model, *job[2:], "--output", model + ".out", cwd=Path.cwd(), PYTHONPATH=ROOT)
        assert "70 rows in 2 parts" in out


# --- going on


def test_what_is_complete_is_not_made_again(job):
    run(*job)
    before, times = files(), {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    assert "70 rows in 5 parts in out, 5 of them there already" in run(*job).stdout
    assert {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()} == times
    for name in list(before)[1::2]:
        Path("out", name).unlink()
    Path("out/.part-00000001.parquet.0.tmp").write_bytes(b"what a killed process left")
    assert "5 parts in out, 3 of them there already" in run(*job).stdout
    assert files() == before


def test_it_goes_on_from_another_folder(job, monkeypatch):
    run(*job)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    again = [f"../{item}" if item == "out" or "." in item else item for item in job]
    assert "5 parts in ../out, 5 of them there already" in run(*again).stdout


MODEL, INPUT = "of another model (or version of fastpack)", "of another input"
NOT_OURS = "which `fastpack score` did not write, or which is damaged"
CHANGES = {
    "model": (MODEL, lambda: np.savez("m.npz", **{name: value * 2 for name, value in weights(module()).items()})),
    "input": (INPUT, lambda: write(Path("a.parquet"), 45, seed=2)),
    "fewer rows": (INPUT, lambda: write(Path("b.parquet"), 20, seed=1)),
    "truncated": (NOT_OURS, lambda: os.truncate("out/part-00000001.parquet", 100)),
    "not ours": (NOT_OURS, lambda: parquet.write_table(table(15), "out/part-00000001.parquet")),
    "one more": (INPUT, lambda: shutil.copy("out/part-00000001.parquet", "out/part-00000009.parquet")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_parts_of_something_else_are_not_taken_for_done(job, change):
    run(*job)
    problem, do = CHANGES[change]
    do()
    before = files()
    line = one_line(run(*job), 2)
    assert re.search(rf"out has \d parts? of something else, such as part-0000000\d.parquet, {re.escape(problem)}", line)
    assert line.endswith("choose another folder, or pass --overwrite to remove them")
    assert files() == before
    assert run(*job, "--overwrite").exit_code == 0
    overwritten = files()
    assert run(*job, "--output", "anew").exit_code == 0
    assert overwritten == files("anew")


@pytest.mark.parametrize("options", [["--result", "rows"], ["--keep", "name"]], ids=str)
def test_parts_of_other_columns_are_not_taken_for_done(job, options):
    run(*job)
    problem = "5 parts of something else, such as part-00000000.parquet, of another choice of columns: "
    assert problem in one_line(run(*job, *options), 2)
    CHANGES["model"][1]()
    assert f"{MODEL} and another choice of columns: " in one_line(run(*job, *options), 2)


SLOW = """
import sys, time
from fastpack import cli, parts, scoring

real = scoring.Scorer.slices
def slow(self, table):
    time.sleep(0.05)
    yield from real(self, table)

scoring.Scorer.slices = slow
parts.plan.__kwdefaults__["part_rows"] = int(sys.argv.pop(1))
cli.app(sys.argv[1:])
"""


def start(job):
    """Run the command slowly in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(parts.plan.__kwdefaults__["part_rows"]), *job],
        env=clean_environment(PYTHONPATH=str(ROOT), COLUMNS="80"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_goes_on_after_being_killed(job):
    write(Path("a.parquet"), 3000, group=50)
    parts.plan.__kwdefaults__["part_rows"] = 100
    for kill, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = start(job)
        try:
            before, deadline = len(list(Path().glob("out/part-*"))), time.monotonic() + 60
            while len(list(Path().glob("out/part-*"))) < before + 3:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(kill)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == status
    assert re.fullmatch(r"fastpack score: interrupted; \d+ of 31 parts are complete and stay in out: run the same command again.*\n", said)
    assert not list(Path().glob("out/.part-*"))
    complete = len(list(Path().glob("out/part-*")))
    assert 6 <= complete < 31
    assert f"in 31 parts in out, {complete} of them there already" in run(*job).stdout
    check(parquet.read_table("out"), module(), pa.concat_tables([table(3000), table(25, seed=1)]))


# --- two runs at once


def test_a_second_run_is_kept_out_until_the_first_has_ended(job):
    write(Path("a.parquet"), 3000)
    parts.plan.__kwdefaults__["part_rows"] = 1
    with start(job) as first:
        try:
            deadline = time.monotonic() + 60
            while len(list(Path("out").glob("part-*"))) < 2:
                assert first.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            for more in ([], ["--overwrite"]):
                line = one_line(run(*job, *more), 2)
                assert line.startswith(f"fastpack score: out is being written by another run, process {first.pid} on ")
                assert line.endswith(": wait for its end, or choose another folder")
            assert list(Path("out").glob(".part-*"))  # what the first is at work on
            assert first.poll() is None
        finally:
            first.kill()
    assert Path("out", score_files.LOCK).exists()
    assert "3,025 rows in 303 parts in out, " in run(*job).stdout
    assert list(files()) == [f"part-{k:08}.parquet" for k in range(303)]


def test_of_runs_that_start_at_once_one_goes_on(job):
    parts.plan.__kwdefaults__["part_rows"] = 1
    runs = [start(job) for _ in range(3)]
    said = [process.communicate(timeout=120) for process in runs]
    for process, (out, error) in zip(runs, said, strict=True):
        if process.returncode:
            assert re.fullmatch(r"fastpack score: out is being written by another run, .*\n", error)
        else:
            assert "70 rows in 8 parts in out" in out
    assert 0 in [process.returncode for process in runs]
    assert list(files()) == [f"part-{k:08}.parquet" for k in range(8)]
    check(parquet.read_table("out"), module(), source())


def test_a_lock_is_that_of_the_file_in_the_folder(job, monkeypatch):
    folder, flock, calls = Path("out"), fcntl.flock, []

    def late(file, how):  # the run before removes its file after this one has opened it
        calls.append(how)
        if len(calls) == 1:
            Path(folder, score_files.LOCK).unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with score_files.alone(folder):
        assert len(calls) == 2
        with pytest.raises(ValueError, match=f"out is being written by another run, process {os.getpid()} on "), score_files.alone(folder):
            pass
    assert not files()


def test_where_there_are_no_locks(job, monkeypatch):
    def none(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    line = one_line(run(*job), 2)
    assert line == "fastpack score: out: its file system has no locks (No locks available): choose a folder on another one"


def test_files_of_others_stay(job):
    Path("out").mkdir()
    others = dict.fromkeys(("part-00000-ab12.snappy.parquet", "part-1.parquet", "_SUCCESS"), b"of another program")
    for name, content in others.items():
        Path("out", name).write_bytes(content)
    for more in ([], ["--overwrite"]):
        assert run(*job, *more).exit_code == 0
        assert others.items() < files().items()


# --- faults


def test_a_full_disk(job, monkeypatch):
    run(*job)
    whole = files()
    for name in list(whole)[2:]:
        Path("out", name).unlink()
    opened = []

    def on_full_disk(path, mode):
        opened.append(path)
        return open("/dev/full" if "00000003" in str(path) else path, mode.replace("x", "w"))

    monkeypatch.setattr(parts, "open", on_full_disk, raising=False)
    line = one_line(run(*job), 1)
    assert line == (
        "fastpack score: out: No space left on device, while part-00000003.parquet was written; 3 of 5 parts are complete and stay in out: "
        "run the same command again to go on from there"
    )
    assert len(opened) == 2
    assert files() == {name: content for name, content in whole.items() if name < "part-00000003"}
    monkeypatch.delattr(parts, "open")
    assert run(*job).exit_code == 0
    assert files() == whole


def test_files_may_not_grow(job):
    """As a full disk, but by the system's limit of a file's size, in a process of its own: the second file's part is too large."""
    write(Path("b.parquet"), 3000)
    limit = 64 * 1024
    code = "import sys; from fastpack.cli import app; app(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *job],
        env=clean_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert "File too large, while part-00000001.parquet was written; 1 of 2 parts are complete and stay in out" in done.stderr
    assert list(files()) == ["part-00000000.parquet"]


def test_truncated_inputs(job):
    content = Path("b.parquet").read_bytes()
    for size in (0, 3, len(content) // 2, len(content) - 1):
        Path("b.parquet").write_bytes(content[:size])
        line = one_line(run(*job), 2)
        assert "b.parquet is no Parquet file, or is truncated: " in line
        assert not Path("out").exists()


def test_pages_that_cannot_be_decoded(job):
    content = bytearray(Path("b.parquet").read_bytes())
    column = parquet.read_metadata("b.parquet").row_group(2).column(1)
    begin = column.dictionary_page_offset or column.data_page_offset
    content[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
    Path("b.parquet").write_bytes(content)
    line = one_line(run(*job), 1)
    assert "b.parquet cannot be decoded, row group 2: " in line
    assert "4 of 5 parts are complete and stay in out: when the input is mended" in line
    assert len(files()) == 4


def test_an_input_that_changes_meanwhile(job, monkeypatch):
    write_part = parts.write

    def changing(the_job, part):
        write(Path("b.parquet"), 26)
        return write_part(the_job, part)

    monkeypatch.setattr(parts, "write", changing)
    line = one_line(run(*job), 1)
    assert "b.parquet has been changed since this run began; 3 of 5 parts are complete" in line
    assert line.endswith("when the input is mended, run the same command with --overwrite to go on from there")


LISTS = pa.list_(pa.list_(pa.float32()))
MISFITS = {
    "steps of shape (2,), but the layer takes 3 numbers a step, (3,): name another column, or a layer whose input_size is 2": pa.array(
        [None, [], [[1.0, 2.0]]], LISTS
    ),
    "of another width": pa.array([[[1.0, 2.0]]], pa.list_(pa.list_(pa.float32(), 2))),
    "steps of shape (), but the layer takes 3": pa.array([[1.0, 2.0, 3.0]]),
    "has a null among the steps of its lists: fill it, or leave the step out": pa.array([[None]], LISTS),
    "holds values of Arrow type string: cast them to numbers": pa.array([["a"]]),
}


@pytest.mark.parametrize("message", MISFITS)
def test_sequences_that_do_not_fit(job, message):
    parquet.write_table(pa.table({"id": np.arange(len(MISFITS[message])), "x": MISFITS[message]}), "b.parquet")
    line = one_line(run(*job), 2)
    assert line.startswith("fastpack score: b.parquet: column 'x' ")
    assert message.replace("of another width", "steps of shape (2,)") in line
    assert not Path("out").exists()


def test_sequences_that_do_not_fit_further_on(job):
    rows = [[[1.0, 2.0, 3.0]], [[1.0, 2.0]]]
    parquet.write_table(pa.table({"id": [0, 1], "x": pa.array(rows, LISTS)}), "b.parquet", row_group_size=1)
    line = one_line(run(*job), 1)
    assert re.search(r"/b\.parquet, row group 1: column 'x' has steps of shape \(2,\), but the layer takes 3 numbers a step", line)
    assert "3 of 4 parts are complete and stay in out: when the input is mended, run the same command with --overwrite" in line
    write(Path("b.parquet"), 25, seed=1)
    assert "70 rows in 5 parts in out, 3 of them there already" in run(*job, "--overwrite").stdout
    check(parquet.read_table("out"), module(), source())


def test_the_column_may_be_the_only_one_of_lists(job):
    short = job[: job.index("--column")] + job[job.index("--column") + 2 :]
    assert run(*short).exit_code == 0
    check(parquet.read_table("out"), module(), source())
    several = pa.table({"x": [[[1.0, 2.0, 3.0]]], "y": [[1.0]], "id": [0]})
    for without, message in (
        (several, "a.parquet has the columns of lists 'x', 'y': choose one of them, by --column"),
        (several.select(["id"]), "a.parquet has no column of lists"),
    ):
        parquet.write_table(without, "a.parquet")
        assert one_line(run(*short), 2) == f"fastpack score: {message}"


def test_one_part_is_not_several(job):
    one = ["score", "m.npz", "b.parquet", "--output", "out", "--column", "x"]
    parquet.write_table(pa.table({"x": [[[1.0, 2.0, 3.0]], [[1.0, 2.0]]]}), "b.parquet")
    assert "; 0 of 1 part is complete and stays in out: when the input is mended" in one_line(run(*one), 1)
    write(Path("b.parquet"), 1)
    assert "\n1 row in 1 part in out; " in run(*one).stdout
    assert "out has 1 part of something else, " in one_line(run(*one, "--keep", "id"), 2)


def test_columns_of_other_types(job):
    parquet.write_table(table(5).set_column(0, "id", pa.array(list("abcde"))), "b.parquet")
    assert one_line(run(*job), 2) == "fastpack score: b.parquet: column 'id' is of Arrow type string, but of int64 in the files before"
    parquet.write_table(table(5).drop_columns("x"), "b.parquet")
    assert one_line(run(*job), 2) == "fastpack score: b.parquet: column 'x' is missing: there is 'id', 'name'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m.npz": "no.npz"}, "MODEL no.npz: No such file or directory"),
        ({"m.npz": "a.parquet"}, "MODEL a.parquet: the name must end in .npz, .safetensors, .pt, .pth, .bin"),
        ({"m.npz": "b.npz"}, "MODEL b.npz: it is no .npz file of arrays"),
        ({"m.npz": "b.safetensors"}, "MODEL b.safetensors: it is no .safetensors file of arrays"),
        ({"m.npz": "b.pt"}, "MODEL b.pt: it is no state dict that torch.load(weights_only=True) reads"),
        ({"m.npz": "gru.npz"}, "MODEL gru.npz: there is no 'weight_hh_l0': --prefix can be 'encoder.'"),
        ({"m.npz": "other.npz"}, "it is no state dict with an LSTM, GRU or RNN"),
        ({"m.npz": "odd.npz"}, "'weight_hh_l0' has shape (10, 5): an LSTM's has 4 rows for each column, a GRU's 3, an RNN's 1"),
        ({"m.npz": "flat.npz"}, "'weight_hh_l0' has shape (4,), but is a matrix"),
        (
            {"m.npz": "rnn.npz"},
            "MODEL rnn.npz: the weights are an RNN's, but do not say of which nonlinearity: pass --nonlinearity",
        ),
        ({"id": "id --nonlinearity tanh"}, "--nonlinearity is an RNN's, but the weights are not"),
        ({"a.parquet": "no.parquet"}, "no.parquet: No such file or directory"),
        ({"a.parquet": "folder"}, "folder has no file *.parquet"),
        ({"x": "x --ray nowhere"}, "the cluster's address is 'nowhere', but can be host:port, auto or local"),
        ({"x": "y"}, "a.parquet: column 'y' is missing: there is 'id', 'x', 'name'"),
        ({"x": "id"}, "a.parquet: column 'id' is of Arrow type int64, but sequences are lists"),
        ({"id": "no"}, "a.parquet: column 'no' is missing"),
        ({"id": "id --keep-all"}, "give either --keep or --keep-all"),
        ({"id": "id --result last --result last"}, "--result has 'last' more than once: name each column once"),
        ({"id": "id --result last --keep name --result rows --keep rows"}, "--keep has 'rows', the name of a column that is made, too"),
        ({"id": "id --keep id"}, "--keep has 'id' more than once: name each column once"),
        ({"id": "id --result first"}, "--result is 'first', but can only be 'last' or 'rows'"),
        ({"out": "."}, ". has a.parquet in it, which is to be read: choose another folder for what is written"),
        ({"out": "folder", "a.parquet": "link.parquet"}, "folder has link.parquet in it, which is to be read"),
        ({"out": "m.npz"}, "m.npz is a file: choose a folder for what is written"),
        ({"out": "m.npz/out"}, "m.npz/out: Not a directory"),
        ({"--column": "--colum"}, "No such option"),
    ],
)
def test_mistakes(job, change, message):
    Path("folder").mkdir()
    Path("folder/there.txt").write_bytes(Path("a.parquet").read_bytes())
    Path("link.parquet").symlink_to("folder/there.txt")
    for name in ("b.npz", "b.safetensors", "b.pt"):
        Path(name).write_bytes(b"nothing of the kind")
    np.savez("gru.npz", **weights(module("GRU"), "encoder."))
    np.savez("rnn.npz", **weights(module("RNN")))
    np.savez("other.npz", a=1)
    np.savez("odd.npz", weight_hh_l0=np.ones((10, 5)))
    np.savez("flat.npz", weight_hh_l0=np.ones(4))
    line = one_line(run(*" ".join(change.get(item, item) for item in job).split()), 2)
    assert message in line
    assert not Path("out").exists()


def test_what_is_missing_is_named(job, monkeypatch):
    save_file(weights(module()), "m.safetensors")
    torch.save(module().state_dict(), "m.pt")
    for hidden, change in (("pyarrow", []), ("ray", ["--ray", "local"]), ("torch", ["m.pt"]), ("safetensors", ["m.safetensors"])):
        arguments = [*job, *change] if hidden == "ray" else [job[0], *(change or job[1:2]), *job[2:]]
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, hidden, None)
            extra = "arrow" if hidden == "pyarrow" else hidden
            assert f"this needs {hidden}" in one_line(run(*arguments), 1)
            assert f"pip install 'fastpack[{extra}]'" in run(*arguments).stderr
