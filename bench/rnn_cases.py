"""The registry of recurrent layers that are timed: a cell, its sizes and options, on a batch of `bench.cases`. Needs NumPy alone.

Letters: B sequences, N packed rows, L layers, D directions, F input features, H hidden units, P the width of the state h.
"""

from typing import NamedTuple

import numpy as np

from bench.cases import Case

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class LayerCase(NamedTuple):
    """Layers of a cell, and the batch that they run along."""

    cell: str  # LSTM, GRU or RNN
    F: int
    H: int
    B: int
    kind: str  # of lengths: a name in bench.cases.LENGTHS
    L: int = 1
    D: int = 1
    proj_size: int = 0
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """As in 'LSTM 64 to 128, 32 sentences, 2 layers, both ways'."""
        options = [f"{self.L} layers"] * (self.L > 1) + ["both ways"] * (self.D > 1)
        options += [f"projected to {self.proj_size}"] * (self.proj_size > 0) + [self.dtype] * (self.dtype != "float32")
        batch = f"{self.B} {self.kind if self.B > 1 else self.kind.removesuffix('s')}"
        return ", ".join([f"{self.cell} {self.F} to {self.H}", batch, *options])

    @property
    def batch(self) -> Case:
        """The batch."""
        return Case(self.kind, self.B, (self.F,), self.dtype)

    @property
    def arguments(self) -> dict[str, int]:
        """What torch's constructors are given."""
        options = {"input_size": self.F, "hidden_size": self.H, "num_layers": self.L, "bidirectional": self.D == 2}
        return options | ({"proj_size": self.proj_size} if self.proj_size else {})

    @property
    def flops(self) -> int:
        """The multiplications and additions of real rows with the weights; the cell's own arithmetic is not counted."""
        items = sum(weight.size for name, weight in self.weights().items() if name.startswith("weight"))
        return 2 * int(self.batch.lengths.sum()) * items

    def weights(self) -> dict[str, np.ndarray]:
        """Return a state dict in torch's names, of numbers such as torch begins with."""
        random, rows, P = np.random.default_rng(0), GATES[self.cell] * self.H, self.proj_size or self.H
        found = {}
        for layer in range(self.L):
            for way in ("", "_reverse")[: self.D]:
                shapes = {"weight_ih": (rows, self.D * P if layer else self.F), "weight_hh": (rows, P)}
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                shapes |= {"weight_hr": (P, self.H)} if self.proj_size else {}
                for part, shape in shapes.items():
                    found[f"{part}_l{layer}{way}"] = (random.uniform(-1, 1, shape) / np.sqrt(self.H)).astype(self.dtype)
        return found


TINY = LayerCase("LSTM", 1, 2, 3, "sentences")  # the call is all that costs
MIDDLE = LayerCase("LSTM", 128, 256, 64, "sentences")  # what the CPU levels are compared on

LAYERS = [
    LayerCase("LSTM", 1, 2, 32, "sentences"),
    LayerCase("LSTM", 16, 32, 32, "sentences"),
    LayerCase("LSTM", 13, 50, 17, "sentences"),
    LayerCase("LSTM", 64, 128, 64, "sentences"),
    LayerCase("LSTM", 128, 256, 64, "reviews"),
    LayerCase("LSTM", 300, 512, 32, "sentences"),
    LayerCase("LSTM", 512, 1024, 64, "sentences"),
    LayerCase("LSTM", 80, 64, 1, "speech"),
    LayerCase("LSTM", 300, 512, 1, "sentences"),
    LayerCase("LSTM", 300, 512, 3, "sentences"),
    LayerCase("LSTM", 64, 128, 64, "flat"),
    LayerCase("LSTM", 128, 256, 64, "flat"),
    LayerCase("LSTM", 64, 128, 32, "sentences", L=2, D=2),
    LayerCase("LSTM", 64, 256, 32, "sentences", proj_size=64),
    LayerCase("LSTM", 64, 128, 64, "sentences", dtype="float64"),
    LayerCase("GRU", 16, 32, 32, "sentences"),
    LayerCase("GRU", 64, 128, 64, "sentences"),
    LayerCase("GRU", 128, 256, 64, "reviews"),
    LayerCase("GRU", 64, 128, 64, "flat"),
    LayerCase("RNN", 16, 32, 32, "sentences"),
    LayerCase("RNN", 64, 128, 64, "sentences"),
    LayerCase("RNN", 128, 256, 64, "flat"),
]
