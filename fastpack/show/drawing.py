"""A layout as a figure, by matplotlib."""

from typing import TYPE_CHECKING

import numpy as np

from fastpack.show.facts import COLOURS, PADDING, Laid, colour, histogram, ink, savings, sizes, staircase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure(layout: Laid) -> "Figure":
    """Return a matplotlib figure of a layout: every cell where they are few, otherwise the staircase and the lengths."""
    from matplotlib.figure import Figure

    B, T, N = sizes(layout)
    few = 0 < N <= 300 and B <= 24 and T <= 40
    drawn = Figure(figsize=(9, 1.9 + 0.3 * min(B, 24) + 0.4 * -(-N // 40)) if few else (9, 6.4), dpi=150, layout="constrained")
    upper, lower = drawn.subplots(2, 1, height_ratios=(B + 1, -(-N // 40) * 1.3 + 1) if few else (1, 1))
    if few:
        draw_padded(upper, layout)
        draw_packed(lower, layout)
    else:
        draw_staircase(upper, layout)
        draw_lengths(lower, layout)
    drawn.suptitle(savings(layout), fontsize=11)
    return drawn


def draw_padded(axes: "Axes", layout: Laid) -> None:
    """Draw the padded batch: a line a sequence, a column a step, in each cell its packed row."""
    B, T, _ = sizes(layout)
    rows = layout.offsets[:-1] + layout.unsorted_indices[:, None]
    for i, length in enumerate(layout.lengths.tolist()):
        for t in range(T):
            _draw_cell(axes, t, i, colour(i) if t < length else PADDING, str(rows[i, t]) if t < length else "", 10 if T <= 12 else 7)
    axes.set(xlim=(0, T), ylim=(B, 0), xlabel="step", ylabel="sequence", title="padded: the grey cells hold nothing, yet are computed")
    axes.set_xticks(np.arange(T) + 0.5, [str(t) for t in range(T)])
    axes.set_yticks(np.arange(B) + 0.5, [str(i) for i in range(B)])
    _bare(axes)


def draw_packed(axes: "Axes", layout: Laid, columns: int = 40) -> None:
    """Draw the packed data: its rows in order, `columns` a line, a stroke where a step begins."""
    _, T, N = sizes(layout)
    offsets, order = layout.offsets.tolist(), layout.sorted_indices.tolist()
    columns = min(columns, N)
    for t in range(T):
        for r in range(offsets[t + 1] - offsets[t]):
            line, column = divmod(offsets[t] + r, columns)
            _draw_cell(axes, column, 1.3 * line, colour(order[r]), str(offsets[t] + r) if N <= 300 else "", 10 if N <= 20 else 7)
            if r == 0:
                axes.plot(
                    [column] * 2, [1.3 * line - 0.12, 1.3 * line + 1.12], color="black", linewidth=1.8, solid_capstyle="butt", clip_on=False
                )
    axes.set(
        xlim=(0, columns),
        ylim=(1.3 * (-(-N // columns)) - 0.15, -0.15),
        title="packed: the same rows, step after step, the longest sequence first; a stroke begins a step",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    _bare(axes)


def draw_staircase(axes: "Axes", layout: Laid) -> None:
    """Draw how many sequences have a row at each step."""
    B, T, _ = sizes(layout)
    heights = staircase(layout.batch_sizes, 2000)
    edges = np.linspace(0, T, len(heights) + 1)
    axes.fill_between([0, T], [B, B], color=PADDING, linewidth=0, label="padding, dropped")
    axes.stairs(heights, edges, fill=True, color=COLOURS[0], label="rows, kept")
    axes.set(xlim=(0, max(T, 1)), ylim=(0, B), xlabel="step", ylabel="sequences", title="batch sizes")
    axes.legend(loc="upper right", framealpha=0.9)
    axes.locator_params(integer=True)


def draw_lengths(axes: "Axes", layout: Laid) -> None:
    """Draw how many sequences have which length."""
    lengths = layout.lengths
    counts, edges = histogram(lengths, 60)
    axes.stairs(counts, edges - 0.5, fill=True, color=COLOURS[1])  # a bar stands over its whole lengths
    axes.set(xlabel="length", ylabel="sequences", title="lengths")
    axes.locator_params(integer=True)


def _draw_cell(axes: "Axes", x: float, y: float, fill: str, text: str, size: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, facecolor=fill, linewidth=0))
    axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=size, color=ink(fill))


def _bare(axes: "Axes") -> None:
    axes.tick_params(length=0, labelsize=8)
    for side in axes.spines.values():
        side.set_visible(False)
