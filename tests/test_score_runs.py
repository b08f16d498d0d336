"""`fastpack score`: how it goes on after an interruption, and how runs keep out of each other's way."""

import errno
import fcntl
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fastpack import parts, score_files
from tests.score_jobs import files, one_line, run, source, start
from tests.scoring_oracle import check, module, table, weights, write

pytestmark = pytest.mark.usefixtures("one_thread")  # of torch


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
