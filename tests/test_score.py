"""`fastpack score`: what it writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.numpy import save_file

from fastpack import parts
from tests.score_jobs import ROOT, files, run, source
from tests.scoring_oracle import check, module, table, weights, write

pytestmark = pytest.mark.usefixtures("one_thread")  # of torch


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
