"""How a layout is drawn: the HTML, the terminal, the figure."""

import io
import re
import subprocess
import sys
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

import fastpack
from fastpack import Layout, Packed, show
from fastpack.show.facts import histogram, ink, listed, staircase

SVG = "{http://www.w3.org/2000/svg}"
MANY = [[3, 2, 4], [0, 0], [5], [1], [0, 3, 0], [12, 1, 7] * 30, [40] * 3, [1000, 1], list(range(200)), [9] * 18]


def packed_of(lengths, dtype=np.float32):
    return fastpack.pack([np.zeros(length, dtype) for length in lengths])


def printed(lengths, width=80, height=25, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show.terminal(Layout(lengths), Console(file=file, width=width, height=height, highlight=False))
    file.seek(0)
    return file.read()


# --- HTML


def test_html_draws_every_cell_with_its_packed_row():
    root = ElementTree.fromstring(packed_of([3, 2, 4])._repr_html_())
    rects = [item for item in root.iter(f"{SVG}rect") if item.get("rx")]
    assert len(rects) == 3 * 4 + 9
    texts = [item.text or "" for item in root.iter(f"{SVG}text")]
    first = texts.index("sequence 0")
    assert texts[first : first + 16] == [
        *("sequence 0", "1", "4", "7", ""),
        *("sequence 1", "2", "5", "", ""),
        *("sequence 2", "0", "3", "6", "8"),
        "packed row",
    ]
    body = "".join(root.itertext())
    assert "[3, 3, 2, 1]" in body
    assert "packing saves 25.0%" in body


def test_html_gives_a_sequence_one_colour():
    root = ElementTree.fromstring(packed_of([3, 2, 4])._repr_html_())
    fills = [item.get("fill") for item in root.iter(f"{SVG}rect") if item.get("rx")]
    grid, packed = fills[:12], fills[12:]
    blue, orange, green = grid[0], grid[4], grid[8]
    assert packed == [green, blue, orange, green, blue, orange, green, blue, green]


@pytest.mark.parametrize("lengths", MANY)
def test_html_is_well_formed_and_bounded(lengths):
    text = packed_of(lengths)._repr_html_()
    ElementTree.fromstring(text)
    assert len(text) < 60_000


def test_html_escapes_the_dtype():
    text = packed_of([2], "<U3")._repr_html_()
    ElementTree.fromstring(text)
    assert "&lt;U3" in text


def test_html_of_an_inconsistent_batch_says_so():
    one = np.array([0])
    for fields in ((np.zeros(3), np.array([9]), one, one), ([1], None, [0], [0]), (np.array(3), [1], [0], [0])):
        text = Packed(*fields)._repr_html_()
        ElementTree.fromstring(text)
        assert "inconsistent: " in text


def test_html_needs_neither_rich_nor_matplotlib():
    code = (
        "import sys, numpy, fastpack; sys.modules['rich'] = sys.modules['matplotlib'] = None\n"
        "print(len(fastpack.pack([numpy.zeros(3)])._repr_html_()) > 100)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


# --- terminal


def test_terminal_draws_the_layout():
    lines = printed([3, 2, 4]).splitlines()
    assert lines[0] == "3 sequences, up to 4 steps, 9 packed rows"
    assert lines[3:7] == [
        "sequence  length    0  1  2  3",
        "       0       3    1  4  7  ·",
        "       1       2    2  5  ·  ·",
        "       2       4    0  3  6  8",
    ]
    assert "  2  0  1│  2  0  1│  2  0│  2│" in lines
    assert "batch_sizes       [3, 3, 2, 1]" in lines
    assert "sorted_indices    [2, 0, 1]" in lines
    assert "unsorted_indices  [1, 2, 0]" in lines
    assert lines[-1] == "9 of 12 padded cells filled (75.0%): packing saves 25.0%"


def test_terminal_colours_cells_of_a_sequence_alike():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80, highlight=False)
    show.cells(Layout([3, 2, 4]), console)
    backgrounds = re.findall(r"48;2;(\d+;\d+;\d+)m +\d", console.file.getvalue())
    blue, orange, green = backgrounds[0], backgrounds[3], backgrounds[5]
    assert backgrounds == [blue] * 3 + [orange] * 2 + [green] * 4 + [green, blue, orange] * 2 + [green, blue, green]
    assert len({blue, orange, green}) == 3


def test_terminal_of_sixteen_colours_keeps_neighbours_apart():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80, highlight=False)
    show.cells(Layout([1] * 10), console)
    backgrounds = re.findall(r"\[30;(\d+)m +\d", console.file.getvalue())
    assert len(backgrounds) == 20
    assert len(set(backgrounds)) == 10


@pytest.mark.parametrize("lengths", MANY)
@pytest.mark.parametrize("width", [48, 80, 200])
def test_terminal_stays_within_the_width(lengths, width):
    text = printed(lengths, width)
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) < 80


def test_terminal_keeps_to_ascii_where_the_encoding_does():
    for lengths in MANY:
        assert printed(lengths, encoding="ascii").isascii()
    assert not printed([3, 2, 4]).isascii()


def test_terminal_summarises_what_does_not_fit():
    text = printed(list(range(200)))
    assert "median" in text
    assert "sequence  length" not in text
    assert "sequence  length" in printed([3, 2, 4])


def test_terminal_says_when_there_is_no_row():
    assert "every sequence is empty" in printed([0, 0])


# --- facts


@pytest.mark.parametrize("lengths", [[0], [5, 5], list(range(100)), [3, 1000], [0, 10**9]])
@pytest.mark.parametrize("bins", [1, 10, 60])
def test_histogram_counts_every_length_once(lengths, bins):
    values = np.array(lengths)
    counts, edges = histogram(values, bins)
    assert len(counts) == len(edges) - 1 <= bins
    assert counts.sum() == len(values)
    np.testing.assert_array_equal(counts, [((values >= low) & (values < high)).sum() for low, high in pairwise(edges)])


def test_listed_keeps_both_ends_and_fits():
    values = np.arange(1000)
    text = listed(values, 60)
    assert len(text) <= 60
    assert text.startswith("[0, 1, ")
    assert text.endswith("998, 999]  (1,000 entries)")
    assert listed(values[:3], 60) == "[0, 1, 2]"


def test_staircase_keeps_the_first_step_and_never_rises():
    sizes = Layout(list(range(500))).batch_sizes
    steps = staircase(sizes, 60)
    assert len(steps) == 60
    assert steps[0] == sizes[0]
    assert (np.diff(steps) <= 0).all()
    np.testing.assert_array_equal(staircase(sizes[:7], 60), sizes[:7])


def test_ink_contrasts():
    assert ink("#000000") == "#ffffff"
    assert ink("#ffffff") == "#000000"


# --- figure


def test_figure_draws_every_cell():
    from matplotlib.patches import Rectangle

    upper, lower = show.figure(Layout([3, 2, 4])).axes
    assert sum(isinstance(patch, Rectangle) for patch in upper.patches) == 12
    assert [text.get_text() for text in lower.texts] == [str(k) for k in range(9)]
    assert [text.get_text() for text in upper.texts] == ["1", "4", "7", "", "2", "5", "", "", "0", "3", "6", "8"]


@pytest.mark.parametrize("lengths", [[3, 2, 4], [0, 0], [5], list(range(200))])
def test_figure_can_be_written(lengths):
    file = io.BytesIO()
    show.figure(Layout(lengths)).savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
