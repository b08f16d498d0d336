"""Calls of recurrent layers whose gradients are wanted: each layer is one operation to autograd, its backward pass the kernels'.

Saved for it are, beside a layer's input, output, weights and initial states, what the cell computed on the way: of an LSTM its four
gates and c, of a GRU its three gates and a sum, 5 * N * H and 4 * N * H items a direction; of an RNN nothing. They are saved as
torch's own functions save theirs, so its version counters, freed graphs, hooks on saved tensors and checkpoints hold for them too.

The function is of the style with `ctx` in forward: see autograd.py.
"""

from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import dropout

from fastpack.torch.bridge import is_eager
from fastpack.torch.gradients import Record, check_saved, differentiate
from fastpack.torch.gradients_by_torch import differentiate_by_torch, run_by_torch
from fastpack.torch.pages import in_huge_pages
from fastpack.torch.recurrence import Call, Work, divided, give_back, run_layer

_requires_grad, _shape = attrgetter("requires_grad"), attrgetter("shape")


def run(call: Call, dropped: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """Return what `recurrence.run` does, recorded for gradients. Layers of which nothing requires any are run plainly."""
    plan, x, ends = call.panels.plan, call.x, []
    L, D, work, each = plan.L, plan.D, divided(plan, call.rows), len(call.weights) // plan.L
    for layer in range(L):
        if layer and dropped:
            x = dropout(x, dropped, training=True)
        states = call.states if L == 1 else [state[layer * D : (layer + 1) * D] for state in call.states]
        tensors = *states, *call.weights[layer * each : (layer + 1) * each]
        if x.requires_grad or any(map(_requires_grad, tensors)):
            x, *after = _recorded(call, layer, work, x, *tensors)  # type: ignore[no-untyped-call]
        else:
            x, after = run_one(call, layer, work, x, 0)
        ends.append(after)
    give_back(work.spare)
    return x, ends[0] if L == 1 else [*map(torch.cat, zip(*ends, strict=True))]


def run_one(call: Call, layer: int, work: Work, x: Tensor, saved: int) -> tuple[Tensor, list[Tensor]]:
    """Return a layer's output and states; at the address `saved` is memory for what gradients need, or it is 0."""
    plan, rows = call.panels.plan, call.rows
    new, D = x.new_empty, plan.D
    out, after = in_huge_pages(new(*rows.out_shape, D * plan.P)), [new(D, *shape[1:]) for shape in call.state_shapes]
    source = (x.data_ptr(), plan.row_bytes, 0) if layer else (rows.address, rows.row_bytes, rows.step_bytes)
    run_layer(call, layer, work, source, out.data_ptr(), [*map(Tensor.data_ptr, after)], saved)
    return out, after


class _Layer(Function):
    @staticmethod
    def forward(ctx: Any, call: Call, layer: int, work: Work, x: Tensor, *tensors: Tensor) -> Any:
        plan, count = call.panels.plan, len(call.states)
        items = plan.D * call.rows.N * plan.saved_items
        computed = [in_huge_pages(x.new_empty(items))] if items else []
        out, after = run_one(call, layer, work, x, computed[0].data_ptr() if items else 0)
        saved = x, *tensors[:count], out, *computed
        ctx.save_for_backward(*saved, *tensors[count:])
        ctx.record = Record(call.gradient_panels, layer, call.rows, count, [*map(_shape, saved)], call.kept)
        ctx.set_materialize_grads(False)
        return out, *after

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[3:]  # raises, as torch does, where the graph was freed before
        found = None
        if not torch.is_grad_enabled() and is_eager():
            found = differentiate(ctx.record, saved, gradients, wanted)
        if found is None:
            check_saved(ctx.record, saved)
            count = ctx.record.states
            sources = *saved[: 1 + count], *saved[1 + count - len(wanted) :]
            found = differentiate_by_torch(partial(run_by_torch, ctx.record), sources, gradients, wanted)
        return None, None, None, *found


# past what Function.apply does for transforms, which never get here: see recurrence.prepare
_recorded = super(Function, _Layer).apply
# and past what torch's nodes do to find out whether this function is called `backward` or `vjp`: 1 us of 90 that a small step takes
_Layer._backward_cls.apply = _Layer.backward  # type: ignore[attr-defined]
