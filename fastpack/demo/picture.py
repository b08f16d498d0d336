"""The demo's picture: a batch of real recordings padded and packed, and the time that takes."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fastpack import Layout, show
from fastpack.demo.timing import Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TORCH, FASTPACK = "#b8bcc6", "#f28e2b"


def figure(sequences: list[Tensor], timings: list[Timing]) -> "Figure":
    """Return the picture of a few sequences' layout and of the timings."""
    from matplotlib.figure import Figure

    layout = Layout([len(sequence) for sequence in sequences])
    drawn = Figure(figsize=(11, 10), dpi=130, layout="constrained")
    grid = drawn.add_gridspec(3, 1, height_ratios=(1.1, 0.75, 1.25))
    upper, middle, lower = (drawn.add_subfigure(grid[k]) for k in range(3))
    show.draw_padded(upper.add_subplot(), layout)
    show.draw_packed(middle.add_subplot(), layout)
    sizes = sorted({timing.sequences for timing in timings})
    for axes, size in zip(np.atleast_1d(lower.subplots(1, len(sizes))), sizes, strict=True):
        draw_timings(axes, [timing for timing in timings if timing.sequences == size], size)
    drawn.suptitle(f"{len(sequences)} recordings: {show.savings(layout)}", fontsize=13)
    return drawn


def draw_timings(axes: "Axes", timings: list[Timing], size: int) -> None:
    """Draw the times of one batch size as pairs of bars, with the factor between them."""
    y = np.arange(len(timings))
    theirs, ours = (np.array([getattr(timing, name) for timing in timings]) * 1e6 for name in ("torch", "fastpack"))
    axes.barh(y - 0.2, theirs, 0.38, color=TORCH, label="torch")
    axes.barh(y + 0.2, ours, 0.38, color=FASTPACK, label="fastpack")
    for k in range(len(timings)):
        axes.text(ours[k], k + 0.2, f" {theirs[k] / ours[k]:.1f}x", va="center", fontsize=9, fontweight="bold")
    axes.set_yticks(y, [timing.function for timing in timings])
    axes.invert_yaxis()
    axes.set(xlabel="microseconds a call (median)", xlim=(0, 1.12 * max(*theirs, *ours)))
    axes.set_title(f"batches of {size} recordings", loc="left")
    axes.legend(frameon=False, loc="center right")  # beside the shortest bars
    axes.spines[["top", "right"]].set_visible(False)
