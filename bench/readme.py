"""Write the README's tables from a run: `python bench/readme.py`, or `--print` to look at them only. A few minutes on two quiet cores."""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would say that it starts and stops
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import fastpack  # noqa: E402
from bench import bench_loader, bench_memory, bench_rnn, bench_sampling, bench_serving, bench_startup, readme_training  # noqa: E402
from bench.cases import Case  # noqa: E402
from bench.contests import Contest, numpy_contests, torch_contests  # noqa: E402
from bench.peak import peak  # noqa: E402
from bench.races import by_itself, duration, once, race  # noqa: E402
from bench.rnn_cases import LAYERS, MIDDLE, TINY  # noqa: E402
from bench.rnn_contests import RIVALS, inference, layer_contest  # noqa: E402
from fastpack import machine  # noqa: E402

SHOWN = {
    "64 film reviews x 100 floats": Case("reviews", 64, (100,), "float32"),
    "64 film reviews, tokens (int64)": Case("reviews", 64, (), "int64"),
    "32 recordings x 80 floats": Case("speech", 32, (80,), "float32"),
    "1024 sentences x 1 float": Case("sentences", 1024, (1,), "float32"),
    "64 equal lengths x 64 floats": Case("flat", 64, (64,), "float32"),
    "3 sentences x 4 floats": Case("sentences", 3, (4,), "float32"),
}
TORCH = ["pack_padded_sequence", "pack_sequence", "pad_packed_sequence", "unpack_sequence", "pad_sequence", "pack, backward"]
NUMPY_LEVEL = "fastpack, NumPy"
NUMPY = ["pack", "pack_padded", "pack_ragged", "pad", "unpack"]


def table(level: dict[str, list[str]], contests: Callable[[Case], dict[str, Contest]], rival: str) -> list[str]:
    """Return a Markdown table: fastpack's microseconds, and how many times as long the rival takes."""
    (functions,) = level.values()
    lines = ["| | " + " | ".join(f"`{name}`" for name in functions) + " |", "| --- |" + " ---: |" * len(functions)]
    for title, case in SHOWN.items():
        made = contests(case)
        cells = []
        for name in functions:
            if name in made:
                made[name].check()
                seconds, ratio = race(made[name], rival)
                cells.append(f"{seconds * 1e6:,.0f} us, {ratio:.1f}x")
            else:
                cells.append("-")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def layers() -> list[str]:
    """Return a Markdown table of recurrent layers, on 1 and on 2 threads."""
    rivals = [*RIVALS, NUMPY_LEVEL]
    lines = [f"| | fastpack | GFLOP/s, of peak | {' | '.join(rivals)} |", "| --- |" + " ---: |" * (2 + len(rivals))]
    for case in (TINY, *LAYERS):
        found: list[dict[str, float]] = []
        seconds = []
        for threads in (1, 2):
            contest = layer_contest(case, threads)
            with inference(threads):
                contest.check()
                races = {rival: race(contest, rival) for rival in RIVALS if rival in contest.contenders}
                alone = by_itself(contest.contenders[NUMPY_LEVEL])
            seconds.append(statistics.median(ours for ours, _ in races.values()))
            found.append({rival: ratio for rival, (_, ratio) in races.items()} | {NUMPY_LEVEL: alone / seconds[-1]})
        rate = case.flops / seconds[0]
        share = f"{rate / 1e9:.0f}" + (f", {rate / peak():.0%}" if case.dtype == "float32" else "")
        ratios = [" / ".join(f"{rows[rival]:.1f}x" for rows in found) if rival in found[0] else "-" for rival in rivals]
        lines.append(f"| {case.name} | {' / '.join(map(duration, seconds))} | {' | '.join([share, *ratios])} |")
    return lines


def cpu_levels() -> list[str]:
    """Return a Markdown table of what each CPU level's code makes of its registers."""
    lines = [f"| {MIDDLE.name} | of its own peak | GFLOP/s |", "| --- | ---: | ---: |"]
    for level in machine.supported_levels():
        rate = MIDDLE.flops / statistics.median(bench_rnn.seconds_at(level))
        lines.append(f"| {level} | {rate / peak(level):.0%} | {rate / 1e9:.0f} of {peak(level) / 1e9:.0f} |")
    return lines


def inference_memory() -> list[str]:
    """Return a Markdown table of the memory of calls."""
    names = ("fastpack", "fastpack, NumPy", "torch, packed")
    return ["| | KB |", "| --- | ---: |", *(f"| {name} | {bench_memory.inference_memory(name)[0] / 1e3:,.0f} |" for name in names)]


def samplers() -> list[str]:
    """Return a Markdown table of samplers on many film reviews: seconds are medians of 5."""
    lengths = bench_sampling.lengths_of("reviews")
    lines = ["| | seconds | real steps a batch | padding, if padded | if shuffled |", "| --- |" + " ---: |" * 4]
    for name in bench_sampling.SAMPLERS:
        seconds = statistics.median(once(lambda name=name: bench_sampling.planned(name, lengths), 1) for _ in range(5))  # type: ignore[misc]
        report = bench_sampling.planned(name, lengths).report()
        shares = f"{report.padding:.1%} | {report.shuffled_padding:.1%}"
        lines.append(f"| `{name}` | {seconds:.1f} | {report.batch_steps.mean():,.0f} | {shares} |")
    seconds = statistics.median(once(lambda: bench_sampling.streamed(lengths), 1) for _ in range(3))
    return [*lines, f"| `TokenBudgetStream`, all of it read | {seconds:.1f} | | | |"]


def serving() -> list[str]:
    """Return a Markdown table of processes that serve: medians of 5 of each."""
    servers = [server for server in bench_serving.SERVERS if server != "onnx" or bench_serving.have_onnx()]
    one, many = "an answer to 1 sequence", f"to {bench_serving.CASE.B}"
    lines = [f"| | first answer | resident | installed | {one} | {many} |", "| --- |" + " ---: |" * 5]
    with tempfile.TemporaryDirectory() as name:
        folder = bench_serving.prepare(Path(name))
        for server in servers:
            runs = [bench_serving.serve(folder, server) for _ in range(6)][1:]
            median = bench_serving.Served(*map(statistics.median, zip(*runs, strict=True)))
            sizes = f"{median.resident / 1e6:.0f} MB | {bench_serving.installed_bytes(server) / 1e6:,.0f} MB"
            answers = f"{duration(median.one)} | {duration(median.batch)}"
            lines.append(f"| {bench_serving.SERVERS[server]} | {median.first * 1e3:,.0f} ms | {sizes} | {answers} |")
        bench_serving.check(folder, servers)
    return lines


def loaders() -> list[str]:
    """Return a Markdown table of whole loaders: torch's millions of real steps a second, and how many times that ours have."""
    names = bench_loader.OURS
    heads = [f"{name}, {f'{workers} workers' if workers else 'none'}" for workers in names for name in ("torch", *names[workers])]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for case, data in bench_loader.CASES.items():
        cells = []
        for workers, rivals in names.items():
            made = bench_loader.contenders(data(), workers)
            bench_loader.check(made)
            found = list(bench_loader.rates(made, 9))
            cells.append(f"{statistics.median(rates[bench_loader.TORCH] for rates in found) / 1e6:.1f} M")
            cells += [f"{statistics.median(rates[name] / rates[bench_loader.TORCH] for rates in found):.1f}x" for name in rivals]
        lines.append(f"| {case} | {' | '.join(cells)} |")
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
    options.add_argument("--only", default="", help="the tables whose name has this in it")
    options = options.parse_args()
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    told = (
        f"{cpu()}, kernels for {machine.library().level}, peak {peak() / 1e9:.0f} GFLOP/s a core; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, torch {torch.__version__}, fastpack {fastpack.__version__} at {commit}; "
        f"{datetime.now(UTC):%Y-%m-%d}; by `python bench/readme.py`."
    )
    tables: dict[str, Callable[[], list[str]]] = {
        "torch level": lambda: table({"torch": TORCH}, torch_contests, "torch"),
        "NumPy level": lambda: table({"numpy": NUMPY}, numpy_contests, "numpy"),
        "loaders": loaders,
        "layers": layers,
        "CPU levels": cpu_levels,
        "memory": inference_memory,
        "training": readme_training.layers,
        "shapes": readme_training.shapes,
        "long sequences": readme_training.long_sequences,
        "serving": serving,
        "samplers": samplers,
        "start-up": startup,
        "measured on": lambda: [told],
    }
    readme = ROOT / "README.md"
    text = readme.read_text()
    for name, made in tables.items():
        if options.only in name:
            lines = made()
            print(f"\n{name}\n" + "\n".join(lines), flush=True)
            text = section(name, lines, text)
    if not options.show:
        readme.write_text(text)


if __name__ == "__main__":
    main()
