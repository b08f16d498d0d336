"""Write the README's tables from a run: `python bench/readme.py`, or `--print` to look at them only.

Contenders take turns, A B A B, so that a disturbance of the machine meets both; a ratio is the median of the pairs' ratios.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import fastpack  # noqa: E402
from bench import bench_startup  # noqa: E402
from bench.cases import Case  # noqa: E402
from bench.contests import Contest, numpy_contests, torch_contests  # noqa: E402
from fastpack import machine  # noqa: E402

SECONDS = 0.6  # a contest
SHOWN = {
    "64 film reviews x 100 floats": Case("reviews", 64, (100,), "float32"),
    "64 film reviews, tokens (int64)": Case("reviews", 64, (), "int64"),
    "32 recordings x 80 floats": Case("speech", 32, (80,), "float32"),
    "1024 sentences x 1 float": Case("sentences", 1024, (1,), "float32"),
    "64 equal lengths x 64 floats": Case("flat", 64, (64,), "float32"),
    "3 sentences x 4 floats": Case("sentences", 3, (4,), "float32"),
}
TORCH = ["pack_padded_sequence", "pack_sequence", "pad_packed_sequence", "unpack_sequence", "pad_sequence", "pack, backward"]
NUMPY = ["pack", "pack_padded", "pack_ragged", "pad", "unpack"]


def once(contender: Callable[[], Any], calls: int) -> float:
    """Return the seconds of a call."""
    begin = time.perf_counter()
    for _ in range(calls):
        contender()
    return (time.perf_counter() - begin) / calls


def race(contest: Contest, rival: str) -> tuple[float, float]:
    """Return fastpack's median seconds and the median ratio rival / fastpack, results having been compared."""
    contest.check()
    ours, theirs = contest.contenders["fastpack"], contest.contenders[rival]
    calls = [max(1, int(2e-3 / max(once(contender, 3), 1e-7))) for contender in (ours, theirs)]
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(pairs) < 7:
        pairs.append((once(ours, calls[0]), once(theirs, calls[1])))
    return statistics.median(a for a, _ in pairs), statistics.median(b / a for a, b in pairs)


def table(level: dict[str, list[str]], contests: Callable[[Case], dict[str, Contest]], rival: str) -> list[str]:
    """Return a Markdown table: fastpack's microseconds, and how many times as long the rival takes."""
    (functions,) = level.values()
    lines = ["| | " + " | ".join(f"`{name}`" for name in functions) + " |", "| --- |" + " ---: |" * len(functions)]
    for title, case in SHOWN.items():
        made = contests(case)
        cells = []
        for name in functions:
            if name in made:
                seconds, ratio = race(made[name], rival)
                cells.append(f"{seconds * 1e6:,.0f} us, {ratio:.1f}x")
            else:
                cells.append("-")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def startup() -> list[str]:
    """Return a Markdown table of start-up times: medians of 7 new processes each."""
    with tempfile.TemporaryDirectory() as name:
        folder = bench_startup.jitted(Path(name))
        medians = {step: statistics.median(bench_startup.seconds(folder, step) for _ in range(7)) for step in bench_startup.STEPS}
    return ["| | ms |", "| --- | ---: |", *(f"| {step} | {seconds * 1e3:,.0f} |" for step, seconds in medians.items())]


def cpu() -> str:
    """Return the CPU's own name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def section(name: str, lines: list[str], text: str) -> str:
    """Return `text` with the lines between the markers of `name` replaced."""
    begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{tail}"


def main() -> None:
    """Run, and write or print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--print", action="store_true", dest="show")
    options.add_argument("--threads", type=int, default=1)
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    told = (
        f"{cpu()}, kernels for {machine.library().level}, {options.threads} thread(s); Python {platform.python_version()}, "
        f"NumPy {np.__version__}, torch {torch.__version__}, fastpack {fastpack.__version__} at {commit}; "
        f"{datetime.now(UTC):%Y-%m-%d}; by `python bench/readme.py`."
    )
    tables = {
        "torch level": table({"torch": TORCH}, torch_contests, "torch"),
        "NumPy level": table({"numpy": NUMPY}, numpy_contests, "numpy"),
        "start-up": startup(),
        "measured on": [told],
    }
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, lines in tables.items():
        print(f"\n{name}\n" + "\n".join(lines))
        text = section(name, lines, text)
    if not options.show:
        readme.write_text(text)


if __name__ == "__main__":
    main()
