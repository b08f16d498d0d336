"""Recurrent layers as registered operators over flat tensors, so that torch.compile keeps a model in one graph.

`fastpack::recur` runs layers where no gradients are wanted. Where they are, `fastpack::recur_recorded` runs one layer, and also returns
what the cell computed on the way; of that `fastpack::recur_backward` makes the gradients. To all, a padded batch is time-major; how the
caller has it is a view beside the operator, in the graph.
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
from fastpack.torch.gradients import Record, differentiate
from fastpack.torch.gradients_by_torch import differentiate_by_torch
from fastpack.torch.layout import check_batch_sizes
from fastpack.torch.pages import in_huge_pages
from fastpack.torch.panels import MODES, Settings
from fastpack.torch.recurrence import Call, divided, give_back, gradient_panels_of, prepare, run
from fastpack.torch.rows import HandOver
from fastpack.torch.training import run_one

INPUTS = "Tensor data, Tensor[] layout, Tensor[] states, Tensor[] weights, str mode, int num_layers, bool bias, bool bidirectional"

_library = torch.library.Library("fastpack", "DEF")  # type: ignore[no-untyped-call]
_library.define(f"recur({INPUTS}) -> Tensor[]")  # type: ignore[no-untyped-call]
_library.define(f"recur_recorded({INPUTS}) -> Tensor[]")  # type: ignore[no-untyped-call]
_library.define(f"recur_backward(Tensor?[] gradients, Tensor[] kept, bool[] wanted, {INPUTS}) -> Tensor[]")  # type: ignore[no-untyped-call]

_panels = WeakTensorKeyDictionary()  # by a layer's first weight, what a module would keep


def forward(layer: Any, input: Any, hx: Any) -> Any:
    """Return a layer's output and states, in a graph that torch.compile traces."""
    is_packed = isinstance(input, PackedSequence)
    data, *layout = input if is_packed else (input,)
    states = [] if hx is None else [*hx] if layer.mode == "LSTM" else [hx]
    is_odd = is_packed and (layout[1] is None) != (layout[2] is None)
    if torch.is_autocast_enabled(data.device.type):
        return _outside_the_graph(layer, input, hx)  # the dtypes of its results may depend on the batch sizes: see autocast.py
    if is_odd or not _fit(layer, data, is_packed, states):
        return layer.theirs.forward(layer, input, hx)
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
    return layer.forward(input, hx)


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
    is_recorded = torch.is_grad_enabled() and any([tensor.requires_grad for tensor in (data, *states, *weights)])
    dropped = layer.dropout if layer.training else 0.0
    if not is_recorded and (count == 1 or not dropped):
        found: Sequence[Tensor] = torch.ops.fastpack.recur.default(data, layout, states, weights, mode, count, bias, bidirectional)
        return found
    recur = torch.ops.fastpack.recur_recorded.default if is_recorded else torch.ops.fastpack.recur.default
    each, D, ends = len(weights) // count, 2 if bidirectional else 1, []
    for k in range(count):
        data = dropout(data, dropped, training=True) if k and dropped else data
        begun = [state[k * D : (k + 1) * D] for state in states]
        data, *after = recur(data, layout, begun, weights[k * each : (k + 1) * each], mode, 1, bias, bidirectional)
        ends.append(after[:-1] if is_recorded else after)
    return data, *map(torch.cat, zip(*ends, strict=True))


def _settings(weights: Sequence[Tensor], mode: str, num_layers: int, bias: bool, bidirectional: bool) -> Settings:
    H, P = weights[0].shape[0] // CELLS[MODES[mode]].gates, weights[1].shape[1]
    return Settings(mode, weights[0].shape[1], H, P if P != H else 0, num_layers, bias, bidirectional)


def _layout(layout: Sequence[Tensor]) -> tuple[Tensor | None, ...] | None:
    return (*layout, None, None)[:3] if layout else None


def _recur(data: Tensor, layout: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Tensor], *options: Any) -> list[Tensor]:
    settings = _settings(weights, *options)
    with torch.no_grad():
        try:
            call, _ = _prepare(settings, data, layout, states, weights)
        except HandOver:
            return _by_torch(settings, data, layout, states, weights)
        output, after = run(call)
    return [output, *after]


def _prepare(
    settings: Settings, data: Tensor, layout: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Call, dict[str, Any]]:
    """Return what the kernels need, and what is kept of these weights; raise HandOver where they do not take the call."""
    kept, indices = _panels.setdefault(weights[0], {}), _layout(layout)  # type: ignore[no-untyped-call]
    batch: Any = data if indices is None else tuple.__new__(PackedSequence, (data, *indices))
    return prepare(settings, weights, batch, states, False, kept), kept


def _by_torch(
    settings: Settings, data: Tensor, layout: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    if layout:
        check_batch_sizes(data, layout[0], exactly=True)
        _check_states(settings, layout, states)
    output, after = by_torch.run(settings, weights, data, _layout(layout), states, 0.0)
    return [output, *after]


def _recur_recorded(
    data: Tensor, layout: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Tensor], *options: Any
) -> list[Tensor]:
    settings = _settings(weights, *options)
    items = _computed_items(settings, data)
    with torch.no_grad():
        try:
            call, _ = _prepare(settings, data, layout, states, weights)
        except HandOver:
            return [*_by_torch(settings, data, layout, states, weights), data.new_zeros(items)]
        computed = in_huge_pages(data.new_empty(items))
        work = divided(call.panels.plan, call.rows)
        output, after = run_one(call, 0, work, call.x, computed.data_ptr())
        give_back(work.spare)
    computed[-1] = 1  # by the kernels
    return [output, *after, computed]


def _computed_items(settings: Settings, data: Tensor) -> Any:
    """Return how many items one layer's forward pass leaves for its gradients, and one that tells whether the kernels ran it."""
    cell = CELLS[MODES[settings.mode]]
    rows = data.shape[0] if data.dim() == 2 else data.shape[0] * data.shape[1]
    return rows * (2 if settings.bidirectional else 1) * (cell.saved + cell.has_c) * settings.hidden_size + 1


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


def _fake_recur_recorded(
    data: Tensor, layout: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Tensor], *options: Any
) -> list[Tensor]:
    computed = data.new_empty(_computed_items(_settings(weights, *options), data))
    return [*_fake_recur(data, layout, states, weights, *options), computed]


def _autograd_included() -> Any:
    """Have autograd see operations also where an operator's implementation runs below it, as in AOTAutograd's graphs.

    There it records nothing, or leaves out what changes a view in place, and gradients are wrong without a word.
    """
    include, exclude = _dispatch_tls_local_include_set(), _dispatch_tls_local_exclude_set()
    for key in (DispatchKey.AutogradFunctionality, DispatchKey.AutogradOther, DispatchKey.AutogradNestedTensor):
        exclude = exclude.remove(key)
    return _ForceDispatchKeyGuard(include.add(DispatchKey.ADInplaceOrView), exclude)


def _recur_backward(
    gradients: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    data: Tensor,
    layout: Sequence[Tensor],
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    *options: Any,
) -> list[Tensor]:
    settings = _settings(weights, *options)
    with torch.no_grad():
        found = _by_kernels(settings, gradients, kept, wanted, data, layout, states, weights)
    if found is None:
        count = 1 + len(states)

        def again(used: Sequence[Tensor]) -> list[Tensor]:
            return _by_torch(settings, used[0], layout, used[1:count], used[count:])

        with torch.no_grad(), _autograd_included():
            found = differentiate_by_torch(again, (data, *states, *weights), gradients, wanted)
        # copies: two gradients may share their memory, and an operator's results never do
        found = [None if one is None else one.clone(memory_format=torch.contiguous_format) for one in found]
    return [
        source.new_zeros(source.shape if wish else (0,)) if one is None else one
        for source, one, wish in zip((data, *states, *weights), found, wanted, strict=True)
    ]


def _by_kernels(
    settings: Settings,
    gradients: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    data: Tensor,
    layout: Sequence[Tensor],
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> list[Tensor | None] | None:
    """Return gradients, None for those that are not wanted; or None, where the kernels do not take the call or did not run it."""
    output, computed = kept
    if not bool(computed[-1]):
        return None
    try:
        call, own = _prepare(settings, data, layout, states, weights)
        panels = gradient_panels_of(call, own)
    except HandOver:
        return None
    left = [computed[:-1]] if call.panels.plan.saved_items else []
    saved = data, *states, output, *left, *weights
    record = Record(panels, 0, call.rows, len(states), [tensor.shape for tensor in saved[: len(saved) - len(weights)]], own)
    return differentiate(record, saved, gradients, wanted)


def _fake_recur_backward(
    gradients: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    data: Tensor,
    layout: Sequence[Tensor],
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    *options: Any,
) -> list[Tensor]:
    return [source.new_empty(source.shape if wish else (0,)) for source, wish in zip((data, *states, *weights), wanted, strict=True)]


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    data, layout, states, weights, *ctx.options = inputs
    ctx.counts = len(layout), len(states), len(weights)
    ctx.save_for_backward(output[0], output[-1], data, *layout, *states, *weights)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, gradients: Sequence[Tensor | None]) -> Any:
    (output, computed, data, *rest), (indices, states, _) = ctx.saved_tensors, ctx.counts
    parts = rest[:indices], rest[indices : indices + states], rest[indices + states :]
    needs_data, _, needs_states, needs_weights, *_ = ctx.needs_input_grad
    wanted = [needs_data, *needs_states, *needs_weights]
    arguments = [*gradients[:-1]], [output, computed], wanted, data, *parts, *ctx.options
    found = torch.ops.fastpack.recur_backward.default(*arguments)
    d_data, *d_rest = [one if wish else None for one, wish in zip(found, wanted, strict=True)]
    return d_data, [None] * indices, d_rest[:states], d_rest[states:], *(None for _ in ctx.options)


def _refuse(ctx: Any, gradients: Sequence[Tensor]) -> Any:
    raise RuntimeError("fastpack::recur has no derivative: fastpack::recur_recorded, for one layer, has")


def _refuse_again(ctx: Any, gradients: Sequence[Tensor]) -> Any:
    raise RuntimeError("a compiled layer has no second derivative: call the layer without torch.compile, which has")


for _name, _function, _fake in (
    ("recur", _recur, _fake_recur),
    ("recur_recorded", _recur_recorded, _fake_recur_recorded),
    ("recur_backward", _recur_backward, _fake_recur_backward),
):
    _library.impl(_name, _function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"fastpack::{_name}", _fake, lib=_library)
torch.library.register_autograd("fastpack::recur", _refuse, lib=_library)
torch.library.register_autograd("fastpack::recur_backward", _refuse_again, lib=_library)
torch.library.register_autograd("fastpack::recur_recorded", _differentiate, setup_context=_save, lib=_library)
