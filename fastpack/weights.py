"""Recurrent layers' weights: from a state dict in torch's names into panels.

Letters: L layers, D directions, F input features, H hidden units, P the width of the state h (H, or that of a projection).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastpack import blocks, checks
from fastpack.cells import CELLS, lanes, panel_items
from fastpack.checks import Array, address
from fastpack.machine import run

KINDS = {blocks.LSTM: "an LSTM", blocks.GRU: "a GRU", blocks.RNN_TANH: "an RNN", blocks.RNN_RELU: "an RNN"}
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]
ALIGNMENT = 64  # bytes, of the widest vectors

OWN_NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l([0-9]{1,9})(_reverse)?")


class Structure(NamedTuple):
    """What the names of weights say by themselves."""

    kind: str
    L: int
    D: int
    bias: bool
    projected: bool

    def directions(self) -> Iterator[tuple[int, str]]:
        """Yield each direction's layer, and what its weights' names end with."""
        return ((layer, f"_l{layer}{way}") for layer in range(self.L) for way in ("", "_reverse")[: self.D])

    def parts(self) -> list[str]:
        """Return the weights of each direction."""
        return ["weight_ih", "weight_hh", *["bias_ih", "bias_hh"] * self.bias, *["weight_hr"] * self.projected]

    def __str__(self) -> str:
        layers, directions = f"{self.L} layer{'s' * (self.L > 1)}", f"{self.D} direction{'s' * (self.D > 1)}"
        return f"{self.kind} of {layers} and {directions}, with{'' if self.bias else 'out'} biases{' and projected' * self.projected}"


class Sizes(NamedTuple):
    """What the first layer's shapes say."""

    F: int
    H: int
    P: int


class Stack(NamedTuple):
    """Recurrent layers, one upon another, each in one or two directions."""

    cell: int
    dtype: np.dtype[Any]
    structure: Structure
    sizes: Sizes
    panels: list[Array]  # of L * D directions, a layer's side by side; each (units / lanes, what a unit has, lanes)
    projections: list[Array]  # likewise, or none


def read_stack(cell: int, mapping: Mapping[str, Any], prefix: str) -> Stack:
    """Return the layers whose weights are in `mapping`, under torch's names behind `prefix`.

    Raises
    ------
    TypeError
        `mapping` is no mapping, or a weight is no array, not of float32 or float64, or not of the dtype of the others.
    ValueError
        A weight is missing, is not one of such a layer, or has a wrong shape.
    """
    structure = _structure(cell, mapping, prefix)
    names = [part + suffix for _, suffix in structure.directions() for part in structure.parts()]
    weights = {name: checks.array(mapping[prefix + name], repr(prefix + name), "an array of weights") for name in names}
    dtype = _dtype(weights, prefix)
    sizes = _sizes(cell, structure, weights, prefix)
    panels, projections = [], []
    for _, suffix in structure.directions():
        ih, hh, *others = (np.require(weights[part + suffix], requirements=["C", "A"]) for part in structure.parts())
        bias_ih, bias_hh = others[:2] if structure.bias else (None, None)
        panels.append(pack_panels(cell, ih, hh, bias_ih, bias_hh))
        if structure.projected:
            projections.append(pack_panels(blocks.LINEAR, others[-1], None, None, None))
    return Stack(cell, dtype, structure, sizes, panels, projections)


def pack_panels(cell: int, weight_ih: Array, weight_hh: Array | None, bias_ih: Array | None, bias_hh: Array | None) -> Array:
    """Return panels of contiguous weights: (units / lanes, what a unit has, lanes). A projection has `weight_ih` alone."""
    gates, sums, *_ = CELLS[cell]
    (rows, F), P = weight_ih.shape, 0 if weight_hh is None else weight_hh.shape[1]
    H, n, has = rows // gates, lanes(weight_ih.itemsize), sums + gates * (F + P)
    panels = aligned((panel_items(cell, F, H, P) // (has * n), has, n), weight_ih.dtype)
    block = blocks.PackPanels(
        cell=cell,
        item_bytes=weight_ih.itemsize,
        lanes=n,
        weight_ih=address(weight_ih),
        weight_hh=0 if weight_hh is None else address(weight_hh),
        bias_ih=0 if bias_ih is None else address(bias_ih),
        bias_hh=0 if bias_hh is None else address(bias_hh),
        F=F,
        H=H,
        P=P,
        panels=address(panels),
    )
    run(block, 0, len(panels))
    return panels


def fitting(panels: Array) -> Array:
    """Return panels as this CPU level wants them: those made at another have other lanes, and a copy's address may be odd."""
    n = lanes(panels.itemsize)
    if panels.shape[2] == n and address(panels) % ALIGNMENT == 0:
        return panels
    units = panels.swapaxes(0, 1).reshape(panels.shape[1], -1, n)
    fitted = aligned((units.shape[1], units.shape[0], n), panels.dtype)
    fitted[:] = units.swapaxes(0, 1)
    return fitted


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return new memory at a multiple of ALIGNMENT bytes."""
    dtype = np.dtype(dtype)
    memory = checks.empty((int(np.prod(shape, dtype=object)) * dtype.itemsize + ALIGNMENT,), np.uint8, "memory of the layers")
    result: Array = np.ndarray(shape, dtype, memory, -address(memory) % ALIGNMENT)
    return result


def _structure(cell: int, mapping: Mapping[str, Any], prefix: str) -> Structure:
    """Return what the names say, where they are all there, and no others of their kind."""
    if isinstance(mapping, type) or not (hasattr(mapping, "keys") and hasattr(mapping, "__getitem__")):
        raise TypeError(
            f"mapping is {checks.described(mapping)}, not a mapping from names to arrays: pass a state dict, as from "
            "np.load('model.npz'), safetensors.numpy.load_file('model.safetensors') or module.state_dict()"
        )
    if not isinstance(prefix, str):
        raise TypeError(f"prefix is {prefix!r}, not a string: pass what stands before 'weight_ih_l0' in the names")
    keys = [key for key in mapping.keys() if isinstance(key, str)]  # noqa: SIM118  a duck, which may not iterate
    own = {key[len(prefix) :]: match for key in keys if key.startswith(prefix) and (match := OWN_NAME.fullmatch(key, len(prefix)))}
    if not own:
        raise ValueError(f"mapping has no {prefix + 'weight_ih_l0'!r}: {_elsewhere(keys)}")
    parts = {match[1] for match in own.values()}
    structure = Structure(
        kind=KINDS[cell],
        L=1 + max(int(match[2]) for match in own.values()),
        D=2 if any(match[3] for match in own.values()) else 1,
        bias=not parts.isdisjoint(("bias_ih", "bias_hh")),
        projected="weight_hr" in parts and cell == blocks.LSTM,
    )
    expected = set()
    for _, suffix in structure.directions():
        for name in (part + suffix for part in structure.parts()):
            if name not in own:
                raise ValueError(f"mapping has no {prefix + name!r}, but by the names that it has, this is {structure}")
            expected.add(name)
    for name in own:
        if name not in expected:
            raise ValueError(f"mapping has {prefix + name!r}, but there is no such weight in {structure}")
    return structure


def _elsewhere(keys: list[str]) -> str:
    """Say where recurrent layers' weights are to be found among `keys`."""
    prefixes = [repr(key.removesuffix("weight_ih_l0")) for key in keys if key.endswith("weight_ih_l0")]
    if prefixes:
        return f"pass prefix={' or '.join(prefixes[:3])}, behind which there is such a name"
    return f"its names are {', '.join(map(repr, keys[:5]))}{', ...' * (len(keys) > 5)}" if keys else "it is empty"


def _dtype(weights: Mapping[str, Array], prefix: str) -> np.dtype[Any]:
    """Return the dtype of all weights."""
    first, dtype = next((name, weight.dtype) for name, weight in weights.items())
    for name, weight in weights.items():
        if weight.dtype != dtype:
            raise TypeError(
                f"{prefix + name!r} is of dtype {weight.dtype}, but {prefix + first!r} is of {dtype}: convert the weights to one dtype"
            )
    if dtype not in DTYPES:
        raise TypeError(
            f"{prefix + first!r} is of dtype {dtype}, but layers are of float32 or float64: convert all weights, as by .astype(np.float32)"
        )
    return dtype


def _sizes(cell: int, structure: Structure, weights: Mapping[str, Array], prefix: str) -> Sizes:
    """Return the sizes by which all weights have their shapes."""
    matrices = "weight_ih_l0", "weight_hr_l0" if structure.projected else "weight_hh_l0"
    for name in matrices:
        if weights[name].ndim != 2 or 0 in weights[name].shape:
            raise ValueError(f"{prefix + name!r} has the shape {weights[name].shape}, but needs two dimensions, and neither of size 0")
    F, P, H = weights[matrices[0]].shape[1], weights[matrices[1]].shape[-2 if structure.projected else -1], weights[matrices[1]].shape[1]
    if structure.projected and P >= H:
        raise ValueError(f"{prefix + matrices[1]!r} has the shape {(P, H)}, but a projection is from hidden_size to fewer")
    rows = CELLS[cell].gates * H
    for layer, suffix in structure.directions():
        width = structure.D * P if layer else F
        shapes = {"weight_ih": (rows, width), "weight_hh": (rows, P), "bias_ih": (rows,), "bias_hh": (rows,), "weight_hr": (P, H)}
        for part in structure.parts():
            found = weights[part + suffix].shape
            if found != shapes[part]:
                whose = [kind for other, kind in KINDS.items() if found == (CELLS[other].gates * H, *shapes[part][1:])]
                raise ValueError(
                    f"{prefix + part + suffix!r} has the shape {found}, but needs {shapes[part]} in {structure}, input_size {F} "
                    f"and hidden_size {H}{f': its shape is that of {whose[0]}' if whose else ''}"
                )
    return Sizes(F, H, P)
