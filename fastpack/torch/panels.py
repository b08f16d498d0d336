"""A layer's weights in the order in which the kernels read them: made once, and again whenever the weights are not the same.

There are more ways of changing a weight than torch counts: its version knows of an optimiser's step, and neither of
`weight.data.add_(...)`, the idiom of moving averages, nor of an edit through `weight.numpy()`. So each call reads all weights
and compares two sums of what it finds with those of what the panels were made of, at the speed of memory: 10 us for 1 MB,
where a call on one sequence reads the panels once a step. Where weights lie does not matter: a parametrisation
computes them anew for each call, and they still are the same.

Panels are never changed once they are made, so threads may share them, and a forked process has its own. Two threads that
find the same change both make new ones.
"""

import ctypes
from array import array
from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain, product
from typing import Any, NamedTuple

import numpy as np
import torch

from fastpack import blocks
from fastpack.cells import CELLS, gradient_panel_items, lanes, panel_items
from fastpack.machine import run
from fastpack.torch import parallel

MODES = {"LSTM": blocks.LSTM, "GRU": blocks.GRU, "RNN_TANH": blocks.RNN_TANH, "RNN_RELU": blocks.RNN_RELU}
PANELS, GRADIENT_PANELS, QUESTIONS = "panels", "gradient panels", "questions"
ALIGNED = 64
ALL_BITS = 2**64 - 1


class Settings(NamedTuple):
    """What torch calls a layer's arguments, as far as they decide on its weights."""

    mode: str  # 'LSTM', 'GRU', 'RNN_TANH' or 'RNN_RELU'
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    bias: bool
    bidirectional: bool


class Direction(NamedTuple):
    """One direction of one layer: which weights are its, and where its panels are."""

    F: int
    first_weight: int  # weight_ih; then weight_hh, bias_ih and bias_hh, weight_hr
    panels: int  # bytes from the beginning of all panels
    projection: int  # likewise; -1 where there is none
    gradients: tuple[int, ...]  # bytes from the beginning of all gradient panels: weight_ih, weight_hh, and weight_hr if there is one
    sizes: tuple[int, ...]  # as blocks begin: cell, item_bytes, reverse, F, H, P


class Plan(NamedTuple):
    """What follows from the settings and the dtype: sizes, the same for as long as the layer is of this make."""

    settings: Settings
    dtype: torch.dtype
    cell: int
    L: int
    D: int
    H: int
    P: int
    widths: tuple[int, ...]  # of the states: P and, of an LSTM, H
    item_bytes: int
    shapes: list[tuple[int, ...]]  # of the weights, in torch's order
    nbytes: list[int]  # of the weights
    slots: tuple[int, ...]  # of blocks.D_WEIGHTS for each direction, which of a layer's weights it is; -1 for none
    directions: list[Direction]  # layer by layer
    panel_bytes: int
    gradient_panel_bytes: int
    weight_bytes: int
    operations: int  # floating-point operations that all layers take for a row
    row_bytes: int  # of a layer's output
    saved_items: int  # how many items gradients need of a packed row and direction, beside inputs and outputs


class Panels(NamedTuple):
    """The weights of a whole layer as panels, or as gradient panels."""

    plan: Plan
    fingerprint: tuple[int, int]
    memory: Any  # holds the panels
    addresses: list[tuple[int, ...]]  # of each direction's: all and the projection's; or weight_ih's, weight_hh's, weight_hr's; 0 for none
    table: Any = None  # an array of the addresses, of gradient panels

    def table_of(self, layer: int) -> int:
        """Return the address of the part of the table that is of this layer's gradient panels."""
        return int(self.table.buffer_info()[0] + 8 * layer * self.plan.D * blocks.GRADIENT_PANELS)


@lru_cache(maxsize=256)
def plan_of(settings: Settings, dtype: torch.dtype) -> Plan:
    """Return what follows from settings that torch's constructors accept."""
    mode, F, H, proj_size, num_layers, bias, bidirectional = settings
    cell, P, item_bytes, D = MODES[mode], proj_size or H, dtype.itemsize, 2 if bidirectional else 1
    gates, _, has_c, saved = CELLS[cell]
    shapes: list[tuple[int, ...]] = []
    directions, end, gradients_end, operations = [], 0, 0, 0
    for layer, reverse in product(range(num_layers), range(D)):
        features = D * P if layer else F
        first_weight, panels, projection = len(shapes), end, -1
        shapes += [(gates * H, features), (gates * H, P)] + [(gates * H,)] * (2 if bias else 0)
        end += _whole(panel_items(cell, features, H, P) * item_bytes)
        operations += 2 * gates * H * (features + P)
        items = [gradient_panel_items(cell, H, features), gradient_panel_items(cell, H, P)]
        if proj_size:
            shapes.append((P, H))
            projection, end = end, end + _whole(panel_items(blocks.LINEAR, H, P, 0) * item_bytes)
            operations += 2 * P * H
            items.append(gradient_panel_items(blocks.LINEAR, P, H))
        *gradients, gradients_end = accumulate((_whole(count * item_bytes) for count in items), initial=gradients_end)
        sizes = cell, item_bytes, reverse, features, H, P
        directions.append(Direction(features, first_weight, panels, projection, tuple(gradients), sizes))
    nbytes = [torch.Size(shape).numel() * item_bytes for shape in shapes]
    widths = (P, H) if has_c else (P,)
    each = len(shapes) // (num_layers * D)
    of_one = 0, 1, *((2, 3) if bias else (-1, -1)), each - 1 if proj_size else -1
    slots = tuple([slot + reverse * each if slot >= 0 else -1 for reverse in range(D) for slot in of_one])
    letters = cell, num_layers, D, H, P, widths, item_bytes
    totals = end, gradients_end, sum(nbytes), operations, D * P * item_bytes, (saved + has_c) * H
    return Plan(settings, dtype, *letters, shapes, nbytes, slots, directions, *totals)


def panels_of(plan: Plan, addresses: Sequence[int], kept: MutableMapping[str, Any], kinds: Sequence[str] = (PANELS,)) -> list[Panels]:
    """Return panels, of each of these kinds, of contiguous weights at `addresses`: those in `kept` if they are of these weights, else new.

    The weights may be changed by another thread at any moment. New panels are kept only if they were not while these were made.
    """
    found = fingerprint(plan, addresses, kept)
    every: list[Panels] = []
    is_new = False
    for kind in kinds:
        panels: Panels | None = kept.get(kind)
        if panels is None or panels.fingerprint != found or not (panels.plan is plan or panels.plan == plan):
            panels, is_new = (_packed if kind == PANELS else _packed_for_gradients)(plan, found, addresses), True
        every.append(panels)
    if is_new and fingerprint(plan, addresses, kept) == found:
        kept.update(zip(kinds, every, strict=True))
    return every


class Question(NamedTuple):
    """A block that asks for the sums over weights, made for one place of theirs and one thread at a time: making it anew takes 1 us."""

    plan: Plan
    addresses: Sequence[int]
    shares: int
    block: blocks.Fingerprint
    sums: Any  # where the answer is written
    tables: Any  # hold what the block refers to


def fingerprint(plan: Plan, addresses: Sequence[int], kept: MutableMapping[str, Any]) -> tuple[int, int]:
    """Return two sums over the weights at `addresses` that tell whether their content is another."""
    shares, questions = parallel.threads(plan.weight_bytes), kept.get(QUESTIONS) or kept.setdefault(QUESTIONS, [])
    try:
        question = questions.pop()
    except IndexError:
        question = None
    if question is None or question.plan is not plan or question.addresses != addresses or question.shares != shares:
        question = _question(plan, addresses, shares)
    parallel.run_on(question.block, shares, shares)
    sums = question.sums[:]
    questions.append(question)
    first, second = sums if shares == 1 else (sum(sums[::2]), sum(sums[1::2]))
    return first & ALL_BITS, second & ALL_BITS  # the same for any number of shares


def _question(plan: Plan, addresses: Sequence[int], shares: int) -> Question:
    values, nbytes, sums = array("q", addresses), array("q", plan.nbytes), (ctypes.c_int64 * (2 * shares))()
    block = blocks.Fingerprint(values.buffer_info()[0], nbytes.buffer_info()[0], len(values), shares, ctypes.addressof(sums))
    return Question(plan, addresses, shares, block, sums, (values, nbytes))


def _packed(plan: Plan, found: tuple[int, int], addresses: Sequence[int]) -> Panels:
    memory, start = _memory(plan.panel_bytes)
    cell, H, P, item_bytes, vector = plan.cell, plan.H, plan.P, plan.item_bytes, lanes(plan.item_bytes)
    for F, first, panels, projection, *_ in plan.directions:
        weight_ih, weight_hh, *rest = addresses[first : first + 5]
        bias_ih, bias_hh = rest[:2] if plan.settings.bias else (0, 0)
        block = blocks.PackPanels(cell, item_bytes, vector, weight_ih, weight_hh, bias_ih, bias_hh, F, H, P, start + panels)
        run(block, 0, -(-H // vector))
        if projection >= 0:
            linear = blocks.PackPanels(
                blocks.LINEAR, item_bytes, vector, rest[2 if plan.settings.bias else 0], 0, 0, 0, H, P, 0, start + projection
            )
            run(linear, 0, -(-P // vector))
    own: list[tuple[int, ...]] = [(start + one.panels, start + one.projection if one.projection >= 0 else 0) for one in plan.directions]
    return Panels(plan, found, memory, own)


def _packed_for_gradients(plan: Plan, found: tuple[int, int], addresses: Sequence[int]) -> Panels:
    memory, start = _memory(plan.gradient_panel_bytes)
    cell, H, P, item_bytes, vector = plan.cell, plan.H, plan.P, plan.item_bytes, lanes(plan.item_bytes)
    for F, first, _, projection, places, _ in plan.directions:
        weight_ih, weight_hh, *rest = addresses[first : first + 5]
        wanted = [(cell, 0, weight_ih, H, F), (cell, 1, weight_hh, H, P)]
        if projection >= 0:
            wanted.append((blocks.LINEAR, 0, rest[2 if plan.settings.bias else 0], P, H))
        for (kind, over_h, weight, units, columns), place in zip(wanted, places, strict=True):
            block = blocks.PackGradientPanels(kind, over_h, item_bytes, vector, weight, units, columns, start + place)
            parallel.run(block, -(-columns // vector), CELLS[kind].gates * units * columns * item_bytes)
    own: list[tuple[int, ...]] = [(*[start + place for place in one.gradients], 0)[:3] for one in plan.directions]
    return Panels(plan, found, memory, own, array("q", chain.from_iterable(own)))


def _memory(nbytes: int) -> tuple[Any, int]:
    memory = np.empty(nbytes + ALIGNED, np.uint8)  # NumPy asks for huge pages: a call on 25 MB of weights is 2 % shorter
    return memory, _whole(memory.ctypes.data)


def _whole(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED
