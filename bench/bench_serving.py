"""Serving an LSTM without torch, beside torch and ONNX Runtime, each in processes of its own: see `bench.serve`.

ONNX Runtime is no requirement of anything here: it lives in an environment of its own, which `python -m bench.bench_serving`
makes in `.venv-onnx`; without it, its row is left out.
"""

import subprocess
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from bench.children import ROOT, environment, output_of, report
from bench.rnn_cases import LayerCase
from fastpack import machine

CASE = LayerCase("LSTM", 64, 128, 32, "sentences")
ONNX = ROOT / ".venv-onnx"
ONNX_PYTHON = ONNX / "bin" / "python"
SERVERS = {"fastpack": "NumPy and fastpack", "torch": "torch", "onnx": "ONNX Runtime"}
PACKAGES = {"fastpack": ["numpy"], "torch": ["torch", "numpy"], "onnx": ["onnxruntime", "numpy"]}
CLOSE = 1e-5


class Served(NamedTuple):
    """What one process took."""

    first: float  # seconds from the start of the process to the first answer, to CASE's batch
    resident: float  # bytes
    batch: float  # seconds of an answer to the batch
    one: float  # and to its first sequence alone


def have_onnx() -> bool:
    """Make the environment of ONNX Runtime if it is not there, and say whether it is now."""
    if not ONNX_PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", ONNX], check=True)
        installed = subprocess.run([ONNX_PYTHON, "-m", "pip", "install", "--quiet", "onnx", "onnxruntime"], check=False)
        if installed.returncode:
            ONNX_PYTHON.unlink()
    return ONNX_PYTHON.exists()


def prepare(folder: Path) -> Path:
    """Write the model, as each server wants it, and the batch into a folder, and return the folder."""
    weights = CASE.weights()
    np.savez(folder / "model.npz", **weights)
    torch.save({name: torch.from_numpy(weight) for name, weight in weights.items()}, folder / "model.pt")
    if ONNX_PYTHON.exists():
        output_of("bench/onnx_lstm.py", folder / "model.npz", folder / "model.onnx", python=ONNX_PYTHON)
    np.savez(folder / "batch.npz", values=CASE.batch.values(), offsets=CASE.batch.offsets())
    return folder


def serve(folder: Path, server: str) -> Served:
    """Run a serving process.

    Raises
    ------
    RuntimeError
        It failed.
    """
    python = ONNX_PYTHON if server == "onnx" else Path(sys.executable)
    command = [python, ROOT / "bench" / "serve.py", server, folder]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None  # noqa: S101
        answered = process.stdout.readline()
        first = time.perf_counter() - begin
        rest = process.stdout.read().split()
    if answered != "answered\n" or process.returncode:
        raise RuntimeError(f"serving with {server} failed")
    kilobytes, batch, one = map(float, rest)
    return Served(first, kilobytes * 1024, batch * 1e-6, one * 1e-6)


def check(folder: Path, servers: Iterable[str]) -> None:
    """Compare what they answered.

    Raises
    ------
    RuntimeError
        One gave another answer than fastpack.
    """
    answers = {server: np.load(folder / f"{server}.npy") for server in ("fastpack", *servers)}
    for server, answer in answers.items():
        if answer.shape != answers["fastpack"].shape or abs(answer - answers["fastpack"]).max() > CLOSE:
            raise RuntimeError(f"{server} gives another answer than fastpack")


def installed_bytes(server: str) -> int:
    """Return the size of the files of the packages that a server needs, Python aside; fastpack's with the kernels of all levels."""
    found: dict[str, metadata.Distribution] = {}
    where = {"path": [str(path) for path in ONNX.glob("lib/python*/site-packages")]} if server == "onnx" else {}

    def gather(name: str) -> None:
        for distribution in metadata.Distribution.discover(name=name, **where):
            if found.setdefault(name.lower(), distribution) is distribution:
                for needed in map(Requirement, distribution.requires or []):
                    if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                        gather(needed.name)

    for name in PACKAGES[server]:
        gather(name)
    files = [Path(str(path.locate())) for distribution in found.values() for path in distribution.files or []]
    own = [path for path in Path(machine.PACKAGE).rglob("*") if "__pycache__" not in path.parts] if server == "fastpack" else []
    return sum(path.stat().st_size for path in {*files, *own} if path.is_file())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the model and the batch."""
    return prepare(tmp_path_factory.mktemp("serving"))


@pytest.mark.parametrize("server", ["fastpack", "torch", *["onnx"] * ONNX_PYTHON.exists()])
def bench_serving(benchmark: Any, folder: Path, server: str) -> None:
    """Take 5 fresh processes; the time is that to the first answer. Asked of fastpack: under 0.25 s."""
    runs = [serve(folder, server) for _ in range(6)][1:]
    check(folder, [server] if (folder / "fastpack.npy").exists() else [])
    last = runs[-1]
    benchmark.group = "serving: the first answer of a process (asked of fastpack: under 0.25 s)"
    benchmark.name = (
        f"{SERVERS[server]}: {last.resident / 1e6:.0f} MB resident, {installed_bytes(server) / 1e6:.0f} MB installed, "
        f"{last.one * 1e6:.0f} us for a sequence, {last.batch * 1e6:.0f} us for {CASE.B}"
    )
    report(benchmark, [run.first for run in runs])


if __name__ == "__main__":
    print(f"{ONNX}: {'there' if have_onnx() else 'onnx and onnxruntime could not be installed'}")
