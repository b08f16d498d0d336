"""The demo's picture: a batch of real recordings padded and packed, the trainings, and the time that calls take."""

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fastpack import Layout, show
from fastpack.demo.timing import Timing
from fastpack.demo.training import NAMES, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TORCH, FASTPACK = "#b8bcc6", "#f28e2b"


def figure(sequences: list[Tensor], pairs: list[Pair], timings: list[Timing]) -> "Figure":
    """Return the picture of a few sequences' layout, of the trainings and of the timings."""
    from matplotlib.figure import Figure

    layout = Layout([len(sequence) for sequence in sequences])
    drawn = Figure(figsize=(11, 13.5), dpi=130, layout="constrained")
    grid = drawn.add_gridspec(4, 1, height_ratios=(1.1, 0.75, 1.1, 1.25))
    padded, packed, trained, timed = (drawn.add_subfigure(grid[k]) for k in range(4))
    show.draw_padded(padded.add_subplot(), layout)
    show.draw_packed(packed.add_subplot(), layout)
    losses, apart = trained.subplots(1, 2)
    draw_losses(losses, pairs)
    draw_differences(apart, pairs)
    sizes = sorted({timing.sequences for timing in timings})
    for axes, size in zip(np.atleast_1d(timed.subplots(1, len(sizes))), sizes, strict=True):
        draw_timings(axes, [timing for timing in timings if timing.sequences == size], size)
    drawn.suptitle(f"{len(sequences)} recordings: {show.savings(layout)}", fontsize=13)
    return drawn


def draw_losses(axes: "Axes", pairs: list[Pair]) -> None:
    """Draw the mean loss of each epoch, fastpack's dotted on torch's: a line for each seed."""
    styles: tuple[dict[str, Any], ...] = (
        {"color": TORCH, "linewidth": 4.5},
        {"color": FASTPACK, "linewidth": 1.4, "linestyle": (0, (3, 1.5))},
    )
    for k, style in enumerate(styles):
        seconds = np.mean([pair[k].seconds for pair in pairs])
        for seed, pair in enumerate(pairs):
            means = np.mean(pair[k].losses, axis=1)
            axes.plot(np.arange(1, len(means) + 1), means, **style, label="" if seed else f"{NAMES[k]}, {seconds:.1f} s a training")
    axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="mean training loss")
    axes.set_title(f"training, a line for each of {len(pairs)} seeds", loc="left")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_differences(axes: "Axes", pairs: list[Pair]) -> None:
    """Draw how far the losses of each step are apart."""
    for pair in pairs:
        apart = np.array(pair.apart())
        steps = np.flatnonzero(apart)
        axes.plot(steps + 1, apart[steps], ".", color=FASTPACK, markersize=3)
    axes.set_yscale("log")
    axes.set(xlabel="step (no dot: no difference)", ylabel="|difference| / loss", ylim=(1e-8, 10))
    axes.set_title("losses of the two: rounding first, then other paths", loc="left")
    axes.spines[["top", "right"]].set_visible(False)


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
