"""Recurrent layers as registered operators over flat tensors, so that torch.compile keeps a model in one graph.

`fastpack::recur` runs layers forward, `fastpack::recur_backward` finds their gradients, by torch's own function. To both, a padded
batch is time-major; how the caller has it is a view beside the operator, in the graph.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, _dispatch_tls_local_exclude_set, _dispatch_tls_local_include_set, _ForceDispatchKeyGuard
from torch._compile import _disable_dynamo
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence
from torch.utils.weak import WeakTensorKeyDictionary

from fastpack.cells import CELLS
from fastpack.torch import by_torch
from fastpack.torch.layout import check_batch_sizes
from fastpack.torch.panels import MODES, Settings
from fastpack.torch.recurrence import prepare, run
from fastpack.torch.rows import HandOver

INPUTS = "Tensor data, Tensor[] layout, Tensor[] states, Tensor[] weights, str mode, int num_layers, bool bias, bool bidirectional"

_library = torch.library.Library("fastpack", "DEF")  # type: ignore[no-untyped-call]
_library.define(f"recur({INPUTS}) -> Tensor[]")  # type: ignore[no-untyped-call]
_library.define(f"recur_backward(Tensor[] gradients, {INPUTS}) -> Tensor[]")  # type: ignore[no-untyped-call]

_panels = WeakTensorKeyDictionary()  # by a layer's first weight, what a module would keep


def forward(layer: Any, input: Any, hx: Any) -> Any:
    """Return a layer's output and states, in a graph that torch.compile traces."""
    is_packed = isinstance(input, PackedSequence)
    data, *layout = input if is_packed else (input,)
    states = [] if hx is None else [*hx] if layer.mode == "LSTM" else [hx]
    is_odd = is_packed and (layout[1] is None) != (layout[2] is None)
    if is_odd or torch.is_autocast_enabled(data.device.type) or not _fit(layer, data, is_packed, states):
        # AOTAutograd cannot record oneDNN's LSTM, whose last result is None
        is_untraceable = layer.mode == "LSTM" and not is_packed and torch.is_grad_enabled()
        return _outside_the_graph(layer, input, hx) if is_untraceable else layer.theirs.forward(layer, input, hx)
    weights = [getattr(layer, name) for name in layer._flat_weights_names]
    is_single = not is_packed and data.dim() == 2
    if is_single:
        data, states = data.unsqueeze(1), [state.unsqueeze(1) for state in states]
    elif not is_packed and layer.batch_first:
        data = data.transpose(0, 1)
    output, *after = _stacked(layer, data, [index for index in layout if index is not None], states, weights)
    if is_single:
        output, after = output.squeeze(1), [state.squeeze(1) for state in after]
    elif not is_packed and layer.batch_first:
        output = output.transpose(0, 1)
    return PackedSequence(output, *layout) if is_packed else output, tuple(after) if layer.mode == "LSTM" else after[0]


@_disable_dynamo  # torch.compiler.disable would import dynamo, all of it, with this module
def _outside_the_graph(layer: Any, input: Any, hx: Any) -> Any:
    return layer.theirs.forward(layer, input, hx)


def _fit(layer: Any, data: Tensor, is_packed: bool, states: list[Tensor]) -> bool:
    """Whether arguments are what torch's own forward function would take; it says so itself where they are not."""
    dims = data.dim()
    if dims not in ((2,) if is_packed else (2, 3)) or data.shape[-1] != layer.input_size or data.dtype != layer.weight_ih_l0.dtype:
        return False
    if not states:
        return True
    shapes = by_torch.state_shapes(by_torch.settings_of(layer), 0)
    if len(states) != len(shapes):
        return False
    for state, shape in zip(states, shapes, strict=True):
        sizes = shape if is_packed or dims == 3 else (shape[0], shape[2])
        if state.dim() != len(sizes) or state.shape[0] != sizes[0] or state.shape[-1] != sizes[-1]:
            return False
        if dims == 3 and state.shape[1] != data.shape[0 if layer.batch_first else 1]:
            return False
    return True


def _stacked(layer: Any, data: Tensor, layout: list[Tensor], states: list[Tensor], weights: list[Tensor]) -> Sequence[Tensor]:
    mode, count, bias, bidirectional = layer.mode, layer.num_layers, layer.bias, layer.bidirectional
    recur = torch.ops.fastpack.recur.default
    if count == 1 or not (layer.training and layer.dropout):
        found: Sequence[Tensor] = recur(data, layout, states, weights, mode, count, bias, bidirectional)
        return found
    each, D, ends = len(weights) // count, 2 if bidirectional else 1, []
    for k in range(count):
        data = dropout(data, layer.dropout, training=True) if k else data
        begun = [state[k * D : (k + 1) * D] for state in states]
        data, *after = recur(data, layout, begun, weights[k * each : (k + 1) * each], mode, 1, bias, bidirectional)
        ends.append(after)
    return data, *map(torch.cat, zip(*ends, strict=True))


def _settings(weights: Sequence[Tensor], mode: str, num_layers: int, bias: bool, bidirectional: bool) -> Settings:
    H, P = weights[0].shape[0] // CELLS[MODES[mode]].gates, weights[1].shape[1]
    return Settings(mode, weights[0].shape[1], H, P if P != H else 0, num_layers, bias, bidirectional)


def _layout(layout: Sequence[Tensor]) -> tuple[Tensor | None, ...] | None:
    return (*layout, None, None)[:3] if layout else None


def _recur(data: Tensor, layout: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Tensor], *options: Any) -> list[Tensor]:
    settings, indices = _settings(weights, *options), _layout(layout)
    with torch.no_grad():
        try:
            kept = _panels.setdefault(weights[0], {})  # type: ignore[no-untyped-call]
            call = prepare(settings, weights, PackedSequence(data, *indices) if indices else data, states, False, kept)
        except HandOver:
            if indices:
                check_batch_sizes(data, layout[0], exactly=True)
                _check_states(settings, layout, states)
            output, after = by_torch.run(settings, weights, data, indices, states, 0.0)
        else:
            output, after = run(call)
    return [output, *after]


def _check_states(settings: Settings, layout: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    """Check that states have as many rows as there are sequences: they tell the sizes of the results where a graph is traced."""
    B = layout[1].shape[0] if len(layout) > 1 else by_torch.count_full(layout[0])
    for state, shape in zip(states, by_torch.state_shapes(settings, B), strict=False):
        if state.shape != shape:
            raise RuntimeError(f"Expected hidden size {shape}, got {list(state.shape)}")


def _fake_recur(data: Tensor, layout: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Tensor], *options: Any) -> list[Tensor]:
    settings = _settings(weights, *options)
    if not layout:
        B: Any = data.shape[1]
    elif len(layout) > 1 or states:
        B = layout[1].shape[0] if len(layout) > 1 else states[0].shape[1]
    else:  # the first batch size, which is no tensor's shape
        B = torch.library.get_ctx().new_dynamic_size()
    shapes = by_torch.state_shapes(settings, B)
    width = shapes[0][2] * (2 if settings.bidirectional else 1)
    return [data.new_empty(*data.shape[:-1], width), *(data.new_empty(shape) for shape in shapes)]


def _autograd_included() -> Any:
    """Have autograd see operations also where an operator's implementation runs below it, as in AOTAutograd's graphs.

    There it records nothing, or leaves out what changes a view in place, and gradients are wrong without a word.
    """
    include, exclude = _dispatch_tls_local_include_set(), _dispatch_tls_local_exclude_set()
    for key in (DispatchKey.AutogradFunctionality, DispatchKey.AutogradOther, DispatchKey.AutogradNestedTensor):
        exclude = exclude.remove(key)
    return _ForceDispatchKeyGuard(include.add(DispatchKey.ADInplaceOrView), exclude)


def _recur_backward(
    gradients: Sequence[Tensor], data: Tensor, layout: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Tensor], *options: Any
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in (data, *states, *weights)]
    with torch.enable_grad(), _autograd_included():
        begun, used = leaves[1 : 1 + len(states)], leaves[1 + len(states) :]
        output, after = by_torch.run(_settings(weights, *options), used, leaves[0], _layout(layout), begun, 0.0)
    reached = [(one, gradient) for one, gradient in zip([output, *after], gradients, strict=True) if one.requires_grad]
    found = torch.autograd.grad([one for one, _ in reached], leaves, [gradient for _, gradient in reached], allow_unused=True)
    # copies: two gradients may share their memory, and an operator's results never do
    return [
        leaf.new_zeros(leaf.shape) if gradient is None else gradient.clone(memory_format=torch.contiguous_format)
        for leaf, gradient in zip(leaves, found, strict=True)
    ]


def _fake_recur_backward(
    gradients: Sequence[Tensor], data: Tensor, layout: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Tensor], *options: Any
) -> list[Tensor]:
    return [tensor.new_empty(tensor.shape) for tensor in (data, *states, *weights)]


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    data, layout, states, weights, *ctx.options = inputs
    ctx.counts = len(layout), len(states), len(weights)
    ctx.save_for_backward(data, *layout, *states, *weights)


def _differentiate(ctx: Any, gradients: Sequence[Tensor]) -> Any:
    (data, *rest), (indices, states, _) = ctx.saved_tensors, ctx.counts
    parts = rest[:indices], rest[indices : indices + states], rest[indices + states :]
    d_data, *d_rest = torch.ops.fastpack.recur_backward.default(gradients, data, *parts, *ctx.options)
    return d_data, [None] * indices, d_rest[:states], d_rest[states:], *(None for _ in ctx.options)


for _name, _function, _fake in (("recur", _recur, _fake_recur), ("recur_backward", _recur_backward, _fake_recur_backward)):
    _library.impl(_name, _function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"fastpack::{_name}", _fake, lib=_library)
torch.library.register_autograd("fastpack::recur", _differentiate, setup_context=_save, lib=_library)
