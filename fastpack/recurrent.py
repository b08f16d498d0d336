"""LSTM, GRU and RNN along packed batches, from torch's trained weights: for serving without torch.

Letters: B sequences, N packed rows, L layers, D directions, F input features, H hidden units, P the width of the state h.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from fastpack import blocks, checks
from fastpack.cells import arrivals_items, shares_units, workspace_items
from fastpack.checks import Array, Int64Array, address
from fastpack.packed import Packed, checked
from fastpack.threads import run_shares
from fastpack.weights import Stack, aligned, fitting, read_stack

NONLINEARITIES = {"tanh": blocks.RNN_TANH, "relu": blocks.RNN_RELU}


class Call(NamedTuple):
    """The memory of one call, which lives until the last of its kernels has returned."""

    x: Array  # (N, F)
    batch_sizes: Int64Array
    sorted_indices: Int64Array
    outs: list[Array]  # (N, D * P) each: a layer reads one and writes the other
    before: Sequence[Array | None]  # h_0 (L * D, B, P), and c_0 (L * D, B, H) if the cell has a c; in the caller's order, None for zeros
    after: Sequence[Array]  # h_n, c_n
    workspace: Array  # (shares, items)
    arrivals: Int64Array | None  # (L * D, items), zeros; None where shares are of sequences, not of hidden units


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
        usual = {"nonlinearity": "tanh", "proj_size": 0, "num_layers": 1, "bias": True, "bidirectional": False}
        shown = [f"{name}={found!r}" for name, value in usual.items() if (found := getattr(self, name, value)) != value]
        return f"{type(self).__name__}({', '.join([str(self.input_size), str(self.hidden_size), *shown, f'dtype={self.dtype}'])})"

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy, or what was pickled on a machine of another CPU level
        stack: Stack = state["_stack"]
        self._stack = stack._replace(panels=[*map(fitting, stack.panels)], projections=[*map(fitting, stack.projections)])

    def _run(self, packed: Packed, states: Sequence[Any], num_threads: int) -> tuple[Packed, Sequence[Array]]:
        """Return the packed output and the states after it; `states` are h and, if the cell has it, c, each or None for zeros."""
        _, dtype, structure, (F, H, P), *_ = self._stack
        data, batch_sizes, order, _lengths = checked(packed)
        x, B, widths = checks.features(data, F, dtype), len(order), (P, H)[: len(states)]
        shapes = [(structure.L * structure.D, B, width) for width in widths]
        shares, most = checks.count(num_threads, "num_threads", 1), int(batch_sizes[0]) if len(batch_sizes) else 1
        of_units = shares_units(self._stack.cell, H, P, dtype.itemsize, shares)
        if not of_units:
            shares = min(shares, most)  # a sequence without steps needs no thread
        rows = B if of_units else -(-B // shares)
        call = Call(
            x=x,
            batch_sizes=batch_sizes,
            sorted_indices=order,
            outs=[checks.empty((len(x), structure.D * P), dtype, "the output") for _ in range(min(structure.L, 2))],
            before=[
                None if state is None else checks.state(state, name, shape, dtype)
                for state, name, shape in zip(states, ("h_0", "c_0"), shapes, strict=False)
            ],
            after=[checks.empty(shape, dtype, "the state") for shape in shapes],
            workspace=aligned((shares, workspace_items(self._stack.cell, rows, H, P)), dtype),
            arrivals=np.zeros((len(self._stack.panels), arrivals_items(shares)), np.int64) if of_units else None,
        )
        run_shares(blocks_of(self._stack, call), shares, (self._stack, call))
        return packed._replace(data=call.outs[(structure.L - 1) % 2]), call.after


def blocks_of(stack: Stack, call: Call) -> list[blocks.Recur]:
    """Return the blocks of all directions of all layers, in the order in which they run.

    A share of sequences reads and writes rows of its own only, in all layers; shares of hidden units end with a block when all
    of it is done: so none has to wait between blocks.
    """
    D, item = stack.structure.D, stack.dtype.itemsize
    found = []
    for k, panels in enumerate(stack.panels):
        layer, direction = divmod(k, D)
        x, out = call.outs[(layer - 1) % 2] if layer else call.x, call.outs[layer % 2]
        h_0, c_0, *_ = *(0 if state is None else address(state[k]) for state in call.before), 0
        h_n, c_n, *_ = *(address(state[k]) for state in call.after), 0
        found.append(
            blocks.Recur(
                cell=stack.cell,
                item_bytes=item,
                reverse=direction,
                F=x.shape[1],
                H=stack.sizes.H,
                P=stack.sizes.P,
                panels=address(panels),
                projection=address(stack.projections[k]) if stack.projections else 0,
                sorted_indices=address(call.sorted_indices),
                batch_sizes=address(call.batch_sizes),
                B=len(call.sorted_indices),
                T=len(call.batch_sizes),
                x=address(x),
                x_row_bytes=x.strides[0],
                x_step_bytes=0,
                out=address(out) + direction * stack.sizes.P * item,
                out_row_bytes=out.strides[0],
                out_step_bytes=0,
                h_0=h_0,
                c_0=c_0,
                h_n=h_n,
                c_n=c_n,
                c=0,
                gates=0,
                workspace=address(call.workspace),
                workspace_bytes=call.workspace.strides[0],
                arrivals=0 if call.arrivals is None else address(call.arrivals[k]),
                shares=len(call.workspace),
            )
        )
    return found


class LSTM(Recurrent):
    """torch.nn.LSTM's forward pass, in evaluation mode.

    Made by :meth:`from_state_dict`, which copies the weights: what becomes of the mapping's arrays later has no effect.
    Outputs are bit-identical whatever else is in the batch, and with any number of threads. Beside its results a call needs
    O(B H) of memory, and for layers upon each other one more array of the output's size. A layer may be called by several
    threads at once, copied and pickled, also to a machine of another CPU level.

    Examples
    --------
    >>> import numpy as np, fastpack
    >>> random = np.random.default_rng(0)
    >>> shapes = {"weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,), "bias_hh_l0": (20,)}
    >>> layer = LSTM.from_state_dict({name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()})
    >>> layer
    LSTM(3, 5, dtype=float32)
    >>> output, (h_n, c_n) = layer(fastpack.pack([np.ones((4, 3), np.float32), np.ones((2, 3), np.float32)]))
    >>> output.data.shape, h_n.shape, c_n.shape
    ((6, 5), (1, 2, 5), (1, 2, 5))
    """

    @classmethod
    def from_state_dict(cls, mapping: Mapping[str, Any], prefix: str = "") -> Self:
        """Make the layer whose weights are in `mapping`.

        Parameters
        ----------
        mapping : mapping of str to array
            With torch's names: `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, `weight_hr_l0`, then `_l1` ..., and
            `_reverse` behind those of the other direction. How many layers and directions there are, whether there are biases
            and a projection, all sizes and the dtype, float32 or float64, follow from them. Such as ``np.load("model.npz")``,
            ``safetensors.numpy.load_file("model.safetensors")`` and ``module.state_dict()``.
        prefix : str
            What stands before these names, as "encoder.rnn."; the mapping's other entries are left alone.

        Raises
        ------
        TypeError
            `mapping` is no mapping, or a weight (named) is no array, not of float32 or float64, or not of the others' dtype.
        ValueError
            A weight (named) is missing, is none of such a layer's, or has a wrong shape.
        """
        return cls._read(blocks.LSTM, mapping, prefix)

    def __call__(self, packed: Packed, state: Any = None, *, num_threads: int = 1) -> tuple[Packed, tuple[Array, Array]]:
        """Run the layers along a packed batch.

        Parameters
        ----------
        packed : Packed
            `data` is (N, input_size), of the layer's dtype, with any strides. Sequences without steps are welcome.
        state : pair of arrays (h_0, c_0), optional
            (L * D, B, P) and (L * D, B, H), in the caller's order of sequences, for L layers of D directions, H the hidden
            size and P the projection's, if there is one, else H. None, for both or for one, is zeros.
        num_threads : int
            How many threads share the sequences, or the hidden units where there are many.

        Returns
        -------
        output : Packed
            `data` is (N, D * P), forward before backward; the other fields are those of `packed`.
        state : pair of arrays (h_n, c_n)
            After each sequence's last step (backward: its first), as `state`; of a sequence without steps its initial state.

        Raises
        ------
        TypeError
            `packed` is no Packed, or it or a state is of another dtype than the layer (both are named).
        ValueError
            `packed` is inconsistent, it or a state has a wrong shape, or `num_threads` is below 1.
        """
        states = (None, None) if state is None else state
        if not isinstance(states, tuple | list) or len(states) != 2:
            raise TypeError(f"state is {checks.described(state)}, but an LSTM's is a pair: pass (h_0, c_0), either None for zeros")
        output, (h_n, c_n) = self._run(packed, states, num_threads)
        return output, (h_n, c_n)


class GRU(Recurrent):
    """torch.nn.GRU's forward pass. All is as with :class:`LSTM`, but the state is the array h, and there is no projection."""

    @classmethod
    def from_state_dict(cls, mapping: Mapping[str, Any], prefix: str = "") -> Self:
        """Make the layer whose weights are in `mapping`: see :meth:`LSTM.from_state_dict`."""
        return cls._read(blocks.GRU, mapping, prefix)

    def __call__(self, packed: Packed, state: Any = None, *, num_threads: int = 1) -> tuple[Packed, Array]:
        """Run the layers along a packed batch, from the state h_0 to the state h_n (L * D, B, H): see :meth:`LSTM.__call__`."""
        output, (h_n,) = self._run(packed, [state], num_threads)
        return output, h_n


class RNN(Recurrent):
    """torch.nn.RNN's forward pass. All is as with :class:`GRU`, but a state dict does not say what its nonlinearity is.

    Examples
    --------
    >>> import numpy as np, fastpack
    >>> one = np.ones((1, 1))
    >>> running_sum = RNN.from_state_dict({"weight_ih_l0": one, "weight_hh_l0": one}, nonlinearity="relu")
    >>> running_sum
    RNN(1, 1, nonlinearity='relu', bias=False, dtype=float64)
    >>> packed = fastpack.pack([np.array([[1.0], [2.0], [3.0]]), np.array([[9.0]])])
    >>> output, h_n = running_sum(packed)
    >>> [sequence.ravel().tolist() for sequence in fastpack.unpack(output)], h_n.ravel().tolist()
    ([[1.0, 3.0, 6.0], [9.0]], [6.0, 9.0])
    """

    @classmethod
    def from_state_dict(cls, mapping: Mapping[str, Any], prefix: str = "", *, nonlinearity: str) -> Self:
        """Make the layer whose weights are in `mapping`: see :meth:`LSTM.from_state_dict`. `nonlinearity` is 'tanh' or 'relu'."""
        return cls._read(NONLINEARITIES[checks.choice(nonlinearity, "nonlinearity", ("tanh", "relu"))], mapping, prefix)

    @property
    def nonlinearity(self) -> str:
        """What is applied to the sums: 'tanh' or 'relu'."""
        return next(name for name, cell in NONLINEARITIES.items() if cell == self._stack.cell)

    def __call__(self, packed: Packed, state: Any = None, *, num_threads: int = 1) -> tuple[Packed, Array]:
        """Run the layers along a packed batch, from the state h_0 to the state h_n (L * D, B, H): see :meth:`LSTM.__call__`."""
        output, (h_n,) = self._run(packed, [state], num_threads)
        return output, h_n
