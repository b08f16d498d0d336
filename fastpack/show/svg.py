"""A packed batch in a notebook: HTML with an SVG drawing, made with NumPy alone."""

from html import escape
from typing import Any

import numpy as np

from fastpack.checks import Int64Array, counted
from fastpack.show.facts import COLOURS, PADDING, Laid, colour, ink, listed, savings, sizes, staircase

CELL, LABEL = 22, 96  # pixels
INDICES = ("batch_sizes", "sorted_indices", "unsorted_indices")


def html(packed: Any) -> str:
    """Return a notebook's view of a packed batch: its sizes, its layout as SVG, its index arrays.

    Parameters
    ----------
    packed : Packed

    Returns
    -------
    str
        HTML that stands alone; where the batch is inconsistent, what is wrong with it in place of the drawing.
    """
    style = "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:12px;line-height:1.5"
    title = f"<div><b>{escape(repr(packed))}</b></div>"
    try:
        packed = packed._replace(**{name: np.asarray(getattr(packed, name)) for name in INDICES})
        lengths = packed.lengths
    except (TypeError, ValueError) as error:  # made by hand: a view must not fail
        return f'<div style="{style}">{title}<div>inconsistent: {escape(str(error))}</div></div>'
    B, T, N = sizes(packed)
    if N == 0:
        drawing = ""
    elif B <= 16 and T <= 32 and N <= 200:
        drawing = _svg_cells(packed, lengths)
    else:
        drawing = _svg_staircase(packed)
    fields = [f"<div>{name} {listed(getattr(packed, name), 100)}</div>" for name in INDICES]
    return f'<div style="{style}">{title}{drawing}{"".join(fields)}<div>{savings(packed)}</div></div>'


def _svg_cells(packed: Laid, lengths: Int64Array) -> str:
    """Draw every row: above, where the sequences have it; below, where the packed data has it."""
    B, T, N = sizes(packed)
    offsets, places, order = packed.offsets.tolist(), packed.unsorted_indices.tolist(), packed.sorted_indices.tolist()
    parts = [_svg_text(LABEL + t * CELL + CELL / 2, 12, str(t), "middle") for t in range(T)]
    parts.append(_svg_text(LABEL - 6, 12, "step", "end"))
    for i, length in enumerate(lengths.tolist()):
        y = 18 + i * CELL
        parts.append(_svg_text(LABEL - 6, y + 15, f"sequence {i}", "end"))
        for t in range(T):
            parts += _svg_cell(LABEL + t * CELL, y, str(offsets[t] + places[i]) if t < length else "", colour(i) if t < length else PADDING)
    y = 18 + B * CELL + 14
    columns = max(T, min(N, 32))
    x = 0
    parts.append(_svg_text(LABEL - 6, y + 15, "packed row", "end"))
    for t in range(T):
        for r in range(offsets[t + 1] - offsets[t]):
            row, column = divmod(offsets[t] + r, columns)
            parts += _svg_cell(LABEL + column * CELL, y + row * (CELL + 4), str(offsets[t] + r), colour(order[r]))
            if r == 0:  # a bar where a step begins
                x = LABEL + column * CELL
                parts.append(f'<rect x="{x}" y="{y + row * (CELL + 4) - 3}" width="2" height="{CELL + 5}" fill="currentColor"/>')
    return _svg(LABEL + columns * CELL + 4, y + -(-N // columns) * (CELL + 4) + 4, parts)


def _svg_staircase(packed: Laid) -> str:
    B, T, _ = sizes(packed)
    heights = staircase(packed.batch_sizes, 200) / B * 120
    width = 480 / len(heights)
    corners = "".join(f"V{130 - height:.1f}H{(k + 1) * width:.1f}" for k, height in enumerate(heights.tolist()))
    parts = [
        f'<rect x="0" y="10" width="480" height="120" fill="{PADDING}"/>',
        f'<path d="M0 130{corners}V130Z" fill="{COLOURS[0]}"/>',
        _svg_text(0, 146, f"step 0: {int(packed.batch_sizes[0]):,} of {counted(B, 'sequence')}", "start"),
        _svg_text(480, 146, f"step {T - 1:,}: {int(packed.batch_sizes[-1]):,}", "end"),
    ]
    return _svg(484, 154, parts)


def _svg(width: float, height: float, parts: list[str]) -> str:
    body = "".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-size="11" font-family="inherit">{body}</svg>'


def _svg_text(x: float, y: float, text: str, anchor: str, fill: str = "currentColor") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}">{text}</text>'


def _svg_cell(x: float, y: float, text: str, fill: str) -> list[str]:
    box = f'<rect x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}" rx="3" fill="{fill}"/>'
    return [box, _svg_text(x + CELL / 2, y + 15, text, "middle", ink(fill))]
