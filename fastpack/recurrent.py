"""LSTM, GRU and RNN along packed batches, from torch's trained weights: for serving without torch.

Letters: B sequences, N packed rows, L layers, D directions, F input features, H hidden units, P the width of the state h.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from fastpack import blocks, checks
from fastpack.cells import CELLS, workspace_items
from fastpack.checks import Array, Int64Array, address
from fastpack.packed import Packed, checked
from fastpack.threads import run_shares
from fastpack.weights import Stack, aligned, fitting, read_stack


class Recurrent:
    """What LSTM, GRU and RNN have in common."""

    _stack: Stack

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        kind = type(self).__name__
        raise TypeError(f"{kind} takes no sizes, for they follow from its weights: make it by fastpack.{kind}.from_state_dict(mapping)")

    @classmethod
    def _read(cls, cell: int, mapping: Mapping[str, Any], prefix: str) -> Self:
        layer = cls.__new__(cls)
        layer._stack = read_stack(cell, mapping, prefix)
        return layer

    @property
    def input_size(self) -> int:
        """The number F of features of a row."""
        return self._stack.sizes.F

    @property
    def hidden_size(self) -> int:
        """The number H of hidden units of a layer, in each direction."""
        return self._stack.sizes.H

    @property
    def proj_size(self) -> int:
        """The width of the state h where there is a projection, else 0."""
        return self._stack.sizes.P if self._stack.structure.projected else 0

    @property
    def num_layers(self) -> int:
        """The number L of layers."""
        return self._stack.structure.L

    @property
    def bidirectional(self) -> bool:
        """Whether each layer goes along the sequences in both directions."""
        return self._stack.structure.D == 2

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self._stack.structure.bias

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the weights, and of all that goes in and comes out."""
        return self._stack.dtype

    def __repr__(self) -> str:
        options = {"proj_size": self.proj_size, "num_layers": self.num_layers, "bias": self.bias, "bidirectional": self.bidirectional}
        usual = {"proj_size": 0, "num_layers": 1, "bias": True, "bidirectional": False}
        shown = [f"{name}={value}" for name, value in options.items() if value != usual[name]]
        return f"{type(self).__name__}({', '.join([str(self.input_size), str(self.hidden_size), *shown, f'dtype={self.dtype}'])})"

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy, or what was pickled on a machine of another CPU level
        stack: Stack = state["_stack"]
        self._stack = stack._replace(panels=[*map(fitting, stack.panels)], projections=[*map(fitting, stack.projections)])

    def _run(self, packed: Packed, h_0: Any, c_0: Any, num_threads: int) -> tuple[Packed, Array, Array | None]:
        """Return the packed output, h_n, and c_n if the cell has a c; h_0 and c_0 are None for zeros."""
        (cell, dtype, structure, (F, H, P), *_), item = self._stack, self.dtype.itemsize
        data, batch_sizes, order, _lengths = checked(packed)
        x, x_row_bytes = checks.features(data, F, dtype)
        B, directions = len(order), structure.L * structure.D
        shares = min(checks.count(num_threads, "num_threads", 1), int(batch_sizes[0]) if len(batch_sizes) else 1)
        h_shape, c_shape = (directions, B, P), (directions, B, H)
        h_0 = None if h_0 is None else checks.state(h_0, "h_0", h_shape, dtype)
        c_0 = None if c_0 is None else checks.state(c_0, "c_0", c_shape, dtype)
        h_n = checks.empty(h_shape, dtype, "h_n")
        c_n = checks.empty(c_shape, dtype, "c_n") if CELLS[cell].has_c else None
        # a layer reads one and writes the other, the rows of each share on their own, so that shares need not wait for each other
        outs = [checks.empty((len(x), structure.D * P), dtype, "the output") for _ in range(min(structure.L, 2))]
        workspace = aligned((shares, workspace_items(cell, -(-B // shares), H, P)), dtype)
        steps = []
        for k in range(directions):
            layer, direction = divmod(k, structure.D)
            out = outs[layer % 2]
            if layer and not direction:
                x, x_row_bytes = outs[(layer - 1) % 2], out.shape[1] * item
            steps.append(
                blocks.Recur(
                    cell=cell,
                    item_bytes=item,
                    reverse=direction,
                    F=x.shape[1],
                    H=H,
                    P=P,
                    panels=address(self._stack.panels[k]),
                    projection=address(self._stack.projections[k]) if structure.projected else 0,
                    sorted_indices=address(order),
                    batch_sizes=address(batch_sizes),
                    B=B,
                    T=len(batch_sizes),
                    x=address(x),
                    x_row_bytes=x_row_bytes,
                    x_step_bytes=0,
                    out=address(out) + direction * P * item,
                    out_row_bytes=out.shape[1] * item,
                    out_step_bytes=0,
                    h_0=_part(h_0, k),
                    c_0=_part(c_0, k),
                    h_n=_part(h_n, k),
                    c_n=_part(c_n, k),
                    workspace=address(workspace),
                    workspace_bytes=workspace.strides[0],
                    shares=shares,
                )
            )
        run_shares(steps, shares, (self._stack, data, batch_sizes, order, outs, h_0, c_0, h_n, c_n, workspace))
        return packed._replace(data=outs[(structure.L - 1) % 2]), h_n, c_n


def _part(states: Array | None, k: int) -> int:
    """Return the address of a direction's state, or 0."""
    return 0 if states is None else address(states[k])
