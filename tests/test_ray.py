"""fastpack.ray on a small cluster of this machine: order, workers that are killed, full disks; and `fastpack score --ray`.

Ray runs below a process of its own (it warns as it likes, and what it started ends with that process), whose home is a
temporary folder: Ray keeps a token there.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

import fastpack
from fastpack import ray
from fastpack.cli import app
from tests.conftest import Child, clean_environment
from tests.scoring_oracle import check, module, table, weights, write

pytestmark = pytest.mark.usefixtures("one_thread")  # of torch
ROOT = Path(fastpack.__file__).parent.parent
TIMEOUT = 480  # seconds; it takes about 60

# All of it on one cluster, which takes seconds to start. What is said goes into a file: Ray writes into both usual streams.
ON_CLUSTER = """
import io, json, os, pathlib, resource, signal, subprocess, sys, time
import ray, ray.data, rich.console
import fastpack.ray
from fastpack import model_file, parts, score_files, scoring

class Deadly:  # kills its process when it is first called, wherever that is
    def __init__(self, marker):
        self.marker = pathlib.Path(marker).absolute()
    def __call__(self, value):
        assert "torch" not in sys.modules
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return value
        os.kill(os.getpid(), signal.SIGKILL)

class DeadlyScorer(scoring.Scorer):  # in the middle of a part, which has two row groups
    def slices(self, table):
        if table["id"][0].as_py() % 1000 == 10:
            deadly(None)
        return super().slices(table)

class CrampedScorer(scoring.Scorer):  # what is made of the third file is too large, as on a full disk, while there is the file
    def slices(self, table):
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        is_full = full.exists() and table["id"][0].as_py() // 1000 == 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if is_full else most, most))
        return super().slices(table)

def run(job):
    said = io.StringIO()
    try:
        score_files.run(rich.console.Console(file=said), job, False, "auto")
    except score_files.UnfinishedError as error:
        said.write(str(error))
    return said.getvalue()

deadly, full = Deadly("killed by a part"), pathlib.Path("full").absolute()
SLEEPING, *files = sys.argv[1:]
model = model_file.read("m.npz")
choice = model.layer, "x", ("last", "rows"), ("id",)
said = {}
ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
try:
    # a data set, one of whose workers is killed
    read = ray.data.read_parquet(files).repartition(6)  # or Ray makes one block of files as small as these
    killing = read.map_batches(Deadly("killed in a data set").__call__, batch_format="pyarrow")
    scored = fastpack.ray.score(killing, scoring.Scorer(*choice))
    scored.write_parquet("dataset")
    said["preserve_order of others"] = ray.data.DataContext.get_current().execution_options.preserve_order
    said["ids"] = [row["id"] for row in scored.iter_rows()]
    # parts, one of which kills its worker
    pathlib.Path("parts").mkdir()
    job = parts.plan(files, DeadlyScorer(*choice), model.digest, "parts", part_rows=20)
    said["rows"] = sum(fastpack.ray.write_parts(job, [part for part in job.parts if part.number != 3], "auto"))
    said["missing"] = [part.number for part in job.parts if not job.is_done(part)]
    said["unfinished"] = len(list(pathlib.Path("parts").glob(parts.UNFINISHED)))
    said["last"] = [*fastpack.ray.write_parts(job, [], "auto"), *fastpack.ray.write_parts(job, [job.parts[3]], "auto")]
    # a disk that is full, until it is not
    full.touch()
    job = job._replace(scorer=CrampedScorer(*choice), folder="cramped")
    said["full"], said["kept"] = run(job), [part.number for part in job.parts if job.is_done(part)]
    full.unlink()
    said["not full"] = run(job)
    # the command: all, what is missing (nothing), and a file that does not fit
    pathlib.Path("elsewhere").mkdir()  # not where the workers are
    options = ["score", "../m.npz", *[f"../{name}" for name in files], "--column", "x", "--keep", "id"]
    options += ["--ray", ray.get_runtime_context().gcs_address, "-o"]
    said["command"] = []
    for more in (["command"], ["command"], ["bad", "../bad.parquet"]):
        command = [sys.executable, "-m", "fastpack", *options, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd="elsewhere")
        said["command"].append([done.returncode, done.stdout, done.stderr])
    # killed itself while workers are at work, and once more
    killed = subprocess.Popen([sys.executable, "-c", SLEEPING, *options, "killed"], cwd="elsewhere")
    while len(list(pathlib.Path("elsewhere", "killed").glob(parts.UNFINISHED))) < 2 and killed.poll() is None:  # on both CPUs
        time.sleep(0.01)
    killed.kill()
    said["killed"] = killed.wait()
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "fastpack", *options, "killed"], timeout=100, cwd="elsewhere", check=True)
    print("after a kill:", time.monotonic() - begin)
finally:
    ray.shutdown()
pathlib.Path("said.json").write_text(json.dumps(said))
"""


SLEEPING = """
import sys, time
from fastpack import cli, scoring

class Sleeping(scoring.Scorer):
    def slices(self, table):
        time.sleep(1000)

scoring.Scorer = Sleeping
cli.app(sys.argv[1:])
"""


class Done(NamedTuple):
    folder: Path
    said: dict[str, Any]
    source: pa.Table


def processes_of(folder: Path) -> list[int]:
    """Return the processes whose home is this cluster's: where the system tells it, by its environment."""
    home, found = f"HOME={folder / 'home'}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if home in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "home").mkdir()
    np.savez(folder / "m.npz", **weights(module()))
    files = [write(folder / f"in{k}.parquet", 40 + k, seed=k).name for k in range(6)]
    parquet.write_table(pa.table({"id": [1, 2], "x": [[[1.0] * 3], [[1.0]]]}), folder / "bad.parquet", row_group_size=1)
    # Ray's own files have to be at a short path, for there are sockets among them
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short, open(folder / "streams", "w+") as streams:
        environment = clean_environment(
            PYTHONPATH=str(ROOT), HOME=str(folder / "home"), RAY_TMPDIR=short, RAY_USAGE_STATS_ENABLED="0", COLUMNS="80"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", ON_CLUSTER, SLEEPING, *files], env=environment, cwd=folder, stdout=streams, stderr=streams
        )
        try:
            process.wait(TIMEOUT)
        finally:
            for pid in processes_of(folder) if process.poll() is None else ():  # it hangs, and so may what it started
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()
    assert process.returncode == 0, (folder / "streams").read_text()
    return Done(folder, json.loads((folder / "said.json").read_text()), pa.concat_tables([table(40 + k, seed=k) for k in range(6)]))


def test_nothing_of_a_cluster_is_left(done: Done) -> None:
    environment = clean_environment(HOME=str(done.folder / "home"))
    with subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE) as process:
        seen, deadline = set(), time.monotonic() + 60
        while Path("/proc").exists() and (process.pid not in seen or len(seen) > 1):  # Ray's own end seconds after it is shut down
            assert time.monotonic() < deadline, seen
            time.sleep(0.1)
            seen = set(processes_of(done.folder))
        process.communicate(b"\n")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_rows_of_a_data_set_keep_their_order_though_a_worker_is_killed(done: Done) -> None:
    assert (done.folder / "killed in a data set").exists()
    assert done.said["ids"] == done.source["id"].to_pylist()
    assert not done.said["preserve_order of others"]
    written = sorted((done.folder / "dataset").iterdir())
    assert len(written) > 1
    found = pa.concat_tables([parquet.read_table(path) for path in written])
    assert found["id"].equals(done.source["id"])
    check(found, module(), done.source)


def test_a_part_whose_worker_is_killed_is_made_again(done: Done) -> None:
    assert (done.folder / "killed by a part").exists()
    assert (done.said["rows"], done.said["missing"], done.said["last"]) == (done.source.num_rows - 20, [3], [20])
    assert done.said["unfinished"] == 1  # what the killed worker had written
    found = parquet.read_table(done.folder / "parts")
    assert found["id"].equals(done.source["id"])
    check(found, module(), done.source)


def test_a_full_disk_of_a_worker(done: Done) -> None:
    *_, line = done.said["full"].splitlines()
    found = re.fullmatch(
        r"/.*/cramped: File too large, while (part-0000000[567]).parquet was written; "
        r"(\d+) of 17 parts are complete and stay in cramped: run the same command again to go on from there",
        line,
    )
    assert int(found[2]) == len(done.said["kept"]) > 0
    assert not {5, 6, 7} & set(done.said["kept"])
    assert f"255 rows in 17 parts in cramped, {found[2]} of them there already" in done.said["not full"]
    assert contents(done.folder / "cramped") == contents(done.folder / "parts")


def test_the_command_makes_on_a_cluster_what_it_makes_here(done: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.folder)
    files = [f"in{k}.parquet" for k in range(6)]
    here = CliRunner().invoke(app, ["score", "m.npz", *files, "--column", "x", "--keep", "id", "-o", "here"])
    assert here.exit_code == 0
    first, again, bad = done.said["command"]
    assert (first[0], again[0], bad[0]) == (0, 0, 1)
    assert "255/255 rows" in first[1]
    assert "255 rows in 6 parts in command; " in first[1]
    assert "255 rows in 6 parts in command, 6 of them there already; " in again[1]
    assert (done.folder / "elsewhere" / "command" / "part-00000000.parquet").exists()
    assert contents(done.folder / "elsewhere" / "command") == contents(done.folder / "here")


def test_the_command_goes_on_after_being_killed_though_workers_were_at_work(done: Done) -> None:
    assert done.said["killed"] == -signal.SIGKILL
    found = done.folder / "elsewhere" / "killed"
    assert sorted(path.name for path in found.iterdir()) == [f"part-0000000{k}.parquet" for k in range(6)]
    assert contents(found) == contents(done.folder / "elsewhere" / "command")


def test_the_command_says_what_a_worker_says(done: Done) -> None:
    line = done.said["command"][-1][2].splitlines()[-1]
    assert line.startswith("fastpack score: ")
    assert "bad.parquet, row group 1: column 'x' has steps of shape (1,), but the layer takes 3 numbers a step" in line
    assert re.search(
        r"[0-6] of 7 parts are complete and stay in bad: when the input is mended, run the same command with --overwrite", line
    )


def test_without_ray_it_says_what_to_install(child: Child) -> None:
    code = "import sys; sys.modules['ray'] = None\ntry:\n    import fastpack.ray\nexcept ImportError as error:\n    print(error)"
    assert child(code, PYTHONPATH=ROOT).strip() == "fastpack.ray needs ray: pip install 'fastpack[ray]'"


@pytest.mark.parametrize("address", ["nonsense", ":6379", "host:", "host:99999"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=f"the cluster's address is '{address}', but can be host:port, auto or local"):
        ray.check_address(address)


def test_where_there_is_no_cluster() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ray.check_address(address)
    with pytest.raises(ConnectionError, match=f"no Ray cluster is at {address}: "):
        ray.check_address(address)
    for special in ("auto", "local", "ray://nowhere:1"):
        ray.check_address(special)


def test_only_a_scorer_scores() -> None:
    with pytest.raises(TypeError, match=r"scorer is a dict, not a fastpack\.scoring\.Scorer"):
        ray.score(None, {})
