"""How a layout is drawn: as HTML in a notebook, in a terminal, as a figure; and what a sampler makes of a data set.

In each, a sequence keeps its colour, and a cell's number is the row of the packed data it becomes. What is too large to draw
cell by cell is drawn as a staircase: how many sequences have a row at each step, which is all that packing keeps.
rich and matplotlib are imported only inside what needs them; the HTML needs NumPy alone.
"""

from fastpack.show.drawing import draw_lengths, draw_packed, draw_padded, draw_staircase, figure
from fastpack.show.facts import savings
from fastpack.show.plans import plan, plan_figure
from fastpack.show.svg import html
from fastpack.show.text import cells, terminal

__all__ = [
    "cells",
    "draw_lengths",
    "draw_packed",
    "draw_padded",
    "draw_staircase",
    "figure",
    "html",
    "plan",
    "plan_figure",
    "savings",
    "terminal",
]
