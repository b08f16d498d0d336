"""The README's tables about training, as lines of Markdown."""

import statistics
from itertools import product

from bench import bench_long_sequences, sweep
from bench.bench_long_sequences import LIMIT
from bench.peak import peak
from bench.races import duration, race
from bench.rnn_cases import GATES
from bench.rnn_contests import RIVALS
from bench.training_contests import TRAINED, training, training_contest


def layers() -> list[str]:
    """Return forward and backward passes on 1 and on 2 threads."""
    lines = [f"| | fastpack | GFLOP/s, of peak | {' | '.join(RIVALS)} |", "| --- |" + " ---: |" * (2 + len(RIVALS))]
    for case in TRAINED:
        contest = training_contest(case)
        seconds: list[float] = []
        found: list[dict[str, float]] = []
        for threads in (1, 2):
            with training(threads):
                contest.check()
                races = {rival: race(contest, rival) for rival in RIVALS if rival in contest.contenders}
            seconds.append(statistics.median(ours for ours, _ in races.values()))
            found.append({rival: ratio for rival, (_, ratio) in races.items()})
        rate = 3 * case.flops / seconds[0]
        share = f"{rate / 1e9:.0f}" + (f", {rate / peak():.0%}" if case.dtype == "float32" else "")
        ratios = [" / ".join(f"{rows[rival]:.1f}x" for rows in found) if rival in found[0] else "-" for rival in RIVALS]
        lines.append(f"| {case.name} | {' / '.join(map(duration, seconds))} | {' | '.join([share, *ratios])} |")
    return lines


def shapes() -> list[str]:
    """Return how the sweep over shapes went, for each cell and rival."""
    lines = ["| | against | shapes | median | slower than 1.1 times | worst | which is |", "| --- | --- |" + " ---: |" * 4 + " --- |"]
    for cell, rival in product(GATES, sweep.RIVALS):
        found = sweep.sweep(cell, rival)
        slow = sum(item.ratio < sweep.SLOW for item in found)
        median, worst = statistics.median(item.ratio for item in found), found[0]
        lines.append(f"| {cell} | {rival} | {len(found)} | {median:.1f}x | {slow} | {worst.ratio:.2f}x | {worst.case.name} |")
    return lines


def long_sequences() -> list[str]:
    """Return time and peak memory of steps along long sequences."""
    contenders = bench_long_sequences.CONTENDERS
    lines = [f"| up to | {' | '.join(contenders)} |", "| ---: |" + " ---: |" * len(contenders)]
    for T, steps in bench_long_sequences.all_steps().items():
        cells = []
        for contender in contenders:
            step = steps.get(contender)
            cells.append(
                f"{duration(step.seconds)}, {step.bytes / 1e6:,.0f} MB" if step else f"over {LIMIT:.0f} s" if contender in steps else "-"
            )
        lines.append(f"| {T:,} steps | {' | '.join(cells)} |")
    return lines
