"""What a batch sampler makes of a data set: as a table by rich, as a figure by matplotlib."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fastpack.checks import Int64Array, counted
from fastpack.show.facts import COLOURS, PADDING, histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from rich.console import Console

    from fastpack.sampling import SamplerReport

SIZES = ("", "least", "mean", "most")


def plan(report: "SamplerReport", console: "Console") -> None:
    """Print a sampler's report as tables.

    Parameters
    ----------
    report : SamplerReport
    console : rich.console.Console
    """
    from rich.table import Table

    console.print(f"[bold]{summary(report)}[/bold]", "", sep="\n")
    sizes = Table(box=None, pad_edge=False, header_style="dim")
    for name in SIZES:
        sizes.add_column(name, justify="right" if name else "left")
    for row in _sizes(report):
        sizes.add_row(*row)
    console.print(sizes)
    console.print()
    facts = Table.grid(padding=(0, 2))
    for row in _facts(report):
        facts.add_row(*row)
    console.print(facts)


def text(report: "SamplerReport") -> str:
    """Return the same tables as plain text, without rich."""
    sizes, facts = _aligned([SIZES, *_sizes(report)], str.rjust), _aligned(_facts(report), str.ljust)
    return "\n".join([summary(report), "", *sizes, "", *facts])


def _sizes(report: "SamplerReport") -> list[tuple[str, ...]]:
    rows = {"sequences a batch": report.batch_sequences, "real steps a batch": report.batch_steps}
    if report.batch_steps.shape[1] > 1:
        rows["real steps a rank"] = report.rank_steps
    return [(name, *_extent(values)) for name, values in rows.items()]


def _facts(report: "SamplerReport") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if report.max_tokens:
        rows.append(("budget filled", f"{report.filled:.1%}", f"of {report.max_tokens:,} real steps a batch"))
    rows.append(("padding, if padded", f"{report.padding:.1%}", "of all cells"))
    rows.append(("padding, if shuffled", f"{report.shuffled_padding:.1%}", "in random batches of as many sequences"))
    if report.batch_steps.shape[1] > 1:
        rows.append(("ranks differ", f"{report.imbalance:.2%}", "of their mean real steps"))
        rows.append(("ranks wait", f"{report.waiting:.2%}", "of the time, if real steps take it"))
    for name, number in (("left out", report.dropped), ("taken twice", report.repeated)):
        if number:
            rows.append((name, *counted(number, "sequence").split()))
    return rows


def _aligned(rows: list[tuple[str, ...]], aligned: Callable[[str, int], str]) -> list[str]:
    """Return rows as lines, the first column to the left and the others as told."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    columns = [(str.ljust if k == 0 else aligned, width) for k, width in enumerate(widths)]
    return ["  ".join([align(cell, width) for cell, (align, width) in zip(row, columns, strict=True)]).rstrip() for row in rows]


def summary(report: "SamplerReport") -> str:
    """Return how many sequences and steps make how many batches, in words."""
    K, W = report.batch_steps.shape
    ranks = f" on each of {W:,} ranks" if W > 1 else ""
    return f"{counted(report.sequences, 'sequence')}, {counted(report.steps, 'real step')}, in {counted(K, 'batch')}{ranks}"


def plan_figure(report: "SamplerReport") -> "Figure":
    """Return a matplotlib figure of a sampler's report: the batches' sizes, the padding spared, the balance of the ranks."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 6.4), dpi=150, layout="constrained")
    (left, right), (padding, ranks) = drawn.subplots(2, 2)
    _draw_sizes(left, report.batch_steps, "real steps of a batch", COLOURS[0])
    if report.max_tokens:
        left.axvline(report.max_tokens, color="black", linewidth=1)
        left.set(title=f"the line: a budget of {report.max_tokens:,}")
    _draw_sizes(right, report.batch_sequences, "sequences of a batch", COLOURS[1])
    _draw_padding(padding, report)
    steps = report.rank_steps
    ranks.bar(np.arange(len(steps)), steps, color=COLOURS[2])
    ranks.set(xlabel="rank", ylabel="real steps", title=f"ranks differ by {report.imbalance:.2%}" if len(steps) > 1 else "one rank")
    _count_along(ranks.xaxis)
    _count_along(ranks.yaxis)
    drawn.suptitle(summary(report), fontsize=11)
    return drawn


def _draw_sizes(axes: "Axes", sizes: Int64Array, what: str, fill: str) -> None:
    counts, edges = histogram(sizes.ravel(), 60)
    axes.stairs(counts, edges - 0.5, fill=True, color=fill)
    axes.set(xlabel=what, ylabel="batches")
    _count_along(axes.xaxis)
    _count_along(axes.yaxis)


def _count_along(axis: "Axis") -> None:
    """Set an axis to whole numbers, a million as 1M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axis.set_major_formatter(EngFormatter(sep=""))


def _draw_padding(axes: "Axes", report: "SamplerReport") -> None:
    """Draw the cells that padded batches of either kind have, of which the real steps are as many."""
    names = ("shuffled,\npadded", "padded", "packed")
    shares = (report.shuffled_padding, report.padding, 0.0)
    cells = np.array([report.steps / max(1 - share, 1e-9) for share in shares])
    axes.barh(names, cells, color=PADDING, label="padding")
    axes.barh(names, report.steps, color=COLOURS[0], label="real steps")
    for name, share, width in zip(names, shares, cells.tolist(), strict=True):
        axes.annotate(f" {share:.1%}", (width, name), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.2 * max(cells.max(), 1)), xlabel="cells", title="padding, of all cells")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)  # below: bars may be anywhere within
    _count_along(axes.xaxis)


def _extent(values: Int64Array) -> list[str]:
    return [f"{values.min():,}", f"{values.mean():,.1f}", f"{values.max():,}"]
