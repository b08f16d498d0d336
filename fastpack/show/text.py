"""A layout in the terminal, by rich: every cell where there is room, otherwise a summary."""

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fastpack.checks import Int64Array, counted
from fastpack.show.facts import COLOURS, Laid, colour, histogram, ink, listed, savings, sizes, staircase

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

EIGHTHS = " ▁▂▃▄▅▆▇█"
SIXTEEN = ("bright_blue", "yellow", "green", "red", "cyan", "bright_yellow", "magenta", "bright_red", "bright_green", "white")
PERCENTILES = (5, 25, 50, 75, 95)


def terminal(layout: Laid, console: "Console") -> None:
    """Print a layout: every cell where the terminal has room for it, otherwise a summary.

    Parameters
    ----------
    layout : Layout or Packed
    console : rich.console.Console
        Its width, height, colours and encoding decide how much is drawn, and with which characters.
    """
    B, T, N = sizes(layout)
    heading = f"{counted(B, 'sequence')}, up to {counted(T, 'step')}, {counted(N, 'packed row')}"
    console.print(f"[bold]{heading}[/bold]", "", sep="\n")
    if N and max(16, console.height - 14) >= B and console.width - label_width(B) >= T:
        cells(layout, console)
        console.print()
    elif N:
        _print_summary(layout, console)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        console.print(
            f"{name:<16}  {listed(getattr(layout, name), max(console.width - 18, 30), _glyphs(console)[2])}", markup=False, soft_wrap=True
        )
    console.print("", savings(layout), sep="\n", style="bold")


def label_width(B: int) -> int:
    """Return the width of what stands before a sequence's cells: its number and its length."""
    return max(len("sequence"), len(str(B - 1))) + len("length") + 4


def _glyphs(console: "Console") -> tuple[str, str, str, str, str]:
    """Return what stands for padding, a full cell, what is left out, a border between steps and the levels of a bar."""
    return (".", "#", "...", "|", " #") if console.options.ascii_only else ("·", "█", "…", "│", EIGHTHS)


def cells(layout: Laid, console: "Console") -> None:
    """Print every cell of a layout: as sequences, then in packed order; with numbers where the terminal has room for them."""
    B, T, N = sizes(layout)
    cell = max(len(str(N - 1)), len(str(B - 1)), 2) + 1
    if label_width(B) + T * cell > console.width:
        cell = 1
    padding = _glyphs(console)[0]
    numbers = (", a number its packed row", ", a number the sequence") if cell > 1 else ("", "")
    console.print(f"A line is a sequence, a column a step{numbers[0]}, {padding} padding.", style="dim")
    for line in _sequences(layout, console, cell):
        _print_line(console, line)
    console.print("", f"Packed: step after step, longest sequence first{numbers[1]}.", sep="\n", style="dim")
    for line in _packed(layout, console, cell):
        _print_line(console, line)


def _sequences(layout: Laid, console: "Console", cell: int) -> list["Text"]:
    """Return a heading and a line a sequence: its cells, each with the number of its packed row."""
    from rich.text import Text

    (B, T, _), padding = sizes(layout), _glyphs(console)[0]
    offsets, places = layout.offsets.tolist(), layout.unsorted_indices.tolist()
    labels = label_width(B)
    steps = "".join(f"{t if len(str(t)) < cell else '':>{cell}}" for t in range(T))
    lines = [Text(f"{'sequence':>{labels - 10}}  {'length':>6}  {steps}".rstrip(), "bold")]
    for i, length in enumerate(layout.lengths.tolist()):
        lines.append(Text(f"{i:>{labels - 10}}  {length:>6}  "))
        for t in range(T):
            lines[-1] += _cell(console, cell, i, offsets[t] + places[i]) if t < length else Text(f"{padding:>{cell}}", "dim")
    return lines


def _packed(layout: Laid, console: "Console", cell: int) -> list["Text"]:
    """Return the packed rows in lines, each with the number of its sequence, a border behind each step."""
    from rich.text import Text

    order, border, room = layout.sorted_indices.tolist(), _glyphs(console)[3], (console.width - 1) // cell * cell
    lines = [Text()]
    for batch_size in layout.batch_sizes.tolist():
        # broken between steps where the terminal ends, and within a step only if it is wider than a line
        if len(lines[-1]) and len(lines[-1]) + batch_size * cell >= console.width:
            lines.append(Text())
        for r in range(batch_size):
            if len(lines[-1]) >= room:
                lines.append(Text())
            lines[-1] += _cell(console, cell, order[r], order[r])
        lines[-1] += Text(border, "dim")
    return lines


def _cell(console: "Console", cell: int, sequence: int, number: int) -> "Text":
    """Return one cell in its sequence's colour; a block where there is no room for its number."""
    from rich.text import Text

    fill = colour(sequence)
    if console.color_system in ("standard", "windows"):  # rich would map several of ours to one of the sixteen
        fill = SIXTEEN[sequence % len(SIXTEEN)]
        return Text(f"{number:>{cell}}", f"black on {fill}") if cell > 1 else Text(_glyphs(console)[1], fill)
    return Text(f"{number:>{cell}}", f"{ink(fill)} on {fill}") if cell > 1 else Text(_glyphs(console)[1], fill)


def _print_line(console: "Console", line: "Text") -> None:
    console.print(line, no_wrap=True, overflow="ignore", crop=False, soft_wrap=True)


def _print_summary(layout: Laid, console: "Console") -> None:
    """Print the lengths' percentiles and histogram, and the staircase of the batch sizes."""
    width = min(console.width, 100)
    for title, lines in (
        ("lengths", _percentiles(layout.lengths, width)),
        ("how many sequences are so long", _histogram(layout.lengths, console, width)),
        ("how many sequences have a row, step by step", _staircase(layout, console, width)),
    ):
        console.print(title, style="bold")
        for line in lines:
            _print_line(console, line)
        console.print()


def _histogram(lengths: Int64Array, console: "Console", width: int) -> list["Text"]:
    counts, edges = histogram(lengths, 10)
    spans = [f"{low:,}" if low + 1 == high else f"{low:,} to {high - 1:,}" for low, high in pairwise(edges.tolist())]
    wide, tall = max(map(len, spans)), len(f"{counts.max():,}")
    longest = max(width - wide - tall - 4, 8)
    bars = [_bar(count / counts.max() * longest, _glyphs(console)[4]) for count in counts.tolist()]
    return [_coloured(f"{span:>{wide}}  ", bar, f" {count:,}") for span, bar, count in zip(spans, bars, counts.tolist(), strict=True)]


def _staircase(layout: Laid, console: "Console", width: int) -> list["Text"]:
    (B, T, _), levels, height = sizes(layout), _glyphs(console)[4], 5
    side = len(f"{B:,}")
    room = max(width - side - 2, 8)
    steps = np.repeat(staircase(layout.batch_sizes, room), max(1, room // T))
    parts = np.ceil(steps / B * height * (len(levels) - 1)).astype(int)
    lines = []
    for k in range(height - 1, -1, -1):
        filled = np.clip(parts - k * (len(levels) - 1), 0, len(levels) - 1).tolist()
        label = f"{B:,}" if k == height - 1 else "0" if k == 0 else ""
        lines.append(_coloured(f"{label:>{side}} ", "".join(levels[part] for part in filled).rstrip(), ""))
    last = f"step {T - 1:,}"
    return [*lines, _coloured(f"{'':>{side}} 0{last:>{max(len(steps) - 1, len(last) + 1)}}", "", "")]


def _percentiles(lengths: Int64Array, width: int) -> list["Text"]:
    """Return the facts of many lengths, as two lines of a table, or one below the other where that is too wide."""
    from rich.text import Text

    names = ["shortest", *("median" if k == 50 else f"{k} %" for k in PERCENTILES), "longest", "mean", "empty"]
    values = [lengths.min(), *np.percentile(lengths, PERCENTILES), lengths.max(), lengths.mean(), (lengths == 0).sum()]
    texts = [f"{value:,.1f}".removesuffix(".0") for value in map(float, values)]
    columns = [max(len(name), len(text)) for name, text in zip(names, texts, strict=True)]
    if sum(columns) + 2 * len(columns) > width:
        return [Text(f"{name:<8} {text}") for name, text in zip(names, texts, strict=True)]
    lines = ["  ".join(f"{item:>{column}}" for item, column in zip(row, columns, strict=True)) for row in (names, texts)]
    return [Text(lines[0], "dim"), Text(lines[1])]


def _bar(length: float, levels: str) -> str:
    """Return a horizontal bar; anything above zero shows."""
    whole = int(length)
    return levels[-1] * whole if whole or not length else levels[1]


def _coloured(before: str, bar: str, after: str) -> "Text":
    from rich.text import Text

    return Text.assemble(before, (bar, COLOURS[0]), after)
