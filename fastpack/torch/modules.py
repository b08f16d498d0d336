"""LSTM, GRU and RNN: torch.nn's modules, whose forward and backward passes are the kernels'."""

from operator import is_, itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastpack.torch import autocast, by_torch, operators, recurrence, training
from fastpack.torch.bridge import path_of
from fastpack.torch.panels import Settings
from fastpack.torch.recurrence import Call, prepare
from fastpack.torch.rows import HandOver

KEPT = "_fastpack"  # the name under which a module, in its __dict__, keeps what it need not work out anew at each call
_settings = itemgetter(*Settings._fields)


class Layer(nn.RNNBase):
    """What LSTM, GRU and RNN have in common.

    It has no state beside torch's but the panels, which need not be there: a module of torch's becomes one of ours, and one of
    ours torch's, when its `__class__` does (see `accelerate`). It derives from torch.nn's base and not from its LSTM, GRU or
    RNN, as torch.compile breaks the graph at instances of these, whatever their forward is.
    """

    theirs: ClassVar[type[nn.RNNBase]]  # the class of torch's

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run the layers along a batch of sequences.

        Parameters
        ----------
        input : PackedSequence, or Tensor (T, B, F), (B, T, F) where `batch_first`, or (T, F)
            A packed batch may hold sequences without any row, which keep their initial state.
        hx : Tensor (L * D, B, H), or pair of them for an LSTM, optional
            The initial states, in the caller's order; zeros if None.

        Returns
        -------
        output : PackedSequence or Tensor
            As the input, D * H wide. A PackedSequence shares the input's batch sizes and indices. Where gradients are recorded
            they are made from it, so it must not be changed in place before the backward pass, which says so otherwise. torch's
            own layers ask for this in float32 LSTMs over padded batches alone.
        h_n : Tensor (L * D, B, H), or pair (h_n, c_n) for an LSTM
            The states after each sequence's last step, in the caller's order.
        """
        if torch.compiler.is_compiling():
            if torch.compiler.is_exporting():  # an exported program is to run without us
                return self.theirs.forward(self, input, hx)
            return operators.forward(self, input, hx)
        try:
            call: Call | None = self._prepare(input, hx)
        except HandOver:
            call = None
        if call is None:
            return by_torch.forward(self, self.theirs, input, hx)
        run = training.run if call.gradient_panels else recurrence.run
        output, states = run(call, self.dropout if self.training and self.dropout else 0.0)
        if call.dtypes:
            output, *states = map(Tensor.to, (output, *states), call.dtypes)
        after = tuple(states) if self.mode == "LSTM" else states[0]
        if isinstance(input, PackedSequence):
            return tuple.__new__(PackedSequence, (output, *input[1:])), after  # past its checks, which cost as much as the kernel
        return output.transpose(0, 1) if self.batch_first and output.dim() == 3 else output, after

    def _prepare(self, input: Any, hx: Any) -> Call:
        """Return what the kernels need; raise HandOver where they do not take the call."""
        if not all(map(is_, map(self._parameters.get, self._flat_weights_names), self._flat_weights)):
            self._update_flat_weights()  # a weight was replaced past __setattr__, or is no parameter
        if hx is None:
            states: Any = ()
        elif self.mode != "LSTM":
            states = (hx,)
        elif isinstance(hx, (tuple, list)) and len(hx) == 2:
            states = hx
        else:
            raise HandOver("torch: the initial states of an LSTM are no pair")
        own = self.__dict__
        kept, settings, weights = own.get(KEPT) or own.setdefault(KEPT, {}), _settings(own), self._flat_weights
        if not torch.is_autocast_enabled("cpu"):
            return prepare(settings, weights, input, states, self.batch_first, kept)
        wide = autocast.widened(weights, input, states)
        call = prepare(settings, weights, *wide, self.batch_first, kept)
        return call._replace(dtypes=autocast.dtypes_of(settings, input, states))

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop(KEPT, None)
        return state

    def __prepare_scriptable__(self) -> nn.RNNBase:
        # what torch.jit.script compiles in place of this module: torch's own, which shares its parameters
        twin = self.theirs.__new__(self.theirs)
        twin.__setstate__(self.__getstate__())  # type: ignore[no-untyped-call]
        return twin


class LSTM(Layer):
    """torch.nn.LSTM by fastpack's kernels, where they take the call (see :func:`path`), and else by torch's own functions.

    Parameters
    ----------
    input_size, hidden_size : int
    num_layers : int
    bias, batch_first : bool
    dropout : float
    bidirectional : bool
    proj_size : int
    device, dtype : optional
        As torch.nn.LSTM, which also says what the weights are called and how they are initialised: state dicts fit both.

    Examples
    --------
    >>> from fastpack.torch import pack_sequence
    >>> layer = LSTM(3, 5)
    >>> packed = pack_sequence([torch.ones(4, 3), torch.ones(2, 3)])
    >>> with torch.inference_mode():
    ...     output, (h_n, c_n) = layer(packed)
    >>> output.data.shape, h_n.shape, c_n.shape
    (torch.Size([6, 5]), torch.Size([1, 2, 5]), torch.Size([1, 2, 5]))
    """

    theirs = nn.LSTM
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)


class GRU(Layer):
    """torch.nn.GRU, likewise: see :class:`LSTM`. It has no `proj_size`."""

    theirs = nn.GRU

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)


class RNN(Layer):
    """torch.nn.RNN, likewise: see :class:`LSTM`. It has no `proj_size`; after `num_layers` comes `nonlinearity`, 'tanh' or 'relu'."""

    theirs = nn.RNN

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        self.nonlinearity = args[3] if len(args) > 3 else kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args[:3], *args[4:], **kwargs)


def path(*arguments: Any) -> str:
    """Return which code a call runs: 'kernels', or 'torch: ' and why it is torch's own functions.

    Parameters
    ----------
    *arguments : Tensors; or a layer, its input and, optionally, its initial states
        Of a list of short sequences the kernels also take lazy ones, as these are joined first, which resolves them.

    Returns
    -------
    str

    Examples
    --------
    >>> path(torch.zeros(2, 3))
    'kernels'
    >>> path(torch.zeros(2, 3, device="meta"))
    'torch: a tensor is on meta'
    >>> path(LSTM(3, 5), torch.zeros(4, 1, 3))
    'kernels'
    >>> path(LSTM(3, 5).bfloat16(), torch.zeros(4, 1, 3).bfloat16())
    'torch: there are tensors of torch.bfloat16, not all of torch.float32 or torch.float64'
    """
    if not arguments or not isinstance(arguments[0], nn.Module):
        return path_of(arguments)
    layer, given, hx = (*arguments, None, None)[:3]
    if not isinstance(layer, Layer):
        return f"torch: the layer is a {type(layer).__module__}.{type(layer).__name__}"
    try:
        layer._prepare(given, hx)
    except HandOver as reason:
        return str(reason)
    return "kernels"
