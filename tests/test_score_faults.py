"""`fastpack score`: what it says when something is wrong."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.numpy import save_file

from fastpack import parts
from tests.conftest import clean_environment
from tests.score_jobs import ROOT, files, one_line, run, source
from tests.scoring_oracle import check, module, table, weights, write

pytestmark = pytest.mark.usefixtures("one_thread")  # of torch


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
