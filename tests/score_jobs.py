"""Runs of `fastpack score` to test: what they are given, in this process or one of their own, and what they leave."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from typer.testing import CliRunner

import fastpack
from fastpack import parts
from fastpack.cli import app
from tests.conftest import clean_environment
from tests.scoring_oracle import module, table, weights, write

ROOT = Path(fastpack.__file__).parent.parent


def prepare(folder, monkeypatch):
    """A model, two files and small parts: `a.parquet` has rows 0 to 44 in parts 0 to 2, `b.parquet` has 25 in parts 3 and 4."""
    monkeypatch.chdir(folder)
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
