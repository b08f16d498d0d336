"""Making the recurrent layers of a model ours, and torch's again."""

import warnings
from typing import TypeVar

import torch
from torch import nn

from fastpack.torch.modules import GRU, LSTM, RNN, Layer
from fastpack.torch.panels import KEPT
from fastpack.torch.rows import DTYPES

OURS: dict[type[nn.Module], type[Layer]] = {layer.theirs: layer for layer in (LSTM, GRU, RNN)}

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Have the kernels run every torch.nn.LSTM, GRU and RNN of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place; it may be such a layer itself. Its layers become instances of this package's classes: the same
        objects, with the same parameters, hooks, mode and names in the state dict. They are no instances of torch.nn.LSTM,
        GRU or RNN any more, but of their base, torch.nn.RNNBase.

    Returns
    -------
    torch.nn.Module
        The same model.

    Warns
    -----
    UserWarning
        Some recurrent layers are left as they are. It names them and says why.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 5))
    >>> type(accelerate(model)[1]), list(model.state_dict())[2:]
    (<class 'fastpack.torch.modules.GRU'>, ['1.weight_ih_l0', '1.weight_hh_l0', '1.bias_ih_l0', '1.bias_hh_l0'])
    >>> type(restore(model)[1])
    <class 'torch.nn.modules.rnn.GRU'>
    """
    left = []
    for name, module in model.named_modules():
        why_not = _obstacle(module)
        if why_not:
            left.append(f"{name or 'the model itself'} {why_not}")
        elif type(module) in OURS:
            module.__class__ = OURS[type(module)]
    if left:
        warnings.warn(f"fastpack leaves recurrent layers as they are: {'; '.join(left)}", stacklevel=2)
    return model


def restore(model: Model) -> Model:
    """Make every layer of this package's in a model one of torch.nn's again, whether `accelerate` made it or a constructor.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    torch.nn.Module
        The same model.
    """
    theirs: dict[type[nn.Module], type[nn.Module]] = {ours: torch_class for torch_class, ours in OURS.items()}
    for module in model.modules():
        if type(module) in theirs:
            module.__dict__.pop(KEPT, None)
            module.__class__ = theirs[type(module)]
    return model


def _obstacle(module: nn.Module) -> str:
    """Say why a recurrent layer is not to be changed; '' where it is, where it is ours already, and of any other module."""
    kind = type(module)
    if isinstance(module, Layer):
        return ""
    if kind not in OURS:
        if isinstance(module, torch.jit.ScriptModule):
            return "is a scripted module" if getattr(module, "original_name", "") in ("LSTM", "GRU", "RNN") else ""
        if isinstance(module, nn.RNNBase):
            return f"is a {kind.__name__}, a subclass of torch's"
        if kind.__module__.startswith("torch.ao.nn") and kind.__name__ in ("LSTM", "GRU", "RNN"):
            return f"is a quantised {kind.__name__}"
        return ""
    if "forward" in module.__dict__:
        return "has a forward function of its own"
    for weight in module.parameters():
        if not (weight.is_cpu or weight.is_meta):  # a model that is made on meta moves to a real device later
            return f"is on {weight.device}"
        if weight.dtype not in DTYPES:
            return f"is of {weight.dtype}"
    return ""
